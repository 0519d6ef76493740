//! What synchronised entities hold.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Txn, TxnOp};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    ErrorKind,
    coord::{Changed, Config, Coordinator, OnConflict, Sync},
};

use crate::{
    SOON, coordinator,
    etcd::Etcd,
    proxy::{Mode, Proxy},
};

async fn numbers(etcd: &Etcd) -> Sync<u64> {
    coordinator(etcd).await.sync("numbers").await.unwrap()
}

fn has(sync: &Sync<u64>, id: &str, value: u64) -> bool {
    sync.get(id).is_some_and(|entry| entry.value == value)
}

/// Waits until something is as it should be.
async fn until(what: &str, is: impl Fn() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(Instant::now() - since < 2 * SOON, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_one_node_writes_every_node_reads() {
    let etcd = Etcd::start().await;
    let (one, other) = (numbers(&etcd).await, numbers(&etcd).await);
    let mut changes = other.changes();

    let version = one.put("a", &1).await.unwrap();
    until("a is there", || other.get("a").is_some()).await;
    let before = other.snapshot();
    one.delete("a").await.unwrap();
    until("a is gone", || other.get("a").is_none()).await;

    let then = before.get("a").unwrap();
    assert_eq!((then.value, then.version), (1, version));
    assert!(other.snapshot().is_empty() && before.len() == 1);
    let told = timeout(SOON, changes.next()).await.unwrap();
    assert!(matches!(told, Some(Ok(Changed::Set(entry))) if entry.value == 1));
    let told = timeout(SOON, changes.next()).await.unwrap();
    assert!(matches!(told, Some(Ok(Changed::Gone { name, .. })) if name == "a"));
}

#[tokio::test]
async fn a_mirror_is_whole_from_the_start_and_passes_over_what_it_cannot_read() {
    let etcd = Etcd::start().await;
    let writer = numbers(&etcd).await;
    writer.put("a", &1).await.unwrap();
    etcd.put("numbers/b", "no number").await;

    let reader = numbers(&etcd).await;
    assert_eq!((reader.iter().count(), reader.unreadable()), (1, 1));
    writer.put("b", &2).await.unwrap();
    until("b can be read", || reader.get("b").is_some()).await;

    assert_eq!(reader.unreadable(), 0);
}

#[tokio::test]
async fn a_writer_that_was_overtaken_is_refused_where_that_is_asked_for() {
    let etcd = Etcd::start().await;
    let (one, other) = (numbers(&etcd).await, numbers(&etcd).await);
    let careful = one.on_conflict(OnConflict::Refuse);
    let version = careful.put("a", &1).await.unwrap();

    other.put("a", &2).await.unwrap();
    let refused = one.put_if("a", &3, version).await.unwrap_err();
    until("it is seen", || has(&one, "a", 2)).await;
    careful.put("a", &4).await.unwrap();

    assert_eq!(refused.kind(), ErrorKind::Conflict);
    until("it is written", || has(&other, "a", 4)).await;
    assert!(careful.delete("b").await.is_ok_and(|was| !was));
}

#[tokio::test]
async fn a_batch_is_written_in_whole_chunks_and_says_which() {
    let etcd = Etcd::start().await;
    let sync = numbers(&etcd).await;
    let mut batch = sync.batch();
    for at in 0..1_000 {
        batch = batch.put(format!("{at:04}"), &at);
    }

    let chunks = batch.commit().await;
    until("all are there", || sync.snapshot().len() == 1_000).await;
    let sizes: Vec<_> = chunks.iter().map(|chunk| chunk.ids.len()).collect();
    assert_eq!(sizes, [128, 128, 128, 128, 128, 128, 128, 104]);
    assert!(chunks.iter().all(|chunk| chunk.outcome.is_ok()));
    let refused = sync.batch().put("", &1).put("x", &1).commit().await;
    assert_eq!(
        refused[0].outcome.as_ref().unwrap_err().kind(),
        ErrorKind::Validation
    );
}

#[tokio::test]
async fn a_batch_is_refused_where_another_wrote_since_it_was_made() {
    let etcd = Etcd::start().await;
    let (sync, another) = (numbers(&etcd).await, numbers(&etcd).await);
    let careful = sync.on_conflict(OnConflict::Refuse);
    sync.put("a", &1).await.unwrap();
    until("a is there", || sync.get("a").is_some()).await;
    let batch = || careful.batch().put("a", &2).delete("b");

    let late = batch();
    another.put("a", &7).await.unwrap();
    until("it is seen", || has(&sync, "a", 7)).await;
    let late = late.commit().await;
    let anew = batch().commit().await;

    let refused = late[0].outcome.as_ref().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(late[0].ids, ["a", "b"]);
    assert!(anew[0].outcome.is_ok());
    until("it is written", || has(&another, "a", 2)).await;
}

#[tokio::test]
#[ignore = "measures, on a quiet machine"]
async fn a_batch_of_a_thousand_costs_no_more_than_ten_transactions() {
    let etcd = Etcd::start().await;
    let sync = numbers(&etcd).await;
    let mut client = etcd.client().await;
    let (mut batches, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let mut batch = sync.batch();
        for at in 0..1_000 {
            batch = batch.put(format!("{at:04}"), &at);
        }
        let began = Instant::now();
        assert_eq!(batch.commit().await.len(), 8);
        batches.push(Instant::now() - began);

        let puts: Vec<_> = (0..128)
            .map(|at| TxnOp::put(format!("raw/{at:04}"), "1", None))
            .collect();
        let began = Instant::now();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
        raw.push(Instant::now() - began);
    }
    batches.sort();
    raw.sort();

    println!("batch {:?}, transaction {:?}", batches[15], raw[15]);
    assert!(batches[15] <= raw[15] * 10);
}

/// Several nodes write and read many entities while etcd is cut off and restarted.
async fn mirrored_under_faults(nodes: usize, entities: u64, faults: Duration) {
    let mut etcd = Etcd::start().await;
    let (mut proxies, mut all) = (Vec::new(), Vec::new());
    for _ in 0..nodes {
        let proxy = Proxy::before(&etcd.address()).await;
        let url = format!("etcd://{}", proxy.address());
        let node = Coordinator::connect(url.parse().unwrap()).await.unwrap();
        all.push(node.sync::<u64>("numbers").await.unwrap());
        proxies.push(proxy);
    }
    let mut batch = all[0].batch();
    for at in 0..entities {
        batch = batch.put(at.to_string(), &at);
    }
    assert!(
        batch
            .commit()
            .await
            .iter()
            .all(|chunk| chunk.outcome.is_ok())
    );

    let until_then = Instant::now() + faults;
    let writers = all.iter().cloned().map(|sync| {
        tokio::spawn(async move {
            while Instant::now() < until_then {
                let id = rand::random_range(0..entities + 10).to_string();
                // What fails may have been written, or not.
                if rand::random_range(0..10) == 0 {
                    drop(sync.delete(id).await);
                } else {
                    drop(sync.put(id, &rand::random()).await);
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut round = 0;
    while Instant::now() < until_then {
        let proxy = &proxies[round % nodes];
        match round % 4 {
            0 => proxy.set(Mode::Hole),
            1 => proxy.set(Mode::Reset),
            2 => etcd.restart().await,
            _ => proxy.set(Mode::Refuse),
        }
        sleep(Duration::from_millis(400)).await;
        proxy.set(Mode::Pass);
        sleep(Duration::from_millis(200)).await;
        round += 1;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    check_equal(&etcd, &all).await;
}

async fn check_equal(etcd: &Etcd, all: &[Sync<u64>]) {
    let config: Config = coordinator(etcd).await.config("numbers").unwrap();
    config.set("last", &1_u64).await.unwrap();
    let stands = config
        .list::<u64>()
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap);
    let stands: BTreeMap<_, _> = stands.map(|e| (e.name, (e.value, e.version))).collect();
    for (node, sync) in all.iter().enumerate() {
        until("the last is there", || sync.get("last").is_some()).await;
        let has = sync.iter().map(|e| (e.name.clone(), (e.value, e.version)));
        assert_eq!(has.collect::<BTreeMap<_, _>>(), stands, "node {node}");
        timeout(SOON, sync.resync()).await.unwrap().unwrap();
        assert!(sync.compared() > 0);
        assert_eq!(sync.repaired(), 0, "node {node}");
    }
    println!("{} entities on each of {} nodes", stands.len(), all.len());
}

#[tokio::test]
async fn every_node_equals_etcd_after_faults_and_nothing_was_to_be_repaired() {
    mirrored_under_faults(3, 1_000, Duration::from_secs(5)).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn ten_thousand_entities_on_five_nodes_equal_etcd_after_a_minute_of_faults() {
    mirrored_under_faults(5, 10_000, Duration::from_secs(60)).await;
}
