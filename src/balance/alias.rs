//! Drawing by weight in two steps, whatever the number of endpoints (Walker's alias method, by Vose).

use super::dice::scale;
use crate::{Endpoint, Endpoints};

/// Columns of equal height, each shared by at most two.
#[derive(Debug)]
pub(super) struct Alias {
    columns: Box<[Column]>,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    /// How much of the column is its own, of 2^32.
    own: u32,
    /// Whose the rest is.
    other: u32,
}

impl Alias {
    /// Endpoints by their weights. Where all weights are 0, they count as equal.
    pub(super) fn of(ready: &Endpoints) -> Self {
        Self::new(&ready.iter().map(Endpoint::weight).collect::<Vec<_>>())
    }

    pub(super) fn new(weights: &[u64]) -> Self {
        let n = weights.len() as u64;
        let sum: u64 = weights.iter().sum();
        let equal = sum == 0;
        let (level, times) = if equal { (1, 0) } else { (sum, n) };
        let mut heights: Vec<u64> = weights
            .iter()
            .map(|weight| weight * times + u64::from(equal))
            .collect();
        let (mut short, mut tall): (Vec<usize>, Vec<usize>) =
            (0..heights.len()).partition(|&place| heights[place] < level);
        let mut columns: Vec<Column> = (0..heights.len())
            .map(|place| Column {
                own: u32::MAX,
                other: place as u32,
            })
            .collect();
        while let (Some(low), Some(&high)) = (short.pop(), tall.last()) {
            columns[low] = Column {
                own: (heights[low] as f64 / level as f64 * OF) as u32,
                other: high as u32,
            };
            heights[high] -= level - heights[low];
            if heights[high] < level {
                tall.pop();
                short.push(high);
            }
        }
        Self {
            columns: columns.into(),
        }
    }

    /// The place that these bits stand for.
    pub(super) fn at(&self, bits: u64) -> usize {
        let place = scale((bits >> 32) as u32, self.columns.len());
        let column = self.columns[place];
        // A column that is wholly another's has no share of its own, not even a chance of 2^-32.
        if (bits as u32) < column.own || column.other as usize == place {
            place
        } else {
            column.other as usize
        }
    }
}

/// The height of a column.
const OF: f64 = 4_294_967_296.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The exact share of each, of 2^32 a column.
    fn shares(alias: &Alias) -> Vec<u64> {
        let mut shares = vec![0; alias.columns.len()];
        for (place, column) in alias.columns.iter().enumerate() {
            if column.other as usize == place {
                shares[place] += 1 << 32;
            } else {
                shares[place] += u64::from(column.own);
                shares[column.other as usize] += (1 << 32) - u64::from(column.own);
            }
        }
        shares
    }

    proptest! {
        #[test]
        fn each_has_its_share(weights in proptest::collection::vec(0_u64..=1_000_000, 1..200)) {
            let alias = Alias::new(&weights);
            let sum: u64 = weights.iter().sum();
            let n = weights.len() as f64;

            for (share, weight) in shares(&alias).into_iter().zip(weights) {
                let is = share as f64 / 4_294_967_296.0 / n;
                let should = if sum == 0 { 1.0 / n } else { weight as f64 / sum as f64 };
                prop_assert!((is - should).abs() < 1e-6, "{is} {should}");
                prop_assert!(weight > 0 || sum == 0 || share == 0);
            }
        }
    }
}
