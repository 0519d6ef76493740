//! Rendezvous: everybody bids, and the highest has it.

use twox_hash::XxHash64;

use super::{Affinity, Members};
use crate::{
    Endpoints,
    balance::{Call, Pick, Policy},
};

/// The endpoint whose id makes the most of the call's hash: no table, the fewest moves there can be, and an order of
/// preference for each call.
///
/// A pick looks at all endpoints: best for up to a hundred or so.
#[derive(Clone, Debug, Default)]
pub struct Rendezvous {
    affinity: Affinity,
}

#[derive(Debug)]
struct Bidders {
    affinity: Affinity,
    members: Members,
    /// The hash of each one's id, its place, and its weight.
    all: Box<[(u64, u32, u64)]>,
    /// Whether all weigh the same, so that hashes can be compared as they are.
    equal: bool,
}

impl Rendezvous {
    /// Calls that belong together by this.
    pub fn by(affinity: Affinity) -> Self {
        Self { affinity }
    }
}

impl Policy for Rendezvous {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let members = Members::of(ready);
        let bidder = |(place, id, weight): (usize, &str, u64)| {
            (XxHash64::oneshot(0, id.as_bytes()), place as u32, weight)
        };
        let all: Box<[_]> = members.each().map(bidder).collect();
        Box::new(Bidders {
            affinity: self.affinity.clone(),
            equal: all.windows(2).all(|pair| pair[0].2 == pair[1].2),
            members,
            all,
        })
    }
}

impl Bidders {
    /// The highest bid under this one, and whose it is.
    fn best_under(&self, hash: u64, limit: Option<(f64, u32)>) -> Option<(f64, u32)> {
        let bids = self.all.iter().map(|&(id, place, weight)| {
            let bid = mixed(hash ^ id) >> 11;
            // Of as many bits as a number of this kind has.
            let bid = (bid as f64 + 0.5) / (1_u64 << 53) as f64;
            let bid = if self.equal {
                bid
            } else {
                -(weight as f64) / bid.ln()
            };
            (bid, place)
        });
        let under = bids.filter(|bid| limit.is_none_or(|limit| *bid < limit));
        under.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
    }
}

impl Pick for Bidders {
    fn pick(&self, call: &Call<'_>) -> usize {
        let hash = self.affinity.hash(call);
        let first = self.best_under(hash, None);
        let order = std::iter::successors(first, |last| self.best_under(hash, Some(*last)));
        let order = order.map(|(_, place)| place as usize);
        let chosen = self.affinity.first_of(order, &self.members, call);
        chosen.unwrap_or_else(|| first.map_or(0, |(_, place)| place as usize))
    }
}

/// All bits depend on all bits (the last steps of SplitMix64).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
