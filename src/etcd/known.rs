//! What is known of a span: the newest word on each key, whoever told it.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    cursor::{Ask, Cursor, Epoch},
    kv::{Kv, Listing},
};

/// One change to what is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum KeyChange {
    /// A key is new or has another value.
    Put(Kv),
    /// A key is gone.
    Delete {
        key: Bytes,
        /// When it went, or when it was found to be gone.
        mod_revision: i64,
        /// What it held last.
        last: Kv,
    },
}

impl KeyChange {
    /// When it happened, or was found to have happened.
    pub(crate) fn at(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Put(Kv),
    Delete { key: Bytes, mod_revision: i64 },
}

/// The keys of a span, fed with lists and events.
#[derive(Debug, Default)]
pub(super) struct Known {
    cursor: Cursor,
    keys: HashMap<Bytes, Kv>,
    /// What was deleted since a list was asked for that is not answered yet.
    deleted: HashMap<Bytes, i64>,
    asked: Option<i64>,
    listed: bool,
    epoch: u64,
}

impl Known {
    pub(super) fn next(&self) -> Ask {
        self.cursor.next()
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Which past we are in: another after revisions went backwards, which no open watch notices.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest revision that is known to exist.
    pub(super) fn seen(&self) -> i64 {
        self.cursor.seen()
    }

    /// Whether a list that was asked for is of another past than what was known then.
    pub(super) fn is_older(&self, listing: &Listing) -> bool {
        let seen = self.asked.unwrap_or_else(|| self.cursor.seen());
        listing.revision < seen
    }

    /// Whether there was ever a list.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// A list is asked for now.
    pub(super) fn asking(&mut self) {
        self.asked = Some(self.cursor.seen());
        self.deleted.clear();
    }

    /// No list is on its way any more.
    pub(super) fn not_asking(&mut self) {
        self.asked = None;
        self.deleted.clear();
    }

    /// See [`Cursor::opened`].
    pub(super) fn opened(&mut self, revision: i64) -> bool {
        self.cursor.opened(revision)
    }

    /// See [`Cursor::doubted`].
    pub(super) fn doubted(&mut self) {
        self.cursor.doubted();
    }

    /// See [`Cursor::resumes`].
    pub(super) fn resumes(&mut self, listing: &Listing) -> bool {
        let seen = self.asked.unwrap_or_else(|| self.cursor.seen());
        self.cursor.resumes(listing.revision, seen)
    }

    /// See [`Cursor::from`].
    pub(super) fn from(&self) -> i64 {
        self.cursor.from()
    }

    /// See [`Cursor::compacted`].
    pub(super) fn compacted(&mut self) {
        self.cursor.compacted();
    }

    /// What an event changes; nothing when it is old, or was told already.
    pub(super) fn heard(&mut self, event: Event) -> Option<KeyChange> {
        match event {
            Event::Put(kv) => {
                if !self.cursor.heard(kv.mod_revision) || self.is_known(&kv.key, kv.mod_revision) {
                    return None;
                }
                self.deleted.remove(&kv.key);
                self.keys.insert(kv.key.clone(), kv.clone());
                Some(KeyChange::Put(kv))
            }
            Event::Delete { key, mod_revision } => {
                if !self.cursor.heard(mod_revision) || self.is_known(&key, mod_revision) {
                    return None;
                }
                if self.asked.is_some() {
                    self.deleted.insert(key.clone(), mod_revision);
                }
                let last = self.keys.remove(&key)?;
                Some(KeyChange::Delete {
                    key,
                    mod_revision,
                    last,
                })
            }
        }
    }

    fn is_known(&self, key: &Bytes, mod_revision: i64) -> bool {
        let known = self.keys.get(key);
        known.is_some_and(|known| known.mod_revision >= mod_revision)
    }

    /// What a list changes. It wins over everything that is not newer than itself.
    pub(super) fn listed(&mut self, listing: Listing) -> Vec<KeyChange> {
        let revision = listing.revision;
        let seen = self.asked.unwrap_or_else(|| self.cursor.seen());
        let newer = match self.cursor.listed(revision, seen) {
            Epoch::Same => revision,
            // Nothing that was known before counts beside another past.
            Epoch::New => {
                self.epoch += 1;
                i64::MAX
            }
        };
        let deleted = std::mem::take(&mut self.deleted);
        self.asked = None;
        self.listed = true;

        let mut changes = Vec::new();
        let mut keys = HashMap::with_capacity(listing.all.len());
        for kv in listing.all {
            if deleted.get(&kv.key).is_some_and(|&at| at > newer) {
                continue;
            }
            match self.keys.remove(&kv.key) {
                Some(known) if known.mod_revision > newer || known == kv => {
                    keys.insert(known.key.clone(), known);
                }
                _ => {
                    keys.insert(kv.key.clone(), kv.clone());
                    changes.push(KeyChange::Put(kv));
                }
            }
        }
        for (key, last) in self.keys.drain() {
            if last.mod_revision > newer {
                keys.insert(key, last);
            } else {
                changes.push(KeyChange::Delete {
                    key,
                    mod_revision: revision,
                    last,
                });
            }
        }
        self.keys = keys;
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn kv(key: &str, value: &str, create_revision: i64, mod_revision: i64) -> Kv {
        Kv {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision,
            mod_revision,
            lease: 0,
        }
    }

    fn delete(key: &str, mod_revision: i64) -> Event {
        Event::Delete {
            key: Bytes::copy_from_slice(key.as_bytes()),
            mod_revision,
        }
    }

    fn words(changes: impl IntoIterator<Item = KeyChange>) -> Vec<String> {
        let mut words: Vec<_> = changes
            .into_iter()
            .map(|change| match change {
                KeyChange::Put(kv) => format!("+{}@{}", kv.name(), kv.mod_revision),
                KeyChange::Delete { last, .. } => format!("-{}", last.name()),
            })
            .collect();
        words.sort();
        words
    }

    fn after(all: Vec<Kv>, revision: i64) -> Known {
        let mut known = Known::default();
        known.listed(Listing { all, revision });
        known
    }

    #[test]
    fn what_is_told_twice_changes_nothing() {
        let mut known = after(vec![kv("a", "1", 2, 2)], 5);

        assert_eq!(words(known.heard(Event::Put(kv("a", "2", 2, 6)))), ["+a@6"]);
        assert!(known.heard(Event::Put(kv("a", "2", 2, 6))).is_none());
        assert!(known.heard(Event::Put(kv("a", "1", 2, 2))).is_none());
        assert_eq!(words(known.heard(delete("a", 7))), ["-a"]);
        assert!(known.heard(delete("a", 7)).is_none());
        assert!(known.heard(Event::Put(kv("a", "2", 2, 6))).is_none());
    }

    #[test]
    fn a_list_finds_what_no_event_told() {
        let mut known = after(vec![kv("a", "1", 2, 2), kv("b", "1", 3, 3)], 5);

        let changes = known.listed(Listing {
            all: vec![kv("a", "1", 2, 2), kv("c", "1", 8, 8)],
            revision: 9,
        });

        assert_eq!(words(changes), ["+c@8", "-b"]);
        assert_eq!(known.next(), Ask::Watch(10));
    }

    #[test]
    fn a_list_that_events_overtook_undoes_none_of_them() {
        let mut known = after(vec![kv("a", "1", 2, 2), kv("b", "1", 3, 3)], 5);

        known.asking();
        known.heard(Event::Put(kv("a", "2", 2, 7)));
        known.heard(delete("b", 8));
        known.heard(Event::Put(kv("c", "1", 9, 9)));
        let changes = known.listed(Listing {
            all: vec![kv("a", "1", 2, 2), kv("b", "1", 3, 3)],
            revision: 6,
        });

        assert!(changes.is_empty(), "{changes:?}");
        assert_eq!((known.len(), known.next()), (2, Ask::Watch(9)));
    }

    #[test]
    fn in_another_past_only_the_list_counts() {
        let mut known = after(vec![kv("a", "1", 50, 90), kv("b", "1", 51, 51)], 100);
        known.asking();

        let changes = known.listed(Listing {
            all: vec![kv("a", "1", 2, 2)],
            revision: 3,
        });

        assert_eq!(words(changes), ["+a@2", "-b"]);
        assert_eq!((known.next(), known.epoch()), (Ask::Watch(4), 1));
    }

    #[test]
    fn data_that_was_replaced_and_has_grown_past_ours_is_found_by_the_list() {
        let mut known = after(vec![kv("a", "1", 50, 90), kv("b", "1", 51, 51)], 100);

        let changes = known.listed(Listing {
            all: vec![kv("a", "9", 4, 4)],
            revision: 500,
        });

        assert_eq!(words(changes), ["+a@4", "-b"]);
    }

    proptest! {
        /// However lists, events, replays and losses mix: after one more list, we know what is there.
        #[test]
        fn after_a_list_we_know_what_the_cluster_has(
            steps in prop::collection::vec((0..6u8, 0..5u8), 0..80)
        ) {
            let mut store = BTreeMap::<Bytes, Kv>::new();
            let mut history = Vec::<Event>::new();
            let mut revision = 1i64;
            let mut known = Known::default();
            let mut told = BTreeMap::<Bytes, Kv>::new();
            let tell = |told: &mut BTreeMap<Bytes, Kv>, change| match change {
                KeyChange::Put(kv) => drop(told.insert(kv.key.clone(), kv)),
                KeyChange::Delete { key, .. } => drop(told.remove(&key)),
            };
            let list = |store: &BTreeMap<Bytes, Kv>, revision| Listing {
                all: store.values().cloned().collect(),
                revision,
            };
            let mut asked: Option<Listing> = None;

            for (step, which) in steps {
                let key = format!("k{which}");
                match step {
                    0 | 1 => {
                        revision += 1;
                        let old = store.get(key.as_bytes()).map(|kv| kv.create_revision);
                        let new = kv(&key, &format!("{revision}"), old.unwrap_or(revision), revision);
                        store.insert(new.key.clone(), new.clone());
                        history.push(Event::Put(new));
                    }
                    2 => if store.remove(key.as_bytes()).is_some() {
                        revision += 1;
                        history.push(delete(&key, revision));
                    },
                    // The stream is opened again, and cut after some events.
                    3 => if let Ask::Watch(from) = known.next() {
                        let of = |event: &&Event| match event {
                            Event::Put(kv) => kv.mod_revision,
                            Event::Delete { mod_revision, .. } => *mod_revision,
                        };
                        let rest = history.iter().filter(|event| of(event) >= from);
                        for event in rest.take(usize::from(which)) {
                            if let Some(change) = known.heard(event.clone()) {
                                tell(&mut told, change);
                            }
                        }
                    },
                    4 => {
                        known.asking();
                        asked = Some(list(&store, revision));
                    }
                    _ => if let Some(listing) = asked.take() {
                        for change in known.listed(listing) {
                            tell(&mut told, change);
                        }
                    },
                }
            }
            known.asking();
            for change in known.listed(list(&store, revision)) {
                tell(&mut told, change);
            }

            prop_assert_eq!(told, store);
        }
    }
}
