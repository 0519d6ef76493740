//! Name resolver, client-side load balancer and server registrar for [tonic] gRPC.

mod backoff;
pub mod balance;
mod channel;
pub mod discover;
mod endpoint;
mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(test)]
mod fuzz;
mod instance;
mod name;
pub mod register;
pub mod resolve;
mod target;
#[allow(dead_code, reason = "retries by policy are to use the rest")]
pub mod transport;

pub use backoff::Backoff;
pub use channel::{Builder, Calling, Channel, Events, ServedBy, View};
pub use endpoint::{Endpoint, Event, State};
pub use error::{Error, ErrorKind, Result};
pub use instance::{Address, Instance};
pub use name::{InstanceId, ServiceName};
pub use register::{Register, Registrar, Registration};
pub use resolve::Memory;
pub use target::{RegistryUrl, Scheme, Target};
