//! Chance that is the same on every machine.

/// A stream of random numbers (xoshiro256++), all of it decided by its seed.
#[derive(Clone, Debug)]
pub struct Dice([u64; 4]);

impl Dice {
    /// The stream of this name among those of this seed.
    pub fn new(seed: u64, name: u64) -> Self {
        let mut state = seed ^ name.wrapping_mul(0xD1B5_4A32_D192_ED03);
        Self([(); 4].map(|()| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^ (mixed >> 31)
        }))
    }

    pub fn roll(&mut self) -> u64 {
        let s = &mut self.0;
        let rolled = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        rolled
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.roll() >> 32) * n as u64) >> 32) as usize
    }

    /// Two different numbers below `n`, which is 2 or more.
    pub fn two_below(&mut self, n: usize) -> (usize, usize) {
        let first = self.below(n);
        let second = self.below(n - 1);
        (first, second + usize::from(second >= first))
    }

    /// From 0 up to, and without, 1.
    pub fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Exponential, with this mean.
    pub fn gap(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Normal, with mean 0 and deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_name_decide_the_stream() {
        let rolls = |seed, name| {
            let mut dice = Dice::new(seed, name);
            [(); 3].map(|()| dice.roll())
        };

        assert_eq!(rolls(1, 2), rolls(1, 2));
        assert_ne!(rolls(1, 2), rolls(2, 1));
        assert_ne!(rolls(1, 2), rolls(1, 3));
    }

    #[test]
    fn means_are_as_they_should_be() {
        let mut dice = Dice::new(7, 0);
        let mut mean =
            |of: fn(&mut Dice) -> f64| (0..100_000).map(|_| of(&mut dice)).sum::<f64>() / 100_000.0;

        assert!((mean(|dice| dice.gap(3.0)) - 3.0).abs() < 0.05);
        assert!(mean(Dice::normal).abs() < 0.02);
        assert!((mean(Dice::unit) - 0.5).abs() < 0.01);
        assert!((mean(|dice| dice.below(5) as f64) - 2.0).abs() < 0.03);
    }
}
