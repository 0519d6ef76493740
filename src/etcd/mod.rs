//! Services in etcd: found, and kept through everything that happens to it.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use tonic_fleet::{etcd, resolve::Resolve};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tonic_fleet::Result<()> {
//! let registry = etcd::Registry::open(&"etcd://127.0.0.1:2379".parse()?)?;
//! let mut updates = registry.resolve(&"greeter".parse()?);
//! while let Some(update) = updates.next().await {
//!     println!("{update:?}");
//! }
//! # Ok(())
//! # }
//! ```

mod ask;
mod claim;
pub(crate) mod client;
mod configs;
mod cursor;
pub(crate) mod failure;
#[cfg(test)]
mod fuzz;
mod guard;
pub(crate) mod known;
pub(crate) mod kv;
pub mod layout;
mod line;
mod mirror;
mod number;
mod options;
mod pace;
mod register;
mod registry;
mod resolve;
mod roster;
mod seat;
#[cfg_attr(
    not(feature = "coord"),
    allow(dead_code, reason = "locks ask the rest")
)]
pub(crate) mod session;
mod stream;
mod tenure;
mod term;
pub(crate) mod watch;

pub use client::Etcd;
pub use layout::Layout;
pub use options::Options;
pub use registry::Registry;

pub(crate) use {
    guard::Guard,
    known::KeyChange,
    kv::{Kv, Span},
    mirror::{Mirror, Standing},
    pace::Pace,
    session::{Pulse, SHORTEST},
    tenure::{Lease, Tenure},
    watch::{Seen as Told, Watch},
};
