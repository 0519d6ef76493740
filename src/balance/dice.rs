//! Chance for picks: fast, a thread's own, and never for secrets.

use std::cell::Cell;

use rand::{Rng, SeedableRng, rngs::SmallRng};

thread_local! {
    /// None until they are first thrown: what is there from the start is at hand at once.
    static DICE: Cell<Option<SmallRng>> = const { Cell::new(None) };
}

/// From now on, what picks on this thread leave to chance follows from this number, so that a test or a
/// simulation goes the same way each time.
pub fn seed(seed: u64) {
    DICE.set(Some(SmallRng::seed_from_u64(seed)));
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
    // Taken and put back: what is done between is part of the caller, and need not go through memory.
    let mut dice = DICE.take().unwrap_or_else(any);
    let mut rolls = [0; N];
    rolls.iter_mut().for_each(|roll| *roll = dice.next_u64());
    DICE.set(Some(dice));
    rolls
}

/// Where this crate itself is tested, the same each time: each test has a thread of its own.
#[cold]
fn any() -> SmallRng {
    SmallRng::seed_from_u64(if cfg!(test) { 7 } else { rand::random() })
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
    use super::*;

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
