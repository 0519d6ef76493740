//! What one resolver among several has said so far.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, Publisher, Skipped, Update};
use crate::{Error, Instance, InstanceId};

/// The sum of a resolver's updates, from which they can be told again.
#[derive(Debug, Default)]
pub(super) struct Heard {
    known: BTreeMap<InstanceId, Known>,
    pub(super) listed: bool,
    pub(super) stale: Option<Error>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) ended: bool,
}

/// An instance, and whether it vanished unannounced.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Known {
    pub(super) instance: Arc<Instance>,
    pub(super) vanished: bool,
}

impl Heard {
    /// Adds an update to what was heard; the answer is whom it was about.
    pub(super) fn take(&mut self, update: Update) -> Vec<InstanceId> {
        match update {
            Update::Reset(set) => {
                self.listed = true;
                self.stale = None;
                let before = std::mem::take(&mut self.known);
                for instance in set {
                    self.put(instance);
                }
                before
                    .into_keys()
                    .chain(self.known.keys().cloned())
                    .collect()
            }
            Update::Delta(changes) => {
                self.stale = None;
                changes
                    .into_iter()
                    .map(|change| self.change(change))
                    .collect()
            }
            Update::Stale(why) => {
                self.stale = Some(why);
                Vec::new()
            }
            Update::Skipped(skipped) => {
                self.skipped = skipped;
                Vec::new()
            }
        }
    }

    /// Whom it knows by this name.
    pub(super) fn get(&self, id: &InstanceId) -> Option<&Known> {
        self.known.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &InstanceId> {
        self.known.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether it has said all that it can say for now: its set, or why there is none.
    pub(super) fn has_spoken(&self) -> bool {
        self.listed || self.stale.is_some() || self.ended
    }

    pub(super) fn is_in_reach(&self) -> bool {
        self.listed && self.stale.is_none() && !self.ended
    }

    /// Tells all of it, from the beginning.
    pub(super) fn tell(&self, publisher: &Publisher) {
        let set = self.known.values().map(|known| Arc::clone(&known.instance));
        publisher.reset(set);
        let vanished = self.known.iter().filter(|(_, known)| known.vanished);
        let vanished: Vec<_> = vanished.map(|(id, _)| Change::Vanish(id.clone())).collect();
        if !vanished.is_empty() {
            publisher.delta(vanished);
        }
        publisher.skipped(self.skipped.clone());
        if let Some(why) = &self.stale {
            publisher.stale(why.clone());
        }
    }

    fn put(&mut self, instance: Arc<Instance>) -> InstanceId {
        let id = instance.id.clone();
        let vanished = false;
        self.known.insert(id.clone(), Known { instance, vanished });
        id
    }

    fn change(&mut self, change: Change) -> InstanceId {
        match change {
            Change::Put(instance) => self.put(instance),
            Change::Remove(id) => {
                self.known.remove(&id);
                id
            }
            Change::Vanish(id) => {
                if let Some(known) = self.known.get_mut(&id) {
                    known.vanished = true;
                }
                id
            }
        }
    }
}
