//! How much was counted lately, from counters that only ever grow.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

/// Remembers what some counters stood at when each of the latest ticks began, for windows that slide.
///
/// Nothing is counted twice for it: who counts first in a tick leaves a mark, and everybody else looks at
/// one number. A window is what the counters say now, less what they said when it began. It begins with a
/// tick, so that one of a second has between 1.0 and 1.1 s in it, and longer ones up to a second more.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The tick after the one that was marked last; 0 while none was.
    next: AtomicU32,
    fine: [Mark; FINE],
    coarse: [Mark; COARSE],
}

/// What is counted: how many ended in each way. They wrap around, which differences do not mind.
pub(crate) type Counted = [u32; 4];

#[derive(Debug)]
struct Mark {
    /// The tick after the one that it is of; 0 while it is of none, or is being written.
    next: AtomicU32,
    counted: [AtomicU32; 4],
}

/// The shortest tick, in nanoseconds, and how many of them make one of the longer ticks.
const TICK: u64 = 100_000_000;
const COARSER: u32 = 10;
/// A window of ten short ticks, and one of sixty long ones, and the tick that is under way.
const FINE: usize = 11;
const COARSE: usize = 61;

/// How much of the past is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Last {
    Second,
    TenSeconds,
    Minute,
}

impl Last {
    pub(crate) const ALL: [Self; 3] = [Self::Second, Self::TenSeconds, Self::Minute];
}

/// The tick in which something happens so many nanoseconds after the beginning.
#[inline]
pub(crate) fn tick(age: u64) -> u32 {
    // They last for thirteen years.
    u32::try_from(age / TICK).unwrap_or(u32::MAX - 1)
}

fn nanos(age: Duration) -> u64 {
    u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            fine: std::array::from_fn(|_| Mark::none()),
            coarse: std::array::from_fn(|_| Mark::none()),
        }
    }

    /// Something is about to be counted in this tick. The counters as they are before are asked for once
    /// in each tick.
    #[inline]
    pub(crate) fn turn(&self, tick: u32, counted: impl FnOnce() -> Counted) {
        let next = self.next.load(Ordering::Relaxed);
        // Somebody's clock may be read a little before another's.
        if next <= tick {
            self.mark(next, tick, counted);
        }
    }

    #[cold]
    fn mark(&self, next: u32, tick: u32, counted: impl FnOnce() -> Counted) {
        let won = self
            .next
            .compare_exchange(next, tick + 1, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_err() {
            return;
        }
        let counted = counted();
        self.fine[tick as usize % FINE].write(tick, counted);
        let coarse = tick / COARSER;
        if next == 0 || (next - 1) / COARSER < coarse {
            self.coarse[coarse as usize % COARSE].write(coarse, counted);
        }
    }

    /// How many of what is counted now came in this window, and how long that is if the tick before is over.
    pub(crate) fn within(
        &self,
        last: Last,
        age: Duration,
        counted: Counted,
    ) -> (Counted, Duration) {
        let now = tick(nanos(age));
        let (marks, now, n, each) = match last {
            Last::Second => (&self.fine[..], now, 10, 1),
            Last::TenSeconds => (&self.coarse[..], now / COARSER, 10, COARSER),
            Last::Minute => (&self.coarse[..], now / COARSER, 60, COARSER),
        };
        let first = now.saturating_sub(n);
        // Between its beginning and the first mark in it nothing was counted.
        let marks = marks.iter().filter_map(Mark::read);
        let marks = marks.filter(|(tick, _)| (first..=now).contains(tick));
        let before = marks.min_by_key(|(tick, _)| *tick);
        let before = before.map_or(counted, |(_, before)| before);
        let length = age.saturating_sub(Duration::from_nanos(
            u64::from(first) * u64::from(each) * TICK,
        ));
        let mut within = counted;
        for (now, before) in within.iter_mut().zip(before) {
            // Between the counters of one end there is a moment: less than nothing is nothing.
            *now = now
                .wrapping_sub(before)
                .cast_signed()
                .max(0)
                .cast_unsigned();
        }
        (within, length)
    }
}

