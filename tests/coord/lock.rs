//! What a lock holds.

use std::{collections::BTreeSet, time::Duration};

use etcd_client::{Compare, CompareOp, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use rand::RngExt;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    ErrorKind,
    coord::{Coordinator, Guard, Lock},
    etcd::{Etcd as Handle, Options},
};

use crate::{
    SOON, coordinator,
    etcd::Etcd,
    keys, leased, leases, once,
    proxy::{Mode, Proxy},
    until_keys,
};

/// What Go's `concurrency.Mutex` left in etcd.
#[derive(Deserialize)]
struct Go {
    key: String,
    value: String,
    lease_dec: i64,
}

const GO: &str = include_str!("../fixtures/etcd-mutex.json");

async fn soon<T>(waited: impl Future<Output = T>) -> T {
    timeout(SOON, waited).await.expect("it takes too long")
}

async fn held(lock: &Lock) -> Guard {
    soon(lock.acquire()).await.unwrap()
}

/// Asks for the lock in a task, and returns when it stands in line.
async fn standing(etcd: &Etcd, lock: Lock, place: usize) -> tokio::task::JoinHandle<Guard> {
    let name = lock.name().to_owned();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    until_keys(etcd, &name, place).await;
    waiting
}

#[tokio::test]
async fn a_key_stands_as_gos_mutex_writes_it() {
    let etcd = Etcd::start().await;
    let guard = held(&coordinator(&etcd).await.lock("locks/demo").unwrap()).await;

    let got = etcd.client().await.get(guard.key(), None).await.unwrap();

    let go: Go = serde_json::from_str(GO).unwrap();
    let kv = &got.kvs()[0];
    assert_eq!(go.key, format!("locks/demo/{:x}", go.lease_dec));
    assert_eq!(guard.key(), format!("locks/demo/{:x}", kv.lease()));
    assert_eq!((kv.value(), kv.version()), (&b""[..], 1));
    assert_eq!(guard.fence(), kv.create_revision());
}

#[tokio::test]
async fn one_who_came_by_gos_mutex_is_waited_for() {
    let etcd = Etcd::start().await;
    let go: Go = serde_json::from_str(GO).unwrap();
    let mut client = etcd.client().await;
    let same = LeaseGrantOptions::new().with_id(go.lease_dec);
    client.lease_grant(60, Some(same)).await.unwrap();
    let on_lease = PutOptions::new().with_lease(go.lease_dec);
    let put = client.put(&*go.key, go.value, Some(on_lease));
    put.await.unwrap();
    let (name, _) = go.key.rsplit_once('/').unwrap();
    let lock = coordinator(&etcd).await.lock(name).unwrap();

    assert!(lock.try_acquire().await.unwrap().is_none());
    let waiting = standing(&etcd, lock, 2).await;
    assert!(!waiting.is_finished());
    client.lease_revoke(go.lease_dec).await.unwrap();

    soon(waiting).await.unwrap().unlock().await.unwrap();
    assert_eq!(keys(&etcd, "locks/").await, [""; 0]);
}

