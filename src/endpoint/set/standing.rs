//! Who is left out because its calls failed, and what is done when too few are well.

use std::{collections::BTreeSet, mem};

use tokio::time::Instant;

use super::{Endpoints, Entry, Event, Set, Step};
use crate::{
    InstanceId,
    health::{Mode, Notice, Standing},
};

/// How many there are to choose among, and how many of them are well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Wellness {
    pub(crate) well: usize,
    pub(crate) of: usize,
}

impl Set {
    /// What calls saw.
    pub(crate) fn heard(&mut self, notices: Vec<(InstanceId, Notice)>, now: Instant) -> Vec<Step> {
        for (id, notice) in notices {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            match notice {
                Notice::Tripped(why) => {
                    // One that has lost its connection since takes no calls at all.
                    if entry.well.is_some() {
                        self.ejector.tripped(&id, why, now);
                    }
                    // The caller who saw it has barred it already; whether that stands is seen below.
                    self.turned.insert(id);
                }
                Notice::Proved => self.ejector.proved(&id, now),
                Notice::Overloaded(time) => self.overloaded(&id, time, now),
            }
        }
        self.settle(now)
    }

    /// How many are well of those there are to choose among, when they are so few that calls go to all.
    pub(crate) fn panic(&self) -> Option<Wellness> {
        self.panics.then_some(self.wellness)
    }

    /// Those that are tried, with one call at a time.
    pub(crate) fn on_trial(&self) -> &Endpoints {
        self.tiers.on_trial(&self.known)
    }

    /// Does what is due for those that are ejected.
    pub(super) fn tick_ejector(&mut self, now: Instant) {
        if self.ejector.must_sweep(now) {
            let counts = self.each().filter_map(|entry| {
                entry.well?;
                Some((entry.instance.id.clone(), entry.vitals.counts()))
            });
            let counts = counts.collect();
            self.ejector.sweep(counts, now);
        }
        self.ejector.tick(now);
        for id in self.ejector.take_lingering() {
            let entry = self.entries.get(&id);
            if entry.is_some_and(|entry| entry.vitals.conduct().try_anew()) {
                self.ejector.proved(&id, now);
            }
        }
    }

    /// Does what follows from what the ejector was told, and from who has come and gone.
    pub(super) fn settle_standings(&mut self, now: Instant) {
        for id in &self.shifted {
            let entry = self.entries.get(id);
            let is_here = entry.is_some_and(|entry| entry.well.is_some());
            self.ejector.is_here(id, is_here);
        }
        self.ejector.settle(self.wellness.of, now);
        let changed = self.ejector.take_changed();
        let turned = mem::take(&mut self.turned);
        for id in changed.union(&turned).cloned().collect::<BTreeSet<_>>() {
            self.stand(&id, now);
            self.tell_standing(&id, now);
        }
        let too_few = self.wellness.is_under(self.limits.health.panic);
        if too_few != self.panics {
            self.panic_or_calm_down(too_few, now);
        }
    }

    /// Has its calls and its place follow from its standing.
    fn stand(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.standing = self.ejector.standing(id);
        let mode = match entry.standing {
            Standing::Good => Mode::Free,
            Standing::Spared => Mode::Spared,
            Standing::Out | Standing::Trial if self.panics => Mode::Spared,
            Standing::Out => Mode::Barred,
            Standing::Trial => Mode::Trial,
        };
        entry.vitals.treat(mode, self.ejector.limit(id));
        entry.show(now);
        self.rank(id);
    }

    fn tell_standing(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let before = mem::replace(&mut entry.told, entry.standing);
        if before == entry.standing {
            return;
        }
        let why = self.ejector.why(id).cloned();
        if let Some(why) = &why {
            entry.vitals.failed(why.clone());
        }
        let event = match (entry.standing, why) {
            (Standing::Out, Some(why)) => Event::Ejected(id.clone(), why),
            (Standing::Spared, Some(why)) => Event::Spared(id.clone(), why),
            (Standing::Trial, _) => Event::Tried(id.clone()),
            _ => {
                let since = self.ejector.out_since(id).filter(|_| before.is_out());
                let out = since.map(|since| now - since).unwrap_or_default();
                Event::Restored(id.clone(), out)
            }
        };
        self.tell(event);
    }

    fn panic_or_calm_down(&mut self, too_few: bool, now: Instant) {
        self.panics = too_few;
        let Wellness { well, of } = self.wellness;
        self.tell(if too_few {
            Event::Panicked { well, of }
        } else {
            Event::Calmed { well, of }
        });
        // Whoever is not well is among the others now, or is so no longer.
        // One that is out may connect only while that lasts, and a suspect may be well.
        let differs = |entry: &Entry| {
            entry.well == Some(false) || entry.standing.is_out() || entry.suspect.is_some()
        };
        let different = self.each().filter(|entry| differs(entry));
        for id in different
            .map(|entry| entry.instance.id.clone())
            .collect::<Vec<_>>()
        {
            self.stand(&id, now);
        }
        // In a panic the doubted serve like the others, and no longer.
        self.rank_suspects();
    }
}

impl Wellness {
    /// Whether less than so many of a hundred are well.
    fn is_under(self, percent: u32) -> bool {
        self.well * 100 < self.of * percent as usize
    }

    /// One that counted so, if it did, now counts so, if it does.
    pub(super) fn shift(&mut self, from: Option<bool>, to: Option<bool>) {
        self.of = self.of + usize::from(to.is_some()) - usize::from(from.is_some());
        self.well = self.well + usize::from(to == Some(true)) - usize::from(from == Some(true));
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
