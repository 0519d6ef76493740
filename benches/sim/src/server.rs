//! One server: some cores, a speed that changes, and the calls it works on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// Nanoseconds since the simulation began.
pub type Time = u64;

pub const SECOND: Time = 1_000_000_000;

/// So many seconds.
pub fn seconds(seconds: f64) -> Time {
    (seconds * SECOND as f64) as Time
}

/// How a server divides its work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// A core works on one call until it is done; the others queue.
    FirstComeFirstServed,
    /// All calls at once; nobody queues, and calls that were given up are worked on to their end.
    Shared,
}

/// Kept in work that each call under way has been given, so that a change of speed changes no call.
#[derive(Debug)]
pub struct Server {
    order: Order,
    cores: usize,
    speed: f64,
    /// Seconds of work that each call under way would have been given since the beginning.
    given: f64,
    at: Time,
    /// When `given` reaches this, the call is done.
    under_way: BinaryHeap<Reverse<(Mark, u32)>>,
    queue: VecDeque<(f64, u32)>,
    /// Tells an event about this server from those that were told before something changed.
    pub generation: u32,
    /// Whether it answers at once that it cannot.
    pub fails: bool,
    meter: Meter,
    /// When a call was done, how many were there when it came, and how many seconds it was there.
    lately: VecDeque<(Time, u32, f64)>,
}

/// What a server can say of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Calls that it has.
    pub in_flight: u32,
    /// In seconds: how long calls take that come while it has so many; 0 where nothing is known.
    pub latency: f64,
    /// The part of its cores that is busy.
    pub busy: f64,
    /// Calls, and failures among them, a second.
    pub calls: f64,
    pub failures: f64,
}

/// Counts for a second, and then tells what is usual.
#[derive(Debug, Default)]
struct Meter {
    since: Time,
    core_seconds: f64,
    calls: u32,
    failures: u32,
    usual: Option<Report>,
}

/// So many calls are remembered, and so many of them that are most alike say what is usual.
const LATELY: usize = 32;
const NEAR: usize = 8;

/// A positive number of seconds, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mark(u64);

impl Server {
    pub fn new(order: Order, cores: usize, speed: f64) -> Self {
        Self {
            order,
            cores,
            speed,
            given: 0.0,
            at: 0,
            under_way: BinaryHeap::new(),
            queue: VecDeque::new(),
            generation: 0,
            fails: false,
            meter: Meter::default(),
            lately: VecDeque::new(),
        }
    }

    /// A call is answered that came when there were so many, so many seconds ago.
    pub fn answered(&mut self, there: u32, took: f64, now: Time) {
        self.meter.calls += 1;
        self.lately.push_back((now, there, took));
        if self.lately.len() > LATELY {
            self.lately.pop_front();
        }
    }

    /// A call is refused.
    pub fn failed(&mut self, now: Time) {
        self.reach(now);
        self.meter.calls += 1;
        self.meter.failures += 1;
    }

    pub fn in_flight(&self) -> u32 {
        (self.under_way.len() + self.queue.len()) as u32
    }

    /// What it says of itself; nothing while it stands still.
    pub fn report(&mut self, now: Time) -> Option<Report> {
        self.reach(now);
        let usual = self.meter.usual.unwrap_or_default();
        (self.speed > 0.0).then(|| Report {
            in_flight: self.in_flight(),
            ..usual
        })
    }

    /// The median of those of late that came when it had about as many calls as it has.
    pub fn latency(&self, now: Time) -> f64 {
        let mine = self.in_flight();
        let lately = self.lately.iter();
        let fresh = lately.filter(|(at, ..)| now - at < SECOND);
        let mut near: Vec<(u32, f64)> = fresh
            .map(|&(_, there, took)| (there.abs_diff(mine), took))
            .collect();
        near.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        near.truncate(NEAR);
        let mut took: Vec<f64> = near.into_iter().map(|(_, took)| took).collect();
        took.sort_unstable_by(f64::total_cmp);
        took.get(took.len() / 2).copied().unwrap_or(0.0)
    }

    /// From now on.
    pub fn runs_at(&mut self, speed: f64, now: Time) {
        self.reach(now);
        self.speed = speed;
    }

    pub fn takes(&mut self, call: u32, work: f64, now: Time) {
        self.reach(now);
        if self.order == Order::Shared || self.under_way.len() < self.cores {
            self.begin(call, work);
        } else {
            self.queue.push_back((work, call));
        }
    }

    /// A call that is done by now, if any is. Those in the queue that nobody `wants` any more are passed over.
    pub fn done(&mut self, now: Time, wants: impl Fn(u32) -> bool) -> Option<u32> {
        self.reach(now);
        let Reverse((mark, call)) = *self.under_way.peek()?;
        if f64::from_bits(mark.0) > self.given + 1e-10 {
            return None;
        }
        self.under_way.pop();
        while self.under_way.len() < self.cores
            && let Some((work, next)) = self.queue.pop_front()
        {
            if wants(next) {
                self.begin(next, work);
            }
        }
        Some(call)
    }

    /// When the next call is done, if nothing changes.
    pub fn next(&self) -> Option<Time> {
        let Reverse((mark, _)) = self.under_way.peek()?;
        let rate = self.rate();
        let left = (f64::from_bits(mark.0) - self.given).max(0.0);
        (rate > 0.0).then(|| self.at + (left / rate * SECOND as f64).ceil() as Time)
    }

