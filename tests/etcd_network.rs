//! What readers of a service see when the way to etcd is cut, in every way that networks know.
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

use etcd::Etcd;
use etcd_client::CompactionOptions;
use greeter::{SOON, key, knows, put, read, registry};
use proxy::{Mode, Proxy};
use reader::Reader;
use tokio::time::Instant;

#[tokio::test]
async fn replaced_data_that_has_outgrown_ours_is_found_too() {
    let mut etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a", "b", "c"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a", "b", "c"]).await;

    proxy.set(Mode::Refuse);
    etcd.wipe();
    etcd.restart().await;
    put(&etcd, &["b", "x"]).await;
    let mut client = etcd.client().await;
    for _ in 0..500 {
        client.put("elsewhere", "", None).await.unwrap();
    }
    proxy.set(Mode::Pass);

    knows(&mut reader, &["b", "x"]).await;
}

#[tokio::test]
async fn what_happened_while_cut_off_is_found_though_its_history_is_gone() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a", "b"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a", "b"]).await;

    proxy.set(Mode::Refuse);
    etcd.delete(&key("a")).await;
    put(&etcd, &["c"]).await;
    let mut client = etcd.client().await;
    let revision = client
        .put("elsewhere", "", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    let physical = CompactionOptions::new().with_physical();
    client.compact(revision, Some(physical)).await.unwrap();
    proxy.set(Mode::Pass);

    knows(&mut reader, &["b", "c"]).await;
    put(&etcd, &["d"]).await;
    knows(&mut reader, &["b", "c", "d"]).await;
}

#[tokio::test]
async fn a_deletion_that_the_server_loses_at_a_compaction_is_found() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a", "b"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a", "b"]).await;

    proxy.set(Mode::Refuse);
    let mut client = etcd.client().await;
    // Servers before 3.4.36 neither tell of this deletion later nor say that they cannot.
    let revision = client
        .delete(key("a"), None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    client.compact(revision, None).await.unwrap();
    proxy.set(Mode::Pass);

    knows(&mut reader, &["b"]).await;
}

#[tokio::test]
async fn a_backlog_larger_than_any_message_is_taken_in() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a"]).await;

    proxy.set(Mode::Refuse);
    let mut client = etcd.client().await;
    let text = "x".repeat(4_000);
    for at in 0..1_500u16 {
        let large = format!(
            r#"{{"id":"b","addresses":["10.0.0.5:{}"],"tags":{{"a":"{text}","b":"{text}","c":"{text}"}}}}"#,
            at + 1
        );
        client.put(key("b"), large, None).await.unwrap();
    }
    proxy.set(Mode::Pass);

    let last = |reader: &Reader| {
        reader
            .known
            .get("b")
            .is_some_and(|b| b.addresses[0].to_string() == "10.0.0.5:1500")
    };
    reader.until("the last word is told", last).await;
}

#[tokio::test]
async fn a_cut_in_either_direction_is_noticed_and_healed() {
    for hole in [Mode::Hole, Mode::HoleToClient, Mode::HoleToServer] {
        let etcd = Etcd::start().await;
        let proxy = Proxy::before(&etcd.address()).await;
        put(&etcd, &["a", "b"]).await;
        let mut reader = read(&registry(&[proxy.address()]));
        knows(&mut reader, &["a", "b"]).await;
        reader.told();

        proxy.set(hole);
        reader
            .until("the cut is noticed", |reader| reader.stale.is_some())
            .await;
        put(&etcd, &["c"]).await;
        proxy.set(Mode::Pass);

        reader
            .until_within(SOON, "c is told", |reader| reader.ids() == ["a", "b", "c"])
            .await;
        assert!(
            !reader
                .told()
                .iter()
                .any(|word| word.starts_with(['?', '-']))
        );
    }
}

#[tokio::test]
async fn resets_are_met_with_patience() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a"]).await;

    let before = proxy.attempts();
    proxy.set(Mode::Reset);
    reader.during(Duration::from_secs(3)).await;
    let attempts = proxy.attempts() - before;
    proxy.set(Mode::Pass);
    reader
        .until_within(SOON, "it is back", |reader| reader.stale.is_none())
        .await;

    println!("{attempts} connections in 3 s of resets");
    assert!(attempts < 60, "{attempts} connections in 3 s");
    assert_eq!(reader.ids(), ["a"]);
}

#[tokio::test]
async fn a_port_that_comes_and_goes_is_met_with_patience() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    put(&etcd, &["a"]).await;
    let mut reader = read(&registry(&[proxy.address()]));
    knows(&mut reader, &["a"]).await;

    let (before, began) = (proxy.attempts(), Instant::now());
    for _ in 0..30 {
        proxy.set(Mode::Reset);
        reader.during(Duration::from_millis(20)).await;
        proxy.set(Mode::Pass);
        reader.during(Duration::from_millis(80)).await;
    }
    let (attempts, took) = (proxy.attempts() - before, Instant::now() - began);
    put(&etcd, &["b"]).await;

    reader
        .until_within(SOON, "b is told", |reader| reader.ids() == ["a", "b"])
        .await;
    // Where a machine is busy, the same takes longer.
    let times = (took.as_secs_f64() / 3.0).max(1.0);
    assert!(
        (attempts as f64) < 100.0 * times,
        "{attempts} connections in {took:?}"
    );
}
