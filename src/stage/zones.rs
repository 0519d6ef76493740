//! The near before the far, as far as the near can bear it.

use std::{collections::BTreeMap, env, sync::Arc};

use crate::{Error, Instance};

/// Which zone a channel is in, and who helps when its servers are too few.
///
/// Calls go to the instances of the channel's own zone, as [`Instance::zone`](crate::Instance) has it, as long as
/// these can bear the zone's part of all calls; the rest goes to the others, who are not connected before
/// anything does. Every [policy](crate::balance) picks within a zone as it picks within a fleet.
///
/// # How much goes where
/// Callers are taken to be spread evenly over the zones that have servers, unless [`callers`](Self::callers)
/// says how many are here. What a zone can bear is what its instances weigh, or 1.4 times what the well ones do
/// if that is less; so up to 28 of a hundred may be unwell before anything goes elsewhere. With `u` as the
/// zone's part of all that the fleet can bear, and `c` as its part of the callers, `1.1 x u / c` of the calls
/// stay, and all where that is more than one. This is Envoy's zone-aware routing, with its overprovisioning
/// factor, and a tenth of tolerance, for a zone of ten servers beside one of eleven should not need the other.
///
/// A zone of one server beside two zones of ten so gets a sixth of its own callers' calls; and a zone whose
/// servers are all down gets none.
///
/// # Who helps
/// All others, unless some are named to come first: each of these takes what it can spare before the next is
/// connected (gRFC A56's priorities). Which are connected depends on how those before them are getting on and
/// not on themselves, so that a zone that is down altogether is not let go of and tried anew all the time.
/// Who is needed no longer stays connected for a minute.
///
/// # What it is not
/// A server counts by its health and its weight, not by its load: a zone whose servers are well and slow keeps
/// its calls, up to the limits of calls in flight. During a [panic](crate::Builder::panic_threshold) calls go to
/// all that are connected, whatever their zone. While calls are shared out over zones, those that belong
/// together by a [key](crate::Direct::by_key) stay in one; those that do by a header need not, and
/// [`PickFirst`](crate::balance::PickFirst) keeps to one in each zone.
///
/// ```
/// use tonic_fleet::stage::Zones;
///
/// let zones = Zones::mine("eu-1a").then("eu-1b");
/// ```
#[derive(Clone, Debug)]
pub struct Zones {
    /// The channel's own, and those that are to help before all others.
    order: Vec<Arc<str>>,
    /// How many of a hundred callers are in the channel's zone.
    callers: Option<u32>,
}

/// What a zone can bear.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Capacity {
    /// Of all who stay.
    pub(super) all: u64,
    /// Of the well ones.
    pub(super) well: u64,
}

/// The capacity of each zone; that of those who do not say where they are is nobody's.
pub(super) type Capacities = BTreeMap<Option<Arc<str>>, Capacity>;

/// The environment variable with the name of the zone.
const VARIABLE: &str = "FLEET_ZONE";
/// So much more than the well ones weigh is borne, and than is the zone's part.
const OVERPROVISIONING: f64 = 1.4;
const TOLERANCE: f64 = 1.1;
/// Less than half of one of a hundred is nothing: no connection is made for it.
const NOTHING: f64 = 0.005;
/// More is a mistake.
const MOST_ZONES: usize = 16;

impl Zones {
    /// The channel is in this zone.
    pub fn mine(zone: impl Into<Arc<str>>) -> Self {
        Self {
            order: vec![zone.into()],
            callers: None,
        }
    }

    /// The channel is in the zone that the environment variable `FLEET_ZONE` names.
    pub fn from_env() -> Result<Self, Error> {
        match env::var(VARIABLE) {
            Ok(zone) if !zone.is_empty() => Ok(Self::mine(zone)),
            Ok(_) => Err(Error::config(format!("{VARIABLE} is empty: name the zone"))),
            Err(why) => Err(Error::config(format!("{VARIABLE}: name the zone")).because(why)),
        }
    }

    /// This zone helps before those named later, and those not named.
    #[must_use]
    pub fn then(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.order.push(zone.into());
        self
    }

    /// So many of a hundred callers are in the channel's zone. As many as in any other, unless set.
    #[must_use]
    pub fn callers(self, percent: u32) -> Self {
        let callers = Some(percent);
        Self { callers, ..self }
    }

    /// The zone that the channel is in.
    pub fn zone(&self) -> &str {
        &self.order[0]
    }

    /// How many tiers there are: a zone each, and all the others.
    pub(crate) fn tiers(&self) -> usize {
        self.order.len() + 1
    }

    /// In which tier an instance is.
    pub(crate) fn tier(&self, instance: &Instance) -> usize {
        self.tier_of(instance.zone.as_ref())
    }

