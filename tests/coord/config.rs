//! What configuration holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{RwLock, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic_fleet::{
    ErrorKind,
    coord::{Changed, Changes, Config, Coordinator, Entry},
};

use crate::{
    SOON, coordinator,
    etcd::{Cluster, Etcd},
    proxy::{Mode, Proxy},
};

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Limits {
    requests: u32,
}

fn limits(requests: u32) -> Limits {
    Limits { requests }
}

async fn config(etcd: &Etcd) -> Config {
    coordinator(etcd).await.config("config/shop").unwrap()
}

async fn next<T: serde::de::DeserializeOwned>(
    changes: &mut Changes<T>,
) -> tonic_fleet::Result<Changed<T>> {
    let next = timeout(SOON, changes.next()).await;
    next.expect("a change").expect("it goes on")
}

async fn value<T: serde::de::DeserializeOwned + std::fmt::Debug>(changes: &mut Changes<T>) -> T {
    match next(changes).await.unwrap() {
        Changed::Set(entry) => entry.value,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_value_is_set_and_read_and_deleted_as_json_with_a_version() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    assert_eq!(config.get::<Limits>("limits").await.unwrap(), None);

    let version = config.set("limits", &limits(7)).await.unwrap();

    let entry = config.get::<Limits>("limits").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.version), (limits(7), version));
    let mut client = etcd.client().await;
    let got = client.get("config/shop/limits", None).await.unwrap();
    assert_eq!(got.kvs()[0].value(), br#"{"requests":7}"#);
    assert_eq!(config.list::<Limits>().await.unwrap().len(), 1);
    assert!(config.delete("limits").await.unwrap());
    assert!(!config.delete("limits").await.unwrap());
}

#[tokio::test]
async fn a_value_that_cannot_be_read_is_an_error_with_its_key_and_ends_nothing() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    config.set("a", &limits(1)).await.unwrap();
    etcd.put("config/shop/b", "{").await;
    let mut changes = config.watch::<Limits>("b").unwrap();

    let got = config.get::<Limits>("b").await.unwrap_err();
    let listed = config.list::<Limits>().await.unwrap();
    let watched = next(&mut changes).await.unwrap_err();
    config.set("b", &limits(2)).await.unwrap();

    for error in [&got, listed[1].as_ref().unwrap_err(), &watched] {
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(error.to_string().contains("config/shop/b"), "{error}");
    }
    assert_eq!(listed[0].as_ref().unwrap().value, limits(1));
    assert_eq!(value(&mut changes).await, limits(2));
}

#[tokio::test]
async fn a_value_is_set_only_if_it_has_the_version_that_was_seen() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;

    let first = config.set_if("limits", &limits(1), 0).await.unwrap();
    let taken = config.set_if("limits", &limits(2), 0).await.unwrap_err();
    let second = config.set_if("limits", &limits(3), first).await.unwrap();

    assert_eq!(taken.kind(), ErrorKind::Conflict);
    assert!(second > first);
    let entry = config.get::<Limits>("limits").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.version), (limits(3), second));
}

#[tokio::test]
async fn updates_by_many_at_once_are_all_there() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;

    let mut all = Vec::new();
    for _ in 0..6 {
        let config = config.clone();
        all.push(tokio::spawn(async move {
            for _ in 0..15 {
                let more = |old: Option<u64>| old.unwrap_or_default() + 1;
                config.update("count", more).await.unwrap();
            }
        }));
    }
    for one in all {
        one.await.unwrap();
    }

    assert_eq!(config.get::<u64>("count").await.unwrap().unwrap().value, 90);
}