impl Mark {
    fn none() -> Self {
        Self {
            next: AtomicU32::new(0),
            counted: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// By one at a time: who was the first in a tick, a whole turn of the ring after the one before.
    fn write(&self, tick: u32, counted: Counted) {
        self.next.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (kept, counted) in self.counted.iter().zip(counted) {
            kept.store(counted, Ordering::Relaxed);
        }
        self.next.store(tick + 1, Ordering::Release);
    }

    /// None while it is being written.
    fn read(&self) -> Option<(u32, Counted)> {
        let next = self.next.load(Ordering::Acquire);
        let counted = std::array::from_fn(|n| self.counted[n].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let still = self.next.load(Ordering::Relaxed) == next;
        (still && next > 0).then(|| (next - 1, counted))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, from a list of all that ever happened.
    fn plain(events: &[(u64, usize)], last: Last, now: u64) -> Counted {
        let (each, n) = match last {
            Last::Second => (100, 10),
            Last::TenSeconds => (1_000, 10),
            Last::Minute => (1_000, 60),
        };
        let first = (now / each).saturating_sub(n) * each;
        let mut counted = [0; 4];
        for &(at, kind) in events.iter().filter(|(at, _)| *at >= first) {
            assert!(at <= now);
            counted[kind] += 1;
        }
        counted
    }

    proptest! {
        #[test]
        fn windows_are_what_a_list_of_all_that_happened_says(
            steps in proptest::collection::vec((0_u64..3_000, 0_usize..4), 0..200),
            later in 0_u64..90_000,
        ) {
            let ring = Ring::new();
            // As if they had run for long: about to wrap around.
            let mut counted = [u32::MAX - 3; 4];
            let mut events = Vec::new();
            let mut now = 0;
            let agree = |events: &[_], counted, now| {
                for last in Last::ALL {
                    let (within, length) = ring.within(last, Duration::from_millis(now), counted);
                    prop_assert_eq!(within, plain(events, last, now), "{:?} at {}", last, now);
                    prop_assert!(length <= Duration::from_secs(61));
                }
                Ok(())
            };
            for (wait, kind) in steps {
                now += wait;
                ring.turn(tick(now * 1_000_000), || counted);
                counted[kind] = counted[kind].wrapping_add(1);
                events.push((now, kind));
                agree(&events, counted, now)?;
            }
            agree(&events, counted, now + later)?;
        }
    }

    #[test]
    fn a_window_slides_off_what_is_past() {
        let ring = Ring::new();
        ring.turn(0, || [0; 4]);
        let counted = [5, 1, 0, 0];
        let within = |last, secs| ring.within(last, Duration::from_secs_f64(secs), counted);

        assert_eq!(
            within(Last::Second, 0.5),
            (counted, Duration::from_millis(500))
        );
        assert_eq!(within(Last::Second, 1.2).0, [0; 4]);
        assert_eq!(within(Last::TenSeconds, 10.9).0, counted);
        assert_eq!(within(Last::TenSeconds, 11.0).0, [0; 4]);
        assert_eq!(within(Last::Minute, 60.9).0, counted);
        assert_eq!(within(Last::Minute, 3_600.0).0, [0; 4]);
    }

    #[test]
    fn a_clock_that_is_read_late_marks_nothing() {
        let ring = Ring::new();
        ring.turn(7, || [3; 4]);

        ring.turn(6, || unreachable!("the tick is past"));
        ring.turn(7, || unreachable!("the tick is marked"));

        let (within, _) = ring.within(Last::Second, Duration::from_millis(700), [4; 4]);
        assert_eq!(within, [1; 4]);
    }

    #[test]
    fn a_mark_that_is_ahead_of_what_is_counted_makes_no_billions() {
        let ring = Ring::new();
        ring.turn(7, || [3; 4]);

        let (within, _) = ring.within(Last::Second, Duration::from_millis(700), [2; 4]);

        assert_eq!(within, [0; 4]);
    }
}
