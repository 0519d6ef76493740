//! A server stands in the registry as serving for as long as it is well.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, time::timeout};

use super::{Registrar, Registration, registration::Ends};
use crate::{
    Error, ErrorKind, Instance,
    health::{Checks, Verdict, follow_at},
};

/// What ties registrations to the health of their servers.
#[derive(Clone, Default)]
pub(super) struct Care {
    checks: Vec<Checks>,
    tell: Option<Arc<Tell>>,
}

type Tell = dyn Fn(bool) -> BoxFuture<'static, ()> + Send + Sync;

/// How long one telling may hold up the next.
const PATIENCE: Duration = Duration::from_secs(1);

impl Registrar {
    /// Ties registrations to what these checks say: an instance is announced when they say that it is well,
    /// and marked as draining as soon as they do not. It keeps its lease, and is back when it is well again.
    /// More than one of these must all agree. Nobody is asked, unless set: who is registered serves.
    ///
    /// Before the first answer it stands there as draining, so that clients connect already; a layout that
    /// has no mark for it has no record until then. It is asked where it listens, within this machine and in
    /// plain text; the health service of a server with TLS is asked by [`Grpc::of`](crate::health::Grpc::of).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tonic_fleet::{Memory, Registrar, health::{self, Grpc, Watchdog}};
    ///
    /// # fn queue() -> Result<(), std::io::Error> { Ok(()) }
    /// let (reporter, health_server) = tonic_health::server::health_reporter();
    /// let dog = Watchdog::new(Duration::from_secs(10));
    /// let registrar = Registrar::on(Memory::default())
    ///     // What its own `grpc.health.v1` says…
    ///     .health(Grpc::watch("").of(health_server.clone()))
    ///     // …and its own closure…
    ///     .health(health::ask(|| async { queue() }))
    ///     // …and whether `dog.pet()` is called at least every ten seconds.
    ///     .health(dog.clone());
    /// # let _ = (registrar, reporter);
    /// ```
    #[must_use]
    pub fn health(mut self, checks: impl Into<Checks>) -> Self {
        self.care.checks.push(checks.into());
        self
    }

    /// Tells whether a server is well each time that changes, and that it is not when it leaves: with
    /// `tonic_health`, so that clients who watch hear it from the server, too. Without
    /// [checks](Self::health) a server is well from its registration on. Nobody is told, unless set.
    ///
    /// Do not set the name that [`health`](Self::health) asks for: what was set to `NOT_SERVING` because of
    /// another check would then never be well again.
    ///
    /// ```
    /// use tonic_fleet::{Memory, Registrar};
    /// use tonic_health::ServingStatus::{NotServing, Serving};
    ///
    /// let (reporter, health_server) = tonic_health::server::health_reporter();
    /// let registrar = Registrar::on(Memory::default()).tell(move |well| {
    ///     let (reporter, status) = (reporter.clone(), if well { Serving } else { NotServing });
    ///     async move { reporter.set_service_status("shop.Cart", status).await }
    /// });
    /// # let _ = (registrar, health_server);
    /// ```
    // A closure, and no dependency: `tonic_health`'s version is the server's own business.
    #[must_use]
    pub fn tell<F, Fut>(mut self, tell: F) -> Self
    where
        F: Fn(bool) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.care.tell = Some(Arc::new(move |well| tell(well).boxed()));
        self
    }
}

impl Registration {
    /// Why its checks keep it from calls, if they do; see [`Registrar::health`].
    pub fn unwell(&self) -> Option<Error> {
        self.ends.unwell()
    }
}

impl Care {
    /// Whether there is anything to do.
    pub(super) fn is_none(&self) -> bool {
        self.checks.is_empty() && self.tell.is_none()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.checks.iter().try_for_each(Checks::check)
    }

    /// As it is registered first.
    pub(super) fn before(&self, instance: Instance) -> Instance {
        if self.checks.is_empty() {
            instance
        } else {
            instance.serving(false)
        }
    }

    /// Takes over what was registered like this, and looks after it until it leaves. `own` is where it
    /// listens, and `serving` what it is to say while it is well.
    pub(super) fn begin(&self, registration: &Registration, own: Instance, serving: bool) {
        let ends = Arc::clone(&registration.ends);
        if !self.checks.is_empty() {
            ends.hold_back(serving);
        }
        tokio::spawn(self.clone().run(ends, own));
    }

    /// Ends when the registration leaves, as it does when it is dropped.
    async fn run(self, ends: Arc<Ends>, own: Instance) {
        let own = Arc::new(own);
        let (tell, mut told) = watch::channel(self.checks.is_empty());
        let asking = async {
            let tell = |verdict: Verdict| {
                ends.judge(&verdict);
                tell.send_replace(verdict.is_healthy());
            };
            follow_at(&self.checks, &own, &tell).await;
        };
        let telling = async {
            if self.checks.is_empty() {
                told.mark_changed();
            }
            // The sender is in the other future.
            while told.changed().await.is_ok() {
                let well = *told.borrow_and_update();
                self.say(well).await;
            }
        };
        let mut wish = ends.wish.subscribe();
        tokio::select! {
            () = asking => {}
            () = telling => {}
            _ = wish.wait_for(|wish| wish.gone) => {}
        }
        self.say(false).await;
    }

    /// A closure that panics, or hangs, must not take the rest along.
    async fn say(&self, well: bool) {
        let Some(tell) = &self.tell else { return };
        let telling = AssertUnwindSafe(async { tell(well).await });
        match timeout(PATIENCE, telling.catch_unwind()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::error!(well, "telling whether the server is well panicked"),
            Err(_) => tracing::warn!(well, "telling whether the server is well takes too long"),
        }
    }
}

impl Ends {
    /// Nothing is known yet: what is registered as draining stays so, and is to serve once it is well.
    fn hold_back(&self, serving: bool) {
        let unknown = Error::new(
            ErrorKind::Unavailable,
            "it has not said yet that it is well",
        );
        self.wish_quietly(|wish| {
            wish.own = Arc::new((*wish.own).clone().serving(serving));
            wish.unwell = Some(unknown);
        });
    }

    fn judge(&self, verdict: &Verdict) {
        let unwell = match verdict {
            Verdict::Unknown => return,
            Verdict::Healthy => None,
            Verdict::Unhealthy(why) => {
                tracing::warn!(
                    key = &*self.key,
                    error = why.chain(),
                    "server is unwell: no new calls"
                );
                Some(why.clone())
            }
        };
        self.wish_quietly(|wish| wish.unwell = unwell);
    }
}
