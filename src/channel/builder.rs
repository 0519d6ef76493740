//! How a channel is to behave.

mod health;
mod methods;
mod stages;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Uri};
use methods::Calls;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Channel, Owned, Shared, View, checking::Checking, driver::Driver, repeat::Repeats};
#[cfg(feature = "tonic-channel")]
use crate::transport::Lender;
use crate::{
    Backoff, Error, Instance, ServiceName, Target,
    backoff::countable,
    balance::Policy,
    endpoint::{Health, Limits},
    health::Checks,
    resolve::{self, Resolve},
    stage::{Stages, Subset},
    stats::Tallies,
    transport::{Connect, Dialer, KeepAlive, Settings, Tcp, Tls, Windows},
};

/// Makes a [`Channel`]. Every setting has a default that suits a fleet in one data centre.
#[must_use = "a builder makes nothing until `build`"]
pub struct Builder {
    service: ServiceName,
    source: Source,
    snapshot: Option<(PathBuf, Duration)>,
    fallback: Vec<Arc<Instance>>,
    policy: Option<Arc<dyn Policy>>,
    connect: Arc<dyn Connect>,
    settings: Settings,
    limits: Limits,
    breaker: usize,
    max_calls: Option<usize>,
    patience: Duration,
    timeout: Option<Duration>,
    calls: Calls,
    drain: Option<Duration>,
    keep_alive_while_idle: bool,
    idle: Option<Duration>,
    #[cfg(feature = "tonic-channel")]
    lender: Option<Lender>,
    tls: Option<Tls>,
    checks: Vec<Checks>,
}

/// Where the instances come from.
enum Source {
    Target(Box<Target>),
    Given(Arc<dyn Resolve>),
}

/// Events that a slow listener may fall behind.
const EVENTS: usize = 1024;

impl Builder {
    pub(super) fn at(target: Target) -> Self {
        let lease = target.registry().ttl();
        let stages = Self::stages_of(target.registry());
        let mut builder = Self::new(target.service().clone(), Source::Target(Box::new(target)));
        builder.limits.stages = stages;
        match lease {
            Some(lease) => builder.grace(lease),
            None => builder,
        }
    }

    pub(super) fn over(service: ServiceName, resolve: Arc<dyn Resolve>) -> Self {
        Self::new(service, Source::Given(resolve))
    }

    fn new(service: ServiceName, source: Source) -> Self {
        Self {
            service,
            source,
            snapshot: None,
            fallback: Vec::new(),
            policy: None,
            connect: Arc::new(Tcp::default()),
            settings: Settings::default(),
            limits: Limits {
                grace: Duration::from_secs(10),
                hold: Duration::from_secs(60),
                redial: Backoff::between(Duration::from_millis(100), Duration::from_secs(30)),
                dials: 256,
                asked: false,
                connections: 4,
                health: Health::default(),
                stages: Stages::default(),
            },
            breaker: 1024,
            max_calls: None,
            patience: Duration::from_secs(5),
            timeout: None,
            calls: Calls::default(),
            drain: None,
            keep_alive_while_idle: false,
            idle: None,
            #[cfg(feature = "tonic-channel")]
            lender: None,
            tls: None,
            checks: Vec::new(),
        }
    }

    /// These serve when the registry cannot be reached at the start, until it can. Nobody, unless set.
    pub fn fallback<I>(mut self, instances: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Arc<Instance>>,
    {
        self.fallback = instances.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps the last good set in a file in this directory, and serves it when the registry cannot be
    /// reached at the start, unless it is older than `max_age`. No file is kept, unless set.
    pub fn snapshot(mut self, directory: impl Into<PathBuf>, max_age: Duration) -> Self {
        self.snapshot = Some((directory.into(), max_age));
        self
    }

    /// How calls are shared out. As the service's [configuration](Self::service_config) says, or else
    /// [`Adaptive`](crate::balance::Adaptive), unless set.
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// What carries the bytes instead of TCP and Unix sockets: a proxy, or memory in tests.
    pub fn connect_with(mut self, connect: impl Connect) -> Self {
        self.connect = Arc::new(connect);
        self
    }

    /// Calls go over tonic's own channels: this says how each instance is reached. None is an instance that
    /// cannot be. Over connections of our own, unless set.
    ///
    /// Everything else stays as it is: the registry, the policy, health, deadlines, events, the view. For
    /// those whose [`Endpoint`](tonic::transport::Endpoint)s do what ours do not, which has its price:
    ///
    /// - A call costs what it costs in tonic, and is never sent again: nobody knows whether it had left.
    /// - An endpoint is ready when tonic has connected. A server's goodbye, its limit of calls at once, and a
    ///   connection that is dead are not seen before a call has failed because of them; then tonic connects
    ///   anew, with our backoff. There is one connection to an endpoint.
    /// - TLS, windows, keep-alive, user agent and origin are the endpoint's to set; those set here do nothing,
    ///   nor does [`connect_with`](Self::connect_with). After [`drain_timeout`](Self::drain_timeout) calls in
    ///   flight are forgotten and not cut off.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic::transport::Endpoint;
    /// use tonic_fleet::{Channel, Instance};
    ///
    /// let reach = |instance: &Instance| {
    ///     let endpoint = Endpoint::from_shared(format!("http://{}", instance.addresses.first()?));
    ///     Some(endpoint.ok()?.concurrency_limit(100))
    /// };
    /// let channel = Channel::builder("static://10.0.0.5:50051/greeter".parse()?)
    ///     .over_tonic(reach)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tonic-channel")]
    pub fn over_tonic<F>(mut self, reach: F) -> Self
    where
        F: Fn(&Instance) -> Option<tonic::transport::Endpoint> + Send + Sync + 'static,
    {
        self.lender = Some(Lender::new(reach));
        self
    }

    /// Calls go over TLS, to servers that prove who they are. Plain text, unless set.
    #[cfg(feature = "_tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long a call without a deadline waits for an endpoint when none is ready. Five seconds, unless
    /// set. A call with a deadline waits until then.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = countable(patience);
        self
    }

    /// The time limit of every call that brings none, or a longer one, of its own. None, unless set.
    ///
    /// It covers the whole call, waiting for an endpoint and the end of the response included: a limit
    /// that suits unary calls ends streams, too.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long connecting may take, HTTP/2 settings and TLS included. Five seconds, unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = countable(timeout);
        self
    }

