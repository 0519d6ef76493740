//! Chance for picks: fast, a thread's own, and never for secrets.

use std::cell::Cell;

thread_local! {
    static DICE: Dice = const { Dice::new() };
}

/// xoshiro256++, as `rand` has it; but what a thread has from the start is at hand at once, and a pick that draws has
/// the dice in registers.
struct Dice {
    /// Each by itself: to copy all at once would have to wait until all are written.
    words: [Cell<u64>; 4],
    are_thrown: Cell<bool>,
}

/// From now on, what picks on this thread leave to chance follows from this number, so that a test or a
/// simulation goes the same way each time.
pub fn seed(seed: u64) {
    DICE.with(|dice| dice.begin(seed));
}

/// 64 random bits.
#[inline]
pub(super) fn roll() -> u64 {
    let [roll] = rolls();
    roll
}

/// So many times 64 random bits.
#[inline(always)]
pub(super) fn rolls<const N: usize>() -> [u64; N] {
    let mut words = DICE.with(Dice::take);
    let mut rolls = [0; N];
    rolls.iter_mut().for_each(|roll| *roll = next(&mut words));
    DICE.with(|dice| dice.put(words));
    rolls
}

impl Dice {
    const fn new() -> Self {
        Self {
            words: [const { Cell::new(0) }; 4],
            are_thrown: Cell::new(false),
        }
    }

    #[inline]
    fn take(&self) -> [u64; 4] {
        if !self.are_thrown.get() {
            self.throw();
        }
        let [a, b, c, d] = &self.words;
        [a.get(), b.get(), c.get(), d.get()]
    }

    #[inline]
    fn put(&self, words: [u64; 4]) {
        let [a, b, c, d] = words;
        self.words[0].set(a);
        self.words[1].set(b);
        self.words[2].set(c);
        self.words[3].set(d);
    }

    /// Where this crate itself is tested, the same each time: each test has a thread of its own.
    #[cold]
    fn throw(&self) {
        self.begin(if cfg!(test) { 7 } else { rand::random() });
    }

    /// By SplitMix64, of which four words are never all 0.
    fn begin(&self, mut seed: u64) {
        for word in &self.words {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.set(mixed ^ mixed >> 31);
        }
        self.are_thrown.set(true);
    }
}

#[inline]
fn next(words: &mut [u64; 4]) -> u64 {
    let [a, b, c, d] = *words;
    let (c2, d2) = (c ^ a, d ^ b);
    *words = [a ^ d2, b ^ c2, c2 ^ b << 17, d2.rotate_left(45)];
    a.wrapping_add(d).rotate_left(23).wrapping_add(a)
}

/// A random number below `n`, which is not 0, from 32 of the bits.
#[inline]
pub(super) fn scale(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

/// A random number below `n`, which is not 0.
pub(crate) fn below(n: usize) -> usize {
    scale(roll() as u32, n)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    #[test]
    fn from_the_same_seed_they_fall_as_those_of_others_do() {
        for start in [0, 7, u64::MAX] {
            let mut others = Xoshiro256PlusPlus::seed_from_u64(start);
            seed(start);

            for _ in 0..100 {
                let [a, b] = rolls();
                assert_eq!([a, b, roll()], [0; 3].map(|_| others.next_u64()));
            }
        }
    }

    #[test]
    fn numbers_stay_below_and_reach_all() {
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[below(7)] = true;
        }

        assert_eq!(seen, [true; 7]);
        assert_eq!((scale(0, 7), scale(u32::MAX, 7)), (0, 6));
    }
}