#[tokio::test]
async fn a_transaction_does_all_or_nothing() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    let many = (0..100).map(|at| (format!("many/{at:03}"), at));

    let version = config.transaction().set_all(many).commit().await.unwrap();
    let refused = config
        .transaction()
        .when("many/000", version + 1)
        .set("many/001", &0)
        .delete("many/002")
        .commit()
        .await;
    let moved = config.transaction().when("many/000", version);
    let moved = moved.set("moved", &0).delete("many/000").commit().await;

    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    let all = config.list::<u32>().await.unwrap();
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!((&*all[0].name, all[0].value), ("many/001", 1));
    assert_eq!((&*all[99].name, all[99].version), ("moved", moved.unwrap()));
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_before_anything_is() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    let begin = || config.transaction().set("a", &1);
    let no_json = BTreeMap::from([((1, 2), 3)]);

    for (wrong, why) in [
        (begin().set("", &1), "empty"),
        (begin().set("b", &no_json), "JSON"),
        (begin().set("a", &2), "duplicate"),
        (begin().set("b", &"x".repeat(2_000_000)), "too large"),
        (
            begin().set_all((0..200).map(|at| (at.to_string(), at))),
            "128",
        ),
    ] {
        let error = wrong.commit().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Validation, "{}", error.chain());
        assert!(error.chain().contains(why), "{}", error.chain());
    }
    assert!(config.list::<u32>().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_watch_tells_how_a_value_stands_and_then_each_change() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    let mut early = config.watch::<u32>("a").unwrap();
    assert!(matches!(next(&mut early).await, Ok(Changed::Gone { name, .. }) if name == "a"));

    for count in 0..50 {
        config.set("a", &count).await.unwrap();
        config.set("b", &"another").await.unwrap();
    }
    let mut late = config.watch::<u32>("a").unwrap();
    config.delete("a").await.unwrap();

    for count in 0..50 {
        assert_eq!(value(&mut early).await, count);
    }
    assert!(matches!(next(&mut early).await, Ok(Changed::Gone { .. })));
    while let Changed::Set(entry) = next(&mut late).await.unwrap() {
        assert_eq!(entry.value, 49);
    }
}

#[tokio::test]
async fn a_thousand_who_watch_share_one_watch() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    config.set("a", &1).await.unwrap();

    let mut all: Vec<_> = (0..1_000)
        .map(|_| config.watch::<u32>("a").unwrap())
        .collect();
    for changes in &mut all {
        assert_eq!(value(changes).await, 1);
    }
    config.set("a", &2).await.unwrap();
    for changes in &mut all {
        assert_eq!(value(changes).await, 2);
    }

    let watchers = async || etcd.metric("etcd_debugging_mvcc_watcher_total").await;
    let one = async { while watchers().await > 1.0 {} };
    timeout(SOON, one).await.expect("they share one watch");
}

#[tokio::test]
async fn a_bound_value_is_the_last_good_one() {
    let etcd = Etcd::start().await;
    let config = config(&etcd).await;
    let missing = config.bind::<Limits>("limits").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let mut bound = config.bind_or("limits", limits(1)).await.unwrap();
    assert_eq!((bound.load().requests, bound.version()), (1, 0));

    let version = config.set("limits", &limits(2)).await.unwrap();
    assert!(timeout(SOON, bound.changed()).await.unwrap());
    assert_eq!((bound.load().requests, bound.version()), (2, version));
    etcd.put("config/shop/limits", "[]").await;
    let said = async {
        while bound.error().is_none() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, said).await.unwrap();
    assert_eq!(bound.load().requests, 2);
    config.set("limits", &limits(3)).await.unwrap();
    assert!(timeout(SOON, bound.changed()).await.unwrap());

    assert_eq!(bound.load().requests, 3);
    assert!(bound.error().is_none());
}

/// Longer than anything takes where members are cut off and leaders elected.
const LATE: Duration = Duration::from_secs(60);

/// Names and versions, in order.
type Versions = Vec<(String, i64)>;

/// What one who watches everything was told: each change, and where not each was told.
#[derive(Debug, Default)]
struct Told {
    changes: Versions,
    skipped: Vec<RangeInclusive<i64>>,
}

/// One who watches everything, and up to which version it has heard.
struct Watcher {
    told: JoinHandle<Told>,
    heard: watch::Receiver<i64>,
}

impl Watcher {
    /// Watches until something called `last` is told.
    fn of(mut changes: Changes<usize>) -> Self {
        let (tell, heard) = watch::channel(0);
        let told = tokio::spawn(async move {
            let mut told = Told::default();
            while told.changes.last().is_none_or(|(name, _)| name != "last") {
                match changes.next().await.expect("it goes on").unwrap() {
                    Changed::Set(Entry { name, version, .. }) | Changed::Gone { name, version } => {
                        told.changes.push((name, version));
                        tell.send_replace(version);
                    }
                    Changed::Skipped { from, until } => told.skipped.push(from..=until),
                    _ => unreachable!("there are no others"),
                }
            }
            told
        });
        Self { told, heard }
    }

