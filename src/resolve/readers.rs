//! Those who read about one service in a registry, and what is known of it.

use std::{
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{Publisher, Suspect, Update, Updates, Vanished, publish};
use crate::{Backoff, Result, lock::locked};

/// What a registry has told of one service.
pub(crate) trait Census {
    /// What one who begins to read now must be told.
    fn so_far(&self) -> Vec<Update>;

    /// Who vanished, and is not said to be gone.
    fn vanished(&self) -> &Vanished;

    fn vanished_mut(&mut self) -> &mut Vanished;
}

/// What is known, and all who are told what changes in it.
pub(crate) struct Readers<C> {
    inner: Mutex<Inner<C>>,
    /// Somebody vanished.
    vanished: Notify,
}

struct Inner<C> {
    census: C,
    publishers: Vec<Publisher>,
}

/// One reader's updates, and what must live for as long as somebody reads them.
struct Subscription<K> {
    updates: Updates,
    _keep: K,
}

impl<C: Census> Readers<C> {
    pub(crate) fn of(census: C) -> Self {
        Self {
            inner: Mutex::new(Inner {
                census,
                publishers: Vec::new(),
            }),
            vanished: Notify::new(),
        }
    }

    /// One more reader, who is told what is known and then what changes.
    pub(crate) fn subscribe<K: Send + Unpin + 'static>(&self, keep: K) -> Updates {
        let (publisher, updates) = publish();
        let mut inner = locked(&self.inner);
        for update in inner.census.so_far() {
            publisher.update(update);
        }
        inner.publishers.retain(|one| !one.is_closed());
        inner.publishers.push(publisher);
        Box::pin(Subscription {
            updates,
            _keep: keep,
        })
    }

    /// It learns something, and all are told what that changes.
    pub(crate) fn learn<U>(&self, learn: impl FnOnce(&mut C) -> U)
    where
        U: IntoIterator<Item = Update>,
    {
        let mut inner = locked(&self.inner);
        let updates = learn(&mut inner.census);
        inner.tell(updates);
        if inner.census.vanished().due().is_some() {
            self.vanished.notify_one();
        }
    }

    /// Looks into suspicions, for as long as anybody reads: `missing` says who of the suspects is gone, by a list
    /// or two that the registry's servers agree on.
    pub(crate) async fn confirm<F>(&self, missing: impl Fn(Vec<Suspect>) -> F)
    where
        F: Future<Output = Result<Vec<Suspect>>>,
    {
        let mut backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));
        loop {
            match self.due() {
                None => {
                    self.vanished.notified().await;
                    backoff.reset();
                }
                Some(due) => sleep_until(due).await,
            }
            let suspects = self.suspects();
            if suspects.is_empty() {
                continue;
            }
            match missing(suspects).await {
                Ok(missing) if self.gone(&missing) => backoff.reset(),
                // They were seen after all, and a reader's own list may take its time to say so.
                Ok(_) => sleep(backoff.next()).await,
                Err(error) => {
                    tracing::debug!(why = error.chain(), "suspects could not be looked into");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        locked(&self.inner).census.vanished().due()
    }

    fn suspects(&self) -> Vec<Suspect> {
        let inner = locked(&self.inner);
        inner.census.vanished().suspects(Instant::now())
    }

    /// Whether any of them was still a suspect, and has gone.
    fn gone(&self, suspects: &[Suspect]) -> bool {
        let mut inner = locked(&self.inner);
        let gone = inner.census.vanished_mut().gone(suspects);
        let any = gone.is_some();
        inner.tell(gone);
        any
    }
}

impl<C> Inner<C> {
    fn tell(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.publishers.retain(|one| !one.is_closed());
            for publisher in &self.publishers {
                publisher.update(update.clone());
            }
        }
    }
}

impl<K: Unpin> Stream for Subscription<K> {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.as_mut().poll_next(cx)
    }
}
