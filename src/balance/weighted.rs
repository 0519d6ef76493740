//! Each in turn, as often as its weight says.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{Call, Pick, Policy, alias::Alias, dice};
use crate::{Endpoint, Endpoints};

/// Each ready endpoint in turn, as often as its weight says, and exactly so.
///
/// Static-stride scheduling as in gRPC's weighted round robin, in whole numbers: over as many rounds as the
/// greatest weight, each endpoint is picked exactly its weight's number of times. Where one weight towers
/// over the others, so that most turns would be skipped, an evenly spread draw takes its place, exact to
/// within one in a thousand.
#[derive(Clone, Debug)]
pub struct Weighted {
    turn: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Strides {
    turn: Arc<AtomicU64>,
    weights: Box<[u64]>,
    greatest: u64,
}

#[derive(Debug)]
struct Spread {
    turn: Arc<AtomicU64>,
    alias: Alias,
}

/// How many turns may be skipped for one that is taken, on average.
const MOST_SKIPS: u64 = 4;

/// 2^64 over the golden ratio: multiples of it fill the circle as evenly as can be.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Default for Weighted {
    fn default() -> Self {
        Self {
            turn: Arc::new(AtomicU64::new(dice::roll() >> 32)),
        }
    }
}

impl Policy for Weighted {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        by(&self.turn, ready.iter().map(Endpoint::weight).collect())
    }
}

/// Turns by these weights; where all are 0, they count as equal.
pub(super) fn by(turn: &Arc<AtomicU64>, mut weights: Vec<u64>) -> Box<dyn Pick> {
    let turn = Arc::clone(turn);
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor);
    if divisor == 0 {
        weights.fill(1);
    } else {
        weights.iter_mut().for_each(|weight| *weight /= divisor);
    }
    let mut greatest = weights.iter().copied().max().unwrap_or(1);
    // Two of them multiplied must fit into one word.
    let excess = (u64::BITS - greatest.leading_zeros()).saturating_sub(u32::BITS);
    if excess > 0 {
        let scaled = |weight: u64| (weight >> excess).max(weight.min(1));
        weights
            .iter_mut()
            .for_each(|weight| *weight = scaled(*weight));
        greatest >>= excess;
    }
    let sum: u64 = weights.iter().sum();
    if greatest * weights.len() as u64 > sum * MOST_SKIPS {
        let alias = Alias::new(&weights);
        return Box::new(Spread { turn, alias });
    }
    let weights = weights.into();
    Box::new(Strides {
        turn,
        weights,
        greatest,
    })
}

/// Weights that have it in common are the same without it, in a shorter round.
fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

impl Pick for Strides {
    fn pick(&self, _: &Call<'_>) -> usize {
        let n = self.weights.len() as u64;
        loop {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let (round, place) = (turn / n, turn % n);
            let weight = self.weights[place as usize];
            // Endpoints start their strides at different places, so that light ones do not bunch up.
            let offset = place.wrapping_mul(GOLDEN) % self.greatest;
            let reached = ((weight * (round % self.greatest)) + offset) % self.greatest;
            if reached + weight >= self.greatest {
                return place as usize;
            }
        }
    }
}

impl Pick for Spread {
    fn pick(&self, _: &Call<'_>) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // The high bits choose the column, the low ones its side: they come from two even sequences.
        let column = turn.wrapping_mul(GOLDEN) & 0xFFFF_FFFF_0000_0000;
        let side = turn.wrapping_mul(0xD1B5_4A32_D192_ED03) >> 32;
        self.alias.at(column | side)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conform::counts, *};

    #[test]
    fn shares_are_exact() {
        assert_eq!(
            counts(&from(0), &[3, 1, 1], 50_000),
            [30_000, 10_000, 10_000]
        );
        assert_eq!(
            counts(&from(0), &[3, 1, 1], 200_000),
            [120_000, 40_000, 40_000]
        );
        assert_eq!(
            counts(&from(0), &[5, 7, 11, 2], 25_000),
            [5_000, 7_000, 11_000, 2_000]
        );
        assert_eq!(counts(&from(0), &[0, 0], 10), [5, 5]);
    }

    #[test]
    fn wherever_the_turn_starts_the_shares_differ_by_less_than_a_round() {
        for start in [1, 17, 12_345_678] {
            let counts = counts(&from(start), &[3, 1, 1], 50_000);
            for (count, share) in counts.iter().zip([30_000_usize, 10_000, 10_000]) {
                assert!(count.abs_diff(share) <= 3, "{counts:?}");
            }
        }
    }

    #[test]
    fn one_towering_weight_costs_no_skipped_turns_and_keeps_its_share() {
        let mut weights = [1; 101];
        weights[0] = 100;

        let counts = counts(&from(0), &weights, 200_000);

        assert!(counts[0].abs_diff(100_000) < 200, "{}", counts[0]);
        assert!(
            counts[1..].iter().all(|count| count.abs_diff(1_000) < 100),
            "{counts:?}"
        );
    }

    #[test]
    fn the_greatest_weights_there_can_be_are_no_trouble() {
        let counts = counts(&from(0), &[u32::MAX, u32::MAX - 1, 1], 30_000);

        assert!(
            counts[0].abs_diff(15_000) < 10 && counts[2] < 3,
            "{counts:?}"
        );
    }

    #[test]
    fn light_ones_do_not_bunch_up() {
        let policy = from(0);
        let headers = http::HeaderMap::new();
        let pick = policy.over(&super::super::conform::endpoints(&[4, 1, 1, 1, 1]));
        let picks: Vec<usize> = (0..800)
            .map(|_| pick.pick(&Call::new("/a.B/C", &headers)))
            .collect();

        let longest_wait = picks
            .split(|&place| place == 0)
            .map(<[usize]>::len)
            .max()
            .unwrap();

        assert!(longest_wait <= 4, "{longest_wait} others in a row");
    }

    fn from(turn: u64) -> Weighted {
        let turn = Arc::new(AtomicU64::new(turn));
        Weighted { turn }
    }
}
