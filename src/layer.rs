//! Retries and hedging as tower layers, for those who compose a stack of their own.
//!
//! A [`Channel`](crate::Channel) does both by itself where its methods are configured, see
//! [`method`]. As a layer the same goes around any service that ends in a channel of ours: the
//! channel, one over tonic's own, an endpoint of [`discover`](crate::discover), or a balancer over those. What
//! stands outside the layer sees each call once; what stands between it and the channel sees each attempt.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tonic_fleet::Error> {
//! use tonic::{Request, Status, service::InterceptorLayer};
//! use tonic_fleet::{Channel, layer, method};
//! use tower::ServiceBuilder;
//!
//! fn sign(request: Request<()>) -> Result<Request<()>, Status> {
//!     Ok(request)
//! }
//!
//! let channel = Channel::builder("static://10.0.0.5:50051,10.0.0.6:50051/shop".parse()?).build()?;
//! let stack = ServiceBuilder::new()
//!     .layer(layer::Retry::new(method::Retry::attempts(3))?.budget(method::Budget::share(0.1))?)
//!     .layer(InterceptorLayer::new(sign)) // each attempt is signed anew
//!     .service(channel);
//! // let mut client = ShopClient::new(stack);
//! # Ok(())
//! # }
//! ```
//!
//! An attempt goes to another server than those before it when the channel below chooses: it is told where they
//! went. A channel below whose methods are configured to be sent again is not asked to: the layer does.

use std::{
    error::Error as StdError,
    fmt, future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service, ServiceExt};

use crate::{
    Error,
    channel::{
        again::{self, Gates, Paces, Repeated, Spent, Tokens, Trying},
        deadline,
    },
    method::{self, Budget, Throttle},
};

/// Sends calls that failed again.
///
/// The budget is a fifth of the calls or ten a second, unless set; services made by one layer share it.
#[derive(Clone, Debug)]
pub struct Retry {
    wanted: method::Retry,
    terms: Terms,
}

/// Sends calls that take long to another server as well.
///
/// All calls that pass, unless [`only`](Self::only) says which: they must be safe to run more than once. The
/// budget is as for [`Retry`].
#[derive(Clone, Debug)]
pub struct Hedge {
    wanted: method::Hedge,
    paces: Arc<Paces>,
    terms: Terms,
}

/// A service whose calls are sent again; see [`Retry`].
#[derive(Clone, Debug)]
pub struct Retrying<S> {
    layer: Retry,
    inner: S,
}

/// A service whose calls are hedged; see [`Hedge`].
#[derive(Clone, Debug)]
pub struct Hedging<S> {
    layer: Hedge,
    inner: S,
}

/// What both have in common.
#[derive(Clone)]
struct Terms {
    gates: Gates,
    keep: usize,
    only: Option<Arc<Only>>,
}

type Only = dyn Fn(&str) -> bool + Send + Sync;

impl Terms {
    fn new() -> Self {
        Self {
            gates: Gates {
                throttle: None,
                budget: Some(Arc::new(Spent::of(&Budget::default()))),
            },
            keep: again::KEPT,
            only: None,
        }
    }

    fn concern(&self, path: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only(path))
    }

    /// The call that is to be sent again, within the time that its caller gave it.
    fn begin(
        &self,
        mut request: Request<Body>,
        per_attempt: Option<Duration>,
    ) -> Result<Repeated, Status> {
        let until = deadline(None, request.headers_mut())?;
        Ok(Repeated::new(request, until, per_attempt, self.keep))
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("gates", &self.gates)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// What is set in the same way on both layers.
macro_rules! terms {
    ($layer:ident) => {
        impl $layer {
            /// Nothing is sent again while too much fails. Whatever fails, unless set.
            ///
            /// # Errors
            /// When the throttle makes no sense.
            pub fn throttle(mut self, throttle: Throttle) -> Result<Self, Error> {
                throttle.check()?;
                self.terms.gates.throttle = Some(Arc::new(Tokens::of(&throttle)));
                Ok(self)
            }

            /// How much may be sent again, all in all; `None` is without limit.
            ///
            /// # Errors
            /// When the budget makes no sense.
            pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Result<Self, Error> {
                let budget = budget.into();
                budget.as_ref().map_or(Ok(()), Budget::check)?;
                let spent = budget.map(|budget| Arc::new(Spent::of(&budget)));
                self.terms.gates.budget = spent;
                Ok(self)
            }

            /// How much of a request is kept while it may have to be sent again. 256 KiB for each call, unless
            /// set; a larger request is sent once.
            #[must_use]
            pub fn replay_buffer(mut self, bytes: usize) -> Self {
                self.terms.keep = bytes;
                self
            }

            /// Only calls to these paths, as `/package.Service/Method`; others pass as if there were no layer.
            /// All, unless set.
            #[must_use]
            pub fn only(mut self, only: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
                self.terms.only = Some(Arc::new(only));
                self
            }
        }
    };
}

terms!(Retry);
terms!(Hedge);

impl Retry {
    /// Sends calls again as is said here.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn new(wanted: method::Retry) -> Result<Self, Error> {
        wanted.check()?;
        let terms = Terms::new();
        Ok(Self { wanted, terms })
    }
}

impl Hedge {
    /// Hedges calls as is said here.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn new(wanted: method::Hedge) -> Result<Self, Error> {
        wanted.check()?;
        Ok(Self {
            wanted,
            paces: Arc::default(),
            terms: Terms::new(),
        })
    }
}

impl<S> Layer<S> for Retry {
    type Service = Retrying<S>;

    fn layer(&self, inner: S) -> Retrying<S> {
        let layer = self.clone();
        Retrying { layer, inner }
    }
}

impl<S> Layer<S> for Hedge {
    type Service = Hedging<S>;

    fn layer(&self, inner: S) -> Hedging<S> {
        let layer = self.clone();
        Hedging { layer, inner }
    }
}

impl<S, B> Service<Request<Body>> for Retrying<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = Status;
    type Future = Trying<B>;

    /// Always ready: to wait for the service is part of each attempt.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Trying<B> {
        let send = sending(&self.inner);
        let Retry { wanted, terms } = &self.layer;
        if !terms.concern(request.uri().path()) {
            return send(request);
        }
        let (wanted, gates) = (wanted.clone(), terms.gates.clone());
        match terms.begin(request, wanted.per_attempt) {
            Ok(call) => Box::pin(again::retry(wanted, call, gates, send)),
            Err(status) => Box::pin(future::ready(Err(status))),
        }
    }
}

impl<S, B> Service<Request<Body>> for Hedging<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = Status;
    type Future = Trying<B>;

    /// Always ready: to wait for the service is part of each attempt.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Trying<B> {
        let send = sending(&self.inner);
        let Hedge {
            wanted,
            paces,
            terms,
        } = &self.layer;
        if !terms.concern(request.uri().path()) {
            return send(request);
        }
        let pace = paces.of(request.uri().path());
        let (wanted, gates) = (wanted.clone(), terms.gates.clone());
        match terms.begin(request, None) {
            Ok(call) => Box::pin(again::hedge(wanted, call, gates, pace, send)),
            Err(status) => Box::pin(future::ready(Err(status))),
        }
    }
}

/// Sends each attempt by a clone of the service, when that is ready.
fn sending<S, B>(inner: &S) -> impl Fn(Request<Body>) -> Trying<B> + Send + use<S, B>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    B: Send + 'static,
{
    let inner = inner.clone();
    move |request| {
        let inner = inner.clone();
        Box::pin(async move {
            let answer = inner.oneshot(request).await;
            answer.map_err(|error| Status::from_error(error.into()))
        })
    }
}
