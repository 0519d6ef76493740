//! Those of a service who vanished from its registry without a word.

#[cfg(feature = "consul")]
use std::collections::BTreeSet;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Change, Update};
use crate::{Instance, InstanceId};

/// Who vanished, and may only have been lost: suspects until somebody has looked into it.
#[derive(Debug)]
pub(crate) struct Vanished {
    /// How long nobody looks into it.
    grace: Duration,
    all: BTreeMap<InstanceId, Gone>,
}

#[derive(Debug)]
struct Gone {
    instance: Arc<Instance>,
    since: Instant,
    /// The registry says nothing of it: as long as that is so, it is not said to be gone.
    unheard: bool,
}

/// One who vanished, and when: who comes back and vanishes again is another suspect.
pub(crate) type Suspect = (InstanceId, Instant);

impl Vanished {
    pub(crate) fn with_grace(grace: Duration) -> Self {
        let all = BTreeMap::new();
        Self { grace, all }
    }

    pub(crate) fn add(&mut self, instance: Arc<Instance>, since: Instant) {
        let gone = Gone {
            instance: Arc::clone(&instance),
            since,
            unheard: false,
        };
        self.all.insert(instance.id.clone(), gone);
    }

    /// This one is there again; whether it had vanished.
    pub(crate) fn comes_back(&mut self, id: &InstanceId) -> bool {
        self.all.remove(id).is_some()
    }

    /// The registry says nothing of these, and of no others.
    #[cfg(feature = "consul")]
    pub(crate) fn unheard(&mut self, ids: &BTreeSet<InstanceId>, now: Instant) {
        for (id, gone) in &mut self.all {
            let unheard = ids.contains(id);
            // It is spoken of again, by one who may know nothing yet: the server needs a moment to tell it.
            if gone.unheard && !unheard {
                gone.since = now;
            }
            gone.unheard = unheard;
        }
    }

    /// What one is told who begins to read: these are here, and so are those who vanished, as suspects.
    pub(crate) fn and<'a>(&'a self, here: impl Iterator<Item = &'a Arc<Instance>>) -> Vec<Update> {
        let gone = self.all.values().map(|gone| &gone.instance);
        let mut updates = vec![Update::Reset(here.chain(gone).cloned().collect())];
        if !self.all.is_empty() {
            let vanish = self.all.keys().cloned().map(Change::Vanish);
            updates.push(Update::Delta(vanish.collect()));
        }
        updates
    }

    /// When the next suspicion should be looked into.
    pub(crate) fn due(&self) -> Option<Instant> {
        let doubted = self.all.values().filter(|gone| !gone.unheard);
        let since = doubted.map(|gone| gone.since).min()?;
        Some(since + self.grace)
    }

    /// Those whose grace has ended.
    pub(crate) fn suspects(&self, now: Instant) -> Vec<Suspect> {
        let due = |gone: &Gone| !gone.unheard && gone.since + self.grace <= now;
        let suspects = self.all.iter().filter(|(_, gone)| due(gone));
        suspects
            .map(|(id, gone)| (id.clone(), gone.since))
            .collect()
    }

    /// The registry agrees, more than once, that it does not have these; some may have come back.
    pub(crate) fn gone(&mut self, suspects: &[Suspect]) -> Option<Update> {
        let mut changes = Vec::new();
        for (id, since) in suspects {
            let gone = self.all.get(id);
            if gone.is_some_and(|gone| gone.since == *since) {
                self.all.remove(id);
                changes.push(Change::Remove(id.clone()));
            }
        }
        (!changes.is_empty()).then_some(Update::Delta(changes))
    }
}
