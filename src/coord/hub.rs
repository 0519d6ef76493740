//! One watch on a prefix, for as many as read it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
};

use bytes::Bytes;
use tokio::sync::broadcast;

use super::leases::Leases;
use crate::{
    Error,
    etcd::{
        Etcd,
        client::locked,
        known::KeyChange,
        kv::{Kv, Span},
        watch::{Seen, Watch},
    },
};

/// The prefixes that are read now.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<HashMap<Arc<str>, Weak<Hub>>>);

/// What stands under a prefix, and a watch on it, for as long as anybody reads.
#[derive(Debug)]
pub(super) struct Hub {
    state: Arc<Mutex<State>>,
    _watch: Watch,
}

#[derive(Debug)]
struct State {
    keys: BTreeMap<Bytes, Kv>,
    /// As of when.
    revision: i64,
    listed: bool,
    stale: Option<Error>,
    tell: broadcast::Sender<Arc<[Change]>>,
}

/// What becomes of one key.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(Kv),
    /// It is gone, or was not there, as of this revision.
    Gone(Bytes, i64),
}

/// Reads all changes under a prefix, or of one key, in order; the first is how it stands.
#[derive(Debug)]
pub(super) struct Reader {
    hub: Arc<Hub>,
    leases: Arc<Leases>,
    key: Option<Bytes>,
    told: broadcast::Receiver<Arc<[Change]>>,
    /// What the reader knows to stand, and since when.
    known: HashMap<Bytes, i64>,
    pending: VecDeque<Change>,
    begun: bool,
}

/// Who is further behind is told how it stands rather than how it came to be: for each key, the latest.
const BEHIND: usize = 4096;

impl Hubs {
    /// The one watch on a prefix.
    pub(super) fn hub(&self, etcd: &Etcd, prefix: &Arc<str>) -> Arc<Hub> {
        let mut hubs = locked(&self.0);
        if let Some(hub) = hubs.get(prefix).and_then(Weak::upgrade) {
            return hub;
        }
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let hub = Arc::new(Hub::over(etcd, prefix));
        hubs.insert(Arc::clone(prefix), Arc::downgrade(&hub));
        hub
    }
}

impl Hub {
    fn over(etcd: &Etcd, prefix: &str) -> Self {
        let state = Arc::new(Mutex::new(State {
            keys: BTreeMap::new(),
            revision: 0,
            listed: false,
            stale: None,
            tell: broadcast::Sender::new(BEHIND),
        }));
        let shared = Arc::clone(&state);
        let span = Span::Prefix(prefix.to_owned());
        let watch = Watch::every(etcd.clone(), span, move |seen| {
            locked(&shared).hear(seen);
        });
        Self {
            state,
            _watch: watch,
        }
    }

    /// Reads everything, or one key.
    pub(super) fn read(self: &Arc<Self>, leases: &Arc<Leases>, key: Option<Bytes>) -> Reader {
        let told = locked(&self.state).tell.subscribe();
        let mut reader = Reader {
            hub: Arc::clone(self),
            leases: Arc::clone(leases),
            key,
            told,
            known: HashMap::new(),
            pending: VecDeque::new(),
            begun: false,
        };
        reader.catch_up();
        reader
    }

    /// Why the cluster is out of reach, while it is.
    pub(super) fn stale(&self) -> Option<Error> {
        locked(&self.state).stale.clone()
    }
}

impl State {
    fn hear(&mut self, seen: Seen) {
        let changes: Vec<_> = match seen {
            Seen::Listed { all, revision } => {
                self.revision = revision;
                self.listed = true;
                all.into_iter().map(Change::Put).collect()
            }
            Seen::Changed(changes) => changes.into_iter().map(Change::of).collect(),
            Seen::Stale(why) => {
                self.stale = Some(why);
                return;
            }
        };
        self.stale = None;
        for change in &changes {
            match change {
                Change::Put(kv) => {
                    self.revision = kv.mod_revision;
                    self.keys.insert(kv.key.clone(), kv.clone());
                }
                Change::Gone(key, revision) => {
                    self.revision = *revision;
                    self.keys.remove(key);
                }
            }
        }
        // Nobody may read just now.
        let _ = self.tell.send(changes.into());
    }
}

impl Change {
    fn of(change: KeyChange) -> Self {
        match change {
            KeyChange::Put(kv) => Self::Put(kv),
            KeyChange::Delete {
                key, mod_revision, ..
            } => Self::Gone(key, mod_revision),
        }
    }

    pub(super) fn key(&self) -> &Bytes {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Gone(key, _) => key,
        }
    }
}

impl Reader {
    /// The next change; none once the coordinator is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Some(change);
            }
            let told = tokio::select! {
                told = self.told.recv() => told,
                _ = self.leases.closing() => return None,
            };
            match told {
                Ok(changes) if self.begun => changes.iter().for_each(|change| self.take(change)),
                // What stands includes what was told.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.catch_up(),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, change: &Change) {
        if self.key.as_ref().is_some_and(|key| key != change.key()) {
            return;
        }
        match change {
            Change::Put(kv) => {
                self.known.insert(kv.key.clone(), kv.mod_revision);
            }
            Change::Gone(key, _) => {
                self.known.remove(key);
            }
        }
        self.pending.push_back(change.clone());
    }

    /// Goes on from how it stands now, telling what is new in it.
    fn catch_up(&mut self) {
        let hub = Arc::clone(&self.hub);
        let state = locked(&hub.state);
        self.told = state.tell.subscribe();
        if !state.listed {
            return;
        }
        let gone: Vec<_> = match &self.key {
            // One who asks for a key is told that it is not there.
            Some(key) if !self.begun && !state.keys.contains_key(key) => vec![key.clone()],
            _ => {
                let known = self.known.keys();
                let gone = known.filter(|key| !state.keys.contains_key(*key));
                gone.cloned().collect()
            }
        };
        for key in gone {
            self.take(&Change::Gone(key, state.revision));
        }
        let one = self.key.as_ref().map(|key| state.keys.get(key));
        let stand: Vec<_> = match one {
            Some(one) => one.into_iter().collect(),
            None => state.keys.values().collect(),
        };
        for kv in stand {
            if self.known.get(&kv.key) != Some(&kv.mod_revision) {
                self.take(&Change::Put(kv.clone()));
            }
        }
        self.begun = true;
    }
}
