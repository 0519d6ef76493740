//! Which instances a service has, by its keys in etcd.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::TryFutureExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    client::Etcd,
    kv::Span,
    layout::Layout,
    registry::Registry,
    roster::Roster,
    watch::{Verify, Watch},
};
use crate::{
    Error, ErrorKind, Result, ServiceName,
    resolve::{Readers, Resolve, Updates, merge},
};

/// One service that somebody reads about; its tasks end with it.
pub(super) struct Service {
    readers: Arc<Readers<Roster>>,
    _watch: Watch,
    _confirm: DropGuard,
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
        // The registry is found again by its URL, and with it the service, while there is a reader.
        let keep = (Arc::clone(&service), self.registry.clone());
        service.readers.subscribe(keep)
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
        let readers = Arc::new(Readers::of(Roster::new(service, layout, grace)));
        let teller = Arc::clone(&readers);
        let watch = Watch::telling(etcd.clone(), span, move |seen| {
            teller.learn(|roster| roster.seen(seen, Instant::now()));
        });
        let stop = CancellationToken::new();
        let confirming = confirm(Arc::clone(&readers), watch.verify());
        etcd.spawn(stop.clone().run_until_cancelled_owned(confirming));
        Self {
            readers,
            _watch: watch,
            _confirm: stop.drop_guard(),
        }
    }
}

/// Looks into suspicions. A list that brings one back takes it off the suspects before it is said to be gone.
async fn confirm(readers: Arc<Readers<Roster>>, verify: Verify) {
    let listed = |suspects| twice(&verify).map_ok(|()| suspects);
    readers.confirm(listed).await;
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

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

const BETWEEN: Duration = Duration::from_secs(1);
/// Longer than the longest wait between two attempts of a watch.
const PATIENCE: Duration = Duration::from_secs(60);
