//! A resolver that says what a test tells it to.

use std::{sync::Mutex, time::Duration};

use futures_util::StreamExt;
use tokio::time::timeout;

use super::{Change, Publisher, Resolve, Update, Updates, publish};
use crate::ServiceName;

/// Tells its one reader what the test's [`Publisher`] is told.
pub(super) struct Scripted(Mutex<Option<Updates>>);

impl Scripted {
    pub(super) fn new() -> (Self, Publisher) {
        let (publisher, updates) = publish();
        (Self(Mutex::new(Some(updates))), publisher)
    }
}

impl Resolve for Scripted {
    fn resolve(&self, _service: &ServiceName) -> Updates {
        self.0.lock().unwrap().take().expect("one reader a script")
    }
}

/// What updates say, a word or two for each.
pub(crate) fn said(updates: impl IntoIterator<Item = Update>) -> Vec<String> {
    let word = |update| match update {
        Update::Reset(all) => {
            let mut ids: Vec<_> = all.iter().map(|i| i.id.as_str()).collect();
            ids.sort_unstable();
            format!("={}", ids.concat())
        }
        Update::Delta(changes) => {
            let word = |change| match change {
                Change::Put(i) => format!("+{}", i.id),
                Change::Remove(id) => format!("-{id}"),
                Change::Vanish(id) => format!("?{id}"),
            };
            format!("~{}", changes.into_iter().map(word).collect::<String>())
        }
        Update::Stale(_) => "stale".into(),
        Update::Skipped(skipped) => format!("skipped {}", skipped.len()),
    };
    updates.into_iter().map(word).collect()
}

/// The next update in a few words; a test that waits for one in vain fails.
pub(super) async fn words(updates: &mut Updates) -> String {
    let ids = |words: Vec<String>| words.join(" ");
    let next = timeout(Duration::from_secs(20), updates.next()).await;
    match next.expect("an update within 20 s") {
        None => "end".into(),
        Some(Update::Reset(set)) => {
            format!(
                "reset {}",
                ids(set.iter().map(|i| i.id.to_string()).collect())
            )
        }
        Some(Update::Delta(changes)) => {
            let change = |change: &Change| match change {
                Change::Put(instance) => format!("+{}", instance.id),
                Change::Remove(id) => format!("-{id}"),
                Change::Vanish(id) => format!("?{id}"),
            };
            format!("delta {}", ids(changes.iter().map(change).collect()))
        }
        Some(Update::Stale(why)) => format!("stale {}", why.chain()),
        Some(Update::Skipped(skipped)) => format!("skipped {}", skipped.len()),
    }
}
