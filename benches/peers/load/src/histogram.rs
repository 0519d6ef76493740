//! Latencies, each kept to within 1.6 %.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Sixty-four buckets to each power of two of nanoseconds. All callers of a process share one: it is 14 KiB, which
/// stays in the cache where hundreds of them would not.
pub struct Histogram(Box<[AtomicU32]>);

const FINE: u32 = 6;
/// Up to 2^40 ns, which is eighteen minutes.
const BUCKETS: usize = ((40 - FINE as usize) + 2) << FINE;

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        let place = place(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.0[place.min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// In microseconds; zero when nothing was recorded.
    #[must_use]
    pub fn quantile(&self, of_all: f64) -> f64 {
        let all: u64 = self.0.iter().map(|n| u64::from(n.load(Relaxed))).sum();
        let wanted = (all as f64 * of_all).ceil() as u64;
        let mut seen = 0;
        for (place, n) in self.0.iter().enumerate() {
            seen += u64::from(n.load(Relaxed));
            if all > 0 && seen >= wanted.max(1) {
                return middle(place) / 1e3;
            }
        }
        0.0
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.iter().for_each(|n| n.store(0, Relaxed));
    }
}

fn place(nanos: u64) -> usize {
    let Some(power) = nanos.checked_ilog2().filter(|power| *power >= FINE) else {
        return nanos as usize;
    };
    let within = (nanos >> (power - FINE)) & ((1 << FINE) - 1);
    (((power - FINE + 1) as usize) << FINE) + within as usize
}

fn middle(place: usize) -> f64 {
    let (row, within) = (place >> FINE, place & ((1 << FINE) - 1));
    if row == 0 {
        return within as f64;
    }
    let width = (1_u64 << (row - 1)) as f64;
    (((1 << FINE) + within) as f64 + 0.5) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_kept_to_within_two_percent() {
        let mut nanos = 1_u64;
        while nanos < 1 << 39 {
            let kept = middle(place(nanos));

            let off = (kept - nanos as f64).abs() / nanos as f64;
            assert!(off < 0.02, "{nanos} is kept as {kept}");
            nanos += nanos / 3 + 1;
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let latencies = Histogram::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }

        let found = [0.5, 0.99, 0.999].map(|q| latencies.quantile(q));

        for (found, right) in found.into_iter().zip([500.0, 990.0, 999.0]) {
            assert!((found / right - 1.0).abs() < 0.02, "{found} for {right}");
        }
    }

    #[test]
    fn nothing_recorded_is_zero() {
        assert_eq!(Histogram::default().quantile(0.99), 0.0);
    }
}
