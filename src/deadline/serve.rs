//! The server's side: the deadline of a call is known while it is served.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use tokio::task::futures::TaskLocalFuture;
use tower::Service;

use super::{CURRENT, Deadline, TIMEOUT, read};

/// Keeps the deadline of each call while its handler runs; see [`deadline`](super).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Layer;

/// Makes handlers know the deadline of the call that they serve.
///
/// It does not end calls: tonic's server does that by itself.
pub fn layer() -> Layer {
    Layer
}

/// A service whose handlers know their deadline.
#[derive(Clone, Debug)]
pub struct Served<S>(S);

/// A call that is being served, with its deadline at hand.
pub struct Serving<F>(Pin<Box<TaskLocalFuture<Option<Deadline>, F>>>);

impl<S> tower::Layer<S> for Layer {
    type Service = Served<S>;

    fn layer(&self, inner: S) -> Served<S> {
        Served(inner)
    }
}

impl<S, B> Service<Request<B>> for Served<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Serving<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // One that cannot be read is for the server to refuse.
        let limit = request
            .headers()
            .get(&TIMEOUT)
            .and_then(|limit| read(limit).ok());
        let deadline = limit.and_then(Deadline::after);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        // Some services do their work before they return.
        let future = CURRENT.sync_scope(deadline, || self.0.call(request));
        Serving(Box::pin(CURRENT.scope(deadline, future)))
    }
}

impl<F: Future> Future for Serving<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// So that a router with it has a name in routes.
#[cfg(feature = "server")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for Served<S> {
    const NAME: &'static str = S::NAME;
}

impl<F> fmt::Debug for Serving<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}
