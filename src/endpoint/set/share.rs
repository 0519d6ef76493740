//! How much of its weight an endpoint is given: less after it came, and less when it has too much to do.

use std::{mem, time::Duration};

use tokio::time::Instant;

use super::Set;
use crate::{
    InstanceId,
    health::{PUSHBACK, SlowStart},
};

/// Why an endpoint has less than its weight, and since when it was not well, if it ever was.
///
/// What few have at any moment is in boxes: thousands may be held that are not even connected.
#[derive(Debug)]
pub(in crate::endpoint) struct Share {
    /// In percent, as it was last given.
    given: u8,
    /// Since when it comes to its full weight, and how long that lasts.
    ramp: Option<Box<(Instant, Duration)>>,
    overload: Option<Box<Overload>>,
    away: Away,
}

#[derive(Clone, Copy, Debug)]
struct Overload {
    until: Instant,
    halved: u32,
    last: Instant,
}

/// Whether it had to do without calls.
#[derive(Clone, Copy, Debug)]
enum Away {
    /// It never had any.
    New,
    Since(Instant),
    Here,
}

/// When everybody joins, nobody is new.
const START: Duration = Duration::from_secs(2);
/// One that was away for less has not cooled down, and goes on warming up where it was; the shortest ejection
/// is longer.
const BRIEF: Duration = Duration::from_millis(500);
/// A ramp has so many steps, and none follows another sooner than this.
const STEPS: u32 = 10;
const STEP: Duration = Duration::from_millis(100);
/// Overload leaves as much, in percent, or it would not be seen when it is over.
const LEAST: u32 = 10;

impl Set {
    /// It asks to be spared for so long.
    pub(super) fn overloaded(&mut self, id: &InstanceId, time: Duration, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let until = now + time;
        let overload = entry.share.overload.get_or_insert_with(|| {
            Box::new(Overload {
                until,
                halved: 1,
                last: now,
            })
        });
        overload.until = overload.until.max(until);
        // What it had in flight when it was last spared may say the same again.
        if now >= overload.last + (time / 2).min(PUSHBACK) {
            (overload.halved, overload.last) = (overload.halved + 1, now);
        }
        self.adjust_one(id, now);
    }

    /// Does what follows from who has become well, and who is so no longer.
    pub(super) fn settle_shares(&mut self, now: Instant) {
        if self.wellness.of == 0 {
            self.up_since = None;
        } else {
            self.up_since.get_or_insert(now);
        }
        if self.adjust_at.is_some_and(|at| at <= now) {
            self.adjust_all(now);
        }
        let under_way = self.up_since.is_some_and(|since| now >= since + START);
        // Where there is nobody to spare it, one has to bear it.
        let can_wait = under_way && !self.panics && self.wellness.well > 1;
        let window = self.limits.health.slow_start.window();
        for id in mem::take(&mut self.shifted) {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            let share = &mut entry.share;
            if entry.well != Some(true) {
                if matches!(share.away, Away::Here) {
                    share.away = Away::Since(now);
                }
                self.adjust_one(&id, now);
                continue;
            }
            let lasts = match mem::replace(&mut share.away, Away::Here) {
                Away::New => window,
                Away::Since(then) => window.min(now - then),
                Away::Here => continue,
            };
            if lasts >= BRIEF.min(window) {
                let ramps = can_wait && !window.is_zero();
                share.ramp = ramps.then(|| Box::new((now, lasts)));
                self.adjust_one(&id, now);
            }
        }
    }

    /// Gives those that have less than their weight what they should have now.
    fn adjust_all(&mut self, now: Instant) {
        self.adjust_at = None;
        for id in mem::take(&mut self.partial) {
            self.adjust_one(&id, now);
        }
    }

    /// The same for one of them: where many come in one moment, each must not be looked at for each.
    fn adjust_one(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let (given, until) = entry.share.at(&self.limits.health.slow_start, now);
        let before = mem::replace(&mut entry.share.given, given);
        if before != given {
            entry.place = self.known.put_again(entry.endpoint(), entry.place);
            self.rank(id);
        }
        let Some(until) = until.map(|until| until.max(now + STEP)) else {
            self.partial.remove(id);
            return;
        };
        self.partial.insert(id.clone());
        self.adjust_at = Some(self.adjust_at.map_or(until, |at| at.min(until)));
    }
}

impl Default for Share {
    fn default() -> Self {
        Self {
            given: 100,
            ramp: None,
            overload: None,
            away: Away::New,
        }
    }
}

impl Share {
    pub(in crate::endpoint) fn given(&self) -> u8 {
        self.given
    }

    /// The share in percent, and until when, if that is not for good.
    fn at(&mut self, slow_start: &SlowStart, now: Instant) -> (u8, Option<Instant>) {
        self.ramp.take_if(|ramp| now >= ramp.0 + ramp.1);
        self.overload.take_if(|overload| now >= overload.until);
        let ramp = self.ramp.as_deref().map(|&(since, lasts)| {
            let share = slow_start.share(now - since, lasts);
            (u32::from(share), now + lasts / STEPS)
        });
        let overload = self.overload.as_deref().map(|overload| {
            let share = (100 >> overload.halved.min(7)).max(LEAST);
            (share, overload.until)
        });
        let (share, until) = match (ramp, overload) {
            (Some((a, until)), Some((b, or))) => (a * b / 100, Some(until.min(or))),
            (Some((share, until)), None) | (None, Some((share, until))) => (share, Some(until)),
            (None, None) => (100, None),
        };
        (u8::try_from(share).unwrap_or(100).max(1), until)
    }
}
