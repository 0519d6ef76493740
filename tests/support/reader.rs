//! Somebody who reads a resolver's updates, and keeps what a channel would.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;
use tonic_fleet::{
    Instance,
    resolve::{Change, Update, Updates},
};

/// What was read so far.
pub struct Reader {
    updates: Updates,
    pub known: BTreeMap<String, Arc<Instance>>,
    /// Those of the known who vanished unannounced.
    pub suspects: BTreeSet<String>,
    /// Whether the registry is out of reach, and why.
    pub stale: Option<String>,
    /// Whether there ever was a set.
    pub begun: bool,
    /// The keys that are passed over now.
    pub skipped: Vec<String>,
    /// Every word, in short, since the test last looked.
    pub words: Vec<String>,
}

impl Reader {
    pub fn of(updates: Updates) -> Self {
        Self {
            updates,
            known: BTreeMap::new(),
            suspects: BTreeSet::new(),
            stale: None,
            begun: false,
            skipped: Vec::new(),
            words: Vec::new(),
        }
    }

    /// The ids of all that are known.
    pub fn ids(&self) -> Vec<&str> {
        self.known.keys().map(String::as_str).collect()
    }

    /// Reads until it is so; fails when it takes too long.
    pub async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        self.until_within(Duration::from_secs(60), what, is).await;
    }

    pub async fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        is: impl Fn(&Self) -> bool,
    ) {
        let reading = async {
            while !is(self) {
                let update = self.updates.next().await.expect("updates never end");
                self.take(update);
            }
        };
        if timeout(patience, reading).await.is_err() {
            panic!(
                "not within {patience:?}: {what}; known {:?}, suspects {:?}, stale {:?}, told {:?}",
                self.ids().iter().take(20).collect::<Vec<_>>(),
                self.suspects.iter().take(20).collect::<Vec<_>>(),
                self.stale,
                self.words.iter().rev().take(20).collect::<Vec<_>>(),
            );
        }
    }

    /// Reads for this long, whatever comes.
    pub async fn during(&mut self, time: Duration) {
        let reading = async {
            while let Some(update) = self.updates.next().await {
                self.take(update);
            }
        };
        assert!(timeout(time, reading).await.is_err(), "updates never end");
    }

    /// Reads what is there already.
    pub fn now(&mut self) {
        while let Some(Some(update)) = self.updates.next().now_or_never() {
            self.take(update);
        }
    }

    /// The words since the last look.
    pub fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.words)
    }

    /// The words since the last look that say something of servers: a machine that stands still makes any
    /// registry stale for a moment.
    pub fn changes(&mut self) -> Vec<String> {
        let mut told = self.told();
        told.retain(|word| word != "stale" && word != "fresh");
        told
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Reset(all) => {
                self.words.push(format!("reset {}", all.len()));
                self.known = all.into_iter().map(|i| (i.id.to_string(), i)).collect();
                self.suspects.clear();
                (self.begun, self.stale) = (true, None);
            }
            Update::Delta(changes) => {
                self.stale = None;
                if changes.is_empty() {
                    self.words.push("fresh".into());
                }
                for change in changes {
                    self.change(change);
                }
            }
            Update::Stale(why) => {
                self.words.push("stale".into());
                self.stale = Some(why.chain());
            }
            Update::Skipped(skipped) => {
                self.words.push(format!("skipped {}", skipped.len()));
                self.skipped = skipped.iter().map(|one| one.key.to_string()).collect();
            }
            other => panic!("unknown update {other:?}"),
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Put(instance) => {
                let id = instance.id.to_string();
                self.words.push(format!("+{id}"));
                self.suspects.remove(&id);
                self.known.insert(id, instance);
            }
            Change::Remove(id) => {
                self.words.push(format!("-{id}"));
                self.suspects.remove(id.as_str());
                self.known.remove(id.as_str());
            }
            Change::Vanish(id) => {
                self.words.push(format!("?{id}"));
                self.suspects.insert(id.to_string());
            }
            other => panic!("unknown change {other:?}"),
        }
    }
}