    /// How long a call of this size would take if it came now and nothing changed: what nobody can know.
    pub fn outlook(&self, work: f64) -> f64 {
        if self.fails {
            return f64::INFINITY;
        }
        let ahead = self.under_way.len() + self.queue.len();
        let queued: f64 = self.queue.iter().map(|(work, _)| work).sum();
        let running = |Reverse((mark, _)): &Reverse<(Mark, u32)>| {
            (f64::from_bits(mark.0) - self.given).max(0.0)
        };
        let speed = self.speed.max(1e-3);
        if self.order == Order::Shared {
            return work / speed * ((ahead + 1) as f64 / self.cores as f64).max(1.0);
        }
        let wait = if ahead < self.cores {
            0.0
        } else {
            (self.under_way.iter().map(running).sum::<f64>() + queued) / self.cores as f64
        };
        (wait + work) / speed
    }

    fn begin(&mut self, call: u32, work: f64) {
        let mark = Mark((self.given + work).to_bits());
        self.under_way.push(Reverse((mark, call)));
    }

    fn reach(&mut self, now: Time) {
        let busy = self.under_way.len().min(self.cores) as f64;
        let by = now - self.at;
        self.meter
            .pass(busy * by as f64 / SECOND as f64, self.cores, now);
        self.given += (now - self.at) as f64 / SECOND as f64 * self.rate();
        self.at = now;
    }

    /// Seconds of work that each call under way is given in a second.
    fn rate(&self) -> f64 {
        let crowd = self.under_way.len() as f64 / self.cores as f64;
        match self.order {
            Order::Shared => self.speed / crowd.max(1.0),
            Order::FirstComeFirstServed => self.speed,
        }
    }
}

impl Meter {
    fn pass(&mut self, core_seconds: f64, cores: usize, now: Time) {
        self.core_seconds += core_seconds;
        let seconds = (now - self.since) as f64 / SECOND as f64;
        if seconds < 1.0 {
            return;
        }
        let last = Report {
            busy: self.core_seconds / seconds / cores as f64,
            calls: f64::from(self.calls) / seconds,
            failures: f64::from(self.failures) / seconds,
            ..Report::default()
        };
        let before = self.usual.unwrap_or(last);
        let mean = |of: fn(&Report) -> f64| f64::midpoint(of(&before), of(&last));
        *self = Self {
            since: now,
            usual: Some(Report {
                busy: mean(|report| report.busy),
                calls: mean(|report| report.calls),
                failures: mean(|report| report.failures),
                ..last
            }),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_tells_what_it_does() {
        let mut server = Server::new(Order::FirstComeFirstServed, 2, 1.0);
        for (call, at) in [(0, 0), (1, SECOND), (2, 2 * SECOND)] {
            server.takes(call, 0.5, at);
            let end = server.next().unwrap();
            server.done(end, |_| true);
            server.answered(1, 0.5, end);
        }

        let report = server.report(3 * SECOND).unwrap();

        assert!((report.busy - 0.25).abs() < 1e-6, "{report:?}");
        assert!((report.calls - 1.0).abs() < 1e-6, "{report:?}");
        assert!((server.latency(3 * SECOND) - 0.5).abs() < 1e-9);
        assert_eq!(report.in_flight, 0);
        server.runs_at(0.0, 3 * SECOND);
        assert!(server.report(3 * SECOND).is_none(), "it stands still");
    }

    /// When each of these calls of a second's work is done, all of which come at the beginning.
    fn ends(mut server: Server, calls: u32) -> Vec<f64> {
        (0..calls).for_each(|call| server.takes(call, 1.0, 0));
        let mut ends = Vec::new();
        while let Some(next) = server.next() {
            while server.done(next, |_| true).is_some() {
                ends.push(next as f64 / SECOND as f64);
            }
        }
        ends
    }

    fn close(ends: &[f64], should: &[f64]) {
        let close = ends.iter().zip(should).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close && ends.len() == should.len(), "{ends:?}");
    }

    #[test]
    fn who_comes_first_is_served_first_on_each_core() {
        let server = Server::new(Order::FirstComeFirstServed, 2, 0.5);

        close(&ends(server, 5), &[2.0, 2.0, 4.0, 4.0, 6.0]);
    }

    #[test]
    fn shared_cores_end_all_late() {
        let server = Server::new(Order::Shared, 2, 1.0);

        close(&ends(server, 4), &[2.0; 4]);
    }

    #[test]
    fn a_change_of_speed_changes_the_rest_of_the_work() {
        let mut server = Server::new(Order::FirstComeFirstServed, 1, 1.0);
        server.takes(0, 1.0, 0);

        server.runs_at(0.25, SECOND / 2);
        assert_eq!(server.next(), Some(SECOND / 2 + 2 * SECOND));
        server.runs_at(0.0, SECOND);

        assert_eq!(server.next(), None, "it stands still");
    }

    #[test]
    fn who_is_not_waited_for_leaves_the_queue() {
        let mut server = Server::new(Order::FirstComeFirstServed, 1, 1.0);
        (0..3).for_each(|call| server.takes(call, 1.0, 0));

        assert_eq!(server.done(SECOND, |call| call != 1), Some(0));
        assert_eq!(server.done(2 * SECOND, |_| true), Some(2));
    }
}
