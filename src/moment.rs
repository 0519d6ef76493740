//! Moments as one number: what a call's times are reckoned in.

use std::{num::NonZeroU64, sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// A moment, in nanoseconds.
///
/// A call looks at the clock three times, and asks ten times how long something took: an [`Instant`] is
/// made into a number once, and what follows is plain subtraction.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Moment(NonZeroU64);

/// The first moment that anybody asked for. Clocks of tests begin when they like, were it centuries before.
const FIRST: u64 = 1 << 63;

impl Moment {
    #[inline]
    pub(crate) fn now() -> Self {
        Self::at(Instant::now())
    }

    #[inline]
    pub(crate) fn at(instant: Instant) -> Self {
        static FIRST_ASKED: OnceLock<Instant> = OnceLock::new();
        let first = *FIRST_ASKED.get_or_init(|| instant);
        let nanos = match instant.checked_duration_since(first) {
            Some(after) => FIRST.saturating_add(nanos(after)),
            None => FIRST.saturating_sub(nanos(first.saturating_duration_since(instant))),
        };
        Self(NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN))
    }

    /// The time from then to now, in nanoseconds; none if that is yet to come.
    #[inline]
    pub(crate) fn nanos_since(self, then: Self) -> u64 {
        self.0.get().saturating_sub(then.0.get())
    }

    /// The same.
    #[inline]
    pub(crate) fn since(self, then: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(then))
    }

    /// Nanoseconds since the first moment that anybody asked for; wraps for those before.
    #[inline]
    pub(crate) fn nanos(self) -> u64 {
        self.0.get().wrapping_sub(FIRST)
    }
}

#[inline]
fn nanos(time: Duration) -> u64 {
    let whole = time.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(time.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_two_moments_is_what_lay_between_the_instants() {
        let now = Instant::now();
        let moments = [Moment::now(), Moment::at(now)];
        let long = Duration::from_secs(86_400 * 365 * 50);
        for time in [Duration::ZERO, Duration::from_nanos(1_234_567_891), long] {
            let then = Moment::at(now + time);

            assert_eq!(then.since(moments[1]), time);
            assert_eq!(moments[1].since(then), Duration::ZERO);
        }
    }

    #[test]
    fn a_clock_that_began_before_the_first_was_read_tells_times_as_well() {
        let _first = Moment::now();
        let Some(before) = Instant::now().checked_sub(Duration::from_millis(500)) else {
            return;
        };

        let later = Moment::at(before + Duration::from_secs(2));

        assert_eq!(later.since(Moment::at(before)), Duration::from_secs(2));
    }
}
