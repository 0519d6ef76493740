//! Health and a real etcd: what a registration that is tied to it writes, and who is asked when etcd restarts.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/clinic.rs"]
mod clinic;
#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/keys.rs"]
mod keys;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use clinic::{Clinic, becomes};
use etcd::Etcd;
use futures_util::StreamExt;
use keys::{Events, SOON, until};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    Channel, Event, Instance, Registrar, Registration,
    health::{self, Checks, Grpc},
    register::State,
};

/// A registration that is well when that is said here.
async fn register(url: &str) -> (Registration, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&well);
    let checks = Checks::new(health::ask(move || {
        let well = says.load(SeqCst);
        async move { if well { Ok(()) } else { Err("stuck") } }
    }));
    let checks = checks.every(Duration::from_millis(20)).rise(1).fall(1);
    let registrar = Registrar::new(url.parse().unwrap()).unwrap();
    let registrar = registrar.check(false).health(checks);
    let a = Instance::at("10.0.0.1:1").and_then(|i| i.id("a")).unwrap();
    let registration = registrar.register("greeter", a).await.unwrap();
    (registration, well)
}

#[tokio::test]
async fn an_unwell_server_is_marked_on_the_lease_that_it_keeps() {
    let etcd = Etcd::start().await;
    let mut events = Events::of(&etcd).await;

    let (registration, well) = register(&etcd.url()).await;
    let (_, first, lease) = events.put().await;
    assert!(!first.serving);
    for is in [true, false, true] {
        well.store(is, SeqCst);
        let (_, instance, on) = events.put().await;
        assert_eq!((instance.serving, on), (is, lease));
    }

    registration.close().await.unwrap();
}

#[tokio::test]
async fn in_a_layout_without_a_mark_an_unwell_server_has_no_record() {
    let etcd = Etcd::start().await;
    let url = format!("{}?layout=plain", etcd.url());
    let mut client = etcd.client().await;
    let (registration, well) = register(&url).await;

    for is in [false, true, false, true] {
        well.store(is, SeqCst);
        let state = if is {
            State::Registered
        } else {
            State::Draining
        };
        until(&registration, state).await;
        let found = client.get("/services/greeter/a", None).await.unwrap();
        assert_eq!(found.kvs().len(), usize::from(is));
    }
    registration.close().await.unwrap();

    let found = client.get("/services/greeter/a", None).await.unwrap();
    assert!(found.kvs().is_empty());
}

/// So many servers that stand in etcd, and a channel that watches them all.
async fn watched(n: usize, etcd: &Etcd) -> (Clinic, Channel) {
    let clinic = Clinic::of(n, Duration::ZERO).await;
    for server in clinic.instances() {
        let key = format!("/services/echo/{}", server.id);
        etcd.put(&key, serde_json::to_vec(&server).unwrap()).await;
    }
    let target = format!("{}/echo", etcd.url()).parse().unwrap();
    let channel = Channel::builder(target).health(Grpc::watch("echo"));
    let channel = channel.build().unwrap();
    becomes(&channel, n).await;
    (clinic, channel)
}

fn asked(clinic: &Clinic) -> usize {
    let each = clinic.patients.iter().map(|p| p.asked.load(SeqCst));
    each.sum()
}

/// etcd goes away and comes back, and is heard again.
async fn restart(etcd: &mut Etcd, channel: &Channel) {
    etcd.kill();
    let gone = async {
        while channel.view().stale(Instant::now()).is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
    etcd.restart().await;
    let back = async {
        while channel.view().stale(Instant::now()).is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, back).await.unwrap();
}

#[tokio::test]
async fn a_restart_of_etcd_asks_nobody_anew() {
    let mut etcd = Etcd::start().await;
    let (clinic, channel) = watched(30, &etcd).await;
    assert_eq!(asked(&clinic), 30);
    let mut events = channel.events();

    restart(&mut etcd, &channel).await;

    assert_eq!(asked(&clinic), 30);
    assert_eq!(channel.view().ready().len(), 30);
    while let Ok(Some(event)) = timeout(Duration::ZERO, events.next()).await {
        assert!(matches!(event, Event::Stale(_) | Event::Fresh), "{event}");
    }
}

/// How much CPU this process has used.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    let each = times.map(|t| {
        Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64)
    });
    each.iter().sum()
}

/// `scripts/test heavy`
#[tokio::test]
#[ignore = "a thousand servers in one process, and half a minute of doing nothing"]
async fn a_thousand_servers_that_are_watched_cost_little_while_nothing_changes() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut etcd = Etcd::start().await;
    let (clinic, channel) = watched(1000, &etcd).await;
    sleep(Duration::from_secs(5)).await;

    let (before, began) = (used(), Instant::now());
    sleep(Duration::from_secs(25)).await;
    let idle = (used() - before).as_secs_f64() / (Instant::now() - began).as_secs_f64();
    let (before, began) = (used(), Instant::now());
    restart(&mut etcd, &channel).await;
    // Long enough for all to be asked anew, if they were.
    sleep(Duration::from_secs(5)).await;
    let took = Instant::now() - began;

    let (now, per_cent) = (used() - before, idle * 100.0);
    println!(
        "idle: {per_cent:.2} % of a core, servers included; a restart of etcd, {took:.1?}: {now:.2?} of CPU"
    );
    assert_eq!(asked(&clinic), 1000);
    assert!(idle < 0.03, "{per_cent:.2} %");
    assert!(now < took.mul_f64(0.1), "{now:?} of CPU in {took:?}");
}
