//! What is wanted of each method's calls.

use std::sync::Arc;

use futures_core::Stream;

use super::Builder;
#[cfg(feature = "etcd")]
use super::Source;
use crate::{
    Error, Leaving,
    balance::{Adaptive, Policy},
    channel::{
        again,
        configured::Configured,
        leaving::Each,
        wanted::{Own, Wanted},
    },
    health::{Grpc, ranged},
    method::{Budget, Configs, Method, Methods, ServiceConfig, Throttle},
};

/// What is said of calls before there is a channel.
pub(super) struct Calls {
    methods: Result<Methods, Error>,
    throttle: Option<Throttle>,
    pub(super) budget: Option<Budget>,
    pub(super) inherits: bool,
    max_attempts: u32,
    pub(super) replay_buffer: usize,
    pub(super) each_attempt: Option<Each>,
    config: ServiceConfig,
    configs: Live,
}

/// Where a configuration comes from that may change.
enum Live {
    Nowhere,
    #[cfg(feature = "etcd")]
    Registry,
    Given(Configs),
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            methods: Ok(Methods::new()),
            throttle: None,
            budget: Some(Budget::default()),
            inherits: false,
            max_attempts: 5,
            replay_buffer: again::KEPT,
            each_attempt: None,
            config: ServiceConfig::default(),
            configs: Live::Nowhere,
        }
    }
}

impl Builder {
    /// What is wanted of the calls of a method, `package.Service/Method`, of a service, `package.Service`, or
    /// of all others, an empty name. Nothing, unless set; see [`method`](crate::method).
    pub fn method(mut self, name: &str, method: Method) -> Self {
        let methods = self.calls.methods;
        self.calls.methods = methods.and_then(|methods| methods.with(name, method));
        self
    }

    /// The same for many; what was said before of those that these name is forgotten.
    pub fn methods(mut self, methods: Methods) -> Self {
        self.calls.methods = self.calls.methods.map(|before| methods.or(&before));
        self
    }

    /// What the service's owner wants, as gRPC's service config has it; see [`ServiceConfig`]. What the
    /// program itself says goes before it: of a method, of [throttling](Self::throttle) and of the
    /// [policy](Self::policy). Nothing, unless set.
    ///
    /// # Errors
    /// When it is none, with the path of what is wrong.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic_fleet::Channel;
    ///
    /// let channel = Channel::builder("static://10.0.0.5:50051/shop".parse()?)
    ///     .service_config(r#"{ "methodConfig": [{ "name": [{}], "timeout": "2s" }] }"#)?
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn service_config(mut self, json: &str) -> Result<Self, Error> {
        self.calls.config = json.parse()?;
        Ok(self)
    }

    /// The service's configuration is in the registry, beside its instances, and holds as soon as it changes
    /// there. Not looked for, unless set.
    ///
    /// In etcd it is the value of the key `/fleet/config/services/{name}`, or what
    /// [`Registry::config_key`](crate::etcd::Registry::config_key) says for another layout or prefix. One that
    /// is bad changes nothing: the last good one holds, and [`Event::Misconfigured`](crate::Event) tells.
    /// While there is none, that of [`service_config`](Self::service_config) holds; while the registry is
    /// away, the last one. Which health service is asked does not change while a channel lives.
    #[cfg(feature = "etcd")]
    pub fn config_from_registry(mut self) -> Self {
        self.calls.configs = Live::Registry;
        self
    }

    /// The same from elsewhere: each item is the configuration's JSON from then on, or that there is none.
    /// What was said last holds when the stream ends.
    pub fn config_from<S>(mut self, configs: S) -> Self
    where
        S: Stream<Item = Option<String>> + Send + 'static,
    {
        self.calls.configs = Live::Given(Box::pin(configs));
        self
    }

    /// Calls that are made while a call is served have no more time than it has left, where the server has the
    /// [`layer`](crate::deadline::layer) that knows. All the time they ask for, unless set.
    pub fn pass_deadline_on(mut self) -> Self {
        self.calls.inherits = true;
        self
    }