#[tokio::test]
async fn a_lease_that_nobody_needs_any_more_is_given_back() {
    let etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await.ttl(Duration::from_secs(5));
    let lock = coordinator.lock("a").unwrap();
    let first = held(&lock).await;
    let second = standing(&etcd, lock, 2).await;
    assert_eq!(leases(&etcd).await, 2, "a name needs one for each");

    first.unlock().await.unwrap();
    soon(second).await.unwrap().unlock().await.unwrap();

    soon(async {
        while leases(&etcd).await != 1 {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    drop(coordinator);
}

#[tokio::test]
async fn who_comes_first_is_served_first_in_one_process_and_in_several() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let first = held(&one.lock("a").unwrap()).await;
    let mut waiting = Vec::new();
    for (at, who) in [&one, &other, &one, &other, &one].iter().enumerate() {
        waiting.push(standing(&etcd, who.lock("a").unwrap(), at + 2).await);
    }
    let order = keys(&etcd, "a/").await;

    let mut fence = first.fence();
    drop(first);
    for (at, next) in waiting.into_iter().enumerate() {
        let guard = soon(next).await.unwrap();

        assert_eq!(guard.key(), order[at + 1]);
        assert!(guard.fence() > fence);
        fence = guard.fence();
    }
}

#[tokio::test]
async fn locks_of_several_names_share_one_lease() {
    let etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await;

    let mut guards = Vec::new();
    for at in 0..20 {
        guards.push(held(&coordinator.lock(format!("locks/{at}")).unwrap()).await);
    }

    assert_eq!(leases(&etcd).await, 1);
}

#[tokio::test]
async fn a_try_neither_waits_nor_stands_in_line() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let (mine, theirs) = (one.lock("a").unwrap(), other.lock("a").unwrap());

    let guard = mine.try_acquire().await.unwrap().expect("nobody has it");
    assert!(theirs.try_acquire().await.unwrap().is_none());
    assert!(mine.try_acquire().await.unwrap().is_none());
    assert_eq!(keys(&etcd, "a/").await, [guard.key()]);
    guard.unlock().await.unwrap();

    assert!(theirs.try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn a_wait_ends_with_its_limit_and_leaves_nothing() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let guard = held(&one.lock("a").unwrap()).await;

    let limit = Duration::from_millis(100);
    let late = other.lock("a").unwrap().acquire_within(limit).await;

    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(until_keys(&etcd, "a/", 1).await, [guard.key()]);
}

#[tokio::test]
async fn cancelling_at_any_point_leaves_no_key_and_no_waiter() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let lock = one.lock("a").unwrap();
    let holder = held(&other.lock("a").unwrap()).await;

    for _ in 0..150 {
        let moment = Duration::from_micros(rand::rng().random_range(0..3_000));
        assert!(timeout(moment, lock.acquire()).await.is_err());
    }
    until_keys(&etcd, "a/", 1).await;
    drop(holder);
    for _ in 0..150 {
        let moment = Duration::from_micros(rand::rng().random_range(0..3_000));
        drop(timeout(moment, lock.acquire()).await);
    }

    until_keys(&etcd, "a/", 0).await;
    assert!(held(&other.lock("a").unwrap()).await.is_held());
}

#[tokio::test]
async fn a_key_that_is_written_after_it_was_given_up_is_deleted() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let quick = Options::default().write_limit(Duration::from_millis(300));
    let handle = Handle::open(&[proxy.address()], quick).unwrap();
    let coordinator = Coordinator::over(handle).retry(once());
    let other = held(&coordinator.lock("b").unwrap()).await;

    proxy.set(Mode::HoleToServer);
    let failed = coordinator.lock("a").unwrap().acquire().await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Timeout);
    proxy.set(Mode::Pass);
    // Whether and when what was given up arrives is the network's to say, so it is said here.
    let key = other.key().replace("b/", "a/");
    let on_lease = PutOptions::new().with_lease(lease_of(&other));
    let mut client = etcd.client().await;
    client.put(key, "", Some(on_lease)).await.unwrap();

    until_keys(&etcd, "a/", 0).await;
    assert!(other.is_held());
    assert!(held(&coordinator.lock("a").unwrap()).await.is_held());
}

fn lease_of(guard: &Guard) -> i64 {
    let (_, lease) = guard.key().rsplit_once('/').unwrap();
    i64::from_str_radix(lease, 16).unwrap()
}

