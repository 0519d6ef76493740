//! One registry for all that a program does with services: found by the environment, or named by a URL.

mod env;
mod peers;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use peers::Peers;

use crate::{
    Builder, Channel, Error, Instance, Registrar, RegistryUrl, Result, Scheme, ServiceName,
    register::{self, Register, Registering},
    resolve::{self, Resolve, Updates},
};

/// A registry: services are found in it, and servers register in it.
///
/// ```no_run
/// use tonic_fleet::{Instance, Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tonic_fleet::Result<()> {
/// let registry = Registry::from_env()?;
/// let channel = registry.channel("greeter")?.build()?;
/// let registrar = registry.registrar()?;
/// # Ok(())
/// # }
/// ```
///
/// [`from_env`](Self::from_env) looks for `FLEET_REGISTRY`, and then for variables that older programs have:
///
/// | variable | says |
/// |---|---|
/// | `FLEET_REGISTRY` | the registry, as a [URL](RegistryUrl) |
/// | `DISCOVERY_TYPE` | `static`, `consul` or `etcd`, where there is no URL |
/// | `ETCD_ENDPOINTS` | the members, with commas between them; with `https://` before each they are asked over TLS |
/// | `ETCD_HOST`, `ETCD_PORT` | one member; port 2379 |
/// | `CONSUL_HOST`, `CONSUL_PORT` | the agent; port 8500 |
/// | `PEER_NODES` | the servers, as a JSON list of addresses, or of objects with `address`, `port`, and maybe `id`, `name` (the service), `weight`, `metadata` |
///
/// Without `DISCOVERY_TYPE`, the one of the three that something is said about is meant; with it, and nothing
/// else but a port, etcd or the agent on this machine. Two that contradict each other are refused, with both names. An
/// empty variable is as good as none, and so is a port such as `tcp://10.0.0.1:2379`, which
/// Kubernetes makes of a service called `etcd`.
///
/// A list of servers, and every other registry that is only read, takes no registrations.
#[derive(Clone)]
pub struct Registry {
    place: Place,
    why: Arc<str>,
}

#[derive(Clone)]
enum Place {
    Url(Box<RegistryUrl>),
    Peers(Peers),
}

/// What was said last of what the environment chose.
static SAID: Mutex<String> = Mutex::new(String::new());

impl Registry {
    /// The registry that a URL names.
    ///
    /// Nothing is connected to before it is used.
    pub fn new(url: RegistryUrl) -> Self {
        Self {
            place: Place::Url(Box::new(url)),
            why: "a URL".into(),
        }
    }

    /// The registry that the environment names; what was chosen, and why, is logged once.
    ///
    /// # Errors
    /// `Config` when none is named, or two different ones are, or one is named wrongly.
    pub fn from_env() -> Result<Self> {
        let chosen = env::choose(&|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::config(format!("{name} is not UTF-8")))
            }
        })?;
        let words = format!("{chosen}, by {}", chosen.why);
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != words {
            tracing::info!(registry = %chosen, why = &*chosen.why, "registry chosen by the environment");
            *said = words;
        }
        Ok(chosen)
    }

    /// The same, from variables that stand elsewhere: a file, a test.
    ///
    /// ```
    /// use tonic_fleet::Registry;
    ///
    /// let registry = Registry::from_variables(|name| match name {
    ///     "DISCOVERY_TYPE" => Some("etcd".into()),
    ///     "ETCD_HOST" => Some("10.0.0.7".into()),
    ///     _ => None,
    /// })?;
    /// assert_eq!(registry.to_string(), "etcd://10.0.0.7:2379");
    /// assert_eq!(registry.why(), "DISCOVERY_TYPE and ETCD_HOST");
    /// # Ok::<(), tonic_fleet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`from_env`](Self::from_env).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        env::choose(&|name| Ok(variable(name)))
    }

    /// What named it, in words.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Its URL; none, when it is a list of servers.
    pub fn url(&self) -> Option<&RegistryUrl> {
        match &self.place {
            Place::Url(url) => Some(url),
            Place::Peers(_) => None,
        }
    }

    /// Calls to one of its services.
    ///
    /// # Errors
    /// `Config` when no service can be called that.
    pub fn channel<S>(&self, service: S) -> Result<Builder>
    where
        S: TryInto<ServiceName>,
        S::Error: Into<Error>,
    {
        let service = service.try_into().map_err(Into::into)?;
        Ok(match &self.place {
            Place::Url(url) => Channel::builder(url.service(service)?),
            Place::Peers(peers) => Channel::over(service, peers.clone()),
        })
    }

    /// Registers servers in it.
    ///
    /// # Errors
    /// `Config` when it takes no registrations, or the feature for it is missing.
    pub fn registrar(&self) -> Result<Registrar> {
        match &self.place {
            Place::Url(url) => {
                register::open(&url.bare())?;
                Ok(Registrar::on(self.clone()))
            }
            Place::Peers(_) => Err(self.only_read()),
        }
    }

    fn only_read(&self) -> Error {
        Error::config(format!(
            "register in {self}, named by {}: it is only read; name etcd or Consul instead",
            self.why
        ))
    }
}

