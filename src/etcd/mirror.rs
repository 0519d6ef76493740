//! What stands in our own keys, as a watch on each tells it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    client::Etcd,
    known::KeyChange,
    kv::Span,
    watch::{Seen, Watch},
};
use crate::lock::locked;

/// Our own keys, watched one by one.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    told: Arc<Told>,
    watches: BTreeMap<String, Watch>,
}

#[derive(Debug, Default)]
struct Told {
    keys: Mutex<BTreeMap<String, Standing>>,
    news: Notify,
}

/// What was last told of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Standing {
    /// When it became so.
    pub(crate) revision: i64,
    /// The value and its lease, if there is one.
    pub(crate) value: Option<(Bytes, i64)>,
}

impl Mirror {
    /// Watches these keys, and no others.
    pub(crate) fn follow(&mut self, etcd: &Etcd, keys: impl IntoIterator<Item = String>) {
        let mut before = std::mem::take(&mut self.watches);
        for key in keys {
            let watch = before.remove(&key);
            let watch = watch.unwrap_or_else(|| self.told.watch(etcd, &key));
            self.watches.insert(key, watch);
        }
        for key in before.into_keys() {
            locked(&self.told.keys).remove(&key);
        }
    }

    /// Forgets what was told.
    pub(crate) fn forget(&self) {
        locked(&self.told.keys).clear();
    }

    /// What was last told of a key; nothing, until something was.
    pub(crate) fn standing(&self, key: &str) -> Option<Standing> {
        locked(&self.told.keys).get(key).cloned()
    }

    /// Returns when something was told since this last returned.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&self) {
        self.told.news.notified().await;
    }
}

impl Told {
    fn watch(self: &Arc<Self>, etcd: &Etcd, key: &str) -> Watch {
        let (told, name) = (Arc::clone(self), key.to_owned());
        Watch::telling(etcd.clone(), Span::Key(key.into()), move |seen| {
            told.hear(&name, seen);
        })
    }

    fn hear(&self, key: &str, seen: Seen) {
        let standing = match seen {
            Seen::Listed { mut all, revision } => match all.pop() {
                Some(kv) => Standing {
                    revision: kv.mod_revision,
                    value: Some((kv.value, kv.lease)),
                },
                None => Standing {
                    revision,
                    value: None,
                },
            },
            Seen::Changed(mut changes) | Seen::Skipped { mut changes, .. } => match changes.pop() {
                Some(KeyChange::Put(kv)) => Standing {
                    revision: kv.mod_revision,
                    value: Some((kv.value, kv.lease)),
                },
                Some(KeyChange::Delete { mod_revision, .. }) => Standing {
                    revision: mod_revision,
                    value: None,
                },
                None => return,
            },
            // The session notices outages, too, and acts.
            Seen::Stale(_) => return,
        };
        locked(&self.keys).insert(key.to_owned(), standing);
        self.news.notify_one();
    }
}
