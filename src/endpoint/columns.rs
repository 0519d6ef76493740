//! Drawing by weight in two steps, whatever the number there is (Walker's alias method, by a sweep).

use std::sync::Arc;

/// Columns of equal height, each shared by at most two.
#[derive(Clone, Debug)]
pub(crate) struct Columns(Arc<[Column]>);

#[derive(Clone, Copy, Debug)]
struct Column {
    /// How much of the column is its own, of 2^32.
    own: u32,
    /// Whose the rest is.
    other: u32,
}

impl Columns {
    /// So many with these weights, which come to this sum. Where all are 0, they count as equal.
    ///
    /// Goes through the light and through the heavy once, side by side: what a heavy one has above its own column
    /// fills those of light ones; and when that leaves it too little, the next heavy one fills its own.
    pub(crate) fn by(sum: u64, n: usize, weights: impl Iterator<Item = u64> + Clone) -> Self {
        let whole = |place| Column {
            own: u32::MAX,
            other: place,
        };
        let mut columns: Vec<Column> = (0..n as u32).map(whole).collect();
        let heights = weights.map(|weight| weight * n as u64).enumerate();
        let mut light = heights.clone().filter(|(_, height)| *height < sum);
        let mut heavy = heights.filter(|(_, height)| *height >= sum);
        let Some((mut giver, mut has)) = heavy.next() else {
            return Self(columns.into());
        };
        let part = OF / sum as f64;
        let own = |height: u64| (height as f64 * part) as u32;
        loop {
            let (place, height) = if has < sum {
                (giver, has)
            } else if let Some(light) = light.next() {
                light
            } else {
                break;
            };
            if place == giver {
                let Some(next) = heavy.next() else { break };
                (giver, has) = next;
            }
            has -= sum - height;
            columns[place] = Column {
                own: own(height),
                other: giver as u32,
            };
        }
        Self(columns.into())
    }

    /// The place that these bits stand for.
    #[inline]
    pub(crate) fn at(&self, bits: u64) -> usize {
        let wide = (bits >> 32) * self.0.len() as u64;
        self.of((wide >> 32) as usize, bits as u32)
    }

    /// The same by half as many: what a place is not chosen by chooses the side. For a few thousand that is exact to
    /// within one in a million.
    #[inline]
    pub(crate) fn at_half(&self, bits: u32) -> usize {
        let wide = u64::from(bits) * self.0.len() as u64;
        self.of((wide >> 32) as usize, wide as u32)
    }

    #[inline]
    fn of(&self, place: usize, side: u32) -> usize {
        let column = self.0[place];
        // A column that is wholly another's has no share of its own, not even a chance of 2^-32.
        if side < column.own || column.other as usize == place {
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
    fn shares(columns: &Columns) -> Vec<u64> {
        let mut shares = vec![0; columns.0.len()];
        for (place, column) in columns.0.iter().enumerate() {
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
            let columns = Columns::by(weights.iter().sum(), weights.len(), weights.iter().copied());
            let sum: u64 = weights.iter().sum();
            let n = weights.len() as f64;

            for (share, weight) in shares(&columns).into_iter().zip(weights) {
                let is = share as f64 / 4_294_967_296.0 / n;
                let should = if sum == 0 { 1.0 / n } else { weight as f64 / sum as f64 };
                prop_assert!((is - should).abs() < 1e-6, "{is} {should}");
                prop_assert!(weight > 0 || sum == 0 || share == 0);
            }
        }
    }
}
