//! A service called `greeter`: who is in it, by the keys that stand in etcd, and who reads about it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::time::Duration;

use tonic_fleet::{
    etcd::{Etcd as Handle, Options, Registry},
    resolve::Resolve,
};

use crate::{etcd::Etcd, reader::Reader};

/// Longer than a reader ever takes to be back after the registry is, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(60);
/// Longer than the relist that follows a cut.
pub const SETTLED: Duration = Duration::from_millis(700);

pub fn key(id: &str) -> String {
    format!("/services/greeter/{id}")
}

pub fn value(id: &str, port: u16, serving: bool) -> String {
    format!(r#"{{"id":"{id}","addresses":["10.0.0.5:{port}"],"serving":{serving}}}"#)
}

/// Registers servers with these ids, without leases.
pub async fn put(etcd: &Etcd, ids: &[&str]) {
    for id in ids {
        etcd.put(&key(id), value(id, 1, true)).await;
    }
}

/// A registry on these members, with a short grace, and nothing shared with other tests.
pub fn registry<M: AsRef<str>>(members: &[M]) -> Registry {
    let handle = Handle::open(members, Options::default()).unwrap();
    Registry::over(handle).grace(Duration::from_millis(300))
}

pub fn read(registry: &Registry) -> Reader {
    Reader::of(registry.resolve(&"greeter".parse().unwrap()))
}

/// Reads until these are known and nobody is suspected.
pub async fn knows(reader: &mut Reader, ids: &[&str]) {
    let what = format!("{ids:?} known, none suspected");
    reader
        .until(&what, |reader| {
            reader.ids() == ids && reader.suspects.is_empty()
        })
        .await;
}
