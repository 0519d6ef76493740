//! Registers this process's servers: what listens, at addresses that clients reach.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    Register, Registration, State,
    address::{Host, listening, routable, within},
    health::Care,
    open,
};
use crate::{Error, ErrorKind, Instance, RegistryUrl, Result, ServiceName, backoff::countable};

/// Registers this process's servers in one registry.
///
/// It registers only what listens, so bind first; and only addresses that clients can reach. For a listener
/// that is bound to `0.0.0.0` or `[::]` those are, in this order: what [`advertise`](Self::advertise) or the
/// environment variable `FLEET_ADVERTISE` names, the interface that leads to the registry, and the one
/// that leads to everybody.
///
/// ```
/// use tonic_fleet::{Instance, Memory, Registrar, ServiceName};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Memory::default();
/// let registrar = Registrar::on(registry.clone());
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
/// let greeter = Instance::at(listener.local_addr()?)?.weight(3);
/// let registration = registrar.register("greeter", greeter).await?;
///
/// let known = &registry.instances(&"greeter".parse()?)[0];
/// assert_eq!(known.addresses[0].host(), "127.0.0.1");
/// registration.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registrar {
    registry: Arc<dyn Register>,
    advertise: Option<Host>,
    check: bool,
    patience: Duration,
    required: bool,
    notice: Option<Duration>,
    pub(super) care: Care,
    #[cfg(feature = "server")]
    pub(super) finish_timeout: Duration,
}

/// How long a server waits for its registration before it goes on without. A registry that restarts is back
/// by then; more only delays servers that could serve those who already know them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long calls have to finish once the server takes no more. With the rest of leaving, this fits into the
/// 30 s that most supervisors give; what takes longer is cut off.
#[cfg(feature = "server")]
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);

impl Registrar {
    /// Registers in the registry that a URL names: `Registrar::new("etcd://127.0.0.1:2379".parse()?)`.
    ///
    /// # Errors
    /// `Config` when nothing can be registered there.
    pub fn new(url: RegistryUrl) -> Result<Self> {
        Ok(Self::over(open(&url)?))
    }

    /// Registers in the registry that the environment names: `FLEET_REGISTRY`, or what
    /// [`Registry::from_env`](crate::Registry::from_env) looks for instead.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and when none is named.
    pub fn from_env() -> Result<Self> {
        crate::Registry::from_env()?.registrar()
    }

    /// Registers in this registry.
    pub fn on(registry: impl Register) -> Self {
        Self::over(Arc::new(registry))
    }

    fn over(registry: Arc<dyn Register>) -> Self {
        Self {
            registry,
            advertise: None,
            check: true,
            patience: PATIENCE,
            required: false,
            notice: None,
            care: Care::default(),
            #[cfg(feature = "server")]
            finish_timeout: FINISH_TIMEOUT,
        }
    }

    /// Names the host, or `host:port`, that clients reach every listener at.
    ///
    /// # Errors
    /// `Config` when it is neither.
    pub fn advertise(mut self, host: impl AsRef<str>) -> Result<Self> {
        self.advertise = Some(Host::read(host.as_ref(), "advertise")?);
        Ok(self)
    }

    /// Sets whether to connect to an address before it is registered, to see that somebody listens. Yes,
    /// unless set; without it, an address that is registered too early costs clients' attempts to connect.
    #[must_use]
    pub fn check(mut self, check: bool) -> Self {
        self.check = check;
        self
    }

    /// Sets how long to wait for the registry, beyond the first attempt. Five seconds, unless set. Then the
    /// server starts anyway, and the registration goes on trying.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = countable(patience);
        self
    }

    /// Sets whether a registry that does not answer in time is an error. No, unless set.
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    /// Sets how long clients have to notice that a server left, before it stops taking calls. Half a second,
    /// unless set; see [`Registration::notice`].
    #[must_use]
    pub fn notice(mut self, notice: Duration) -> Self {
        self.notice = Some(notice);
        self
    }

    /// Registers an instance that listens; it stays registered for as long as the registration lives.
    ///
    /// # Errors
    /// When no retry would cure it: nobody listens, no client could use it, the id is a living stranger's, the
    /// credentials are refused. With [`required`](Self::required), also when the registry does not answer.
    pub async fn register<S>(&self, service: S, instance: Instance) -> Result<Registration>
    where
        S: TryInto<ServiceName>,
        S::Error: Into<Error>,
    {
        let service = service.try_into().map_err(Into::into)?;
        self.care.check()?;
        let own = within(instance.clone());
        let instance = self.prepare(instance).await?;
        let serving = instance.serving;
        let instance = self.care.before(instance);
        let until = Instant::now() + self.patience;
        let mut registration = self.registry.register(&service, instance).await?;
        if let Some(notice) = self.notice {
            registration = registration.notice(notice);
        }
        let registration = self.wait(registration, until).await?;
        if !self.care.is_none() {
            self.care.begin(&registration, own, serving);
        }
        Ok(registration)
    }

    /// Registers one instance under several services, on one lease.
    ///
    /// # Errors
    /// As for [`register`](Self::register), and when there is no service.
    pub async fn register_all<S>(
        &self,
        services: impl IntoIterator<Item = S>,
        instance: Instance,
    ) -> Result<Registration>
    where
        S: TryInto<ServiceName>,
        S::Error: Into<Error>,
    {
        let services = services
            .into_iter()
            .map(|s| s.try_into().map_err(Into::into));
        let services = services.collect::<Result<Vec<_>>>()?;
        let Some((first, others)) = services.split_first() else {
            return Err(Error::config(
                "register under no service: name at least one",
            ));
        };
        let registration = self.register(first.clone(), instance).await?;
        for service in others {
            match registration.also(service).await {
                Err(error) if self.required || !error.is_transient() => return Err(error),
                _ => {}
            }
        }
        Ok(registration)
    }

    async fn prepare(&self, instance: Instance) -> Result<Instance> {
        if self.check {
            listening(&instance).await?;
        }
        let toward = self.registry.toward();
        let instance = routable(instance, self.advertise.as_ref(), toward.as_deref()).await?;
        instance.check()?;
        Ok(instance)
    }

    async fn wait(&self, registration: Registration, until: Instant) -> Result<Registration> {
        let goal = if registration.instance().is_draining() {
            State::Draining
        } else {
            State::Registered
        };
        match timeout_at(until, registration.settled(goal)).await {
            Ok(reached) => {
                reached?;
                let refused = registration.error().filter(|error| !error.is_transient());
                if let (true, Some(error)) = (self.required, refused) {
                    return Err(error);
                }
            }
            Err(_) if self.required => {
                let doing = format!("register {} within {:?}", registration.key(), self.patience);
                let error = Error::new(ErrorKind::Timeout, doing);
                return Err(match registration.error() {
                    Some(cause) => error.because(cause),
                    None => error,
                });
            }
            Err(_) => tracing::warn!(key = registration.key(), "starting unregistered; trying on"),
        }
        Ok(registration)
    }
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar")
            .field("toward", &self.registry.toward())
            .field("advertise", &self.advertise)
            .field("patience", &self.patience)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}
