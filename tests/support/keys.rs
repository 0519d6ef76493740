//! A registration in a real etcd, and what is seen of it there.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic_fleet::{Instance, Register, Registration, ServiceName, etcd::Registry, register::State};

use crate::etcd::Etcd;

pub const KEY: &str = "/services/greeter/a";
/// Longer than anything is waited for, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(60);

pub fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

pub fn a() -> Instance {
    Instance::at("10.0.0.1:1").unwrap().id("a").unwrap()
}

pub fn registry(url: &str) -> Registry {
    Registry::open(&url.parse().unwrap()).unwrap()
}

pub async fn register(url: &str) -> Registration {
    registry(url).register(&greeter(), a()).await.unwrap()
}

/// Waits for a state, not for ever.
pub async fn until(registration: &Registration, state: State) {
    let reached = timeout(SOON, registration.until(state)).await;
    reached
        .unwrap_or_else(|_| panic!("{state} is never reached: {registration:?}"))
        .unwrap();
}

/// The value and the lease of the key, if it stands; a cluster that elects a leader is asked again.
pub async fn standing(client: &mut Client) -> Option<(Instance, i64)> {
    let asking = async {
        loop {
            if let Ok(got) = client.get(KEY, None).await {
                return got;
            }
        }
    };
    let got = timeout(SOON, asking).await.expect("etcd answers");
    let kv = got.kvs().first()?;
    Some((serde_json::from_slice(kv.value()).unwrap(), kv.lease()))
}

/// With leases that are renewed every twenty seconds: what is put right before, was noticed before.
pub fn seldom_renewed(etcd: &Etcd) -> String {
    etcd.url() + "?ttl=60s"
}

/// Far less than the time between two renewals, and far more than a machine stands still.
pub const AT_ONCE: Duration = Duration::from_secs(8);

/// Whether a lease lives.
pub async fn lives(client: &mut Client, lease: i64) -> bool {
    client.lease_time_to_live(lease, None).await.unwrap().ttl() > 0
}

/// What happens to the key, and when.
pub struct Events(mpsc::UnboundedReceiver<(Instant, Event)>);

#[derive(Debug, PartialEq)]
pub enum Event {
    Put(Instance, i64),
    Delete,
}

impl Events {
    pub async fn of(etcd: &Etcd) -> Self {
        let options = WatchOptions::new().with_prefix();
        let mut client = etcd.client().await;
        let mut stream = client.watch("/services/", Some(options)).await.unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            // The stream lives as long as its client.
            let _client = client;
            while let Ok(Some(message)) = stream.message().await {
                for event in message.events() {
                    let kv = event.kv().unwrap();
                    let event = match event.event_type() {
                        EventType::Put => {
                            Event::Put(serde_json::from_slice(kv.value()).unwrap(), kv.lease())
                        }
                        EventType::Delete => Event::Delete,
                    };
                    let _ = tell.send((Instant::now(), event));
                }
            }
        });
        Self(told)
    }

    pub async fn next(&mut self) -> (Instant, Event) {
        timeout(SOON, self.0.recv())
            .await
            .expect("an event")
            .unwrap()
    }

    /// The next time that the key is put, and on which lease.
    pub async fn put(&mut self) -> (Instant, Instance, i64) {
        loop {
            if let (at, Event::Put(instance, lease)) = self.next().await {
                return (at, instance, lease);
            }
        }
    }

    pub async fn deleted(&mut self) -> Instant {
        loop {
            if let (at, Event::Delete) = self.next().await {
                return at;
            }
        }
    }
}