    /// Returns when it has heard what was written then.
    async fn has_heard(&mut self, version: i64) {
        let heard = self.heard.wait_for(|heard| *heard >= version);
        timeout(LATE, heard).await.unwrap().unwrap();
    }

    async fn told(self) -> Told {
        timeout(LATE, self.told).await.expect("the last").unwrap()
    }
}

/// Several write while the way to etcd is cut, and it is restarted and compacted; one watches.
async fn watched_under_faults(writes: usize) {
    let mut etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let url = format!("etcd://{}", proxy.address());
    let far = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let mut watcher = Watcher::of(far.config("config/shop").unwrap().watch_all());
    let first = config(&etcd).await.set("first", &0).await.unwrap();
    watcher.has_heard(first).await;

    let (done, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(RwLock::new(())));
    let writing = write(&etcd, writes, &done, &gate).await;
    let mut holes = Vec::new();
    for round in 0.. {
        if done.load(SeqCst) == writing.len() && round > 4 {
            break;
        }
        match round % 5 {
            0 => proxy.set(Mode::Reset),
            1 => etcd.restart().await,
            // As etcd is compacted as a rule: what was not heard yet is kept.
            2 => {
                let stands = config(&etcd).await.set("mark", &round).await.unwrap();
                watcher.has_heard(stands).await;
                proxy.set(Mode::Refuse);
                sleep(Duration::from_millis(100)).await;
                etcd.client().await.compact(stands, None).await.unwrap();
            }
            3 => proxy.set(Mode::Hole),
            // What is compacted before it is heard is gone, and that is told; nothing else is, whatever came before.
            _ if holes.is_empty() => {
                let stands = revision(&etcd).await;
                watcher.has_heard(stands).await;
                proxy.set(Mode::Refuse);
                sleep(Duration::from_millis(100)).await;
                let _nobody_writes = gate.write().await;
                let until = config(&etcd).await.set("mark", &round).await.unwrap();
                etcd.client().await.compact(until, None).await.unwrap();
                holes.push(stands..=until);
                proxy.set(Mode::Pass);
                watcher.has_heard(until).await;
            }
            _ => {}
        }
        sleep(Duration::from_millis(150)).await;
        proxy.set(Mode::Pass);
        sleep(Duration::from_millis(300)).await;
    }
    let mut written = Vec::new();
    for one in writing {
        written.extend(one.await.unwrap());
    }

    let stands = config(&etcd).await;
    stands.set("last", &0).await.unwrap();
    check_told(watcher.told().await, &written, &holes, stands).await;
}

/// Whether all that was written was told, once and in order, or said not to be; which only what was compacted
/// may.
async fn check_told(told: Told, written: &Versions, holes: &[RangeInclusive<i64>], stands: Config) {
    let Told { changes, skipped } = told;
    let versions: BTreeSet<_> = changes.iter().map(|(_, version)| version).collect();
    assert_eq!(versions.len(), changes.len(), "nothing is told twice");
    assert!(changes.is_sorted_by_key(|(_, version)| *version));
    let missed = written.iter().filter(|(_, at)| !versions.contains(at));
    let missed: Vec<_> = missed.map(|(_, at)| at).collect();
    for at in &missed {
        let said = skipped.iter().any(|skipped| skipped.contains(at));
        assert!(
            said,
            "{at} is not told: {} are not, {skipped:?}",
            missed.len()
        );
    }
    for range in &skipped {
        let compacted =
            |hole: &RangeInclusive<i64>| hole.contains(range.start()) && hole.end() <= range.end();
        assert!(holes.iter().any(compacted), "{range:?} is not of {holes:?}");
    }
    assert_eq!(skipped.len(), holes.len());
    let last: BTreeMap<_, _> = changes.iter().map(|(name, at)| (name, at)).collect();
    for entry in stands.list::<usize>().await.unwrap() {
        let entry = entry.unwrap();
        assert_eq!(last[&entry.name], &entry.version, "{}", entry.name);
    }
    println!(
        "{} written, {} told, {} compacted, which was said: {skipped:?}",
        written.len(),
        changes.len(),
        missed.len(),
    );
}

