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

mod claim;
#[allow(dead_code, reason = "sessions, locks and registrations ask the rest")]
mod client;
mod cursor;
mod failure;
#[cfg(test)]
mod fuzz;
mod guard;
mod known;
#[allow(dead_code, reason = "as above")]
mod kv;
pub mod layout;
mod line;
#[allow(dead_code, reason = "as above")]
mod mailbox;
mod mirror;
mod options;
mod register;
mod registry;
mod resolve;
mod roster;
#[allow(dead_code, reason = "locks ask the rest")]
mod session;
mod term;
#[allow(dead_code, reason = "as above")]
mod watch;

pub use client::Etcd;
pub use layout::Layout;
pub use options::Options;
pub use registry::Registry;
