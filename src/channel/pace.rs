//! When the channel's task does what need not be done at once.

use std::time::Duration;

use tokio::time::Instant;

/// Whether there are calls at all, which is looked at now and then.
#[derive(Debug)]
pub(super) struct Rest {
    every: Duration,
    /// When to look next.
    pub(super) look: Instant,
    /// How many calls there had been.
    calls: Option<u64>,
}

impl Rest {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            look: Instant::now() + every,
            calls: None,
        }
    }

    /// There have been so many calls by now: whether none has been under way since the last look.
    pub(super) fn is_over(&mut self, calls: u64, busy: bool, now: Instant) -> bool {
        self.look = now + self.every;
        let before = self.calls.replace(calls);
        !busy && before == Some(calls)
    }
}

/// How close views may follow each other: at once after a rest, further and further apart in a storm.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Option<Instant>,
    rested: Option<Instant>,
    pending: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            gap: Self::LEAST,
            next: None,
            rested: None,
            pending: false,
        }
    }

    /// A view of so few costs less than a timer.
    const SMALL: usize = 256;
    const LEAST: Duration = Duration::from_millis(1);
    const MOST: Duration = Duration::from_millis(500);
    /// So long without a change is a rest; a busy machine may take as long between two of a storm.
    const REST: Duration = Duration::from_millis(200);
    /// A larger set has costlier views, and more changes to wait for.
    const EACH: Duration = Duration::from_micros(100);

    pub(super) fn may(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    pub(super) fn postpone(&mut self) {
        self.pending = true;
    }

    /// When the postponed view is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.pending)
    }

    pub(super) fn published(&mut self, now: Instant, size: usize) {
        self.pending = false;
        if size <= Self::SMALL {
            self.next = None;
            return;
        }
        let most = (Self::EACH * u32::try_from(size).unwrap_or(u32::MAX)).min(Self::MOST);
        let rested = self.rested.is_none_or(|rested| rested <= now);
        self.gap = if rested {
            Self::LEAST
        } else {
            (self.gap * 2).min(most)
        };
        self.next = Some(now + self.gap);
        self.rested = Some(now + (self.gap * 2).max(Self::REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_makes_few_views_and_the_first_word_after_a_rest_makes_one_at_once() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let mut views = 0;

        for _ in 0..5_000 {
            if pace.may(now) {
                pace.published(now, 5_000);
                views += 1;
            } else {
                pace.postpone();
            }
            now += Duration::from_micros(200);
        }

        assert!(views <= 12, "{views} views in a second");
        assert!(pace.due().is_some());
        assert!(pace.may(now + Pace::MOST));
    }

    #[test]
    fn a_small_set_never_waits() {
        let mut pace = Pace::new();
        let now = Instant::now();

        for _ in 0..100 {
            pace.published(now, 100);
            assert!(pace.may(now));
        }
    }

    #[test]
    fn a_rest_is_a_whole_interval_without_a_call() {
        let every = Duration::from_secs(60);
        let mut rest = Rest::new(every);
        let now = Instant::now();

        assert!(
            !rest.is_over(5, false, now),
            "it may have been the last second"
        );
        assert!(!rest.is_over(6, false, now));
        assert!(!rest.is_over(6, true, now));

        assert!(rest.is_over(6, false, now));
        assert_eq!(rest.look, now + every);
    }
}
