//! Locks, elections and what else is agreed on over a real etcd: the one that `ETCD_BIN` names, or that is on
//! the PATH.
#![cfg(feature = "coord")]
#![allow(clippy::unwrap_used)]

#[path = "coord/config.rs"]
mod config;
#[path = "coord/contend.rs"]
mod contend;
#[path = "coord/directory.rs"]
mod directory;
#[path = "coord/election.rs"]
mod election;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "coord/lock.rs"]
mod lock;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "coord/sync.rs"]
mod sync;

use std::time::Duration;

use etcd_client::GetOptions;
use tokio::time::{Instant, sleep};
use tonic_fleet::coord::{Coordinator, Retry};

/// Longer than anything is waited for, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

/// A coordinator with leases of its own, which last longer than a machine ever stands still.
async fn coordinator(etcd: &etcd::Etcd) -> Coordinator {
    leased(etcd, 30).await
}

/// A coordinator whose leases last so many seconds.
async fn leased(etcd: &etcd::Etcd, seconds: u64) -> Coordinator {
    let url = format!("{}?ttl={seconds}s", etcd.url());
    Coordinator::connect(url.parse().unwrap()).await.unwrap()
}

/// The keys under a prefix, oldest first.
async fn keys(etcd: &etcd::Etcd, prefix: &str) -> Vec<String> {
    let mut client = etcd.client().await;
    let options = GetOptions::new().with_prefix();
    let got = client.get(prefix, Some(options)).await.unwrap();
    let mut kvs: Vec<_> = got.kvs().iter().collect();
    kvs.sort_by_key(|kv| kv.create_revision());
    let name = |kv: &&etcd_client::KeyValue| kv.key_str().unwrap().to_owned();
    kvs.iter().map(name).collect()
}

/// Waits until as many keys stand under a prefix, and gives them.
async fn until_keys(etcd: &etcd::Etcd, prefix: &str, count: usize) -> Vec<String> {
    let until = Instant::now() + SOON;
    loop {
        let keys = keys(etcd, prefix).await;
        if keys.len() == count {
            return keys;
        }
        assert!(Instant::now() < until, "{count} are never there: {keys:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How many leases there are.
async fn leases(etcd: &etcd::Etcd) -> usize {
    etcd.client().await.leases().await.unwrap().leases().len()
}

/// Tries once.
fn once() -> Retry {
    Retry::default().attempts(1)
}
