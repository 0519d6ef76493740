//! By chance.

use super::{Call, Pick, Policy, alias::Alias, dice, shares};
use crate::Endpoints;

/// Any ready endpoint, all equally likely, as far as they have their [share](crate::Endpoint::share).
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

/// Any ready endpoint, as likely as its weight says.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedRandom;

#[derive(Debug)]
struct Any(usize);

#[derive(Debug)]
struct Likely(Alias);

impl Policy for Random {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        match shares(ready) {
            None => Box::new(Any(ready.len())),
            Some(shares) => Box::new(Likely(Alias::new(&shares))),
        }
    }
}

impl Pick for Any {
    fn pick(&self, _: &Call<'_>) -> usize {
        dice::below(self.0)
    }
}

impl Policy for WeightedRandom {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        Box::new(Likely(Alias::of_each(ready)))
    }
}

impl Pick for Likely {
    fn pick(&self, _: &Call<'_>) -> usize {
        self.0.at(dice::roll())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::conform::{counts, ramping},
        *,
    };

    #[test]
    fn random_is_fair_within_two_in_a_hundred() {
        for count in counts(&Random, &[1; 5], 100_000) {
            assert!((19_600..20_400).contains(&count), "{count}");
        }
    }

    #[test]
    fn weighted_random_follows_the_weights_within_two_in_a_hundred() {
        let counts = counts(&WeightedRandom, &[3, 1, 1, 5], 100_000);

        for (count, share) in counts.into_iter().zip([30_000, 10_000, 10_000, 50_000]) {
            assert!(count.abs_diff(share) < 1_000, "{count} for {share}");
        }
    }
    #[test]
    fn one_that_ramps_is_drawn_as_often_as_its_share() {
        let counts = ramping(&Random, &[100, 10, 100], 21_000);

        assert!(counts[1].abs_diff(1_000) < 150, "{counts:?}");
        assert!(counts[0].abs_diff(10_000) < 400, "{counts:?}");
    }
}
