//! How long a method's answers took lately, finely enough for percentiles.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::seat::Seat;

/// A histogram of the last half to whole minute, whose buckets are an eighth of their value wide.
///
/// It has two halves that take turns: one that is written, and the one before. So what is older than a
/// minute is forgotten, and there is never nothing just after a turn.
#[derive(Debug)]
pub(super) struct Recent {
    /// The half minute that is being written, counted from one.
    epoch: AtomicU32,
    halves: [[AtomicU32; BUCKETS]; 2],
}

/// How many came in each bucket.
pub(super) type Sums = [u32; BUCKETS];

pub(super) const BUCKETS: usize = 200;
const HALF: u64 = 30_000_000_000;

/// The half minute so many nanoseconds after the beginning.
#[inline]
pub(super) fn epoch(age: u64) -> u32 {
    u32::try_from(age / HALF + 1).unwrap_or(u32::MAX)
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            epoch: AtomicU32::new(0),
            halves: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))),
        }
    }

    #[inline]
    pub(super) fn heard(&self, seat: Seat, took: u64, epoch: u32) {
        if self.epoch.load(Ordering::Relaxed) < epoch {
            self.turn(epoch);
        }
        seat.add_small(&self.halves[epoch as usize % 2][bucket(took)]);
    }

    /// What was heard meanwhile by others may be forgotten with the rest: a few of very many.
    #[cold]
    fn turn(&self, epoch: u32) {
        let before = self.epoch.fetch_max(epoch, Ordering::Relaxed);
        if before < epoch {
            forget(&self.halves[epoch as usize % 2]);
            if before + 1 < epoch {
                forget(&self.halves[(epoch as usize + 1) % 2]);
            }
        }
    }

    /// Adds what is not yet forgotten.
    pub(super) fn add_to(&self, sums: &mut Sums, epoch: u32) {
        let written = self.epoch.load(Ordering::Relaxed);
        let of = |half: u32| self.halves[half as usize % 2].iter();
        let mut add = |half| {
            for (sum, count) in sums.iter_mut().zip(of(half)) {
                *sum = sum.saturating_add(count.load(Ordering::Relaxed));
            }
        };
        if written >= epoch {
            add(0);
            add(1);
        } else if written + 1 == epoch {
            add(written);
        }
    }
}

fn forget(half: &[AtomicU32]) {
    for count in half {
        count.store(0, Ordering::Relaxed);
    }
}

/// Up to eight microseconds each has its own; from there eight to each doubling, up to a minute and a half.
#[inline]
fn bucket(nanos: u64) -> usize {
    let micros = nanos / 1_000;
    if micros < 8 {
        return micros as usize;
    }
    let doublings = 63 - micros.leading_zeros() as usize;
    let eighth = (micros >> (doublings - 3)) as usize & 7;
    ((doublings - 2) * 8 + eighth).min(BUCKETS - 1)
}

/// What is in this bucket is shorter than this.
fn end(bucket: usize) -> Duration {
    let next = bucket as u64 + 1;
    let micros = match next {
        0..8 => next,
        _ => (8 + next % 8) << (next / 8 - 1),
    };
    Duration::from_micros(micros)
}

/// So many of a hundred were shorter than this: rounded up, by an eighth at most. None while too few have
/// come to tell.
pub(super) fn percentile(sums: &Sums, share: f64) -> Option<Duration> {
    let all: u64 = sums.iter().map(|&n| u64::from(n)).sum();
    let share = share.clamp(0.0, 1.0);
    // With less, the slowest of all would be the answer.
    if all == 0 || (all as f64) * (1.0 - share) < 1.0 - 1e-9 {
        return None;
    }
    let wanted = ((all as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let found = sums.iter().position(|&n| {
        seen += u64::from(n);
        seen >= wanted
    });
    found.map(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(recent: &Recent, took: Duration, epoch: u32) {
        recent.heard(Seat::SHARED, nanos(took), epoch);
    }

    fn nanos(took: Duration) -> u64 {
        u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
    }

    fn of(all: impl IntoIterator<Item = Duration>) -> Recent {
        let recent = Recent::new();
        for took in all {
            heard(&recent, took, 1);
        }
        recent
    }

    fn sums(recent: &Recent, epoch: u32) -> Sums {
        let mut sums = [0; BUCKETS];
        recent.add_to(&mut sums, epoch);
        sums
    }

    #[test]
    fn a_bucket_ends_where_the_next_begins_and_is_an_eighth_wide() {
        for n in 0..BUCKETS - 1 {
            let end = end(n);
            assert_eq!(bucket(nanos(end)), n + 1, "{n}");
            assert_eq!(bucket(nanos(end) - 1), n);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(end(BUCKETS - 2) > Duration::from_secs(60));
    }

    #[test]
    fn a_percentile_is_no_less_than_it_is_and_at_most_an_eighth_more() {
        let recent = of((1..=1_000).map(Duration::from_millis));

        for (share, exact) in [(0.5, 500), (0.95, 950), (0.99, 990)] {
            let found = percentile(&sums(&recent, 1), share).unwrap();
            let exact = Duration::from_millis(exact);
            assert!(
                found >= exact && found <= exact * 9 / 8,
                "{share}: {found:?}"
            );
        }
    }

    #[test]
    fn too_few_say_nothing_about_the_rare_ones() {
        let recent = of((0..19).map(|_| Duration::from_millis(1)));
        assert_eq!(percentile(&sums(&recent, 1), 0.95), None);
        assert!(percentile(&sums(&recent, 1), 0.5).is_some());

        heard(&recent, Duration::from_millis(1), 1);
        assert!(percentile(&sums(&recent, 1), 0.95).is_some());
        assert_eq!(percentile(&sums(&recent, 1), 1.0), None);
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let recent = of([Duration::from_millis(1)]);
        let count = |epoch| sums(&recent, epoch).iter().sum::<u32>();

        assert_eq!((count(1), count(2), count(3)), (1, 1, 0));
        heard(&recent, Duration::from_millis(1), 2);
        assert_eq!((count(2), count(3)), (2, 1));
        heard(&recent, Duration::from_millis(1), 9);
        assert_eq!(count(9), 1);
    }
}