#[tokio::test]
async fn a_lock_is_lost_in_time_by_our_own_clock_while_etcd_is_frozen() {
    let etcd = Etcd::start().await;
    let guard = held(&leased(&etcd, 4).await.lock("a").unwrap()).await;
    sleep(Duration::from_millis(1_400)).await;

    etcd.freeze();
    // No renewal can have been answered that was asked for later than this.
    let frozen = Instant::now();
    let ends = Instant::now() + guard.ttl();
    let why = soon(guard.run(std::future::pending::<()>())).await;
    println!("lost {:?} after etcd froze", Instant::now() - frozen);
    etcd.thaw();

    assert_eq!(why.unwrap_err().kind(), ErrorKind::Lost);
    assert!(
        ends <= frozen + Duration::from_secs(4),
        "{:?}",
        ends - frozen
    );
    assert!(!guard.is_held() && guard.ttl().is_zero());
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn nobody_has_the_lock_before_its_holder_knows_that_it_is_lost() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let url = format!("etcd://{}?ttl=4s", proxy.address());
    let cut = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let guard = held(&cut.lock("a").unwrap()).await;
    let lock = coordinator(&etcd).await.lock("a").unwrap();
    let next = standing(&etcd, lock, 2).await;

    proxy.set(Mode::Hole);
    let next = soon(next).await.unwrap();
    // Asked by the clock: who is told first, of two who sleep, is the machine's to say.
    let knew = !guard.is_held();

    assert!(knew && next.is_held());
    assert_eq!(soon(guard.lost()).await.kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_renewal_by_hand_begins_the_lease_anew() {
    let etcd = Etcd::start().await;
    let guard = held(&coordinator(&etcd).await.lock("a").unwrap()).await;
    let before = Instant::now() + guard.ttl();
    sleep(Duration::from_millis(300)).await;

    soon(guard.renew()).await.unwrap();

    let after = Instant::now() + guard.ttl();
    assert!(after > before, "{:?} earlier", before - after);
}

#[tokio::test]
async fn a_lock_whose_key_is_deleted_is_lost_and_writes_nothing() {
    let etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await;
    let guard = held(&coordinator.lock("a").unwrap()).await;
    let put = |value: &str| Txn::new().and_then([TxnOp::put("counter", value, None)]);
    guard.guarded(put("1")).await.unwrap();

    let work = guard.run(std::future::pending::<()>());
    let delete = etcd.delete(guard.key());
    let (why, ()) = soon(async { tokio::join!(work, delete) }).await;

    assert_eq!(why.unwrap_err().kind(), ErrorKind::Lost);
    assert!(!guard.is_held());
    let refused = guard.guarded(put("2")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
    let got = etcd.client().await.get("counter", None).await.unwrap();
    assert_eq!(got.kvs()[0].value(), b"1");
    // Another lock on the same lease is none the worse for it.
    assert!(held(&coordinator.lock("a").unwrap()).await.fence() > guard.fence());
}

#[tokio::test]
async fn a_guarded_transaction_answers_as_it_would_alone() {
    let etcd = Etcd::start().await;
    let guard = held(&coordinator(&etcd).await.lock("a").unwrap()).await;
    let absent = Compare::create_revision("counter", CompareOp::Equal, 0);
    let txn = Txn::new()
        .when([absent])
        .and_then([TxnOp::put("counter", "1", None)]);

    let first = guard.guarded(txn.clone()).await.unwrap();
    let second = guard.guarded(txn).await.unwrap();

    assert!(first.succeeded() && !second.succeeded());
}

#[tokio::test]
async fn closing_tells_holders_and_waiters_and_leaves_nothing_in_etcd() {
    let etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await;
    let guard = held(&coordinator.lock("a").unwrap()).await;
    let lock = coordinator.lock("a").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await });
    until_keys(&etcd, "a/", 2).await;

    soon(coordinator.clone().close()).await.unwrap();

    assert_eq!(guard.lost().await.kind(), ErrorKind::Config);
    assert!(!guard.is_held());
    let told = soon(waiting).await.unwrap().unwrap_err();
    assert!(told.to_string().contains("closed"), "{told}");
    assert_eq!(keys(&etcd, "").await, [""; 0]);
    assert_eq!(leases(&etcd).await, 0);
    assert!(coordinator.lock("a").unwrap().acquire().await.is_err());
}

#[tokio::test]
async fn an_acquire_outlasts_a_restart_of_etcd_and_a_lease_that_is_lost() {
    let mut etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let guard = held(&one.lock("a").unwrap()).await;
    let waiting = standing(&etcd, other.lock("a").unwrap(), 2).await;
    let lease = {
        let keys = keys(&etcd, "a/").await;
        i64::from_str_radix(keys[1].trim_start_matches("a/"), 16).unwrap()
    };

    etcd.restart().await;
    etcd.client().await.lease_revoke(lease).await.unwrap();
    until_keys(&etcd, "a/", 2).await;
    guard.unlock().await.unwrap();

    assert!(soon(waiting).await.unwrap().is_held());
}

#[tokio::test]
async fn what_is_no_name_is_refused() {
    let etcd = Handle::open(&["127.0.0.1:1"], Options::default()).unwrap();
    let coordinator = Coordinator::over(etcd);

    let why = ["", "a/"].map(|name| coordinator.lock(name).unwrap_err());

    let codes: BTreeSet<_> = why.iter().map(|why| why.kind().code()).collect();
    assert_eq!(codes, BTreeSet::from(["validation"]));
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_said_so_in_time() {
    let began = Instant::now();

    let why = Coordinator::connect("etcd://127.0.0.1:1".parse().unwrap())
        .await
        .unwrap_err();

    assert_eq!(why.kind(), ErrorKind::Connection, "{}", why.chain());
    assert!(why.is_transient());
    assert!(Instant::now() - began < SOON);
}

#[tokio::test]
async fn a_contended_lock_is_handed_over_at_once() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let mut guard = held(&one.lock("a").unwrap()).await;
    let mut took = Vec::new();

    for round in 0..60 {
        let next = if round % 2 == 0 { &other } else { &one };
        let lock = next.lock("a").unwrap();
        let waiting = tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            (Instant::now(), guard)
        });
        until_keys(&etcd, "a/", 2).await;
        let began = Instant::now();
        let (at, had) = {
            drop(guard);
            soon(waiting).await.unwrap()
        };
        took.push(at - began);
        guard = had;
    }

    took.sort();
    println!("median {:?}, last {:?}", took[30], took[59]);
    // Go takes 51 ms or more, each time; a machine that is busy is not busy each time.
    assert!(took[3] < Duration::from_millis(45), "{took:?}");
}

