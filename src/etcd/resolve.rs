//! Which instances a service has, by its keys in etcd.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    client::{Etcd, locked},
    kv::Span,
    layout::Layout,
    registry::Registry,
    roster::{Roster, Suspect},
    watch::{Seen, Verify, Watch},
};
use crate::{
    Backoff, Error, ErrorKind, Result, ServiceName,
    resolve::{Publisher, Resolve, Update, Updates, merge, publish},
};

/// One service that somebody reads about; its tasks end with it.
pub(super) struct Service {
    shared: Arc<Shared>,
    _watch: Watch,
    _confirm: DropGuard,
}

/// What the tasks share, and what does not keep them alive.
struct Shared {
    readers: Mutex<Readers>,
    /// Somebody vanished.
    vanished: Notify,
}

struct Readers {
    roster: Roster,
    publishers: Vec<Publisher>,
}

/// One reader's updates, which keep the watch on the service alive.
struct Subscription {
    updates: Updates,
    _service: Arc<Service>,
    // Found again by its URL, and with it the service, while there is a reader.
    _registry: Registry,
}

impl Resolve for Registry {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let mut parts = (0..self.layouts().len()).map(|nth| Part {
            registry: self.clone(),
            nth,
        });
        match (parts.next(), parts.len()) {
            (Some(only), 0) => only.resolve(service),
            (first, _) => merge(first.into_iter().chain(parts)).resolve(service),
        }
    }
}

/// What stands in one layout of a registry.
struct Part {
    registry: Registry,
    nth: usize,
}

impl Resolve for Part {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let service = self.registry.service(self.nth, service);
        let (publisher, updates) = publish();
        service.shared.add(publisher);
        Box::pin(Subscription {
            updates,
            _service: service,
            _registry: self.registry.clone(),
        })
    }
}

impl Service {
    pub(super) fn follow(
        etcd: Etcd,
        service: ServiceName,
        layout: Arc<dyn Layout>,
        grace: Duration,
    ) -> Self {
        let span = Span::Prefix(layout.prefix(&service));
        let shared = Arc::new(Shared {
            readers: Mutex::new(Readers {
                roster: Roster::new(service, layout, grace),
                publishers: Vec::new(),
            }),
            vanished: Notify::new(),
        });
        let teller = Arc::clone(&shared);
        let watch = Watch::telling(etcd.clone(), span, move |seen| teller.seen(seen));
        let stop = CancellationToken::new();
        let confirming = confirm(Arc::clone(&shared), watch.verify());
        etcd.spawn(stop.clone().run_until_cancelled_owned(confirming));
        Self {
            shared,
            _watch: watch,
            _confirm: stop.drop_guard(),
        }
    }
}

impl Shared {
    fn add(&self, publisher: Publisher) {
        let mut readers = locked(&self.readers);
        for update in readers.roster.so_far() {
            publisher.update(update);
        }
        readers.publishers.retain(|one| !one.is_closed());
        readers.publishers.push(publisher);
    }

    fn seen(&self, seen: Seen) {
        let mut readers = locked(&self.readers);
        let updates = readers.roster.seen(seen, Instant::now());
        readers.tell(updates);
        if readers.roster.due().is_some() {
            self.vanished.notify_one();
        }
    }

    fn due(&self) -> Option<Instant> {
        locked(&self.readers).roster.due()
    }

    fn suspects(&self) -> Vec<Suspect> {
        locked(&self.readers).roster.suspects(Instant::now())
    }

    fn gone(&self, suspects: &[Suspect]) {
        let mut readers = locked(&self.readers);
        let gone = readers.roster.gone(suspects);
        readers.tell(gone);
    }
}

impl Readers {
    fn tell(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.publishers.retain(|one| !one.is_closed());
            for publisher in &self.publishers {
                publisher.update(update.clone());
            }
        }
    }
}

/// Looks into suspicions, for as long as anybody reads.
async fn confirm(shared: Arc<Shared>, verify: Verify) {
    let mut backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));
    loop {
        match shared.due() {
            None => shared.vanished.notified().await,
            Some(due) => sleep_until(due).await,
        }
        let suspects = shared.suspects();
        if suspects.is_empty() {
            continue;
        }
        // A list that brings one back takes it off the suspects before `gone` looks.
        match twice(&verify).await {
            Ok(()) => {
                shared.gone(&suspects);
                backoff.reset();
            }
            Err(error) => {
                tracing::debug!(why = error.chain(), "suspects could not be looked into");
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Two lists, a moment apart.
async fn twice(verify: &Verify) -> Result<()> {
    list(verify).await?;
    sleep(BETWEEN).await;
    list(verify).await
}

async fn list(verify: &Verify) -> Result<()> {
    match timeout(PATIENCE, verify.now()).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "list anew")),
    }
}

impl Stream for Subscription {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

const BETWEEN: Duration = Duration::from_secs(1);
/// Longer than the longest wait between two attempts of a watch.
const PATIENCE: Duration = Duration::from_secs(60);
