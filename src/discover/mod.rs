//! Ready endpoints for those who bring their own balancer: a tower `Discover`, and a feed for tonic's.

#[cfg(feature = "tonic-channel")]
mod feed;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Service, discover::Change, load::Load};

#[cfg(feature = "tonic-channel")]
pub use feed::feed;

use crate::{Answer, Channel, Endpoint, Instance, InstanceId, channel::View};

/// The ready endpoints of a channel as they come and go, each as a service of its own.
///
/// It is a [`tower::discover::Discover`], for tower's `p2c::Balance` and its like. Connections are
/// the channel's, made and kept without traffic; what this stream gives is connected. An endpoint whose
/// instance changed is inserted again.
///
/// ```no_run
/// # fn example(channel: tonic_fleet::Channel) {
/// use tonic_fleet::discover::Ready;
/// use tower::balance::p2c::Balance;
///
/// let balance: Balance<Ready, http::Request<tonic::body::Body>> = Balance::new(Ready::of(&channel));
/// # }
/// ```
pub struct Ready {
    channel: Channel,
    seen: u64,
    given: BTreeMap<InstanceId, Endpoint>,
    changes: VecDeque<Change<InstanceId, One>>,
    next: Pin<Box<dyn Future<Output = Arc<View>> + Send>>,
}

/// One endpoint as a service: calls go to it and to no other.
///
/// A call to an endpoint that has just lost its connection fails with `Unavailable` and was not sent.
#[derive(Clone, Debug)]
pub struct One {
    endpoint: Endpoint,
    /// Keeps the connections.
    channel: Channel,
}

impl Ready {
    /// The ready endpoints of this channel, from now on.
    pub fn of(channel: &Channel) -> Self {
        Self {
            channel: channel.clone(),
            seen: 0,
            given: BTreeMap::new(),
            changes: VecDeque::new(),
            next: next(channel.clone(), 0),
        }
    }

    fn note(&mut self, view: &View) {
        let ready: BTreeMap<_, _> = view
            .ready()
            .iter()
            .map(|e| (e.id().clone(), e.clone()))
            .collect();
        for id in self.given.keys().filter(|&id| !ready.contains_key(id)) {
            self.changes.push_back(Change::Remove(id.clone()));
        }
        for (id, endpoint) in &ready {
            let same =
                |given: &Endpoint| std::ptr::eq::<Instance>(given.instance(), endpoint.instance());
            if !self.given.get(id).is_some_and(same) {
                let one = One {
                    endpoint: endpoint.clone(),
                    channel: self.channel.clone(),
                };
                self.changes.push_back(Change::Insert(id.clone(), one));
            }
        }
        self.given = ready;
        self.seen = view.number();
    }
}

impl Stream for Ready {
    type Item = Result<Change<InstanceId, One>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Poll::Ready(Some(Ok(change)));
            }
            let view = ready!(self.next.as_mut().poll(cx));
            self.note(&view);
            self.next = next(self.channel.clone(), self.seen);
        }
    }
}

impl One {
    /// The endpoint that is called.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Service<Request<Body>> for One {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = crate::channel::Calling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.channel.call_one(self.endpoint.clone(), request)
    }
}

impl Load for One {
    type Metric = usize;

    /// The calls in flight to it, this balancer's and all others' of the channel.
    fn load(&self) -> usize {
        self.endpoint.in_flight()
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

fn next(channel: Channel, since: u64) -> Pin<Box<dyn Future<Output = Arc<View>> + Send>> {
    Box::pin(async move { channel.changed(since).await })
}
