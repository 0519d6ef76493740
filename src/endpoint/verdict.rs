//! What a policy makes of an endpoint, kept beside what it is made of.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Tick;

/// A cost, and until when it holds: at most for sixteen milliseconds, and no longer than nothing new is learnt.
///
/// To judge an endpoint takes longer than to look at seven, and little changes between two picks. Endpoints that
/// several policies choose among hold what the last of them made of it.
#[derive(Debug)]
pub(crate) struct Verdict(AtomicU64);

/// A verdict as it was seen: what was learnt since makes it another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen(u64);

/// Nanoseconds, doubled: the lowest bit is set where none holds.
///
/// Exact, so that what is picked does not depend on when this process began to count. It begins again every two
/// seconds: of picks that find what nobody has looked at since then, one in a hundred and thirty takes it for new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(u32);

/// For how long a verdict holds, or several do: looked at for all at once, as seldom any is over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left(u32);

/// So many nanoseconds at most.
const LONGEST: u32 = 16_000_000;
/// The bits that are not set while a verdict holds: the lowest, and those of more nanoseconds than it ever holds.
const NOT_HELD: u32 = NONE as u32 | !(2 * LONGEST.next_power_of_two() - 1);
/// None, and the steps between one none and the next.
const NONE: u64 = 1;
const ANOTHER: u64 = 2;

impl Clock {
    #[inline]
    pub(crate) fn at(now: Tick) -> Self {
        Self((now.nanos() << 1) as u32)
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Self(AtomicU64::new(NONE))
    }
}

impl Verdict {
    #[inline]
    pub(crate) fn seen(&self) -> Seen {
        Seen(self.0.load(Relaxed))
    }

    /// Something was learnt since it was made.
    #[inline]
    pub(super) fn is_over(&self) {
        let was = self.0.load(Relaxed);
        self.0.store(was.wrapping_add(ANOTHER) | NONE, Relaxed);
    }

    /// It is another's.
    pub(super) fn begin_anew(&self) {
        self.0.store(NONE, Relaxed);
    }

    /// This is what it costs, for so many microseconds from now, unless something was learnt since this was seen.
    pub(crate) fn holds(&self, seen: Seen, cost: f32, now: Clock, micros: f32) {
        let nanos = ((micros * 1000.0) as u32).min(LONGEST);
        let until = now.0.wrapping_add(nanos << 1);
        let word = u64::from(cost.to_bits()) << 32 | u64::from(until);
        // Who finds it changed leaves it to the next.
        let _ = self.0.compare_exchange(seen.0, word, Relaxed, Relaxed);
    }
}

impl Seen {
    #[inline]
    pub(crate) fn cost(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }

    /// Whether it does not hold any more.
    #[inline]
    pub(crate) fn is_over(self, now: Clock) -> bool {
        self.left(now).is_over()
    }

    /// For how long it still holds.
    #[inline]
    pub(crate) fn left(self, now: Clock) -> Left {
        Left((self.0 as u32).wrapping_sub(now.0))
    }
}

impl Left {
    /// That of two: when either is over, it is.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.0 & NOT_HELD != 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn after(start: Instant, micros: u64) -> Clock {
        Clock::at(Tick::at(start + Duration::from_micros(micros)))
    }

    #[test]
    fn a_verdict_holds_for_its_time_and_never_for_long() {
        let start = Instant::now();
        for (micros, while_it_does, when_it_does_not) in [
            (1_000.0, 900, 1_100),
            (0.0, 0, 40),
            (f32::INFINITY, 15_900, 16_100),
        ] {
            let verdict = Verdict::default();
            assert!(verdict.seen().is_over(after(start, 0)));

            verdict.holds(verdict.seen(), 7.5, after(start, 0), micros);

            let seen = verdict.seen();
            assert_eq!(seen.cost(), 7.5);
            assert!(!seen.is_over(after(start, while_it_does)));
            for later in [0, 1_000, 1_000_000, 3_600_000_000] {
                assert!(seen.is_over(after(start, when_it_does_not + later)));
            }
        }
    }

    #[test]
    fn what_is_learnt_while_it_is_made_makes_it_void() {
        let (verdict, now) = (Verdict::default(), after(Instant::now(), 0));
        let seen = verdict.seen();

        verdict.is_over();
        verdict.holds(seen, 7.5, now, 1_000.0);

        assert!(verdict.seen().is_over(now));
        verdict.holds(verdict.seen(), 7.5, now, 1_000.0);
        assert!(!verdict.seen().is_over(now));
        verdict.is_over();
        assert!(verdict.seen().is_over(now));
    }

    #[test]
    fn a_verdict_from_before_the_clock_wrapped_does_not_hold() {
        let now = Clock(u32::MAX - 1_999);
        let verdict = Verdict::default();

        verdict.holds(verdict.seen(), 7.5, now, 1_000.0);

        assert!(!verdict.seen().is_over(Clock(1_000)));
        assert!(verdict.seen().is_over(Clock(2_000_000)));
    }
}
