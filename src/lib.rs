//! Name resolver, client-side load balancer and server registrar for [tonic] gRPC.

mod backoff;
mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
mod instance;
mod name;
pub mod register;
pub mod resolve;
mod target;
#[allow(dead_code, reason = "the channel is to use it")]
pub mod transport;

pub use backoff::Backoff;
pub use error::{Error, ErrorKind, Result};
pub use instance::{Address, Instance};
pub use name::{InstanceId, ServiceName};
pub use register::{Register, Registrar, Registration};
pub use resolve::Memory;
pub use target::{RegistryUrl, Scheme, Target};
