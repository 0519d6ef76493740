//! Who is inside, as instances come, change and fall ill.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{
    Filter, Outside, Seat, Spread, Stages, Subset, Zones, rocksteadier,
    zones::{Capacities, Capacity},
};
use crate::{Instance, InstanceId};

/// What stages leave of a set. Plain: it is told what is, and says what follows.
#[derive(Debug)]
pub(crate) struct Selection {
    filter: Option<Filter>,
    zones: Option<Arc<Zones>>,
    subset: Option<Subset>,
    members: BTreeMap<InstanceId, Member>,
    /// How many fit each level of the filter.
    fitting: Vec<Fitting>,
    /// The level that holds.
    level: usize,
    /// Those who fit it, by tiers of zones.
    pools: Vec<Pool>,
    /// What each zone of them can bear.
    capacities: Capacities,
    /// How many of the tiers are needed, and how many of a hundred calls go to each.
    needed: usize,
    percents: Vec<u8>,
    /// Of these, something may have changed.
    touched: BTreeSet<InstanceId>,
    refilter: bool,
    rezone: bool,
}

#[derive(Debug)]
struct Member {
    /// The levels of the filter that it fits, one bit each.
    fits: u16,
    tier: usize,
    zone: Option<Arc<str>>,
    weight: u64,
    rank: Rank,
    fitness: Fitness,
    /// Where it was last said to be.
    told: Option<Option<Outside>>,
}

/// Where an instance stands among those of whom a subset is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Rank {
    hash: u64,
    /// Its number, if it has one and numbers count.
    ordinal: Option<u32>,
}

/// Whether an instance counts when it is asked whether there are enough.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fitness {
    /// It is well, or nobody has tried.
    Well,
    /// It has no connection any more, is unwell or ejected.
    Unwell,
    /// It wants no new calls.
    Leaving,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fitting {
    staying: usize,
    all: usize,
}

/// Those among whom a subset is chosen.
#[derive(Debug, Default)]
struct Pool {
    /// By their hashes: all, and those without a number.
    ranked: BTreeSet<(u64, InstanceId)>,
    unnumbered: BTreeSet<(u64, InstanceId)>,
    /// By their numbers; two have the same only for a moment.
    numbered: BTreeMap<u32, BTreeSet<InstanceId>>,
    chosen: BTreeSet<InstanceId>,
    stirred: bool,
}

impl Selection {
    /// `random` is the seed of whoever needs one and has none.
    pub(crate) fn new(stages: &Stages, random: u64) -> Self {
        let filter = stages.filter.clone();
        let levels = filter.as_ref().map_or(0, Filter::levels);
        let zones = stages.zones.clone().map(Arc::new);
        let tiers = zones.as_ref().map_or(1, |zones| zones.tiers());
        let subset = stages.subset.clone();
        Self {
            subset: subset.map(|subset| subset.settled(random)),
            fitting: vec![Fitting::default(); levels],
            filter,
            zones,
            members: BTreeMap::new(),
            level: 0,
            pools: (0..tiers).map(|_| Pool::default()).collect(),
            capacities: Capacities::new(),
            needed: 1,
            percents: Vec::new(),
            touched: BTreeSet::new(),
            refilter: false,
            rezone: stages.zones.is_some(),
        }
    }

    /// An instance is there, new or changed.
    pub(crate) fn put(&mut self, instance: &Instance, fitness: Fitness) {
        let told = self.take(&instance.id).and_then(|before| before.told);
        let (filter, zones, subset) = (&self.filter, &self.zones, &self.subset);
        let member = Member {
            fits: filter.as_ref().map_or(1, |filter| filter.fits(instance)),
            tier: zones.as_ref().map_or(0, |zones| zones.tier(instance)),
            zone: zones.as_ref().and_then(|_| instance.zone.clone()),
            weight: u64::from(instance.weight),
            rank: subset.as_ref().map_or_else(Rank::default, |subset| Rank {
                hash: subset.rank(instance),
                ordinal: subset.ordinal(instance),
            }),
            fitness,
            told,
        };
        self.count(&member, 1);
        if self.is_admitted(&member) {
            self.pools[member.tier].put(&instance.id, member.rank);
            self.weigh(&member, None, Some(fitness));
        }
        self.touched.insert(instance.id.clone());
        self.members.insert(instance.id.clone(), member);
    }

    /// It is no longer there.
    pub(crate) fn remove(&mut self, id: &InstanceId) {
        self.take(id);
        self.touched.remove(id);
    }