    /// Nothing is sent again while too much fails. Whatever fails, unless set; see [`Throttle`].
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.calls.throttle = Some(throttle);
        self
    }

    /// How much may be sent again, all in all. A fifth of the calls and ten a second, unless set; `None` is
    /// without limit, as gRPC's own retries are. See [`Budget`].
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.calls.budget = budget.into();
        self
    }

    /// How often a call is sent at most, the first time included, whatever its method's configuration says.
    /// 5, unless set. From 1, which turns retries and hedging off, to 100.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.calls.max_attempts = attempts;
        self
    }

    /// How much of a request is kept while it may have to be sent again. 256 KiB for each call, unless set;
    /// only for methods with retries or hedging. A larger request is sent once: what was kept of it is let go
    /// of when it grows beyond this.
    pub fn replay_buffer(mut self, bytes: usize) -> Self {
        self.calls.replay_buffer = bytes;
        self
    }

    /// Does this to the head of each attempt that leaves: the first, those that are sent again, and hedges.
    /// Nothing, unless set.
    ///
    /// An interceptor sees each call once, however often it is sent, and before it is known where it goes.
    /// This sees each attempt when its server has been chosen: for a token that is that server's, a signature
    /// with the time in it, a span of tracing. It is called on the caller's task and must not wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use http::HeaderValue;
    /// use tonic_fleet::{Channel, Leaving};
    ///
    /// let channel = Channel::builder("static://10.0.0.5:50051/greeter".parse()?)
    ///     .each_attempt(|attempt: &mut Leaving<'_>| {
    ///         let number = HeaderValue::from(attempt.previous() + 1);
    ///         attempt.headers_mut().insert("x-attempt", number);
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn each_attempt<F>(mut self, each: F) -> Self
    where
        F: Fn(&mut Leaving<'_>) + Send + Sync + 'static,
    {
        self.calls.each_attempt = Some(Each::new(each));
        self
    }

    pub(super) fn check_methods(&self) -> Result<(), Error> {
        self.calls
            .throttle
            .as_ref()
            .map_or(Ok(()), Throttle::check)?;
        self.calls.budget.as_ref().map_or(Ok(()), Budget::check)?;
        ranged("max_attempts", self.calls.max_attempts, 1, 100)
    }

    /// Asks for the health of the service that the configuration names, unless somebody else is asked.
    pub(super) fn ask_as_configured(self) -> Self {
        match self.calls.config.health.clone() {
            Some(service) if self.checks.is_empty() => self.health(Grpc::watch(service)),
            _ => self,
        }
    }

    /// What is wanted of calls, what may change that, and the policy to begin with.
    pub(super) fn take_calls(&mut self) -> Result<(Wanted, Configured, Arc<dyn Policy>), Error> {
        let calls = std::mem::take(&mut self.calls);
        let told = match calls.configs {
            Live::Nowhere => None,
            Live::Given(configs) => Some(configs),
            #[cfg(feature = "etcd")]
            Live::Registry => Some(self.configs_in_registry()?),
        };
        let own = Own {
            methods: calls.methods?,
            throttle: calls.throttle,
            max_attempts: calls.max_attempts,
        };
        let wanted = Wanted::new(own, &calls.config);
        let (policy, may_change) = match (self.policy.take(), &calls.config.policy) {
            (Some(own), _) => (own, None),
            (None, Some(named)) => (Arc::clone(&named.policy), Some(Arc::clone(&named.policy))),
            (None, None) => {
                let usual: Arc<dyn Policy> = Arc::new(Adaptive::default());
                (Arc::clone(&usual), Some(usual))
            }
        };
        let configured = Configured::new(told, calls.config, may_change);
        Ok((wanted, configured, policy))
    }

    #[cfg(feature = "etcd")]
    fn configs_in_registry(&self) -> Result<Configs, Error> {
        let refuse = |what: String| {
            Err(Error::config(format!(
                "config_from_registry: {what}; give what it says to config_from"
            )))
        };
        match &self.source {
            Source::Target(target) if target.scheme() == crate::Scheme::Etcd => {
                let registry = crate::etcd::Registry::open(target.registry())?;
                Ok(registry.configs(&self.service))
            }
            Source::Target(target) => refuse(format!("{target} keeps no configuration")),
            Source::Given(_) => refuse("the resolver was given, and not a URL".into()),
        }
    }
}
