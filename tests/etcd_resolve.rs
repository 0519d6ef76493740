//! What readers of a service see while real etcd servers die, freeze, forget and come back.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reader.rs"]
mod reader;

use std::time::Duration;

use etcd::{Cluster, Etcd};
use etcd_client::{CompactionOptions, PutOptions, Txn, TxnOp};
use proxy::{Mode, Proxy};
use reader::Reader;
use tokio::time::{Instant, sleep};
use tonic_fleet::{
    etcd::{Etcd as Handle, Options, Registry},
    resolve::Resolve,
};

/// How soon a reader must be back after the registry is.
const SOON: Duration = Duration::from_secs(8);
/// Longer than the relist that follows a cut.
const SETTLED: Duration = Duration::from_millis(700);

fn key(id: &str) -> String {
    format!("/services/greeter/{id}")
}

fn value(id: &str, port: u16, serving: bool) -> String {
    format!(r#"{{"id":"{id}","addresses":["10.0.0.5:{port}"],"serving":{serving}}}"#)
}

fn server(id: &str) -> (String, String) {
    (key(id), value(id, 1, true))
}

async fn put(etcd: &Etcd, ids: &[&str]) {
    for id in ids {
        etcd.put(&key(id), value(id, 1, true)).await;
    }
}

/// A registry on these members, with a short grace, and nothing shared with other tests.
fn registry<M: AsRef<str>>(members: &[M]) -> Registry {
    let handle = Handle::open(members, Options::default()).unwrap();
    Registry::over(handle).grace(Duration::from_millis(300))
}

fn read(registry: &Registry) -> Reader {
    Reader::of(registry.resolve(&"greeter".parse().unwrap()))
}

async fn knows(reader: &mut Reader, ids: &[&str]) {
    let what = format!("{ids:?} known, none suspected");
    reader
        .until(&what, |reader| {
            reader.ids() == ids && reader.suspects.is_empty()
        })
        .await;
}

#[tokio::test]
async fn each_change_is_told_within_milliseconds() {
    let etcd = Etcd::start().await;
    put(&etcd, &["a"]).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a"]).await;

    let mut client = etcd.client().await;
    let mut times = Vec::new();
    for port in 1..=200u16 {
        let put = client.put(key("b"), value("b", port, true), None);
        let began = Instant::now();
        put.await.unwrap();
        let at = format!("10.0.0.5:{port}");
        let moved = |reader: &Reader| {
            reader
                .known
                .get("b")
                .is_some_and(|b| b.addresses[0].to_string() == at)
        };
        reader.until("b has moved", moved).await;
        times.push(Instant::now() - began);
    }

    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("put to update: median {median:?}, worst {worst:?}");
    assert!(median < Duration::from_millis(5), "{median:?}");
}

#[tokio::test]
async fn a_leaving_is_announced_and_a_vanishing_is_confirmed() {
    let etcd = Etcd::start().await;
    put(&etcd, &["a", "b", "c"]).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a", "b", "c"]).await;
    reader.told();

    etcd.put(&key("a"), value("a", 1, false)).await;
    etcd.delete(&key("a")).await;
    reader
        .until("a has left", |reader| !reader.known.contains_key("a"))
        .await;
    assert!(!reader.told().contains(&"?a".into()), "it said goodbye");

    etcd.delete(&key("b")).await;
    reader
        .until("b is suspected", |reader| reader.suspects.contains("b"))
        .await;
    let began = Instant::now();
    knows(&mut reader, &["c"]).await;
    assert!(
        Instant::now() - began > Duration::from_secs(1),
        "two lists, a moment apart"
    );
}

#[tokio::test]
async fn many_readers_share_one_watch_which_ends_with_the_last() {
    let etcd = Etcd::start().await;
    put(&etcd, &["a"]).await;
    let url = etcd.url().parse().unwrap();
    let first = Registry::open(&url).unwrap();
    let mut one = read(&first);
    knows(&mut one, &["a"]).await;
    drop(first);

    let mut two = read(&Registry::open(&url).unwrap());
    knows(&mut two, &["a"]).await;

    put(&etcd, &["b"]).await;
    knows(&mut one, &["a", "b"]).await;
    knows(&mut two, &["a", "b"]).await;

    let watchers = "etcd_debugging_mvcc_watcher_total";
    assert_eq!(etcd.metric(watchers).await, 1.0);
    drop(one);
    put(&etcd, &["c"]).await;
    knows(&mut two, &["a", "b", "c"]).await;
    drop(two);
    let until = Instant::now() + SOON;
    while etcd.metric(watchers).await > 0.0 {
        assert!(Instant::now() < until, "the watch outlives its readers");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn killed_and_restarted_it_loses_and_doubles_nothing() {
    let mut etcd = Etcd::start().await;
    put(&etcd, &["a", "b"]).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a", "b"]).await;
    reader.told();

    etcd.kill();
    reader
        .until("the outage is told", |reader| reader.stale.is_some())
        .await;
    assert_eq!(reader.ids(), ["a", "b"]);
    etcd.restart().await;
    reader
        .until_within(SOON, "it is back", |reader| reader.stale.is_none())
        .await;
    put(&etcd, &["c"]).await;
    knows(&mut reader, &["a", "b", "c"]).await;
    reader.during(SETTLED).await;

    assert_eq!(reader.told(), ["stale", "fresh", "+c"]);
}

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
async fn a_frozen_server_is_noticed_and_its_thaw_too() {
    let etcd = Etcd::start().await;
    put(&etcd, &["a"]).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a"]).await;

    etcd.freeze();
    let began = Instant::now();
    reader
        .until("the silence is noticed", |reader| reader.stale.is_some())
        .await;
    let noticed = Instant::now() - began;
    etcd.thaw();
    reader
        .until_within(SOON, "it is back", |reader| reader.stale.is_none())
        .await;

    println!("silence noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(5), "{noticed:?}");
    assert_eq!(reader.ids(), ["a"]);
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
async fn when_a_thawed_server_deletes_everybody_all_are_suspects_and_none_is_lost() {
    let etcd = Etcd::start().await;
    for id in ["a", "b", "c"] {
        etcd.put_leased(&key(id), value(id, 1, true), 2).await;
    }
    let grace = Duration::from_secs(5);
    let mut reader = read(&registry(&[etcd.address()]).grace(grace));
    knows(&mut reader, &["a", "b", "c"]).await;
    reader.told();

    etcd.freeze();
    sleep(Duration::from_secs(4)).await;
    etcd.thaw();
    reader
        .until("all are suspected", |reader| reader.suspects.len() == 3)
        .await;
    assert_eq!(reader.ids(), ["a", "b", "c"]);
    put(&etcd, &["a", "b", "c"]).await;
    knows(&mut reader, &["a", "b", "c"]).await;
    reader.during(grace + Duration::from_secs(2)).await;

    assert!(
        !reader.told().iter().any(|word| word.starts_with('-')),
        "nobody was given up"
    );
}

#[tokio::test]
async fn one_dead_or_frozen_member_of_three_costs_nothing_but_the_first_turn() {
    for freeze in [false, true] {
        let mut cluster = Cluster::start().await;
        put(&cluster.0[0], &["a"]).await;
        let leader = cluster.leader().await;
        let victim = (leader + 1) % 3;
        if freeze {
            cluster.0[victim].freeze()
        } else {
            cluster.0[victim].kill()
        }

        for _ in 0..6 {
            let began = Instant::now();
            let mut reader = read(&registry(&cluster.addresses()));
            reader
                .until_within(SOON, "a is told", |reader| reader.ids() == ["a"])
                .await;
            assert!(Instant::now() - began < Duration::from_secs(3));
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
    let mut client = cluster.0[(lagging + 1) % 3].client().await;
    // It does not hear of anything from here on.
    cluster.0[lagging].freeze();
    for id in ["a", "b"] {
        client.put(key(id), value(id, 1, true), None).await.unwrap();
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

#[tokio::test]
async fn a_cluster_that_lost_its_data_is_believed_after_the_grace() {
    let mut etcd = Etcd::start().await;
    put(&etcd, &["a", "b", "c", "d"]).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a", "b", "c", "d"]).await;

    etcd.wipe();
    etcd.restart().await;
    put(&etcd, &["b", "x"]).await;

    knows(&mut reader, &["b", "x"]).await;
    put(&etcd, &["y"]).await;
    knows(&mut reader, &["b", "x", "y"]).await;
}

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
async fn thousands_appear_at_once_and_one_more_is_one_change() {
    const MANY: usize = 12_000;
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let fill = async |client: &mut etcd_client::Client, port: u16| {
        for chunk in (0..MANY).collect::<Vec<_>>().chunks(100) {
            let put = |at: &usize| {
                let id = format!("i{at:05}");
                TxnOp::put(key(&id), value(&id, port, true), None)
            };
            let puts: Vec<_> = chunk.iter().map(put).collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
    };
    fill(&mut client, 1).await;

    let began = Instant::now();
    let mut reader = read(&registry(&[etcd.address()]));
    reader
        .until("all are known", |reader| reader.known.len() == MANY)
        .await;
    println!("{MANY} listed in {:?}", Instant::now() - began);
    assert_eq!(reader.told(), [format!("reset {MANY}")]);

    // All of them change, while nobody reads: what waits is state, not history.
    fill(&mut client, 2).await;
    fill(&mut client, 3).await;
    let moved = |reader: &Reader| {
        reader
            .known
            .values()
            .all(|one| one.addresses[0].to_string() == "10.0.0.5:3")
    };
    reader.until("all have moved", moved).await;
    assert!(reader.told().len() <= 2 * MANY + 1_000);

    put(&etcd, &["one"]).await;
    reader
        .until("one more", |reader| reader.known.contains_key("one"))
        .await;
    assert_eq!(reader.told(), ["+one"]);
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
        let began = Instant::now();
        reader
            .until("the cut is noticed", |reader| reader.stale.is_some())
            .await;
        assert!(Instant::now() - began < Duration::from_secs(5), "{hole:?}");
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

    let before = proxy.attempts();
    for _ in 0..30 {
        proxy.set(Mode::Reset);
        reader.during(Duration::from_millis(20)).await;
        proxy.set(Mode::Pass);
        reader.during(Duration::from_millis(80)).await;
    }
    let attempts = proxy.attempts() - before;
    put(&etcd, &["b"]).await;

    reader
        .until_within(SOON, "b is told", |reader| reader.ids() == ["a", "b"])
        .await;
    assert!(attempts < 100, "{attempts} connections in 3 s");
}

#[tokio::test]
async fn a_key_deleted_by_hand_is_suspected_at_once_and_forgiven_when_it_is_back() {
    let etcd = Etcd::start().await;
    let lease = etcd.put_leased(&key("a"), value("a", 1, true), 60).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a"]).await;
    reader.told();

    let began = Instant::now();
    etcd.client().await.lease_revoke(lease).await.unwrap();
    reader
        .until("a is suspected", |reader| reader.suspects.contains("a"))
        .await;
    assert!(Instant::now() - began < Duration::from_millis(500));
    put(&etcd, &["a"]).await;
    knows(&mut reader, &["a"]).await;
    reader.during(Duration::from_secs(2)).await;

    assert_eq!(reader.told(), ["?a", "+a"]);
}

#[tokio::test]
async fn who_takes_over_a_key_keeps_it_when_the_old_lease_ends() {
    let etcd = Etcd::start().await;
    let lease = etcd.put_leased(&key("a"), value("a", 1, true), 60).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a"]).await;
    reader.told();

    etcd.put_leased(&key("a"), value("a", 2, true), 60).await;
    etcd.client().await.lease_revoke(lease).await.unwrap();
    put(&etcd, &["b"]).await;
    knows(&mut reader, &["a", "b"]).await;

    assert_eq!(reader.told(), ["+a", "+b"]);
}

#[tokio::test]
async fn a_registry_that_is_not_there_yet_is_waited_for_and_said_so() {
    let mut etcd = Etcd::prepared(&[]);
    let began = Instant::now();
    let mut reader = read(&registry(&[etcd.address()]));

    reader
        .until("the outage is told", |reader| reader.stale.is_some())
        .await;
    assert!(Instant::now() - began < Duration::from_secs(1));
    assert!(
        !reader.begun,
        "nothing is known, which is not the same as nobody"
    );
    assert!(
        reader.stale.as_ref().unwrap().contains("refused"),
        "{:?}",
        reader.stale
    );
    etcd.restart().await;
    put(&etcd, &["a"]).await;

    reader
        .until_within(SOON, "a is told", |reader| reader.ids() == ["a"])
        .await;
}

#[tokio::test]
async fn a_bad_record_is_shown_and_harms_nobody() {
    let etcd = Etcd::start().await;
    put(&etcd, &["a"]).await;
    let bad: [(&str, Vec<u8>); 4] = [
        ("json", b"{".to_vec()),
        ("bytes", vec![0xff, 0xfe]),
        ("huge", vec![b'x'; 1 << 20]),
        ("nowhere", value("nowhere", 0, true).into_bytes()),
    ];
    for (id, value) in bad {
        etcd.put(&key(id), value).await;
    }
    etcd.put("/services/greeter-v2/x", "{").await;
    etcd.put("/services/greeter/v2/x", "{").await;
    let mut reader = read(&registry(&[etcd.address()]));

    reader
        .until("four are passed over", |reader| reader.skipped.len() == 4)
        .await;
    assert_eq!(reader.ids(), ["a"]);
    assert!(reader.skipped.contains(&key("nowhere")));
    let (key, good) = server("json");
    etcd.put(&key, good).await;

    reader
        .until("one is put right", |reader| reader.skipped.len() == 3)
        .await;
    knows(&mut reader, &["a", "json"]).await;
}

#[tokio::test]
async fn many_clients_come_back_without_a_stampede() {
    const CLIENTS: usize = 60;
    let mut etcd = Etcd::start().await;
    let ids: Vec<_> = (0..200).map(|at| format!("i{at}")).collect();
    put(&etcd, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut readers: Vec<_> = (0..CLIENTS)
        .map(|_| read(&registry(&[etcd.address()])))
        .collect();
    for reader in &mut readers {
        reader
            .until("all are known", |reader| reader.known.len() == ids.len())
            .await;
    }

    etcd.kill();
    for reader in &mut readers {
        reader
            .until("the outage is told", |reader| reader.stale.is_some())
            .await;
    }
    etcd.restart().await;
    let began = Instant::now();
    put(&etcd, &["late"]).await;
    for reader in &mut readers {
        reader
            .until("the late one is told", |reader| {
                reader.known.contains_key("late")
            })
            .await;
    }

    println!("{CLIENTS} clients back in {:?}", Instant::now() - began);
    assert!(Instant::now() - began < SOON);
    assert!(readers.iter().all(|reader| reader.suspects.is_empty()));
}

#[tokio::test]
async fn a_put_without_its_lease_is_still_the_same_instance() {
    let etcd = Etcd::start().await;
    etcd.put_leased(&key("a"), value("a", 1, true), 60).await;
    let mut reader = read(&registry(&[etcd.address()]));
    knows(&mut reader, &["a"]).await;
    reader.told();

    let mut client = etcd.client().await;
    client
        .put(key("a"), value("a", 1, true), Some(PutOptions::new()))
        .await
        .unwrap();
    put(&etcd, &["b"]).await;
    knows(&mut reader, &["a", "b"]).await;

    assert_eq!(reader.told(), ["+b"], "the same again is no news");
}