async fn revision(etcd: &Etcd) -> i64 {
    let got = etcd.client().await.get("revision", None).await.unwrap();
    got.header().unwrap().revision()
}

/// Four who write while the gate is open, and what etcd said that it wrote.
async fn write(
    etcd: &Etcd,
    writes: usize,
    done: &Arc<AtomicUsize>,
    gate: &Arc<RwLock<()>>,
) -> Vec<JoinHandle<Versions>> {
    let mut all = Vec::new();
    for writer in 0..4 {
        let (config, done, gate) = (config(etcd).await, Arc::clone(done), Arc::clone(gate));
        all.push(tokio::spawn(async move {
            let mut written = Vec::new();
            for at in 0..writes / 4 {
                let name = format!("{}", (writer + at) % 7);
                let _open = gate.read().await;
                // One that nobody knows of may have been written.
                if let Ok(version) = config.set(&name, &at).await {
                    written.push((name, version));
                }
                sleep(Duration::from_micros(500)).await;
            }
            done.fetch_add(1, SeqCst);
            written
        }));
    }
    all
}

#[tokio::test]
async fn no_change_is_missed_or_told_twice_through_cuts_compaction_and_restarts() {
    watched_under_faults(2_000).await;
}

#[tokio::test]
#[ignore = "takes a while"]
async fn of_ten_thousand_changes_none_is_missed_or_told_twice() {
    watched_under_faults(10_000).await;
}

/// A watch that is cut off goes on at a member that has yet to hear what the watch knows.
#[tokio::test]
async fn a_member_that_is_behind_costs_no_change() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let (lagging, other) = (&cluster.0[(leader + 1) % 3], &cluster.0[(leader + 2) % 3]);
    let near = Proxy::before(&other.address()).await;
    let far = Proxy::before(&lagging.address()).await;
    far.set(Mode::Refuse);
    let url = format!("etcd://{},{}", near.address(), far.address());
    let coordinator = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let config = coordinator.config("config/shop").unwrap();
    let mut watcher = Watcher::of(config.watch_all());
    let url = cluster.0[leader].url();
    let writer = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let writer = writer.config("config/shop").unwrap();

    let mut written = Vec::new();
    for round in 0..2 {
        lagging.freeze();
        // As much as takes it a while to hear.
        let mut client = cluster.0[leader].client().await;
        for at in 0..16 {
            let (name, ballast) = (format!("ballast/{at}"), vec![0; 1 << 20]);
            while client.put(&*name, &*ballast, None).await.is_err() {}
        }
        written.push(until_done(|| writer.set("a", &round)).await);
        watcher.has_heard(written[written.len() - 1]).await;
        near.set(Mode::Refuse);
        for at in 0..10 {
            written.push(until_done(|| writer.set(["a", "b"][at % 2], &at)).await);
        }
        let attempts = far.attempts();
        far.set(Mode::Pass);
        let asked = async {
            while far.attempts() == attempts {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, asked).await.unwrap();
        lagging.thaw();

        watcher.has_heard(written[written.len() - 1]).await;
        near.set(Mode::Pass);
        far.set(Mode::Refuse);
    }
    written.push(until_done(|| writer.set("last", &0)).await);

    let Told { changes, skipped } = watcher.told().await;
    let versions: BTreeSet<_> = changes.iter().map(|(_, version)| *version).collect();
    let missed: Vec<_> = written.iter().filter(|at| !versions.contains(at)).collect();
    assert!(missed.is_empty(), "{missed:?} of {written:?}, {skipped:?}");
    assert!(skipped.is_empty(), "{skipped:?}");
    assert_eq!(versions.len(), changes.len(), "nothing is told twice");
}

/// Tries until it is done: a cluster in which one stands still may elect another leader.
async fn until_done<T, E, F: Future<Output = Result<T, E>>>(mut done: impl FnMut() -> F) -> T {
    let trying = async {
        loop {
            if let Ok(done) = done().await {
                return done;
            }
        }
    };
    timeout(LATE, trying).await.expect("it is done at last")
}
