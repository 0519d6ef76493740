//! Each in turn.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{Call, Pick, Policy, dice, shares, weighted};
use crate::Endpoints;

/// Each ready endpoint in turn, as far as it has its [share](crate::Endpoint::share).
///
/// The turn is carried over when endpoints come and go, so that a set in flux does not favour those at its
/// front, and starts at a random place, so that many clients do not march in step.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    turn: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Turns {
    turn: Arc<AtomicUsize>,
    among: usize,
}

impl Default for RoundRobin {
    fn default() -> Self {
        let anywhere = dice::roll() as usize >> 8;
        Self {
            turn: Arc::new(AtomicUsize::new(anywhere)),
        }
    }
}

impl Policy for RoundRobin {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        if let Some(shares) = shares(ready) {
            let anywhere = AtomicU64::new(dice::roll() >> 32);
            return weighted::by(&Arc::new(anywhere), shares);
        }
        Box::new(Turns {
            turn: Arc::clone(&self.turn),
            among: ready.len(),
        })
    }
}

impl Pick for Turns {
    fn pick(&self, _: &Call<'_>) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.among
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conform, *};

    #[test]
    fn shares_differ_by_at_most_one() {
        for n in [1, 2, 3, 7, 64] {
            let counts = conform::counts(&RoundRobin::default(), &vec![1; n], 10_001);
            assert!(
                counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_turn_is_carried_over_a_change() {
        let policy = RoundRobin::default();
        let headers = http::HeaderMap::new();
        let call = Call::new("/a.B/C", &headers);
        let ready = conform::endpoints(&[1, 1, 1]);
        let mut counts = [0; 3];

        for _ in 0..300 {
            counts[policy.over(&ready).pick(&call)] += 1;
        }

        assert_eq!(counts, [100; 3]);
    }
    #[test]
    fn one_that_ramps_has_fewer_turns() {
        let counts = conform::ramping(&RoundRobin::default(), &[100, 10, 100], 21_000);

        assert_eq!(counts, [10_000, 1_000, 10_000]);
    }
}
