//! A channel: a service's name turned into calls that reach a live server.

mod admitted;
pub(crate) mod again;
mod answer;
mod body;
mod builder;
mod call;
mod checking;
mod configured;
mod details;
mod driver;
mod ended;
mod json;
mod leaving;
mod limit;
mod pace;
mod place;
mod repeat;
mod served;
mod sizes;
mod view;
mod wanted;

use std::{
    fmt, future,
    ops::Deref,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_core::Stream;
use futures_util::stream;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::DropGuard;
use tonic::{Status, body::Body};

pub use answer::Answer;
pub use builder::Builder;
pub use leaving::{Leaving, Why};
pub(crate) use limit::deadline;
pub use served::ServedBy;
pub use view::View;

use crate::{
    Endpoint, Event, InstanceId, ServiceName, Target, deadline,
    method::Method,
    resolve::Resolve,
    stats::{self, Stats, Tallies},
};
use {leaving::Each, repeat::Repeats, wanted::Wanted};

/// Calls to a service, each to one of its ready servers.
///
/// Give a clone to any generated client. Cheap to clone; all clones share the connections. When the last
/// clone is dropped, calls in flight end in peace, and then the connections and tasks behind it are gone.
///
/// Its tasks and connections live on the tokio runtime that it was built on, and end with that. Calls may be made
/// from another one; but from a tokio runtime, with time enabled, as they keep their deadlines by its timer.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let channel = tonic_fleet::Channel::builder("etcd://127.0.0.1:2379/greeter".parse()?).build()?;
/// // let mut client = GreeterClient::new(channel.clone());
/// println!("{}", channel.view());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Owned>,
}

/// What ends with the last clone of a channel: its one task, which has a share in the rest.
struct Owned {
    shared: Arc<Shared>,
    _owner: DropGuard,
}

impl Deref for Owned {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// What a channel, its calls and its one task have in common.
struct Shared {
    service: ServiceName,
    view: ArcSwap<View>,
    /// Counts the views; a call that finds nobody waits for the next.
    changed: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    /// Calls that wait for a view with somebody in it.
    waiting: AtomicUsize,
    /// Told when a call begins to wait, so that a view held back for company comes out.
    hurry: Notify,
    /// Endpoints where a call found no room; see [`Shared::crowd`].
    crowded: mpsc::UnboundedSender<InstanceId>,
    patience: Duration,
    timeout: Option<Duration>,
    /// Whether calls have no more time than the call that is being served.
    inherits: bool,
    /// What is wanted of which method's calls.
    wanted: Wanted,
    /// What sending calls again takes.
    repeats: Repeats,
    /// What is done to each attempt's head.
    each_attempt: Option<Each>,
    /// Calls in flight at one endpoint, and calls under way altogether; how many there may be, and are.
    breaker: usize,
    max_calls: Option<usize>,
    under_way: AtomicUsize,
    /// What calls came to.
    stats: Tallies,
}

impl Shared {
    /// Tells the channel's task that an endpoint's connections are full; once, until that was seen to.
    fn crowd(&self, endpoint: &Endpoint) {
        if endpoint.links().crowd() {
            // There is nobody to hear it when the channel is gone.
            let _ = self.crowded.send(endpoint.id().clone());
        }
    }
}

/// What happens to a channel's endpoints; see [`Channel::events`].
pub type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A call under way.
pub type Calling = Pin<Box<dyn Future<Output = Result<http::Response<Answer>, Status>> + Send>>;

impl Channel {
    /// A channel to the service that a URL names; see [`Target`] for what it may say.
    pub fn builder(target: Target) -> Builder {
        Builder::at(target)
    }

    /// A channel to a service whose instances this resolver finds.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic_fleet::{Channel, resolve::Fixed};
    ///
    /// let servers = Fixed::at(["10.0.0.1:50051", "10.0.0.2:50051"])?;
    /// let channel = Channel::over("greeter".parse()?, servers).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn over(service: ServiceName, resolve: impl Resolve) -> Builder {
        Builder::over(service, Arc::new(resolve))
    }

    /// The service that is called.
    pub fn service(&self) -> &ServiceName {
        &self.shared.service
    }

    /// What calls pick from at this moment: who is known, who is ready, and why the others are not.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// What calls came to since the channel was made, for each method and each endpoint; see
    /// [`stats`](crate::stats).
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        stats::look(shared.service.clone(), &shared.stats, &self.view().known)
    }

    /// What is wanted of calls to this path, `/package.Service/Method`, at this moment: what was said when the
    /// channel was built, or what the service's configuration says by now.
    pub fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.shared.wanted.of(path)
    }

    /// What happens from now on, one event for each change of state. Ends with the channel.
    ///
    /// A listener that falls behind by more than a thousand loses the oldest and gets [`Event::Missed`].
    pub fn events(&self) -> Events {
        let receiver = self.shared.events.subscribe();
        Box::pin(stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(n)) => Some((Event::Missed(n), receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    /// Returns when the view differs from the one with this [number](View::number).
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn changed(&self, since: u64) -> Arc<View> {
        let mut changed = self.shared.changed.subscribe();
        // The sender lives in `shared`, so it outlives this wait.
        let _ = changed.wait_for(|&number| number > since).await;
        self.view()
    }

    /// Returns when so many endpoints are ready, or when the runtime that the channel was built on is shut down.
    ///
    /// Nobody need wait for this before calling: calls wait by themselves. It is for those who want all
    /// connections up before they say that they are.
    pub async fn ready(&self, at_least: usize) -> Arc<View> {
        let _waiting = call::Waiting::begin(&self.shared);
        let mut view = self.view();
        while view.ready().len() < at_least && view.ended.is_none() {
            view = self.changed(view.number()).await;
        }
        view
    }
}

impl Channel {
    /// A call to this endpoint, and to no other.
    pub(crate) fn call_one(&self, endpoint: Endpoint, request: http::Request<Body>) -> Calling {
        Box::pin(call::call_one(self.clone(), endpoint, request))
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Answer>;
    type Error = Status;
    type Future = Calling;

    /// Always ready: waiting for an endpoint is part of the call, and bounded by its deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Calling {
        if self.shared.inherits
            && let Err(status) = deadline::inherit(request.headers_mut())
        {
            return Box::pin(future::ready(Err(status)));
        }
        match self.shared.wanted.sizes(request.uri().path()) {
            None => call::call(self.clone(), request),
            Some(sizes) => sizes.call(self.clone(), request),
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        f.debug_struct("Channel")
            .field("service", &self.shared.service)
            .field("known", &view.known().len())
            .field("ready", &view.ready().len())
            .finish_non_exhaustive()
    }
}