    /// What a tier is called.
    pub(crate) fn name(&self, tier: usize) -> &str {
        self.order.get(tier).map_or("elsewhere", |zone| zone)
    }

    fn tier_of(&self, zone: Option<&Arc<str>>) -> usize {
        let named = self.order.iter().position(|named| Some(named) == zone);
        named.unwrap_or(self.order.len())
    }

    /// How many of a hundred calls go to each tier, and how many of the tiers, the first ones, are needed.
    pub(super) fn shares(&self, capacities: &Capacities) -> (Vec<u8>, usize) {
        let tiers = self.tiers();
        if capacities.values().all(|capacity| capacity.all == 0) {
            // There is nobody, or all drain: whoever is there is near enough.
            let nothing = std::iter::repeat_n(0, tiers - 1);
            return (std::iter::once(100).chain(nothing).collect(), tiers);
        }
        let mut needed = 1;
        let mut shares = self.filled(capacities, needed);
        // A tier is needed when those before it are not enough even if it and all after it are well.
        while needed < tiers && shares[needed..].iter().sum::<f64>() > NOTHING {
            needed += 1;
            shares = self.filled(capacities, needed);
        }
        (in_percent(&shares), needed)
    }

    /// The same in parts of 1, when only so many tiers are looked at, and all after them count as well.
    fn filled(&self, capacities: &Capacities, looked_at: usize) -> Vec<f64> {
        let bears = |zone: Option<&Arc<str>>, capacity: &Capacity| {
            let well = capacity.well as f64 * OVERPROVISIONING;
            let all = capacity.all as f64;
            if self.tier_of(zone) < looked_at {
                all.min(well)
            } else {
                all
            }
        };
        let sum: f64 = capacities
            .iter()
            .map(|(zone, capacity)| bears(zone.as_ref(), capacity))
            .sum();
        let mut shares = vec![0.0; self.tiers()];
        if sum <= 0.0 {
            // Nobody is well: everybody is near enough.
            shares.fill(1.0 / self.tiers() as f64);
            return shares;
        }
        let callers = self.callers_of(capacities);
        let mut spare = vec![0.0; self.tiers()];
        let mut own = 0.0;
        for (zone, capacity) in capacities {
            let part = bears(zone.as_ref(), capacity) / sum;
            let tier = self.tier_of(zone.as_ref());
            match tier {
                0 => own = part,
                _ => spare[tier] += (part - callers.of(zone.as_ref())).max(0.0),
            }
        }
        shares[0] = (own * TOLERANCE / callers.mine).min(1.0);
        let mut rest = 1.0 - shares[0];
        for tier in 1..self.tiers() {
            shares[tier] = rest.min(spare[tier] / callers.mine);
            rest -= shares[tier];
        }
        // What nobody has to spare is borne by all in the same proportion.
        let given = 1.0 - rest;
        if given > 0.0 {
            shares.iter_mut().for_each(|share| *share /= given);
        }
        shares
    }

    fn callers_of(&self, capacities: &Capacities) -> Callers {
        let there = capacities.iter().filter(|(zone, capacity)| {
            let is_mine = self.tier_of(zone.as_ref()) == 0;
            zone.is_some() && !is_mine && capacity.all > 0
        });
        let others = there.count() as f64;
        let mine = match self.callers {
            Some(percent) => f64::from(percent) / 100.0,
            None => 1.0 / (others + 1.0),
        };
        let each = if others > 0.0 {
            (1.0 - mine) / others
        } else {
            0.0
        };
        Callers { mine, each }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::config(format!("zones: {why}")));
        if self.order.len() > MOST_ZONES {
            return refuse(format!(
                "{} are named: at most {MOST_ZONES}",
                self.order.len()
            ));
        }
        for (nth, zone) in self.order.iter().enumerate() {
            if zone.is_empty() || zone.chars().any(char::is_control) {
                return refuse(format!("{zone:?} is no name of a zone"));
            }
            if self.order[..nth].contains(zone) {
                return refuse(format!("{zone:?} is named twice: keep one"));
            }
        }
        match self.callers {
            Some(percent) if !(1..=100).contains(&percent) => refuse(format!(
                "{percent} % of the callers are here: from 1 to 100 are allowed"
            )),
            _ => Ok(()),
        }
    }
}

/// Which part of all callers is where.
struct Callers {
    mine: f64,
    /// In each other zone.
    each: f64,
}

impl Callers {
    fn of(&self, zone: Option<&Arc<str>>) -> f64 {
        if zone.is_some() { self.each } else { 0.0 }
    }
}

