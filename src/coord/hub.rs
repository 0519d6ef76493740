//! One watch on a prefix, for as many as read it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    leases::Leases,
    log::{Log, Next},
};
use crate::{
    Error, ErrorKind, Result,
    etcd::{
        Etcd,
        known::KeyChange,
        kv::{Kv, Span},
        watch::{Seen, Verify, Watch},
    },
    lock::locked,
};

/// The prefixes that are read now.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<HashMap<Arc<str>, Weak<Hub>>>);

/// What stands under a prefix, and a watch on it, for as long as anybody reads.
#[derive(Debug)]
pub(super) struct Hub {
    state: Arc<Mutex<State>>,
    watch: Watch,
}

#[derive(Debug)]
struct State {
    keys: BTreeMap<Bytes, Kv>,
    /// As of when.
    revision: i64,
    listed: bool,
    stale: Option<Error>,
    told: Log<Told>,
    /// Wakes all who read.
    news: watch::Sender<()>,
}

/// What all readers are told: first all there is, then what changes.
#[derive(Clone, Debug)]
struct Told {
    changes: Arc<[Change]>,
    revision: i64,
}

/// What becomes of one key.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(Kv),
    /// It is gone, or was not there, as of this revision.
    Gone(Bytes, i64),
    /// Not each change from the one revision to the other is told: how it stands by now follows.
    Skipped(i64, i64),
}

/// Reads all changes under a prefix, or of one key, in order; the first is how it stands.
#[derive(Debug)]
pub(super) struct Reader {
    hub: Arc<Hub>,
    leases: Arc<Leases>,
    key: Option<Bytes>,
    news: watch::Receiver<()>,
    /// Up to where it has read what is told.
    at: u64,
    /// Up to which revision.
    heard: i64,
    /// What the reader knows to stand, and since when.
    known: HashMap<Bytes, i64>,
    pending: VecDeque<Change>,
    begun: bool,
}

/// Who is further behind, in bytes of keys and values, is told how it stands rather than how it came to be: for
/// each key, the latest.
const BEHIND: usize = 32 << 20;
/// What a word takes, and each change in it beside its key and value.
const OVERHEAD: usize = 64;

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
            told: Log::of(BEHIND),
            news: watch::Sender::new(()),
        }));
        let shared = Arc::clone(&state);
        let span = Span::Prefix(prefix.to_owned());
        let watch = Watch::every(etcd.clone(), span, move |seen| {
            locked(&shared).hear(seen);
        });
        Self { state, watch }
    }

    /// Reads everything, or one key.
    pub(super) fn read(self: &Arc<Self>, leases: &Arc<Leases>, key: Option<Bytes>) -> Reader {
        let mut state = locked(&self.state);
        let mut reader = Reader {
            hub: Arc::clone(self),
            leases: Arc::clone(leases),
            key,
            news: state.news.subscribe(),
            at: state.told.join(),
            heard: 0,
            known: HashMap::new(),
            pending: VecDeque::new(),
            begun: false,
        };
        reader.catch_up(&mut state);
        drop(state);
        reader
    }

    /// Asks the watch to list anew.
    pub(super) fn verify(&self) -> Verify {
        self.watch.verify()
    }

    /// How often what was told was compared with a list.
    pub(super) fn compared(&self) -> u64 {
        self.watch.counts().compared.load(Relaxed)
    }

    /// How many keys were then not as they had been told.
    pub(super) fn repaired(&self) -> u64 {
        self.watch.counts().repaired.load(Relaxed)
    }

    /// Why the cluster is out of reach, while it is.
    pub(super) fn stale(&self) -> Option<Error> {
        locked(&self.state).stale.clone()
    }
}