#[tokio::test]
#[ignore = "measures, on a quiet machine"]
async fn an_uncontended_lock_costs_no_more_than_its_two_transactions() {
    let etcd = Etcd::start().await;
    let lock = coordinator(&etcd).await.lock("a").unwrap();
    held(&lock).await.unlock().await.unwrap();
    let mut client = etcd.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let (mut ours, mut raw) = (Vec::new(), Vec::new());

    for _ in 0..1_000 {
        let began = Instant::now();
        lock.acquire().await.unwrap().unlock().await.unwrap();
        ours.push(Instant::now() - began);

        let began = Instant::now();
        let on_lease = PutOptions::new().with_lease(lease);
        let newest = etcd_client::GetOptions::new().with_prefix().with_limit(2);
        let take = Txn::new()
            .when([Compare::create_revision("b/1", CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put("b/1", "", Some(on_lease)),
                TxnOp::get("b/", Some(newest)),
            ]);
        let taken = client.txn(take).await.unwrap();
        let born = taken.header().unwrap().revision();
        let leave = Txn::new()
            .when([Compare::create_revision("b/1", CompareOp::Equal, born)])
            .and_then([TxnOp::delete("b/1", None)]);
        client.txn(leave).await.unwrap();
        raw.push(Instant::now() - began);
    }

    ours.sort();
    raw.sort();
    let ratio = ours[500].as_secs_f64() / raw[500].as_secs_f64();
    println!("lock {:?}, raw {:?}, ratio {ratio:.2}", ours[500], raw[500]);
    assert!(ratio <= 1.3, "{ratio}");
}

#[tokio::test]
async fn work_that_stood_still_past_the_lease_does_nothing_more() {
    let etcd = Etcd::start().await;
    let lock = coordinator(&etcd).await.ttl(Duration::from_secs(2));
    let guard = held(&lock.lock("locks/demo").unwrap()).await;
    let mut steps = 0;

    // It is woken again before anything else in its runtime is.
    let ran = guard.run(std::future::poll_fn(|cx| {
        steps += 1;
        if steps == 2 {
            return std::task::Poll::Ready(());
        }
        std::thread::sleep(Duration::from_millis(2_100));
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    }));

    assert_eq!(ran.await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(steps, 1);
}
