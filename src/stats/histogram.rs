//! A histogram as it was at one moment.

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// How many values fell under which bound.
///
/// The bounds are those that gRPC's metrics have in every language: latencies in seconds, sizes in bytes.
#[derive(Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [u64],
    /// What one is of the bounds and of the sum, in the unit that is shown.
    unit: f64,
    counts: Vec<u64>,
    sum: u64,
}

pub(super) const NANOSECONDS: f64 = 1e-9;
pub(super) const ONE: f64 = 1.0;

impl Histogram {
    pub(super) fn new(bounds: &'static [u64], unit: f64) -> Self {
        Self {
            bounds,
            unit,
            counts: vec![0; bounds.len() + 1],
            sum: 0,
        }
    }

    /// Adds what is counted there, under the same bounds.
    pub(super) fn add(&mut self, counts: impl Iterator<Item = u64>, sum: u64) {
        for (all, some) in self.counts.iter_mut().zip(counts) {
            *all += some;
        }
        self.sum = self.sum.wrapping_add(sum);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.add(other.counts.iter().copied(), other.sum);
    }

    /// The upper bounds, which belong to what they bound. What is beyond the last is counted, too.
    pub fn bounds(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.bounds.iter().map(|&bound| bound as f64 * self.unit)
    }

    /// How many values there are under each bound and above the one before, and at the end beyond the last.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many values there are up to each bound, which is how Prometheus wants it; the last is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds().chain([f64::INFINITY]);
        let sums = self.counts.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        });
        bounds.zip(sums)
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they come to.
    pub fn sum(&self) -> f64 {
        self.sum as f64 * self.unit
    }

    /// What they are on average.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum() / count as f64)
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = self.bounds().chain([f64::INFINITY]).zip(self.counts());
        let some = counts.filter(|(_, n)| **n > 0);
        f.debug_map().entries(some).finish()
    }
}

/// As its count, its sum, and the buckets that are not empty, each with its bound: the last has none.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bounds = self.bounds().map(Some).chain([None]);
        let all = bounds.zip(self.counts.iter().copied());
        let buckets: Vec<_> = all.filter(|(_, n)| *n > 0).collect();
        let mut written = serializer.serialize_struct("Histogram", 3)?;
        written.serialize_field("count", &self.count())?;
        written.serialize_field("sum", &self.sum())?;
        written.serialize_field("buckets", &buckets)?;
        written.end()
    }
}
