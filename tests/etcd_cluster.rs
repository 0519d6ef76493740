//! What readers of a service see while members of a cluster die, freeze, lag and lose their majority.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/greeter.rs"]
mod greeter;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reader.rs"]
mod reader;

use std::time::Duration;

use etcd::Cluster;
use greeter::{SETTLED, SOON, key, knows, put, read, registry, value};
use proxy::{Mode, Proxy};
use tokio::time::Instant;
use tonic_fleet::etcd::{Etcd as Handle, Options, Registry};

#[tokio::test]
async fn a_member_that_is_terminated_leaves_no_gap() {
    let mut cluster = Cluster::start().await;
    let handle = Handle::open(&cluster.addresses(), Options::default()).unwrap();
    let mut reader = read(&Registry::over(handle.clone()));
    put(&cluster.0[0], &["a"]).await;
    knows(&mut reader, &["a"]).await;

    let asked = handle.member().to_string();
    cluster.at(&asked).terminate();
    let other = cluster
        .0
        .iter()
        .find(|member| member.address() != asked)
        .unwrap();
    put(other, &["b"]).await;

    reader
        .until_within(SOON, "b is told", |reader| reader.ids() == ["a", "b"])
        .await;
}

#[tokio::test]
async fn a_frozen_member_is_left_for_another() {
    let mut cluster = Cluster::start().await;
    let handle = Handle::open(&cluster.addresses(), Options::default()).unwrap();
    let mut reader = read(&Registry::over(handle.clone()));
    put(&cluster.0[0], &["a"]).await;
    knows(&mut reader, &["a"]).await;

    let asked = handle.member().to_string();
    cluster.at(&asked).freeze();
    let other = cluster
        .0
        .iter()
        .find(|member| member.address() != asked)
        .unwrap();
    // The leader may be the frozen one.
    let mut client = other.client().await;
    while client
        .put(key("b"), value("b", 1, true), None)
        .await
        .is_err()
    {}

    reader
        .until_within(SOON, "b is told", |reader| reader.ids() == ["a", "b"])
        .await;
    assert_ne!(handle.member().to_string(), asked);
}

#[tokio::test]
async fn one_dead_frozen_or_unreachable_member_of_three_keeps_nobody_from_reading() {
    for fault in ["dead", "frozen", "unreachable"] {
        let mut cluster = Cluster::start().await;
        put(&cluster.0[0], &["a"]).await;
        let victim = (cluster.leader().await + 1) % 3;
        let mut addresses = cluster.addresses();
        let proxy = Proxy::before(&addresses[victim]).await;
        match fault {
            "dead" => cluster.0[victim].kill(),
            "frozen" => cluster.0[victim].freeze(),
            _ => {
                proxy.set(Mode::Hole);
                addresses[victim] = proxy.address();
            }
        }

        for _ in 0..6 {
            let began = Instant::now();
            let mut reader = read(&registry(&addresses));
            reader
                .until_within(SOON, "a is told", |reader| reader.ids() == ["a"])
                .await;
            println!("{fault}: told after {:?}", Instant::now() - began);
        }
    }
}

#[tokio::test]
async fn a_new_leader_is_no_event() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let addresses: Vec<_> = cluster.addresses();
    let followers: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    put(&cluster.0[leader], &["a"]).await;
    let mut reader = read(&registry(&[&addresses[followers[0]]]));
    knows(&mut reader, &["a"]).await;
    reader.told();

    cluster.0[leader].kill();
    let mut client = cluster.0[followers[1]].client().await;
    while client
        .put(key("b"), value("b", 1, true), None)
        .await
        .is_err()
    {}
    knows(&mut reader, &["a", "b"]).await;

    assert!(
        !reader
            .told()
            .iter()
            .any(|word| word.starts_with('-') || word.starts_with('?'))
    );
}

#[tokio::test]
async fn without_a_majority_the_set_stays_and_is_said_to_be_stale() {
    let mut cluster = Cluster::start().await;
    put(&cluster.0[0], &["a", "b"]).await;
    let mut reader = read(&registry(&cluster.addresses()));
    knows(&mut reader, &["a", "b"]).await;
    reader.told();

    cluster.0[0].kill();
    cluster.0[1].kill();
    reader
        .until("the outage is told", |reader| reader.stale.is_some())
        .await;
    assert_eq!(reader.ids(), ["a", "b"]);
    cluster.0[0].spawn();
    cluster.0[1].spawn();
    cluster.ready().await;
    reader
        .until_within(SOON, "it is back", |reader| reader.stale.is_none())
        .await;
    reader.during(SETTLED).await;

    let told = reader.told();
    let known = |word: &String| word == "stale" || word == "fresh";
    assert!(told.iter().all(known), "{told:?}");
}

#[tokio::test]
async fn a_member_that_lags_and_has_no_majority_removes_nobody() {
    let mut cluster = Cluster::start().await;
    let lagging = (cluster.leader().await + 1) % 3;
    let client = cluster.0[(lagging + 1) % 3].client().await;
    // It does not hear of anything from here on.
    cluster.0[lagging].freeze();
    for id in ["a", "b"] {
        let put = async || client.clone().put(key(id), value(id, 1, true), None).await;
        while put().await.is_err() {}
    }
    let mut reader = read(&registry(&cluster.addresses()));
    knows(&mut reader, &["a", "b"]).await;
    reader.told();

    for at in 0..3 {
        if at != lagging {
            cluster.0[at].kill();
        }
    }
    cluster.0[lagging].thaw();
    reader.during(Duration::from_secs(3)).await;
    assert_eq!(reader.ids(), ["a", "b"]);
    assert!(reader.suspects.is_empty());
    for at in 0..3 {
        if at != lagging {
            cluster.0[at].spawn();
        }
    }
    cluster.ready().await;
    put(&cluster.0[0], &["c"]).await;

    knows(&mut reader, &["a", "b", "c"]).await;
    let told = reader.told();
    assert!(
        !told.iter().any(|word| word.starts_with(['?', '-'])),
        "{told:?}"
    );
}
