//! A service's name becomes a [tonic] channel that always reaches a live server; a server calls one function
//! at start-up and is found until it stops.
//!
//! # A client
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tonic_fleet::Channel;
//!
//! let channel = Channel::builder("etcd://127.0.0.1:2379/greeter".parse()?).build()?;
//! // Any generated client: `GreeterClient::new(channel.clone())`.
//! println!("{}", channel.view());
//! # Ok(())
//! # }
//! ```
//!
//! `build` returns at once. The first call waits for the first endpoint, within its deadline; every call goes
//! to an endpoint that is connected; a call that did not leave goes to another. [`Target`] lists what a URL
//! may say, [`Builder`] what may be set, [`View`] what can be seen.
//!
//! # A server
//!
//! ```no_run
//! # async fn example(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! use tonic_fleet::{Instance, Registrar};
//!
//! let registrar = Registrar::new("etcd://127.0.0.1:2379".parse()?)?;
//! let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
//! let greeter = registrar.register("greeter", Instance::at(listener.local_addr()?)?).await?;
//! // `Server::builder().add_service(…).serve_with_incoming_shutdown(incoming, greeter.until_signal())`
//! greeter.until_signal().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Registry::from_env`] takes both from the environment: `FLEET_REGISTRY`, or the variables that older
//! programs have.
//!
//! While the [`Registration`] lives, the instance is in the registry, whatever happens to the registry. At
//! SIGINT or SIGTERM it is marked as draining, withdrawn, and clients are given a moment to notice.
//!
//! # How it works
//!
//! The modules stand in the order in which data flows:
//!
//! | | |
//! |---|---|
//! | [`resolve`] | what a registry says about a service, as updates that never fail; [`etcd`] and [`consul`] are such registries |
//! | [`Endpoint`] | what the registry says about a server, and what is known by calling it |
//! | [`View`] | an immutable snapshot that calls pick from |
//! | [`stage`] | whom a channel uses at all: filters, zones, subsets |
//! | [`health`] | whether a server is well, beyond being connected |
//! | [`method`] | what is wanted of a method's calls: time limits, retries, hedging |
//! | [`deadline`] | time limits that travel from server to server |
//! | [`balance`] | policies: which endpoint the next call goes to |
//! | [`Channel`] | one call: wait, pick, send, pick again |
//! | [`transport`] | an HTTP/2 connection that tells what a balancer must know |
//! | [`layer`] | retries and hedging around a stack of one's own |
//! | [`codec`] | buffers that fit small messages |
//! | [`discover`] | ready endpoints for those who bring their own balancer |
//! | [`orca`] | what servers report of their load, and what they weigh by it |
//! | [`stats`] | what calls came to, for each method and each endpoint |
//! | [`register`] | the server's side: a registration that is kept |
//! | [`coord`] | what servers agree on: locks, elections, configuration, entities |
//! | [`testing`] | whether a registry of one's own keeps what it promises |
//!
//! No registry is on the call path: what was known last serves while the registry is away, and the view says
//! since when. A deletion that nobody announced is a suspicion, not a death.
//!
//! # Features
//!
//! `etcd` and `server` are on by default. `consul` adds Consul agents, `dns` adds `dns://`; `tls-ring` or `tls-aws-lc` TLS;
//! `tls-webpki-roots` the roots that browsers trust; `tonic-channel` calls over tonic's own channels, and a
//! feed for its balancer; `coord` locks, elections, configuration and mirrored entities on etcd; `testing` the suite that our own registries are held to, for
//! one's own. Features only add.
//!
//! [`etcd`]: https://docs.rs/tonic-fleet/latest/tonic_fleet/etcd/index.html
//! [`coord`]: https://docs.rs/tonic-fleet/latest/tonic_fleet/coord/index.html

mod backoff;
pub mod balance;
mod binary;
mod channel;
pub mod codec;
#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "coord")]
pub mod coord;
pub mod deadline;
mod direct;
pub mod discover;
mod endpoint;
mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(test)]
mod fuzz;
pub mod health;
mod instance;
pub mod layer;
mod lock;
pub mod method;
mod moment;
mod name;
pub mod orca;
mod parse;
pub mod register;
mod registry;
pub mod resolve;
pub mod stage;
pub mod stats;
mod target;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod wire;

pub use backoff::Backoff;
pub use channel::{Answer, Builder, Calling, Channel, Events, Leaving, ServedBy, View, Why};
pub use direct::Direct;
pub use endpoint::{Endpoint, Endpoints, Event, State};
pub use error::{Error, ErrorKind, Result};
pub use instance::{Address, Instance};
pub use name::{InstanceId, ServiceName};
pub use register::{Register, Registrar, Registration};
pub use registry::Registry;
pub use resolve::Memory;
pub use target::{RegistryUrl, Scheme, Target};