    /// It is getting on like this.
    pub(crate) fn judge(&mut self, id: &InstanceId, fitness: Fitness) {
        let differs = |member: &Member| member.fitness != fitness;
        if !self.members.get(id).is_some_and(differs) {
            return;
        }
        let Some(mut member) = self.members.remove(id) else {
            return;
        };
        self.count(&member, -1);
        let before = mem::replace(&mut member.fitness, fitness);
        self.count(&member, 1);
        if self.is_admitted(&member) {
            self.pools[member.tier].stirred = true;
            self.weigh(&member, Some(before), Some(fitness));
        }
        self.members.insert(id.clone(), member);
    }

    /// The client has another number.
    pub(crate) fn reseat(&mut self) {
        self.pools.iter_mut().for_each(|pool| pool.stirred = true);
    }

    /// Whether [`settle`](Self::settle) has nothing to do.
    pub(crate) fn is_settled(&self) -> bool {
        let stirred = self.pools.iter().any(|pool| pool.stirred);
        self.touched.is_empty() && !self.refilter && !self.rezone && !stirred
    }

    /// Whom stages treat otherwise from now on: left out for this reason, or not at all.
    pub(crate) fn settle(&mut self) -> Vec<(InstanceId, Option<Outside>)> {
        if mem::take(&mut self.refilter) {
            self.choose_level();
        }
        if mem::take(&mut self.rezone) {
            self.choose_tiers();
        }
        for tier in 0..self.pools.len() {
            if mem::take(&mut self.pools[tier].stirred) {
                self.choose(tier);
            }
        }
        let mut turned = Vec::new();
        for id in mem::take(&mut self.touched) {
            let member = self.members.get(&id);
            let Some(outside) = member.map(|member| self.outside(&id, member)) else {
                continue;
            };
            if let Some(member) = self.members.get_mut(&id)
                && member.told.replace(outside) != Some(outside)
            {
                turned.push((id, outside));
            }
        }
        turned
    }

    /// How calls are shared out over zones, if more than one is needed.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let shared = self.needed > 1 && !self.capacities.is_empty();
        let zones = self.zones.as_ref().filter(|_| shared)?;
        Some(Spread {
            zones: Arc::clone(zones),
            percents: self.percents.clone(),
        })
    }

    /// Whether those whom this stage leaves out are never to be called.
    pub(crate) fn is_strict(&self, outside: Outside) -> bool {
        let strict = self.filter.as_ref().is_none_or(Filter::is_strict);
        outside == Outside::Filter && strict
    }

    fn outside(&self, id: &InstanceId, member: &Member) -> Option<Outside> {
        if !self.is_admitted(member) {
            return Some(Outside::Filter);
        }
        if member.tier >= self.needed {
            return Some(Outside::Zone);
        }
        let is_left = self.subset.is_some() && !self.pools[member.tier].chosen.contains(id);
        is_left.then_some(Outside::Subset)
    }

    fn is_admitted(&self, member: &Member) -> bool {
        member.fits & 1 << self.level != 0
    }

    /// Takes a member off the books.
    fn take(&mut self, id: &InstanceId) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.count(&member, -1);
        if self.is_admitted(&member) {
            self.pools[member.tier].remove(id, member.rank);
            self.weigh(&member, Some(member.fitness), None);
        }
        Some(member)
    }

    fn count(&mut self, member: &Member, by: isize) {
        let stays = isize::from(member.fitness != Fitness::Leaving);
        for (level, count) in self.fitting.iter_mut().enumerate() {
            if member.fits & 1 << level != 0 {
                count.all = count.all.saturating_add_signed(by);
                count.staying = count.staying.saturating_add_signed(by * stays);
            }
        }
        self.refilter |= self.filter.is_some();
    }

    /// One that got on like this now gets on like that, if it is there.
    fn weigh(&mut self, member: &Member, before: Option<Fitness>, now: Option<Fitness>) {
        if self.zones.is_none() {
            return;
        }
        let capacity = self.capacities.entry(member.zone.clone()).or_default();
        capacity.shift(member.weight, before, now);
        if *capacity == Capacity::default() {
            self.capacities.remove(&member.zone);
        }
        self.rezone = true;
    }

    /// The first level that somebody fits who stays, or else the first that anybody fits.
    fn choose_level(&mut self) {
        let first = |there: fn(&Fitting) -> usize| {
            let mut levels = self.fitting.iter();
            levels.position(|level| there(level) > 0)
        };
        let level = first(|level| level.staying).or_else(|| first(|level| level.all));
        let level = level.unwrap_or(0);
        if mem::replace(&mut self.level, level) == level {
            return;
        }
        self.pools = self.pools.iter().map(|_| Pool::default()).collect();
        self.capacities.clear();
        let members = mem::take(&mut self.members);
        for (id, member) in &members {
            if self.is_admitted(member) {
                self.pools[member.tier].put(id, member.rank);
                self.weigh(member, None, Some(member.fitness));
            }
            self.touched.insert(id.clone());
        }
        self.members = members;
        self.rezone = self.zones.is_some();
    }

    fn choose_tiers(&mut self) {
        let Some(zones) = &self.zones else {
            return;
        };
        let (percents, needed) = zones.shares(&self.capacities);
        self.percents = percents;
        let before = mem::replace(&mut self.needed, needed);
        let turned = before.min(needed)..before.max(needed);
        if !turned.is_empty() {
            let there = self.members.iter();
            let turned = there.filter(|(_, member)| turned.contains(&member.tier));
            self.touched.extend(turned.map(|(id, _)| id.clone()));
        }
    }

    fn choose(&mut self, tier: usize) {
        let Some(subset) = &self.subset else {
            return;
        };
        let members = &self.members;
        let is_well = |id: &InstanceId| {
            let member = members.get(id);
            member.is_some_and(|member| member.fitness == Fitness::Well)
        };
        let pool = &mut self.pools[tier];
        let number = subset.seated().map(Seat::number);
        let chosen = match number.filter(|_| pool.is_numbered()) {
            Some(number) => {
                let numbered = rocksteadier::ranking(number, &pool.numbered).flatten();
                let ranked = numbered.chain(pool.unnumbered.iter().map(|(_, id)| id));
                first_of(ranked, subset.size(), is_well)
            }
            None => {
                let ranked = pool.ranked.iter().map(|(_, id)| id);
                first_of(ranked, subset.size(), is_well)
            }
        };
        let changed = pool.chosen.symmetric_difference(&chosen);
        self.touched.extend(changed.cloned());
        pool.chosen = chosen;
    }
}

