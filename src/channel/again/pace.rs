//! How long a method's calls take, as far as hedging goes.

use std::{
    array,
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What is known of each method that is hedged by how long its calls take.
#[derive(Debug, Default)]
pub(crate) struct Paces(RwLock<HashMap<Box<str>, Arc<Pace>>>);

/// How long the first attempts of a method's calls took of late: a histogram that forgets.
///
/// An attempt that another has overtaken counts with the time it had by then, which is longer than the
/// delay: so its rank is right, and hedging does not make a method look faster than it is.
#[derive(Debug)]
pub(crate) struct Pace {
    counts: [AtomicU32; STEPS * OCTAVES],
    seen: AtomicU64,
    /// The percentile in thousandths that was asked for last, and its answer, until more is known.
    known: [AtomicU64; 2],
}

/// Methods beyond these share one; a channel to a proxy of everything may call any number.
const METHODS: usize = 1024;
/// No method is called like this.
const SHARED: &str = "";
/// Each power of two of microseconds is divided into so many steps: a time is known to an eighth.
const STEPS: usize = 8;
/// Up to 2^35 µs, which is nine hours.
const OCTAVES: usize = 33;
/// A percentile of fewer calls than these is a guess.
const ENOUGH: u64 = 100;
/// After so many calls the older ones count for half.
const MANY: u64 = 4096;
/// So many calls may come before a percentile is counted anew.
const FRESH: u64 = 32;

impl Paces {
    /// What is known of this method.
    pub(crate) fn of(&self, path: &str) -> Arc<Pace> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // The shared one is there as soon as there is room for no other.
        if let Some(pace) = known.get(path).or_else(|| known.get(SHARED)) {
            return Arc::clone(pace);
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let name = if known.len() < METHODS { path } else { SHARED };
        Arc::clone(known.entry(name.into()).or_default())
    }
}

impl Pace {
    /// A call's first attempt took this long, or longer.
    pub(super) fn took(&self, time: Duration) {
        self.counts[place(time)].fetch_add(1, Relaxed);
        let seen = self.seen.fetch_add(1, Relaxed) + 1;
        if seen.is_multiple_of(FRESH) {
            self.known[0].store(0, Relaxed);
        }
        if seen.is_multiple_of(MANY) {
            for count in &self.counts {
                let _ = count.fetch_update(Relaxed, Relaxed, |count| Some(count / 2));
            }
        }
    }

    /// The time that so many of a hundred calls do not exceed; none while too few were seen.
    pub(super) fn percentile(&self, percent: f64) -> Option<Duration> {
        if self.seen.load(Relaxed) < ENOUGH {
            return None;
        }
        let asked = (percent * 1000.0) as u64;
        if self.known[0].load(Relaxed) == asked {
            return Some(Duration::from_micros(self.known[1].load(Relaxed)));
        }
        let counts = array::from_fn::<_, { STEPS * OCTAVES }, _>(|at| {
            u64::from(self.counts[at].load(Relaxed))
        });
        let all: u64 = counts.iter().sum();
        let rank = (all as f64 * percent / 100.0).ceil() as u64;
        let mut below = 0;
        let at = counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        let time = upper(at?);
        self.known[1].store(time, Relaxed);
        self.known[0].store(asked, Relaxed);
        Some(Duration::from_micros(time))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU32::new(0) }; STEPS * OCTAVES],
            seen: AtomicU64::new(0),
            known: [const { AtomicU64::new(0) }; 2],
        }
    }
}

/// Below eight, each microsecond has a place; above, each power of two has eight.
fn place(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2().saturating_sub(STEPS.ilog2()) as usize;
    let step = (micros >> octave) as usize;
    (octave * STEPS + step).min(STEPS * OCTAVES - 1)
}

/// The longest time in microseconds that has this place.
fn upper(place: usize) -> u64 {
    let (octave, step) = match place / STEPS {
        0 | 1 => (0, place),
        more => (more - 1, place % STEPS + STEPS),
    };
    ((step as u64 + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_known_to_an_eighth() {
        for micros in [
            1,
            7,
            8,
            15,
            16,
            17,
            100,
            999,
            12_345,
            1_000_000,
            3_600_000_000,
        ] {
            let upper = upper(place(Duration::from_micros(micros)));

            assert!(
                upper >= micros && upper - micros <= micros / 8,
                "{micros}: {upper}"
            );
        }
        assert!(place(Duration::MAX) < STEPS * OCTAVES);
    }

    #[test]
    fn a_percentile_is_what_so_many_do_not_exceed() {
        let pace = Pace::default();
        for millis in 1..=99 {
            pace.took(Duration::from_millis(millis));
        }
        assert_eq!(pace.percentile(95.0), None, "too few");
        (100..=1000).for_each(|millis| pace.took(Duration::from_millis(millis)));

        let [median, p95] = [50.0, 95.0].map(|p| pace.percentile(p).unwrap().as_millis());

        assert!((500..=563).contains(&median), "{median}");
        assert!((950..=1069).contains(&p95), "{p95}");
    }

    #[test]
    fn a_method_that_has_become_faster_is_known_to_be() {
        let pace = Pace::default();
        (0..10_000).for_each(|_| pace.took(Duration::from_secs(1)));

        (0..100_000).for_each(|_| pace.took(Duration::from_millis(1)));

        assert!(pace.percentile(95.0).unwrap() < Duration::from_millis(2));
    }

    #[test]
    fn each_method_has_its_own_and_beyond_many_they_share() {
        let paces = Paces::default();
        let one = paces.of("/a.B/C");

        assert!(Arc::ptr_eq(&one, &paces.of("/a.B/C")));
        (0..2 * METHODS).for_each(|n| drop(paces.of(&format!("/a.B/{n}"))));

        assert_eq!(paces.0.read().unwrap().len(), METHODS + 1);
        assert!(Arc::ptr_eq(&paces.of("/x"), &paces.of("/y")));
    }
}
