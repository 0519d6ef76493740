//! A value at hand, which follows etcd.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Changed, Changes, Config};
use crate::{Error, Result};

/// The last good value, read without a lock and without waiting, and kept up to date by a task until the last
/// clone is dropped.
///
/// A value that is not a `T`, and one that is deleted, leave the last good one in place.
/// [`error`](Self::error) says so.
pub struct Bound<T> {
    held: Arc<ArcSwap<Held<T>>>,
    news: watch::Receiver<i64>,
    task: Arc<DropGuard>,
}

struct Held<T> {
    value: Arc<T>,
    version: i64,
    error: Option<Error>,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Bound<T> {
    pub(super) fn follow(config: &Config, name: &str, value: T, version: i64) -> Result<Self> {
        let changes = config.watch::<T>(name)?;
        let held = Arc::new(ArcSwap::from_pointee(Held {
            value: Arc::new(value),
            version,
            error: None,
        }));
        let (tell, news) = watch::channel(version);
        let stop = CancellationToken::new();
        let following = following(changes, Arc::clone(&held), tell);
        let task = stop.clone().run_until_cancelled_owned(following);
        config.asker().etcd.spawn(task);
        Ok(Self {
            held,
            news,
            task: Arc::new(stop.drop_guard()),
        })
    }
}

async fn following<T: DeserializeOwned>(
    mut changes: Changes<T>,
    held: Arc<ArcSwap<Held<T>>>,
    tell: watch::Sender<i64>,
) {
    while let Some(change) = changes.next().await {
        let last = held.load_full();
        let next = match change {
            Ok(Changed::Set(entry)) if entry.version == last.version => continue,
            Ok(Changed::Set(entry)) => Held {
                value: Arc::new(entry.value),
                version: entry.version,
                error: None,
            },
            Ok(Changed::Gone { .. }) => continue,
            Err(error) => {
                tracing::warn!(why = error.chain(), "keeping the last good value");
                Held {
                    value: Arc::clone(&last.value),
                    version: last.version,
                    error: Some(error),
                }
            }
        };
        let (version, good) = (next.version, next.error.is_none());
        held.store(Arc::new(next));
        if good {
            tell.send_replace(version);
        }
    }
}

impl<T> Bound<T> {
    /// The value, as it is now.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.held.load().value)
    }

    /// When it was written; 0 for a value that did not come from etcd.
    pub fn version(&self) -> i64 {
        self.held.load().version
    }

    /// What is wrong with what stands in etcd now, if it is not the value at hand.
    pub fn error(&self) -> Option<Error> {
        self.held.load().error.clone()
    }

    /// Returns when there is another value than when this last returned, or than when it was bound; `false`
    /// when there will be none, because the coordinator was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> bool {
        self.news.changed().await.is_ok()
    }
}

impl<T> Clone for Bound<T> {
    fn clone(&self) -> Self {
        Self {
            held: Arc::clone(&self.held),
            news: self.news.clone(),
            task: Arc::clone(&self.task),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Bound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held.load();
        f.debug_struct("Bound")
            .field("value", &held.value)
            .field("version", &held.version)
            .field("error", &held.error)
            .finish_non_exhaustive()
    }
}
