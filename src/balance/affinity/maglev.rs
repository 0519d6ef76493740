//! Maglev: a table that everybody fills in turn.

use twox_hash::XxHash64;

use super::{Affinity, Members, Table, Tabled};
use crate::{
    Endpoints,
    balance::{Pick, Policy},
};

/// The endpoint that stands in a large table where the call's hash points: even shares, and one look.
///
/// The table is Envoy's: the same ids and weights make the same one. It has 65,537 places, enough for shares that
/// differ by a twentieth among a hundred endpoints, and by a sixth among a thousand.
#[derive(Clone, Debug)]
pub struct Maglev {
    affinity: Affinity,
    size: usize,
}

/// Who stands where, by number.
#[derive(Debug)]
struct Places(Box<[u32]>);

const SIZE: usize = 65_537;
/// Envoy's greatest; a prime, as they all are.
const MOST: usize = 5_000_011;
/// In the table while it is filled.
const NOBODY: u32 = u32::MAX;

impl Default for Maglev {
    fn default() -> Self {
        Self::by(Affinity::default())
    }
}

impl Maglev {
    /// Calls that belong together by this.
    pub fn by(affinity: Affinity) -> Self {
        Self {
            affinity,
            size: SIZE,
        }
    }

    /// How many places the table has: the next prime from this. 65,537, unless set, and 5,000,011 at most; a hundred for
    /// each endpoint make shares that differ by a hundredth. Each takes four bytes, and some 15 ns when the table is
    /// made, which is whenever somebody comes or goes. All clients of a service should agree.
    #[must_use]
    pub fn table(mut self, size: usize) -> Self {
        self.size = (size.clamp(2, MOST)..=MOST)
            .find(|&n| is_prime(n))
            .unwrap_or(MOST);
        self
    }

    fn places(&self, members: &Members) -> Box<[u32]> {
        let size = self.size as u64;
        let mut heaviest = 1;
        let mut fillers: Vec<Filler> = members
            .each()
            .map(|(place, id, weight)| {
                heaviest = heaviest.max(weight);
                Filler {
                    place: place as u32,
                    weight,
                    at: XxHash64::oneshot(0, id.as_bytes()) % size,
                    skip: XxHash64::oneshot(1, id.as_bytes()) % (size - 1) + 1,
                    owed: 0,
                }
            })
            .collect();
        let mut table = vec![NOBODY; self.size];
        let mut left = if fillers.is_empty() { 0 } else { table.len() };
        let mut round = 0;
        while left > 0 {
            round += 1;
            for filler in &mut fillers {
                if left == 0 {
                    break;
                }
                // Lighter ones have their turn less often.
                if round * u128::from(filler.weight) < filler.owed {
                    continue;
                }
                filler.owed += u128::from(heaviest);
                while table[filler.at as usize] != NOBODY {
                    filler.at = (filler.at + filler.skip) % size;
                }
                table[filler.at as usize] = filler.place;
                left -= 1;
            }
        }
        table.into()
    }
}

/// One that fills the table, in an order of its own that leads everywhere.
struct Filler {
    place: u32,
    weight: u64,
    at: u64,
    skip: u64,
    owed: u128,
}

fn is_prime(n: usize) -> bool {
    n >= 2
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

impl Policy for Maglev {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let members = Members::of(ready);
        Box::new(Tabled {
            affinity: self.affinity.clone(),
            table: Places(self.places(&members)),
            members,
        })
    }
}

impl Table for Places {
    fn at(&self, hash: u64) -> usize {
        self.0[(hash % self.0.len() as u64) as usize] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::conform;

    fn table(ready: &Endpoints) -> Box<[u32]> {
        Maglev::default().places(&Members::of(ready))
    }

    #[test]
    fn a_hundred_have_even_shares_and_one_who_leaves_moves_few_of_the_others() {
        let ready = conform::endpoints(&[1; 100]);
        let before = table(&ready);
        let fewer: Endpoints = ready.iter().take(99).cloned().collect();
        let after = table(&fewer);

        let mut shares = [0; 100];
        before.iter().for_each(|&place| shares[place as usize] += 1);
        let kept = before.iter().zip(&after).filter(|(place, _)| **place != 99);
        let moved = kept.filter(|(before, after)| before != after).count();

        // It fills the table in turns, so that they differ by one.
        assert!(
            shares.iter().all(|share| [655, 656].contains(share)),
            "{shares:?}"
        );
        assert!(moved as f64 / SIZE as f64 <= 0.006, "{moved} of {SIZE}");
    }

    #[test]
    fn the_first_places_are_those_that_the_ids_hashes_say() {
        let table = table(&conform::endpoints(&[1; 2]));

        for (place, id) in ["i00000", "i00001"].iter().enumerate() {
            let first = XxHash64::oneshot(0, id.as_bytes()) % SIZE as u64;
            assert_eq!(table[first as usize], place as u32);
        }
    }

    #[test]
    fn a_table_has_a_prime_number_of_places() {
        let sizes = [0, 4, 65_537, 655_360, usize::MAX].map(|n| Maglev::default().table(n).size);
        assert_eq!(sizes, [2, 5, 65_537, 655_373, 5_000_011]);
    }

    #[test]
    fn weights_that_tower_take_no_longer_to_fill_in() {
        let ready = conform::endpoints(&[u32::MAX, 1, 1]);
        let table = table(&ready);
        assert!(table.iter().filter(|place| **place == 0).count() > SIZE - 10);
    }
}
