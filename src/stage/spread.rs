//! Calls over the zones, in their shares.

use std::{fmt, sync::Arc};

use twox_hash::XxHash64;

use super::Zones;
use crate::{
    Endpoints,
    balance::{Call, Pick, Policy, below},
};

/// How many of a hundred calls go to each tier of zones.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(super) zones: Arc<Zones>,
    pub(super) percents: Vec<u8>,
}

/// Among those of each tier the policy picks as it would among all.
#[derive(Debug)]
struct Nearby {
    parts: Vec<Part>,
    /// What the shares add up to of those tiers of which anybody is ready.
    sum: usize,
}

#[derive(Debug)]
struct Part {
    share: usize,
    /// Where in the whole each of its members is.
    places: Vec<u32>,
    pick: Box<dyn Pick>,
}

impl Spread {
    /// Whether it says the same as another.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.percents == other.percents
    }

    /// The tiers by name, and how many of a hundred calls go to each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u8)> {
        let shares = self.percents.iter().enumerate();
        shares.map(|(tier, &share)| (self.zones.name(tier), share))
    }

    /// A way to pick that keeps to it.
    pub(crate) fn over(&self, policy: &dyn Policy, ready: &Endpoints) -> Box<dyn Pick> {
        let mut tiers = vec![Vec::new(); self.percents.len()];
        for (place, endpoint) in ready.iter().enumerate() {
            tiers[self.zones.tier(endpoint.instance())].push(place as u32);
        }
        let shares = self.percents.iter().map(|&share| usize::from(share));
        let there = shares
            .zip(tiers)
            .filter(|(share, places)| *share > 0 && !places.is_empty());
        let there: Vec<_> = there.collect();
        if there.is_empty() || there[0].1.len() == ready.len() {
            return policy.over(ready);
        }
        let part = |(share, places): (usize, Vec<u32>)| {
            let members = places.iter().filter_map(|&place| ready.get(place as usize));
            let pick = policy.over(&members.cloned().collect());
            Part {
                share,
                places,
                pick,
            }
        };
        let parts: Vec<_> = there.into_iter().map(part).collect();
        let sum = parts.iter().map(|part| part.share).sum();
        Box::new(Nearby { parts, sum })
    }
}

impl Pick for Nearby {
    fn pick(&self, call: &Call<'_>) -> usize {
        let mut at = match call.key() {
            // Not the bits that policies go by.
            Some(key) => (XxHash64::oneshot(ZONE, key) % self.sum as u64) as usize,
            None => below(self.sum),
        };
        let part = self.parts.iter().find(|part| {
            let is_it = at < part.share;
            at = at.saturating_sub(part.share);
            is_it
        });
        let Some(part) = part else { return 0 };
        let place = part
            .places
            .get(part.pick.pick(call))
            .or_else(|| part.places.first());
        place.map_or(0, |&place| place as usize)
    }
}

/// The seed by which a key chooses its zone.
const ZONE: u64 = 0x7A6F_6E65;

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = self.iter().filter(|(_, share)| *share > 0);
        let words = shares.map(|(name, share)| format!("{share} % {name}"));
        f.write_str(&words.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::{
        Endpoint, Instance,
        balance::{Maglev, RoundRobin},
    };

    fn ready(zones: &[&str]) -> Endpoints {
        let make = |(nth, zone): (usize, &&str)| {
            let instance = Instance::at("10.0.0.1:1").unwrap();
            Endpoint::idle(instance.id(format!("i{nth}")).unwrap().zone(*zone))
        };
        zones.iter().enumerate().map(make).collect()
    }

    fn spread(percents: &[u8]) -> Spread {
        Spread {
            zones: Arc::new(Zones::mine("a").then("b")),
            percents: percents.into(),
        }
    }

    fn counts(pick: &dyn Pick, of: usize, picks: usize) -> Vec<usize> {
        crate::balance::seed(7);
        let (headers, mut counts) = (HeaderMap::new(), vec![0; of]);
        for _ in 0..picks {
            counts[pick.pick(&Call::new("/a.B/C", &headers))] += 1;
        }
        counts
    }

    #[test]
    fn each_zone_gets_its_share_and_shares_it_out_as_the_policy_does() {
        let ready = ready(&["b", "a", "c", "a", "b"]);
        let pick = spread(&[60, 40, 0]).over(&RoundRobin::default(), &ready);

        let counts = counts(&*pick, 5, 100_000);

        let near = |count: usize, of: usize| count.abs_diff(of) < of / 20;
        assert!(
            near(counts[1], 30_000) && near(counts[3], 30_000),
            "{counts:?}"
        );
        assert!(
            near(counts[0], 20_000) && near(counts[4], 20_000),
            "{counts:?}"
        );
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn the_share_of_a_zone_where_nobody_is_ready_goes_to_the_others() {
        let ready = ready(&["b", "c", "c"]);
        let pick = spread(&[60, 20, 20]).over(&RoundRobin::default(), &ready);
        let nobody = spread(&[100, 0, 0]).over(&RoundRobin::default(), &ready);

        let counted = counts(&*pick, 3, 10_000);

        assert!(counted[0].abs_diff(5_000) < 500, "{counted:?}");
        assert!(counts(&*nobody, 3, 300).iter().all(|&count| count == 100));
    }

    #[test]
    fn a_key_has_one_zone() {
        let ready = ready(&["a", "b", "c"]);
        let pick = spread(&[34, 33, 33]).over(&Maglev::default(), &ready);
        let headers = HeaderMap::new();
        let mut seen = [false; 3];
        for key in 0..60_u32 {
            let key = key.to_le_bytes();
            let call = Call::new("/a.B/C", &headers).with_key(&key);
            let place = pick.pick(&call);
            seen[place] = true;
            assert!((0..5).all(|_| pick.pick(&call) == place));
        }

        assert_eq!(seen, [true; 3]);
    }
}