    /// The waits between attempts to connect. From 100 ms to 30 s, growing by 1.6, unless set. Shorter ones
    /// find a restarted server sooner and cost a dead one's host more.
    pub fn redial(mut self, redial: Backoff) -> Self {
        self.limits.redial = redial;
        self
    }

    /// Asks a connection with calls in flight for a sign of life so often, and gives it up when none comes
    /// in `timeout`. Every 20 s and 5 s, unless set; `None` never asks. Many servers hang up on a client
    /// that asks more often than they like: etcd every 5 s, grpc-go every 5 minutes.
    pub fn keep_alive(mut self, every: impl Into<Option<Duration>>, timeout: Duration) -> Self {
        self.settings.keep_alive = every.into().map(|every| KeepAlive {
            every: countable(every),
            timeout: countable(timeout),
            ..KeepAlive::default()
        });
        self
    }

    /// Asks connections without a call for a sign of life, too. Not, unless set: then a server that froze
    /// is noticed by the first call that goes there, or when it leaves the registry. With it every idle
    /// connection costs a ping in each interval, and a server that dislikes them hangs up.
    pub fn keep_alive_while_idle(mut self) -> Self {
        self.keep_alive_while_idle = true;
        self
    }

    /// Lets go of all connections after this time without a call, or up to twice that; the next call makes
    /// them again. Never, unless set.
    ///
    /// For programs that call now and then and must not hold thousands of connections meanwhile. The call
    /// that wakes the channel waits for the first connection, and the servers get all of them at once. The
    /// registry is watched all the time; servers are not asked whether they are well, and those who take
    /// endpoints from [`discover`](crate::discover) have none while the channel sleeps.
    /// [`Channel::ready`] wakes it, too.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle = Some(countable(timeout));
        self
    }

    /// How much a server may send before the caller has read it. 1 MiB for a stream and 2 MiB for a
    /// connection, unless set: enough within a data centre, where a window that has to be learnt first
    /// costs more than it saves. [`Windows::adaptive`] suits servers that are far away.
    pub fn windows(mut self, windows: Windows) -> Self {
        self.settings.windows = windows;
        self
    }

    /// How long calls in flight may go on at an endpoint that has left, before its connection is closed
    /// under them. As long as they like, unless set.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain = Some(countable(limit));
        self
    }

    /// How long an instance that vanished from the registry without a word may serve on while its
    /// connection is healthy. As long as a lease, unless set: ten seconds, or the `ttl` in the URL. A
    /// shorter time trusts the registry more, and an etcd whose leader stalls deletes living servers.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = countable(grace);
        self
    }

    /// How long a set of which more than half vanished at once is kept at most. A minute, unless set.
    pub fn hold(mut self, hold: Duration) -> Self {
        self.limits.hold = countable(hold);
        self
    }

    /// How many connections are being made at a time. 256, unless set.
    pub fn dials(mut self, dials: usize) -> Self {
        self.limits.dials = dials;
        self
    }

    /// Asks connected endpoints whether they are well: only those that say so take calls, and what turns
    /// unwell finishes those it has. Nobody is asked, unless set; more than one of these must all agree. When
    /// nobody is well, calls go to those that are not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic_fleet::{Channel, health::Grpc};
    ///
    /// let channel = Channel::builder("static://10.0.0.5:50051/greeter".parse()?)
    ///     .health(Grpc::watch("greeter"))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(mut self, checks: impl Into<Checks>) -> Self {
        self.checks.push(checks.into());
        self.limits.asked = true;
        self
    }

    /// How many connections an endpoint may have. Four, unless set.
    ///
    /// A server limits the calls on one connection (HTTP/2's `MAX_CONCURRENT_STREAMS`; 100 and 128 are
    /// common, tonic's is 200). When all connections of an endpoint are full, one more is made, and closed
    /// again when it has carried no call for half a minute. Until it is there, and when there are as many as
    /// may be, calls go where there is room, or wait their turn.
    ///
    /// With 1 the server's limit is one for the whole channel, and a few streams that stay open can keep all
    /// other calls waiting. With many, a server that has become slow, and so keeps its calls for longer, is
    /// sent that many times the calls it allowed. Four leaves room beside the streams, and bounds the flood.
    pub fn connections(mut self, connections: usize) -> Self {
        self.limits.connections = connections;
        self
    }

    /// The scheme and authority that requests bear, whatever endpoint they go to. The endpoint's own,
    /// unless set.
    pub fn origin(mut self, origin: Uri) -> Self {
        self.settings.origin = Some(origin);
        self
    }

    /// What requests that say nothing of the kind say of the caller. `tonic-fleet/` and its version,
    /// unless set.
    pub fn user_agent(mut self, name: HeaderValue) -> Self {
        self.settings.user_agent = name;
        self
    }

    /// Makes the channel. Returns at once: connections are made meanwhile, and the first call waits for the
    /// first of them.
    ///
    /// # Errors
    /// When a setting makes no sense, or there is no tokio runtime to live in.
    pub fn build(mut self) -> Result<Channel, Error> {
        self.check()?;
        self = self.ask_as_configured();
        let repeats = Repeats::new(self.calls.budget, self.calls.replay_buffer);
        let each_attempt = self.calls.each_attempt.take();
        let inherits = self.calls.inherits;
        let (wanted, configured, policy) = self.take_calls()?;
        if let Some(keep_alive) = &mut self.settings.keep_alive {
            keep_alive.while_idle = self.keep_alive_while_idle;
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| {
            Error::config("a channel is built outside a tokio runtime: build it in `#[tokio::main]` or inside `runtime.enter()`")
                .because(error)
        })?;
        let mut resolve = match self.source {
            Source::Target(target) => resolve::open(&target)?,
            Source::Given(resolve) => resolve,
        };
        if let Some((directory, max_age)) = self.snapshot {
            resolve = Arc::new(resolve.snapshot(directory, max_age));
        }
        if !self.fallback.is_empty() {
            resolve = Arc::new(resolve.fallback(self.fallback));
        }
        let stop = CancellationToken::new();
        let (crowd, crowded) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            service: self.service.clone(),
            view: ArcSwap::from_pointee(View::empty(self.service.clone())),
            changed: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            waiting: AtomicUsize::new(0),
            hurry: Notify::new(),
            crowded: crowd,
            patience: self.patience,
            timeout: self.timeout,
            inherits,
            wanted,
            repeats,
            each_attempt,
            breaker: self.breaker,
            max_calls: self.max_calls,
            under_way: AtomicUsize::new(0),
            stats: Tallies::new(),
        });
        let dialer = Dialer::new(self.connect, self.tls, self.settings);
        #[cfg(feature = "tonic-channel")]
        let dialer = dialer.lending(self.lender);
        let subset = self.limits.stages.subset.as_ref();
        let seat = subset.and_then(Subset::seated).cloned();
        let driver = Driver {
            shared: Arc::clone(&shared),
            policy,
            configured,
            dialer: Arc::new(dialer),
            limits: self.limits,
            drain: self.drain,
            idle: self.idle,
            checking: Checking::new(self.checks),
            seat,
            crowded,
            stop: stop.clone(),
        };
        let updates = resolve.resolve(&self.service);
        runtime.spawn(driver.run(updates));
        Ok(Channel {
            shared: Arc::new(Owned {
                shared,
                _owner: stop.drop_guard(),
            }),
        })
    }

    fn check(&self) -> Result<(), Error> {
        #[cfg(feature = "_tls")]
        if let Some(tls) = &self.tls {
            tls.check()?;
        }
        self.checks.iter().try_for_each(Checks::check)?;
        self.check_health()?;
        self.check_methods()?;
        self.check_stages()?;
        let refuse = |what: &str| Err(Error::config(what));
        self.settings.windows.check()?;
        if self.limits.dials == 0 {
            return refuse("dials is 0: at least one connection must be made at a time");
        }
        if self.limits.connections == 0 {
            return refuse("connections is 0: an endpoint needs one to be called");
        }
        if self.settings.connect_timeout.is_zero() {
            return refuse("connect_timeout is 0: no connection could ever be made");
        }
        if self.idle.is_some_and(|idle| idle.is_zero()) {
            return refuse("idle_timeout is 0: no connection would last");
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refuse("timeout is 0: no call could ever succeed");
        }
        if let Some(keep_alive) = &self.settings.keep_alive
            && (keep_alive.every.is_zero() || keep_alive.timeout.is_zero())
        {
            return refuse(
                "keep_alive with a time of 0: every connection would be given up at once",
            );
        }
        Ok(())
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("service", &self.service)
            .field("policy", &self.policy)
            .field("patience", &self.patience)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