impl State {
    fn hear(&mut self, seen: Seen) {
        let mut changes = Vec::new();
        match seen {
            Seen::Listed { all, revision } => {
                self.revision = revision;
                self.listed = true;
                changes.extend(all.into_iter().map(Change::Put));
            }
            Seen::Changed(news) => {
                let last = news.last().map_or(0, KeyChange::at);
                self.revision = self.revision.max(last);
                changes.extend(news.into_iter().map(Change::of));
            }
            Seen::Skipped {
                from,
                until,
                changes: news,
            } => {
                self.revision = until;
                changes.push(Change::Skipped(from, until));
                changes.extend(news.into_iter().map(Change::of));
            }
            Seen::Stale(why) => {
                self.stale = Some(why);
                return;
            }
        }
        self.stale = None;
        for change in &changes {
            match change {
                Change::Put(kv) => drop(self.keys.insert(kv.key.clone(), kv.clone())),
                Change::Gone(key, _) => drop(self.keys.remove(key)),
                Change::Skipped(..) => {}
            }
        }
        let bytes = OVERHEAD + changes.iter().map(Change::bytes).sum::<usize>();
        let (changes, revision) = (changes.into(), self.revision);
        self.told.push(Told { changes, revision }, bytes);
        self.news.send_replace(());
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

    fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Put(kv) => Some(&kv.key),
            Self::Gone(key, _) => Some(key),
            Self::Skipped(..) => None,
        }
    }

    fn bytes(&self) -> usize {
        let value = match self {
            Self::Put(kv) => kv.value.len(),
            Self::Gone(..) | Self::Skipped(..) => 0,
        };
        OVERHEAD + self.key().map_or(0, Bytes::len) + value
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
            self.more().await.ok()?;
        }
    }

    /// Returns when it was told how everything stands, all of which is then [`ready`](Self::ready).
    ///
    /// # Errors
    /// When the coordinator is closed.
    pub(super) async fn begin(&mut self) -> Result<()> {
        while !self.begun {
            self.more().await?;
        }
        Ok(())
    }

    /// Hears the next word, when there is one.
    async fn more(&mut self) -> Result<()> {
        loop {
            self.leases.check()?;
            // Before we look, so that what is told from here on wakes us.
            self.news.mark_unchanged();
            if self.hear() {
                return Ok(());
            }
            tokio::select! {
                told = self.news.changed() => told.map_err(|gone| {
                    Error::new(ErrorKind::Unavailable, "follow a prefix").because(gone)
                })?,
                why = self.leases.closing() => return Err(why),
            }
        }
    }

    /// Says whether there was a word.
    fn hear(&mut self) -> bool {
        let hub = Arc::clone(&self.hub);
        let mut state = locked(&hub.state);
        match state.told.next(&mut self.at) {
            Next::Word(told) => {
                drop(state);
                self.told(&told);
            }
            Next::Gone => self.catch_up(&mut state),
            Next::Nothing => return false,
        }
        true
    }

    fn told(&mut self, told: &Told) {
        told.changes.iter().for_each(|change| self.take(change));
        self.heard = told.revision;
        let begins = !std::mem::replace(&mut self.begun, true);
        // One who asks for a key is told that it is not there.
        if let Some(key) = self.key.clone().filter(|_| begins && self.known.is_empty()) {
            self.take(&Change::Gone(key, told.revision));
        }
    }

    /// What was told already.
    pub(super) fn ready(&mut self) -> Option<Change> {
        self.pending.pop_front()
    }

    fn take(&mut self, change: &Change) {
        let of_another = |key: &Bytes| change.key().is_some_and(|of| of != key);
        if self.key.as_ref().is_some_and(of_another) {
            return;
        }
        match change {
            Change::Put(kv) => {
                self.known.insert(kv.key.clone(), kv.mod_revision);
            }
            Change::Gone(key, _) => {
                self.known.remove(key);
            }
            Change::Skipped(..) => {}
        }
        self.pending.push_back(change.clone());
    }

    /// Goes on from how it stands now, telling what is new in it.
    fn catch_up(&mut self, state: &mut State) {
        state.told.skip(&mut self.at);
        if !state.listed {
            return;
        }
        if self.begun {
            // Where data was replaced meanwhile, nothing of what there is now was heard.
            let from = Some(self.heard).filter(|heard| *heard <= state.revision);
            self.take(&Change::Skipped(from.unwrap_or(0), state.revision));
        }
        self.heard = state.revision;
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

impl Drop for Reader {
    fn drop(&mut self) {
        locked(&self.hub.state).told.leave(self.at);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::etcd::Options;

    fn kv(key: &str, mod_revision: i64) -> Kv {
        Kv {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::new(),
            create_revision: 1,
            mod_revision,
            lease: 0,
        }
    }

    fn put(key: &str, mod_revision: i64) -> Seen {
        Seen::Changed(vec![KeyChange::Put(kv(key, mod_revision))])
    }

    fn delete(key: &str, mod_revision: i64) -> Seen {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let last = kv("", 1);
        Seen::Changed(vec![KeyChange::Delete {
            key,
            mod_revision,
            last,
        }])
    }

    /// A hub whose etcd is never there, so that it hears what it is told here.
    fn hub() -> (Arc<Hub>, Arc<Leases>) {
        let etcd = Etcd::open(&["127.0.0.1:1"], Options::default()).unwrap();
        let hub = Hubs::default().hub(&etcd, &"a/".into());
        let (ttl, retry) = (std::time::Duration::from_secs(10), Default::default());
        (hub, Leases::new(etcd, ttl, retry))
    }

    async fn words(reader: &mut Reader, count: usize) -> Vec<String> {
        let mut words = Vec::new();
        for _ in 0..count {
            words.push(match reader.next().await.unwrap() {
                Change::Put(kv) => format!("+{}@{}", kv.name(), kv.mod_revision),
                Change::Gone(key, at) => format!("-{}@{at}", String::from_utf8_lossy(&key)),
                Change::Skipped(from, until) => format!("?{from}..{until}"),
            });
        }
        assert!(reader.next().now_or_never().is_none(), "it is told more");
        words
    }

    #[tokio::test]
    async fn whoever_reads_is_told_how_it_stands_and_then_each_change() {
        let (hub, leases) = hub();
        let mut early = hub.read(&leases, None);
        let mut of_b = hub.read(&leases, Some("b".into()));
        let all = vec![kv("a", 2)];
        locked(&hub.state).hear(Seen::Listed { all, revision: 3 });
        for seen in [put("a", 4), put("b", 5), delete("a", 6)] {
            locked(&hub.state).hear(seen);
        }

        let mut late = hub.read(&leases, None);
        let mut of_a = hub.read(&leases, Some("a".into()));

        assert_eq!(words(&mut early, 4).await, ["+a@2", "+a@4", "+b@5", "-a@6"]);
        assert_eq!(words(&mut late, 1).await, ["+b@5"]);
        assert_eq!(words(&mut of_a, 1).await, ["-a@6"]);
        assert_eq!(words(&mut of_b, 2).await, ["-b@3", "+b@5"]);
    }

    #[tokio::test]
    async fn who_is_far_behind_is_told_the_latest_of_each_and_nothing_twice() {
        let (hub, leases) = hub();
        locked(&hub.state).hear(Seen::Listed {
            all: vec![kv("a", 2), kv("gone", 2), kv("same", 2)],
            revision: 2,
        });
        let mut reader = hub.read(&leases, None);
        assert_eq!(words(&mut reader, 3).await.len(), 3);

        locked(&hub.state).hear(delete("gone", 3));
        let large = Bytes::from_static(&[0; 1 << 20]);
        let last = 3 + BEHIND as i64 / large.len() as i64;
        for at in 4..=last {
            let value = large.clone();
            locked(&hub.state).hear(Seen::Changed(vec![KeyChange::Put(Kv {
                value,
                ..kv("a", at)
            })]));
        }

        let told = [
            format!("?2..{last}"),
            format!("-gone@{last}"),
            format!("+a@{last}"),
        ];
        assert_eq!(words(&mut reader, 3).await, told);
        locked(&hub.state).hear(put("b", 20_000));
        assert_eq!(words(&mut reader, 1).await, ["+b@20000"]);
    }

    #[tokio::test]
    async fn what_was_compacted_is_told_to_all_even_to_who_reads_one_key() {
        let (hub, leases) = hub();
        let all = vec![kv("a", 2)];
        locked(&hub.state).hear(Seen::Listed { all, revision: 3 });
        let mut everything = hub.read(&leases, None);
        let mut of_b = hub.read(&leases, Some("b".into()));

        locked(&hub.state).hear(Seen::Skipped {
            from: 4,
            until: 9,
            changes: vec![KeyChange::Put(kv("a", 7))],
        });
        let mut late = hub.read(&leases, None);

        assert_eq!(words(&mut everything, 3).await, ["+a@2", "?4..9", "+a@7"]);
        assert_eq!(words(&mut of_b, 2).await, ["-b@3", "?4..9"]);
        assert_eq!(words(&mut late, 1).await, ["+a@7"], "it has missed nothing");
    }
}
