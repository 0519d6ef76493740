//! Which connections an endpoint has, and when the next is made.
//!
//! One, as long as it has room for the calls; then another, one attempt at a time, up to a limit
//! (gRFC A105). An endpoint is ready while it has any.

use std::{mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::entry::{Next, Up},
    Dial, Due, Set, Step,
};
use crate::{Endpoint, Error, Event, InstanceId, health::Verdict};

/// How a connection came to take no more calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The server said so.
    Goodbye,
    /// It broke.
    Broke,
}

/// A connection that lived for less than this and answered nothing was hardly one.
const BRIEF: Duration = Duration::from_secs(1);

impl Set {
    /// An attempt succeeded. `false` means that its endpoint moved or left: the connection is of no use.
    pub(crate) fn up(&mut self, id: &InstanceId, attempt: u64, now: Instant) -> (bool, Vec<Step>) {
        let Some(entry) = self
            .entries
            .get_mut(id)
            .filter(|entry| entry.next == Next::Dialling(attempt))
        else {
            return (false, self.settle(now));
        };
        self.dialling -= 1;
        entry.next = Next::Rest;
        entry.lost = false;
        let since = now;
        entry.up.push(Up { attempt, since });
        if entry.up.len() < self.limits.connections {
            entry.vitals.links().relieve();
        }
        if entry.up.len() == 1 {
            entry.verdict = self.limits.asked.then_some(Verdict::Unknown);
            entry.show(now);
            self.rank(id);
        }
        (true, self.settle(now))
    }

    /// The connection takes no new calls; those in flight go on. Another is made at once if it was the
    /// last, unless this one was told so before it `answered` anything: the next might fare alike, again
    /// and again.
    pub(crate) fn going_away(
        &mut self,
        id: &InstanceId,
        attempt: u64,
        why: Error,
        answered: bool,
        now: Instant,
    ) -> Vec<Step> {
        if let Some(entry) = self.entries.get_mut(id)
            && let Some(up) = entry.take_up(attempt)
        {
            let drain = Step::Drain(Arc::clone(&entry.vitals), attempt);
            self.steps.push(drain);
            entry.vitals.failed(why);
            self.ended(id, up, answered, End::Goodbye, now);
        }
        self.settle(now)
    }

    /// An attempt failed, or a connection ended, which may have `answered` calls before.
    pub(crate) fn down(
        &mut self,
        id: &InstanceId,
        attempt: u64,
        error: Error,
        answered: bool,
        now: Instant,
    ) -> Vec<Step> {
        let Some(entry) = self.entries.get_mut(id) else {
            return self.settle(now);
        };
        if entry.next == Next::Dialling(attempt) {
            self.dialling -= 1;
            entry.vitals.failed(error.clone());
            self.back_off(id, now);
        } else if let Some(up) = entry.take_up(attempt) {
            entry.vitals.failed(error.clone());
            self.ended(id, up, answered, End::Broke, now);
        } else {
            return self.settle(now);
        }
        self.tell(Event::Lost(id.clone(), error));
        self.rank(id);
        self.settle(now)
    }

    /// A call found no room on any of the endpoint's connections.
    pub(crate) fn crowded(&mut self, id: &InstanceId, now: Instant) -> Vec<Step> {
        self.widen(id);
        self.settle(now)
    }

