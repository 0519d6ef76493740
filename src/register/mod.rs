//! How a server stands in a registry for as long as it lives.
//!
//! ```no_run
//! use tokio::net::TcpListener;
//! use tonic::transport::server::{Router, TcpIncoming};
//! use tonic_fleet::{Instance, Registrar};
//!
//! # async fn run(router: Router) -> Result<(), Box<dyn std::error::Error>> {
//! let registrar = Registrar::new("etcd://127.0.0.1:2379".parse()?)?;
//! let listener = TcpListener::bind("0.0.0.0:0").await?;
//!
//! let greeter = Instance::at(listener.local_addr()?)?.zone("eu-1");
//! let registration = registrar.register("greeter", greeter).await?;
//! let incoming = TcpIncoming::from(listener);
//! router.serve_with_incoming_shutdown(incoming, registration.until_signal()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `Registrar::serve` (feature `server`) does the same in one call, and limits how long the last calls may take. Whatever
//! happens to the registry, the [`Registration`] keeps the instance in it; its [`State`] says how it stands:
//!
//! | what happens | what a registration does |
//! |---|---|
//! | the registry is out of reach | [`Retrying`](State::Retrying); what was written stays for as long as its lease |
//! | the lease runs out meanwhile, or the process stood still | [`Lost`](State::Lost); a new lease and the same key as soon as the registry answers |
//! | the registry deletes living leases, or loses its data | the key is back within milliseconds |
//! | somebody deletes or overwrites the key | it is put back within milliseconds; slower and slower, as [`Conflict`](State::Conflict), when that does not end |
//! | a living stranger has the id | [`Conflict`](State::Conflict): he is left alone, and named |
//! | a dead predecessor has the id | his key is taken over |
//! | the registry is full | [`NoSpace`](State::NoSpace): the lease is kept, changes wait |
//! | credentials are refused | [`Denied`](State::Denied), and tried again, rarely |
//!
//! [`Registrar::health`] ties a registration to the health of its server: it stands there as draining while
//! its own health service, a closure or a [`Watchdog`](crate::health::Watchdog) says that it is unwell.
//!
//! A backend implements [`Register`]: it makes a [`Registration`] with [`keep`], and works for the
//! [`Keeper`] that comes with it. The registration says what *should* stand in the registry, as state of
//! which the latest wins; the keeper's task makes it so, again and again, whatever happens there.

mod address;
mod health;
#[cfg(feature = "etcd")]
pub mod heartbeat;
mod keeper;
mod leave;
#[cfg(any(feature = "etcd", feature = "consul"))]
mod life;
mod open;
mod registrar;
mod registration;
#[cfg(feature = "server")]
mod serve;

use std::{pin::Pin, sync::Arc};

pub use keeper::{Keeper, Wish, keep};
#[cfg(any(feature = "etcd", feature = "consul"))]
pub(crate) use life::{Life, look};
pub use open::open;
pub use registrar::Registrar;
pub use registration::{Registration, State, States};
#[cfg(feature = "server")]
pub use serve::Served;

use crate::{Instance, Result, ServiceName};

/// Puts instances into a registry, and keeps them there.
///
/// ```
/// use tonic_fleet::{Instance, Result, ServiceName, register::{Register, Registering, keep}};
///
/// /// A registry that anything can be written to, and nothing be read from.
/// struct Nowhere;
///
/// impl Register for Nowhere {
///     fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
///         let kept = keep(service, instance, "nowhere");
///         Box::pin(async {
///             let (registration, mut keeper) = kept?;
///             tokio::spawn(async move {
///                 while !keeper.wish().gone {
///                     keeper.reached();
///                     keeper.changed().await;
///                 }
///                 keeper.reached();
///             });
///             registration.begun().await
///         })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let registration = Nowhere.register(&"greeter".parse()?, Instance::at("10.0.0.5:50051")?).await?;
/// registration.update(|instance| instance.weight(3)).await?;
/// registration.close().await
/// # }
/// ```
pub trait Register: Send + Sync + 'static {
    /// Registers an instance, and gives the handle that keeps it registered.
    ///
    /// Returns after the first attempt. A registry that cannot be reached, or has no room, is no error:
    /// the registration is then [`Retrying`](State::Retrying) and goes on. What no retry would cure is one:
    /// an instance that no client could use, an id that a living stranger holds, refused credentials.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what it may have registered.
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_>;

    /// Where the registry is reached, as `host:port`: shows which of our own interfaces leads there.
    fn toward(&self) -> Option<String> {
        None
    }
}

/// What [`Register::register`] gives.
pub type Registering<'a> = Pin<Box<dyn Future<Output = Result<Registration>> + Send + 'a>>;

impl<R: Register + ?Sized> Register for Arc<R> {
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        (**self).register(service, instance)
    }

    fn toward(&self) -> Option<String> {
        (**self).toward()
    }
}

impl<R: Register + ?Sized> Register for Box<R> {
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        (**self).register(service, instance)
    }

    fn toward(&self) -> Option<String> {
        (**self).toward()
    }
}