/// The same in whole percents that make up a hundred; what is something stays something.
fn in_percent(shares: &[f64]) -> Vec<u8> {
    let percent = |share: &f64| match *share {
        share if share <= NOTHING => 0,
        share => (share * 100.0).round().clamp(1.0, 100.0) as u8,
    };
    let mut percents: Vec<u8> = shares.iter().map(percent).collect();
    let sum: u32 = percents.iter().map(|&percent| u32::from(percent)).sum();
    if let Some(most) = percents.iter_mut().max() {
        let exact = u32::from(*most) + 100 - sum.min(100 + u32::from(*most));
        *most = u8::try_from(exact).unwrap_or(100);
    }
    percents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(zones: &[(&str, u64, u64)]) -> Capacities {
        let zone = |&(zone, all, well): &(&str, u64, u64)| {
            let name = (!zone.is_empty()).then(|| zone.into());
            (name, Capacity { all, well })
        };
        zones.iter().map(zone).collect()
    }

    #[test]
    fn calls_stay_as_far_as_the_zone_can_bear_them() {
        for (zones, shares, why) in [
            (&[("a", 10, 10), ("b", 10, 10)][..], [100, 0], "equal zones"),
            (
                &[("a", 10, 8), ("b", 10, 10)],
                [100, 0],
                "28 of a hundred may be unwell",
            ),
            (
                &[("a", 10, 10), ("b", 11, 11)],
                [100, 0],
                "nearly equal zones",
            ),
            (
                &[("a", 10, 5), ("b", 10, 10)],
                [91, 9],
                "half of it is down",
            ),
            (
                &[("a", 10, 0), ("b", 10, 10)],
                [0, 100],
                "all of it is down",
            ),
            (
                &[("a", 1, 1), ("b", 10, 10), ("c", 10, 10)],
                [16, 84],
                "a small zone",
            ),
            (&[("b", 10, 10)], [0, 100], "nobody is here"),
            (&[("", 10, 10)], [0, 100], "nobody says where"),
            (
                &[("a", 3, 3), ("", 3, 3)],
                [55, 45],
                "half of them do not say where",
            ),
            (&[("a", 10, 10)], [100, 0], "nobody is elsewhere"),
            (
                &[("a", 10, 10), ("b", 10, 0)],
                [100, 0],
                "the others are down",
            ),
            (&[("a", 10, 0), ("b", 10, 0)], [50, 50], "everybody is down"),
            (&[], [100, 0], "there is nobody"),
            (&[("b", 0, 0)], [100, 0], "all drain"),
        ] {
            let (found, needed) = Zones::mine("a").shares(&capacities(zones));
            assert_eq!(found, shares, "{why}");
            assert!(needed == 2 || shares[1] == 0, "{why}");
        }
    }

    #[test]
    fn who_has_most_of_the_callers_sends_more_elsewhere() {
        let zones = capacities(&[("a", 10, 10), ("b", 10, 10)]);

        assert_eq!(Zones::mine("a").callers(100).shares(&zones).0, [55, 45]);
        assert_eq!(Zones::mine("a").callers(10).shares(&zones).0, [100, 0]);
    }

    #[test]
    fn those_who_are_to_help_first_take_what_they_can_spare() {
        let order = Zones::mine("a").then("b");
        for (zones, shares, needed) in [
            ([("a", 10, 0), ("b", 20, 20), ("c", 10, 10)], [0, 100, 0], 2),
            ([("a", 10, 0), ("b", 10, 10), ("c", 20, 20)], [0, 0, 100], 3),
            ([("a", 10, 0), ("b", 20, 0), ("c", 10, 10)], [0, 0, 100], 3),
            ([("a", 10, 10), ("b", 20, 0), ("c", 10, 0)], [100, 0, 0], 2),
        ] {
            let found = order.shares(&capacities(&zones));
            assert_eq!(found, (shares.into(), needed), "{zones:?}");
        }
    }

    #[test]
    fn the_shares_make_up_a_hundred_whatever_there_is() {
        let order = Zones::mine("a").then("b").then("c");
        for seed in 0..5_000_u64 {
            let draw = |nth: u32| {
                seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)
                    .rotate_left(nth * 9)
                    % 12
            };
            let zone = |(nth, name): (usize, &&'static str)| {
                let all = draw(nth as u32);
                (*name, all, draw(nth as u32 + 5).min(all))
            };
            let zones: Vec<_> = ["a", "b", "c", "d", ""]
                .iter()
                .enumerate()
                .map(zone)
                .collect();

            let (shares, _) = order.shares(&capacities(&zones));

            let sum: u32 = shares.iter().map(|&share| u32::from(share)).sum();
            assert_eq!(sum, 100, "{zones:?}: {shares:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (zones, why) in [
            (Zones::mine(""), "no name of a zone"),
            (Zones::mine("a").then("a"), "named twice"),
            (Zones::mine("a").callers(0), "from 1 to 100"),
            (Zones::mine("a").callers(101), "from 1 to 100"),
        ] {
            let error = zones.check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(Zones::mine("a").then("b").callers(100).check().is_ok());
    }
}
