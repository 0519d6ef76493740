//! A tonic server from its first call to its last: announced, withdrawn, drained.

use std::{convert::Infallible, pin::pin, time::Duration};

use http::{Request, Response};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    time::{Instant, timeout},
};
use tonic::{
    body::Body,
    service::Routes,
    transport::server::{Router, TcpIncoming},
};
use tower::{Layer, Service};

use super::{Registrar, leave::signal};
use crate::{Error, ErrorKind, Instance, Result, ServiceName};

/// How a server that was asked to leave has left.
#[derive(Debug)]
#[non_exhaustive]
pub struct Served {
    /// How long it took calls.
    pub served: Duration,
    /// Whether the registry took the withdrawal; if not, the record ends with its lease.
    pub withdrawn: Result<()>,
    /// Whether every call finished; if not, those that ran longer than [`Registrar::finish_timeout`] were left behind.
    pub finished: bool,
}

impl Registrar {
    /// Sets how long calls have to finish once a server takes no more. Twenty seconds, unless set: a
    /// supervisor that kills after 30 s has not done so by then.
    #[must_use]
    pub fn finish_timeout(mut self, timeout: Duration) -> Self {
        self.finish_timeout = timeout;
        self
    }

    /// Serves until SIGINT or SIGTERM, and leaves in order: registers once it takes calls; when it is asked to
    /// end, marks the instance as draining and withdraws it, gives clients time to notice, takes no more
    /// calls, and lets those that run finish. A second signal cuts that short.
    ///
    /// ```no_run
    /// use tonic_fleet::Registrar;
    ///
    /// # async fn run(router: tonic::transport::server::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let registrar = Registrar::new("etcd://127.0.0.1:2379".parse()?)?;
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
    /// let served = registrar.serve("greeter", listener, router).await?;
    /// assert!(served.finished);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`register`](Self::register), and when the server itself ends with one.
    pub async fn serve<S, L>(
        &self,
        service: S,
        listener: TcpListener,
        router: Router<L>,
    ) -> Result<Served>
    where
        S: TryInto<ServiceName>,
        S::Error: Into<Error>,
        L: Layer<Routes>,
        L::Service: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send,
        <L::Service as Service<Request<Body>>>::Error: Into<tower::BoxError> + Send,
    {
        let own = listener
            .local_addr()
            .map_err(|e| Error::config("serve").because(e))?;
        let instance = Instance::at(own)?;
        self.serve_until(service, instance, listener, router, signal())
            .await
    }

    /// As [`serve`](Self::serve), with an instance of your own, until something else is ready.
    ///
    /// # Errors
    /// As for [`serve`](Self::serve).
    pub async fn serve_until<S, L>(
        &self,
        service: S,
        instance: Instance,
        listener: TcpListener,
        router: Router<L>,
        stop: impl Future,
    ) -> Result<Served>
    where
        S: TryInto<ServiceName>,
        S::Error: Into<Error>,
        L: Layer<Routes>,
        L::Service: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send,
        <L::Service as Service<Request<Body>>>::Error: Into<tower::BoxError> + Send,
    {
        let service = service.try_into().map_err(Into::into)?;
        let began = Instant::now();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (finish, finishing) = oneshot::channel::<Infallible>();
        // Ready when the other end is dropped.
        let shutdown = async { drop(finishing.await) };
        let mut server = pin!(router.serve_with_incoming_shutdown(incoming, shutdown));
        let ended = |result: Result<(), tonic::transport::Error>| {
            let error = Error::new(ErrorKind::Unavailable, format!("serve {service}"));
            match result {
                Ok(()) => error.because("the server ended by itself"),
                Err(cause) => error.because(cause),
            }
        };
        let withdrawn = tokio::select! {
            left = self.stay(&service, instance, stop) => left?,
            result = &mut server => return Err(ended(result)),
        };
        let served = Instant::now() - began;
        drop(finish);
        let finished = tokio::select! {
            finished = timeout(self.finish_timeout, server) => match finished {
                Ok(Err(cause)) => return Err(ended(Err(cause))),
                finished => finished.is_ok(),
            },
            () = signal() => false,
        };
        Ok(Served {
            served,
            withdrawn,
            finished,
        })
    }

    /// Is registered until it is asked to stop, and left when this returns.
    async fn stay(
        &self,
        service: &ServiceName,
        instance: Instance,
        stop: impl Future,
    ) -> Result<Result<()>> {
        let mut stop = pin!(stop);
        let registering = self.register(service.clone(), instance);
        let registration = tokio::select! {
            registration = registering => registration?,
            _ = &mut stop => return Ok(Ok(())),
        };
        stop.await;
        Ok(registration.ends.depart(registration.notice).await)
    }
}