    /// The connection has had no call for long. It is let go of if there is another.
    pub(crate) fn idle(&mut self, id: &InstanceId, attempt: u64, now: Instant) -> Vec<Step> {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.up.len() > 1)
            && entry.take_up(attempt).is_some()
        {
            entry.vitals.links().relieve();
            let drain = Step::Drain(Arc::clone(&entry.vitals), attempt);
            self.steps.push(drain);
        }
        self.settle(now)
    }

    /// Nobody calls: all connections are let go of, and none is made until [`Set::wake`].
    pub(crate) fn sleep(&mut self, now: Instant) -> Vec<Step> {
        self.asleep = true;
        let all = self.known.iter().map(Endpoint::id);
        for id in all.cloned().collect::<Vec<_>>() {
            self.disconnect(&id);
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.failed = 0;
                entry.lost = false;
                entry.vitals.links().relieve();
                entry.show(now);
            }
            self.rank(&id);
        }
        self.settle(now)
    }

    /// Somebody calls: all are connected again.
    pub(crate) fn wake(&mut self, now: Instant) -> Vec<Step> {
        self.asleep = false;
        let resting = self.each().filter(|entry| {
            entry.outside.is_none() && entry.up.is_empty() && entry.next == Next::Rest
        });
        for id in resting.map(|e| e.instance.id.clone()).collect::<Vec<_>>() {
            self.enqueue(&id);
        }
        self.settle(now)
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// The attempt that made the endpoint's oldest connection.
    pub(crate) fn oldest(&self, id: &InstanceId) -> Option<u64> {
        Some(self.entries.get(id)?.up.first()?.attempt)
    }

    fn ended(&mut self, id: &InstanceId, up: Up, answered: bool, end: End, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.lost = entry.up.is_empty();
        let proven = answered || now >= up.since + BRIEF;
        if proven {
            entry.failed = 0;
        }
        let at_once = match end {
            End::Goodbye => proven,
            // A suspect whose connection breaks is gone.
            End::Broke => answered && entry.suspect.is_none(),
        };
        match entry.next {
            // Whatever was waited for, there is none left now.
            Next::Waiting(until) if at_once && entry.up.is_empty() => {
                self.due.remove(&(until, id.clone(), Due::Redial));
                self.enqueue(id);
            }
            Next::Rest if at_once && entry.up.is_empty() => self.enqueue(id),
            Next::Rest if at_once => self.widen(id),
            Next::Rest => self.back_off(id, now),
            Next::Queued | Next::Dialling(_) | Next::Waiting(_) => {}
        }
        if let Some(entry) = self.entries.get(id) {
            entry.show(now);
        }
        self.rank(id);
    }

    /// Another connection for an endpoint that has some, if there may be more and calls want it.
    fn widen(&mut self, id: &InstanceId) {
        let most = self.limits.connections;
        let wanted = self.entries.get(id).is_some_and(|entry| {
            let room = !entry.up.is_empty() && entry.up.len() < most;
            room && entry.next == Next::Rest && entry.vitals.links().is_crowded()
        });
        if wanted {
            self.enqueue(id);
        }
    }

    pub(super) fn enqueue(&mut self, id: &InstanceId) {
        if let Some(entry) = self.entries.get_mut(id) {
            if self.asleep || entry.outside.is_some() {
                // Whoever takes it in connects it. Whoever wakes the set asks all. A queue that nobody serves would grow with each change.
                entry.next = Next::Rest;
                return;
            }
            entry.next = Next::Queued;
            self.queue.push_back(id.clone());
        }
    }

    fn back_off(&mut self, id: &InstanceId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            let until = now + self.limits.redial.after(entry.failed);
            entry.failed = entry.failed.saturating_add(1);
            entry.next = Next::Waiting(until);
            entry.show(now);
            self.due.insert((until, id.clone(), Due::Redial));
        }
    }

    /// Does what was waited for, if it was until now.
    pub(super) fn redial(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if !matches!(entry.next, Next::Waiting(until) if until <= now) {
            return;
        }
        if entry.up.is_empty() {
            return self.enqueue(id);
        }
        entry.next = Next::Rest;
        self.widen(id);
    }

    /// Lets go of all connections, and of the attempt to make one.
    pub(super) fn disconnect(&mut self, id: &InstanceId) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        for Up { attempt, .. } in mem::take(&mut entry.up) {
            let drain = Step::Drain(Arc::clone(&entry.vitals), attempt);
            self.steps.push(drain);
        }
        match mem::replace(&mut entry.next, Next::Rest) {
            Next::Dialling(attempt) => {
                self.dialling -= 1;
                self.steps.push(Step::Abandon(attempt));
            }
            Next::Waiting(until) => drop(self.due.remove(&(until, id.clone(), Due::Redial))),
            // The queue is looked through when it is served: who is not queued any more is passed over.
            Next::Queued | Next::Rest => {}
        }
    }

    /// Makes a connection where there is none any more.
    pub(super) fn connect_anew(&mut self, id: &InstanceId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.failed = 0;
            entry.lost = false;
            entry.vitals.links().relieve();
        }
        self.enqueue(id);
        if let Some(entry) = self.entries.get(id) {
            entry.show(now);
        }
    }

    /// Begins as many attempts as there is room for.
    pub(super) fn dial(&mut self, now: Instant) {
        while self.dialling < self.limits.dials && !self.asleep {
            let Some(id) = self.queue.pop_front() else {
                return;
            };
            let Some(entry) = self
                .entries
                .get_mut(&id)
                .filter(|entry| entry.next == Next::Queued)
            else {
                continue;
            };
            self.attempts += 1;
            self.dialling += 1;
            entry.next = Next::Dialling(self.attempts);
            entry.show(now);
            self.steps.push(Step::Dial(Dial {
                instance: Arc::clone(&entry.instance),
                attempt: self.attempts,
                spare: !entry.up.is_empty(),
            }));
        }
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
