//! How values change.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::stream;
use serde::de::DeserializeOwned;

use super::{Config, Entry};
use crate::{
    Error, Result,
    coord::hub::{Change, Hub},
};

/// What becomes of a value.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Changed<T> {
    /// It has this value.
    Set(Entry<T>),
    /// It is not there, or is no more.
    Gone {
        /// What it was called.
        name: String,
        /// As of when.
        version: i64,
    },
    /// Not each change from the one version to the other, both included, is told: how all stands by now follows,
    /// as far as it is otherwise than it was told last.
    Skipped {
        /// Where it begins; 0 when the data of the cluster was replaced.
        from: i64,
        /// Where it ends.
        until: i64,
    },
}

/// How values stand, and then each change to them, in order; a stream.
///
/// A value that is not a `T` is an error with its key, and the stream goes on. No change is told twice, and
/// none is passed over in silence: where etcd compacted, or lost, what happened before it could be heard, and
/// where the reader is more than 32 MiB of changes behind, [`Changed::Skipped`] says so, and of each value the
/// latest is told. While etcd is out of reach the stream is silent, and [`stale`](Self::stale) says why. It ends
/// when the coordinator is closed.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Changes<T> {
    stream: Pin<Box<dyn Stream<Item = Change> + Send>>,
    config: Config,
    hub: Arc<Hub>,
    typed: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Changes<T> {
    pub(super) fn of(config: &Config, key: Option<String>) -> Self {
        let hub = config.hub();
        let reader = hub.read(&config.leases, key.map(Into::into));
        let stream = stream::unfold(reader, |mut reader| async {
            let change = reader.next().await?;
            Some((change, reader))
        });
        Self {
            stream: Box::pin(stream),
            config: config.clone(),
            hub,
            typed: PhantomData,
        }
    }
}

impl<T> Changes<T> {
    /// Why etcd is out of reach, while it is: until it is back, nothing is told.
    pub fn stale(&self) -> Option<Error> {
        self.hub.stale()
    }
}

impl<T: DeserializeOwned> Stream for Changes<T> {
    type Item = Result<Changed<T>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let config = self.config.clone();
        let next = self.stream.as_mut().poll_next(cx);
        next.map(|next| {
            next.map(|change| match change {
                Change::Put(kv) => config.entry(&kv).map(Changed::Set),
                Change::Gone(key, version) => {
                    let key = String::from_utf8_lossy(&key);
                    let name = config.name(&key).to_owned();
                    Ok(Changed::Gone { name, version })
                }
                Change::Skipped(from, until) => Ok(Changed::Skipped { from, until }),
            })
        })
    }
}

impl<T> fmt::Debug for Changes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("prefix", &self.config.prefix)
            .finish_non_exhaustive()
    }
}
