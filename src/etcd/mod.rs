//! What we ask of etcd, and how, so that nothing that happens to it ends what we do.

#[allow(dead_code, reason = "sessions, locks and registrations ask the rest")]
mod client;
mod failure;
#[allow(dead_code, reason = "as above")]
mod kv;
mod options;

pub use client::Etcd;
pub use options::{Options, Tls};
