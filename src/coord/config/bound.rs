//! A value at hand, which follows etcd.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use futures_core::Stream;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Changed, Config, Entry};
use crate::{Error, ErrorKind, Result};

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
    mut changes: impl Stream<Item = Result<Changed<T>>> + Unpin,
    held: Arc<ArcSwap<Held<T>>>,
    tell: watch::Sender<i64>,
) {
    // The watch may be behind the answer that this began with.
    let first = held.load().version;
    let mut behind = true;
    while let Some(change) = changes.next().await {
        let last = held.load_full();
        let keeping = |error| Held {
            value: Arc::clone(&last.value),
            version: last.version,
            error,
        };
        if let Ok(Changed::Set(Entry { version, .. }) | Changed::Gone { version, .. }) = &change {
            behind = behind && *version < first;
            if behind {
                continue;
            }
        }
        let next = match change {
            Ok(Changed::Set(entry)) if entry.version == last.version => keeping(None),
            Ok(Changed::Set(entry)) => Held {
                value: Arc::new(entry.value),
                version: entry.version,
                error: None,
            },
            Ok(Changed::Gone { name, .. }) => {
                let deleted = || Error::new(ErrorKind::NotFound, format!("follow {name}"));
                // Where none was there, the one to begin with is right.
                keeping((last.version != 0).then(|| deleted().because("it was deleted")))
            }
            // What stands follows, if it is another.
            Ok(Changed::Skipped { .. }) => continue,
            Err(error) => {
                tracing::warn!(why = error.chain(), "keeping the last good value");
                keeping(Some(error))
            }
        };
        let version = next.version;
        held.store(Arc::new(next));
        if version != last.version {
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

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn set(version: i64) -> Result<Changed<i64>> {
        let name = "x".to_owned();
        Ok(Changed::Set(Entry {
            name,
            value: version,
            version,
        }))
    }

    fn gone(version: i64) -> Result<Changed<i64>> {
        let name = "x".to_owned();
        Ok(Changed::Gone { name, version })
    }

    fn bad() -> Result<Changed<i64>> {
        Err(Error::new(ErrorKind::Decode, "read x"))
    }

    /// The version that one who began with this has after these changes, and the kind of its error.
    async fn after<const N: usize>(
        first: i64,
        changes: [Result<Changed<i64>>; N],
    ) -> (i64, Option<ErrorKind>) {
        let held = Arc::new(ArcSwap::from_pointee(Held {
            value: Arc::new(first),
            version: first,
            error: None,
        }));
        let (tell, _news) = watch::channel(first);
        following(stream::iter(changes), Arc::clone(&held), tell).await;
        let held = held.load();
        assert_eq!(*held.value, held.version);
        (held.version, held.error.as_ref().map(Error::kind))
    }

    #[tokio::test]
    async fn a_value_does_not_go_back_to_what_a_watch_that_is_behind_still_tells() {
        assert_eq!(after(7, [set(5)]).await, (7, None));
        assert_eq!(after(7, [gone(5), set(6), set(7), set(9)]).await, (9, None));
        let replaced = [set(7), set(3)];
        assert_eq!(after(7, replaced).await, (3, None), "another past");
    }

    #[tokio::test]
    async fn an_error_is_told_for_as_long_as_it_is_true() {
        assert_eq!(after(7, [bad()]).await, (7, Some(ErrorKind::Decode)));
        assert_eq!(after(7, [bad(), set(7)]).await, (7, None));
        let deleted = (7, Some(ErrorKind::NotFound));
        assert_eq!(after(7, [gone(8)]).await, deleted);
        assert_eq!(after(7, [gone(8), set(9)]).await, (9, None));
        assert_eq!(after(0, [gone(8)]).await, (0, None), "none was ever there");
        assert_eq!(after(0, [bad(), gone(8)]).await, (0, None));
    }
}
