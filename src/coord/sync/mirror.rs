//! What is read without a lock.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    coord::{
        config::{Config, Entry},
        hub::Change,
    },
    lock::locked,
};

/// Entities by id, in parts each of which is replaced as a whole: a change copies one part, and a reader has
/// whole parts.
pub(super) struct Mirror<T> {
    parts: Box<[ArcSwap<Part<T>>]>,
    hasher: RandomState,
    unreadable: Mutex<HashSet<Bytes>>,
    count: AtomicUsize,
}

type Part<T> = HashMap<Arc<str>, Arc<Entry<T>>>;

/// With ten thousand entities, a change copies forty pointers.
const PARTS: usize = 256;

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| ArcSwap::default()).collect(),
            hasher: RandomState::new(),
            unreadable: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }
}

impl<T> Mirror<T> {
    pub(super) fn get(&self, id: &str) -> Option<Arc<Entry<T>>> {
        self.part(id).load().get(id).map(Arc::clone)
    }

    pub(super) fn snapshot(&self) -> Snapshot<T> {
        let parts = self.parts.iter().map(ArcSwap::load_full).collect();
        Snapshot {
            parts,
            hasher: self.hasher.clone(),
        }
    }

    pub(super) fn unreadable(&self) -> usize {
        self.count.load(Relaxed)
    }

    fn part(&self, id: &str) -> &ArcSwap<Part<T>> {
        &self.parts[place(&self.hasher, id)]
    }

    fn replace(&self, id: &str, entry: Option<Arc<Entry<T>>>) {
        let part = self.part(id);
        // Only one task writes.
        let mut next = Part::clone(&part.load());
        match entry {
            Some(entry) => next.insert(id.into(), entry),
            None => next.remove(id),
        };
        part.store(Arc::new(next));
    }

    /// Whether a key can be read.
    fn reads(&self, key: &Bytes, reads: bool) {
        let mut unreadable = locked(&self.unreadable);
        if reads {
            unreadable.remove(key);
        } else {
            unreadable.insert(key.clone());
        }
        self.count.store(unreadable.len(), Relaxed);
    }
}

impl<T: DeserializeOwned> Mirror<T> {
    pub(super) fn take(&self, config: &Config, change: Change) {
        match change {
            Change::Put(kv) => match config.entry::<T>(&kv) {
                Ok(entry) => {
                    self.reads(&kv.key, true);
                    let id = entry.name.clone();
                    self.replace(&id, Some(Arc::new(entry)));
                }
                Err(why) => {
                    tracing::warn!(why = why.chain(), "keeping the last good one");
                    self.reads(&kv.key, false);
                }
            },
            Change::Gone(key, _) => {
                self.reads(&key, true);
                self.replace(config.name(&String::from_utf8_lossy(&key)), None);
            }
            // What stands counts, and that follows.
            Change::Skipped(..) => {}
        }
    }
}

fn place(hasher: &RandomState, id: &str) -> usize {
    hasher.hash_one(id) as usize % PARTS
}

/// All entities, as a mirror had them at some moment.
pub struct Snapshot<T> {
    parts: Vec<Arc<Part<T>>>,
    hasher: RandomState,
}

impl<T> Snapshot<T> {
    /// An entity.
    pub fn get(&self, id: impl AsRef<str>) -> Option<&Arc<Entry<T>>> {
        let id = id.as_ref();
        self.parts[place(&self.hasher, id)].get(id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry<T>>> {
        self.parts.iter().flat_map(|part| part.values())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }
}

impl<T> IntoIterator for Snapshot<T> {
    type Item = Arc<Entry<T>>;
    type IntoIter = std::vec::IntoIter<Arc<Entry<T>>>;

    fn into_iter(self) -> Self::IntoIter {
        let all: Vec<_> = self.iter().map(Arc::clone).collect();
        all.into_iter()
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            hasher: self.hasher.clone(),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
