//! What we ask of etcd, and how, so that nothing that happens to it ends what we do.

#[allow(dead_code, reason = "sessions, locks and registrations ask the rest")]
mod client;
#[allow(dead_code, reason = "as above")]
mod cursor;
mod failure;
#[allow(dead_code, reason = "as above")]
mod known;
#[allow(dead_code, reason = "as above")]
mod kv;
#[allow(dead_code, reason = "as above")]
mod mailbox;
mod options;
#[allow(dead_code, reason = "as above")]
mod watch;

pub use client::Etcd;
pub use options::{Options, Tls};
