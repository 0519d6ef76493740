//! How often something happens.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Counts in the last ten seconds, without a lock.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Each a second and what was counted in it.
    seconds: [AtomicU64; SLOTS],
}

/// More than are looked at, so that what is written is not read.
const SLOTS: usize = 16;
const LOOK: u32 = 10;

impl Rate {
    /// It happened, at so much after the beginning.
    pub(super) fn count(&self, age: Duration) {
        let second = age.as_secs() as u32;
        let slot = &self.seconds[second as usize % SLOTS];
        let with = |word: u64| {
            let (then, count) = unpack(word);
            Some(pack(
                second,
                if then == second { count } else { 0 }.saturating_add(1),
            ))
        };
        // It never declines, so it never fails.
        let _ = slot.fetch_update(Relaxed, Relaxed, with);
    }

    /// How often it happened a second, in the last ten and the one that has begun; in as many as there were.
    pub(super) fn per_second(&self, age: Duration) -> f64 {
        let now = age.as_secs() as u32;
        let counted = self.seconds.iter().map(|slot| {
            let (then, count) = unpack(slot.load(Relaxed));
            if now.wrapping_sub(then) <= LOOK {
                u64::from(count)
            } else {
                0
            }
        });
        let part = f64::from(age.subsec_nanos()) / 1e9;
        let time = f64::from(now.min(LOOK)) + part;
        // Of less than a second nobody knows how it goes on.
        counted.sum::<u64>() as f64 / time.max(1.0)
    }
}

fn pack(second: u32, count: u32) -> u64 {
    u64::from(second) << 32 | u64::from(count)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_rate_is_told_from_the_second_second_on_and_forgotten_after_ten() {
        let rate = Rate::default();
        for ms in (0..30_000).step_by(10) {
            rate.count(MILLI * ms);
            if ms >= 1_000 {
                let told = rate.per_second(MILLI * ms);
                assert!((told - 100.0).abs() < 1.5, "{told} after {ms} ms");
            }
        }

        assert!((rate.per_second(MILLI * 35_000) - 50.0).abs() < 6.0);
        assert_eq!(rate.per_second(MILLI * 41_000), 0.0);
    }

    #[test]
    fn the_first_call_is_one_a_second_and_no_thousand() {
        let rate = Rate::default();

        rate.count(MILLI);

        assert_eq!(rate.per_second(MILLI), 1.0);
    }
}
