//! Two endpoints by chance.

use super::{alias::Alias, dice};
use crate::Endpoints;

/// How to draw two of so many, by their weights.
#[derive(Debug)]
pub(super) struct Two {
    among: usize,
    /// None when all weights are equal.
    alias: Option<Alias>,
}

/// How often another is drawn by weight.
const TRIES: usize = 4;

impl Two {
    pub(super) fn of(ready: &Endpoints) -> Self {
        let equal = ready.weights().are_equal();
        Self {
            among: ready.len(),
            alias: (!equal).then(|| Alias::of(ready)),
        }
    }

    /// Whether weights differ.
    pub(super) fn is_by_weight(&self) -> bool {
        self.alias.is_some()
    }

    /// Their places: two different ones, of which there must be two.
    ///
    /// By weight it may be the same twice, where hardly anybody else has any.
    #[inline]
    pub(super) fn draw(&self) -> (usize, usize) {
        let n = self.among;
        if let Some(alias) = &self.alias {
            let first = alias.at(dice::roll());
            // Drawn against itself, the slowest of all would win. Where nobody else is drawn, nobody else has weight.
            let mut others = (0..TRIES).map(|_| alias.at(dice::roll()));
            let second = others.find(|second| *second != first);
            return (first, second.unwrap_or(first));
        }
        let bits = dice::roll();
        let first = dice::scale(bits as u32, n);
        let second = dice::scale((bits >> 32) as u32, n - 1);
        (first, if second >= first { second + 1 } else { second })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conform, *};

    #[test]
    fn one_of_unequal_weights_is_hardly_ever_drawn_against_itself() {
        let two = Two::of(&conform::endpoints(&[10, 10, 10, 10, 10, 10, 10, 1]));

        let draws = (0..10_000).map(|_| two.draw());

        let same = draws.filter(|(first, second)| first == second).count();
        assert!(same < 40, "{same}");
    }

    #[test]
    fn of_equals_two_different_ones_are_drawn_and_all_are_reached() {
        let two = Two::of(&conform::endpoints(&[1; 3]));
        let mut seen = [0; 3];

        for _ in 0..1_000 {
            let (first, second) = two.draw();
            assert_ne!(first, second);
            seen[first] += 1;
            seen[second] += 1;
        }

        assert!(seen.iter().all(|&n| n > 300), "{seen:?}");
    }
}
