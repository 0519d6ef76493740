//! Who is inside, as instances come, change and fall ill.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{Filter, Outside, Stages, Subset};
use crate::{Instance, InstanceId};

/// What stages leave of a set. Plain: it is told what is, and says what follows.
#[derive(Debug)]
pub(crate) struct Selection {
    filter: Option<Filter>,
    subset: Option<Subset>,
    members: BTreeMap<InstanceId, Member>,
    /// How many fit each level of the filter.
    fitting: Vec<Fitting>,
    /// The level that holds.
    level: usize,
    pool: Pool,
    /// Of these, something may have changed.
    touched: BTreeSet<InstanceId>,
    refilter: bool,
}

#[derive(Debug)]
struct Member {
    /// The levels of the filter that it fits, one bit each.
    fits: u16,
    rank: u64,
    fitness: Fitness,
    /// Where it was last said to be.
    told: Option<Option<Outside>>,
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
    ranked: BTreeSet<(u64, InstanceId)>,
    chosen: BTreeSet<InstanceId>,
    stirred: bool,
}

impl Selection {
    /// `random` is the seed of whoever needs one and has none.
    pub(crate) fn new(stages: &Stages, random: u64) -> Self {
        let filter = stages.filter.clone();
        let levels = filter.as_ref().map_or(0, Filter::levels);
        let subset = stages.subset.clone();
        Self {
            subset: subset.map(|subset| subset.settled(random)),
            fitting: vec![Fitting::default(); levels],
            filter,
            members: BTreeMap::new(),
            level: 0,
            pool: Pool::default(),
            touched: BTreeSet::new(),
            refilter: false,
        }
    }

    /// An instance is there, new or changed.
    pub(crate) fn put(&mut self, instance: &Instance, fitness: Fitness) {
        let told = self.take(&instance.id).and_then(|before| before.told);
        let fits = self
            .filter
            .as_ref()
            .map_or(1, |filter| filter.fits(instance));
        let rank = self
            .subset
            .as_ref()
            .map_or(0, |subset| subset.rank(instance));
        let member = Member {
            fits,
            rank,
            fitness,
            told,
        };
        self.count(&member, 1);
        if self.is_admitted(&member) {
            self.pool.put(&instance.id, rank);
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
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        let before = mem::replace(&mut member.fitness, fitness);
        if before == fitness {
            return;
        }
        let counts = |fitness| isize::from(fitness != Fitness::Leaving);
        let staying = counts(fitness) - counts(before);
        for (level, count) in self.fitting.iter_mut().enumerate() {
            if member.fits & 1 << level != 0 {
                count.staying = count.staying.saturating_add_signed(staying);
            }
        }
        self.refilter |= staying != 0;
        self.pool.stirred = true;
    }

    /// Whether [`settle`](Self::settle) has anything to do.
    pub(crate) fn is_settled(&self) -> bool {
        self.touched.is_empty() && !self.refilter && !self.pool.stirred
    }

    /// Whom stages treat otherwise from now on: left out for this reason, or not at all.
    pub(crate) fn settle(&mut self) -> Vec<(InstanceId, Option<Outside>)> {
        if mem::take(&mut self.refilter) {
            self.choose_level();
        }
        if mem::take(&mut self.pool.stirred) {
            self.choose();
        }
        let mut turned = Vec::new();
        for id in mem::take(&mut self.touched) {
            let Some(outside) = self
                .members
                .get(&id)
                .map(|member| self.outside(&id, member))
            else {
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

    /// Whether those whom this stage leaves out are never to be called.
    pub(crate) fn is_strict(&self, outside: Outside) -> bool {
        let strict = self.filter.as_ref().is_none_or(Filter::is_strict);
        outside == Outside::Filter && strict
    }

    fn outside(&self, id: &InstanceId, member: &Member) -> Option<Outside> {
        if !self.is_admitted(member) {
            return Some(Outside::Filter);
        }
        let is_left = self.subset.is_some() && !self.pool.chosen.contains(id);
        is_left.then_some(Outside::Subset)
    }

    fn is_admitted(&self, member: &Member) -> bool {
        member.fits & 1 << self.level != 0
    }

    /// Takes a member off the books.
    fn take(&mut self, id: &InstanceId) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.count(&member, -1);
        self.pool.remove(id, member.rank);
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

    /// The first level that somebody fits who stays, or else the first that anybody fits.
    fn choose_level(&mut self) {
        let first =
            |there: fn(&Fitting) -> usize| self.fitting.iter().position(|level| there(level) > 0);
        let level = first(|level| level.staying).or_else(|| first(|level| level.all));
        let level = level.unwrap_or(0);
        if mem::replace(&mut self.level, level) == level {
            return;
        }
        self.pool = Pool::default();
        for (id, member) in &self.members {
            if member.fits & 1 << level != 0 {
                self.pool.put(id, member.rank);
            }
            self.touched.insert(id.clone());
        }
    }

    fn choose(&mut self) {
        let Some(subset) = &self.subset else {
            return;
        };
        let members = &self.members;
        let is_well = |id: &InstanceId| {
            members
                .get(id)
                .is_some_and(|member| member.fitness == Fitness::Well)
        };
        let ranked = self.pool.ranked.iter().map(|(_, id)| id);
        let chosen = first_of(ranked, subset.size(), is_well);
        let changed = self.pool.chosen.symmetric_difference(&chosen);
        self.touched.extend(changed.cloned());
        self.pool.chosen = chosen;
    }
}

impl Pool {
    fn put(&mut self, id: &InstanceId, rank: u64) {
        self.ranked.insert((rank, id.clone()));
        self.stirred = true;
    }

    fn remove(&mut self, id: &InstanceId, rank: u64) {
        if self.ranked.remove(&(rank, id.clone())) {
            self.chosen.remove(id);
            self.stirred = true;
        }
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
