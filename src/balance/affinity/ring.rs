//! A ring of hashes, as gRPC has it.

use twox_hash::XxHash64;

use super::{Affinity, Members, Table, Tabled};
use crate::{
    Endpoints,
    balance::{Pick, Policy},
};

/// The endpoint whose entry on a ring of hashes follows the call's: the ring of gRPC's `ring_hash` (A42), for fleets
/// in which others use that.
///
/// With many endpoints, the shares on a ring of gRPC's usual size differ by a factor of two and more:
/// [`Maglev`](super::Maglev) is better where one is free to choose.
#[derive(Clone, Debug)]
pub struct RingHash {
    affinity: Affinity,
    least: usize,
    most: usize,
}

/// Hashes with the places they stand for, in order.
#[derive(Debug)]
struct Ring(Box<[(u64, u32)]>);

/// Beyond this, gRPC refuses a ring.
const MOST: usize = 8 << 20;

impl Default for RingHash {
    fn default() -> Self {
        Self::by(Affinity::default())
    }
}

impl RingHash {
    /// Calls that belong together by this.
    pub fn by(affinity: Affinity) -> Self {
        Self {
            affinity,
            least: 1024,
            most: 4096,
        }
    }

    /// How many entries the ring has. 1,024 at least and 4,096 at most, unless set; never more than 8,388,608. All clients
    /// of a service should agree.
    #[must_use]
    pub fn entries(mut self, least: usize, most: usize) -> Self {
        self.most = most.clamp(1, MOST);
        self.least = least.clamp(1, self.most);
        self
    }

    /// So many entries for each member, with what remains of one carried over to the next.
    fn ring(&self, members: &Members) -> Box<[(u64, u32)]> {
        let part = |weight: u64| weight as f64 / members.sum as f64;
        let smallest = members.each().map(|(_, _, weight)| weight).min();
        let smallest = smallest.map_or(1.0, part);
        let scale = (smallest * self.least as f64).ceil() / smallest;
        let scale = scale.min(self.most as f64);
        let mut ring = Vec::with_capacity(scale.ceil() as usize);
        let mut target = 0.0;
        let mut name = String::new();
        for (place, id, weight) in members.each() {
            target += scale * part(weight);
            let mut nth = 0_u32;
            while (ring.len() as f64) < target {
                name.clear();
                name.push_str(id);
                name.push('_');
                name.push_str(&nth.to_string());
                ring.push((XxHash64::oneshot(0, name.as_bytes()), place as u32));
                nth += 1;
            }
        }
        ring.sort_unstable();
        ring.into()
    }
}

impl Policy for RingHash {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let members = Members::of(ready);
        Box::new(Tabled {
            affinity: self.affinity.clone(),
            table: Ring(self.ring(&members)),
            members,
        })
    }
}

impl Table for Ring {
    fn at(&self, hash: u64) -> usize {
        let next = self.0.partition_point(|(entry, _)| *entry < hash);
        // After the last comes the first.
        let entry = self.0.get(next).or_else(|| self.0.first());
        entry.map_or(0, |(_, place)| *place as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::conform;

    fn ring_of(weights: &[u32], least: usize, most: usize) -> Box<[(u64, u32)]> {
        let ready = conform::endpoints(weights);
        let policy = RingHash::default().entries(least, most);
        policy.ring(&Members::of(&ready))
    }

    fn entries(ring: &[(u64, u32)], place: u32) -> usize {
        ring.iter().filter(|entry| entry.1 == place).count()
    }

    #[test]
    fn each_has_entries_by_its_weight_and_the_least_heavy_a_whole_number() {
        // A third of 1,024 is no whole number: each has the next greater.
        let ring = ring_of(&[1, 1, 1], 1024, 4096);
        assert_eq!([0, 1, 2].map(|place| entries(&ring, place)), [342; 3]);

        let ring = ring_of(&[1, 2, 5], 16, 4096);
        assert_eq!([0, 1, 2].map(|place| entries(&ring, place)), [2, 4, 10]);
    }

    #[test]
    fn the_greatest_size_holds_whatever_the_weights() {
        let ring = ring_of(&[1, 10_000], 1024, 4096);
        assert_eq!(ring.len(), 4096);
        assert_eq!(entries(&ring, 0), 1);
    }

    #[test]
    fn entries_are_hashes_of_the_id_and_a_number_and_a_call_goes_to_the_next() {
        let ready = conform::endpoints(&[1, 1]);
        let members = Members::of(&ready);
        let pick = Ring(RingHash::default().entries(4, 4).ring(&members));
        let mut model: Vec<(u64, usize)> = [("i00000", 0), ("i00001", 1)]
            .into_iter()
            .flat_map(|(id, place)| [0, 1].map(|nth| (format!("{id}_{nth}"), place)))
            .map(|(name, place)| (XxHash64::oneshot(0, name.as_bytes()), place))
            .collect();
        model.sort_unstable();

        for (nth, &(hash, place)) in model.iter().enumerate() {
            let (_, after) = model[(nth + 1) % model.len()];

            assert_eq!(pick.at(hash), place);
            assert_eq!(pick.at(hash - 1), place);
            assert_eq!(pick.at(hash + 1), after);
        }
    }
}