impl Resolve for Registry {
    /// A registry that cannot be opened, because a feature is missing, say, is out of reach, for that reason.
    fn resolve(&self, service: &ServiceName) -> Updates {
        let url = match &self.place {
            Place::Url(url) => url,
            Place::Peers(peers) => return peers.resolve(service),
        };
        let target = url.service(service);
        let opened = target.and_then(|target| Ok((resolve::open(&target)?, target)));
        match opened {
            Ok((resolver, target)) => resolver.resolve(target.service()),
            Err(error) => {
                let (publisher, updates) = resolve::publish();
                publisher.stale(error);
                updates
            }
        }
    }
}

impl Register for Registry {
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        let service = service.clone();
        Box::pin(async move {
            let Place::Url(url) = &self.place else {
                return Err(self.only_read());
            };
            let service = match url.scheme() {
                // What the path holds stands before the service, for those who read, too.
                Scheme::Etcd | Scheme::Consul | Scheme::Memory => {
                    url.service(service)?.service().clone()
                }
                _ => service,
            };
            register::open(&url.bare())?
                .register(&service, instance)
                .await
        })
    }

    fn toward(&self) -> Option<String> {
        let first = self.url()?.members().first()?;
        Some(first.to_string())
    }
}

impl fmt::Display for Registry {
    /// The URL, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Url(url) => url.fmt(f),
            Place::Peers(peers) => write!(f, "a list of {} servers", peers.len()),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("place", &format_args!("{self}"))
            .field("why", &self.why)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::resolve::Update;

    fn memory(path: &str) -> Registry {
        Registry::new(format!("memory://{path}").parse().unwrap())
    }

    #[tokio::test]
    async fn who_registers_is_found_below_the_same_path() {
        let registry = memory("shop");
        let cart = "cart".parse().unwrap();
        let server = Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();

        let registration = registry.register(&cart, server.clone()).await.unwrap();
        let first = registry.resolve(&cart).next().await;

        assert_eq!(registration.service().as_str(), "shop/cart");
        let Some(Update::Reset(all)) = first else {
            panic!("{first:?}");
        };
        assert_eq!(*all[0], server);
        registration.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_list_is_only_read() {
        let registry = Registry::from_variables(|name| {
            (name == "PEER_NODES").then(|| r#"["10.0.0.1:1"]"#.into())
        });
        let registry = registry.unwrap();
        let greeter = "greeter".parse().unwrap();
        let server = Instance::at("10.0.0.2:1").unwrap();

        let refused = registry.register(&greeter, server).await.unwrap_err();
        let first = registry.resolve(&greeter).next().await;

        assert!(
            refused
                .to_string()
                .contains("by PEER_NODES: it is only read"),
            "{refused}"
        );
        assert!(registry.registrar().is_err());
        assert!(matches!(first, Some(Update::Reset(all)) if all.len() == 1));
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_out_of_reach_for_that_reason() {
        let registry = Registry::new("dns://svc".parse().unwrap());

        let first = registry.resolve(&"greeter".parse().unwrap()).next().await;

        assert!(matches!(first, Some(Update::Stale(_))), "{first:?}");
    }
}
