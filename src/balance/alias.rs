//! Drawing endpoints by weight, at the same cost whatever their number.

use crate::{
    Endpoint, Endpoints,
    endpoint::{Columns, Members},
};

/// A column for each; or, where there are many, for each part of them, and then one for each of the part: few
/// parts have changed since the last table was made.
#[derive(Debug)]
pub(super) struct Alias {
    columns: Columns,
    /// None where there is a column for each.
    parts: Box<[Part]>,
}

#[derive(Debug)]
struct Part {
    /// The place of its first.
    start: usize,
    columns: Columns,
}

/// As many have a column each: it is quicker to draw.
const FEW: usize = 1024;

impl Alias {
    /// Endpoints by their weights. Where all weights are 0, they count as equal.
    pub(super) fn of(ready: &Endpoints) -> Self {
        if ready.len() > FEW {
            return Self::of_parts(ready);
        }
        Self::of_each(ready)
    }

    /// The same with a column for each, however many there are: quicker to draw from, and longer to make.
    pub(super) fn of_each(ready: &Endpoints) -> Self {
        let sum = ready.weights().sum;
        let weights = ready.iter().map(Endpoint::weight);
        Self {
            columns: Columns::by(sum, ready.len(), weights),
            parts: Box::default(),
        }
    }

    fn of_parts(ready: &Endpoints) -> Self {
        let sum = ready.weights().sum;
        let count = |part: &Members| match sum {
            0 => part.all().len() as u64,
            _ => part.weights().sum,
        };
        let counts: Vec<u64> = ready.parts().map(count).collect();
        let mut start = 0;
        let part = |part: &Members| {
            let first = start;
            start += part.all().len();
            Part {
                start: first,
                columns: part.columns().clone(),
            }
        };
        Self {
            parts: ready.parts().map(part).collect(),
            columns: columns(&counts),
        }
    }

    pub(super) fn new(weights: &[u64]) -> Self {
        Self {
            columns: columns(weights),
            parts: Box::default(),
        }
    }

    /// The place that these bits stand for.
    #[inline]
    pub(super) fn at(&self, bits: u64) -> usize {
        if self.parts.is_empty() {
            return self.columns.at(bits);
        }
        let part = &self.parts[self.columns.at_half((bits >> 32) as u32)];
        part.start + part.columns.at_half(bits as u32)
    }
}

fn columns(weights: &[u64]) -> Columns {
    Columns::by(weights.iter().sum(), weights.len(), weights.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::{super::conform, *};

    /// So many draws: one half of their bits is spread evenly, and the other half is this.
    const DRAWS: u32 = 1 << 16;

    fn spread(nth: u32) -> u64 {
        u64::from(nth << 16)
    }

    /// The share of each part, and then of each in its part.
    fn shares(alias: &Alias, n: usize) -> (Vec<f64>, Vec<f64>) {
        let mut parts = vec![0.0; alias.parts.len()];
        let mut all = vec![0.0; n];
        let one = 1.0 / f64::from(DRAWS);
        let part_of = |place| alias.parts.partition_point(|part| part.start <= place) - 1;
        for nth in 0..DRAWS {
            let part = part_of(alias.at(spread(nth) << 32));
            if parts[part] == 0.0 {
                for low in 0..DRAWS {
                    all[alias.at(spread(nth) << 32 | spread(low))] += one;
                }
            }
            parts[part] += one;
        }
        (parts, all)
    }

    #[test]
    fn of_many_each_part_has_its_share_and_each_in_it_has() {
        for heaviest in [0, 7] {
            let weights: Vec<u32> = (0..1_500).map(|n| n % 1_000 / 100 * heaviest).collect();
            let ready = conform::endpoints(&weights);

            let alias = Alias::of(&ready);

            let (parts, all) = shares(&alias, ready.len());
            let count = |part: &Members| match heaviest {
                0 => vec![1.0; part.all().len()],
                _ => part.all().iter().map(|e| e.weight() as f64).collect(),
            };
            let counts: Vec<Vec<f64>> = ready.parts().map(count).collect();
            let whole: f64 = counts.iter().flatten().sum();
            assert!(alias.parts.len() > 8);
            for ((counts, share), part) in counts.iter().zip(parts).zip(&alias.parts) {
                let sum: f64 = counts.iter().sum();
                assert!((share - sum / whole).abs() < 0.001, "{share} {sum} {whole}");
                for (count, share) in counts.iter().zip(&all[part.start..]) {
                    let should = if sum == 0.0 { 0.0 } else { count / sum };
                    assert!((share - should).abs() < 0.003, "{share} {count} {sum}");
                    assert!(*count > 0.0 || *share == 0.0);
                }
            }
        }
    }
}