impl Capacity {
    /// One of this weight got on like this, and now gets on like that.
    fn shift(&mut self, weight: u64, before: Option<Fitness>, now: Option<Fitness>) {
        let part = |fitness: Option<Fitness>, counts: fn(Fitness) -> bool| {
            if fitness.is_some_and(counts) {
                weight
            } else {
                0
            }
        };
        let shift =
            |sum: u64, counts| (sum + part(now, counts)).saturating_sub(part(before, counts));
        self.all = shift(self.all, |fitness| fitness != Fitness::Leaving);
        self.well = shift(self.well, |fitness| fitness == Fitness::Well);
    }
}

impl Pool {
    fn put(&mut self, id: &InstanceId, rank: Rank) {
        self.ranked.insert((rank.hash, id.clone()));
        match rank.ordinal {
            Some(number) => self.numbered.entry(number).or_default().insert(id.clone()),
            None => self.unnumbered.insert((rank.hash, id.clone())),
        };
        self.stirred = true;
    }

    fn remove(&mut self, id: &InstanceId, rank: Rank) {
        let key = (rank.hash, id.clone());
        self.ranked.remove(&key);
        self.unnumbered.remove(&key);
        if let Some(number) = rank.ordinal
            && let Some(same) = self.numbered.get_mut(&number)
        {
            same.remove(id);
            if same.is_empty() {
                self.numbered.remove(&number);
            }
        }
        self.chosen.remove(id);
        self.stirred = true;
    }

    /// Whether nearly all have numbers: a few that have them must not get all the clients.
    fn is_numbered(&self) -> bool {
        self.unnumbered.len() * 10 <= self.ranked.len()
    }
}

/// The first so many of a ranking, and more of them when too few are well: see [`Subset`].
fn first_of<'a>(
    ranked: impl Iterator<Item = &'a InstanceId>,
    size: usize,
    is_well: impl Fn(&InstanceId) -> bool,
) -> BTreeSet<InstanceId> {
    let mut chosen = BTreeSet::new();
    let mut well = 0;
    for id in ranked {
        let taken = chosen.len();
        let enough = well * 14 >= size.saturating_mul(10) || (taken / 2 >= size && well > 0);
        if taken >= size && enough {
            break;
        }
        well += usize::from(is_well(id));
        chosen.insert(id.clone());
    }
    chosen
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
