//! Registrations that are tied to the health of their servers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/clinic.rs"]
mod clinic;
#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use clinic::{Patient, SOON};
use echo::Echo;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    Instance, Memory, Registrar, Registration, ServiceName,
    health::{self, Checks, Grpc, Http, Watchdog},
    register::State,
    resolve::{Change, Resolve, Update, Updates},
};
use tonic_health::{
    ServingStatus::{NotServing, Serving},
    server::health_reporter,
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

/// A registrar that believes that somebody listens, so that time can stand still.
fn registrar(registry: &Memory) -> Registrar {
    Registrar::on(registry.clone()).check(false)
}

fn a() -> Instance {
    Instance::at("127.0.0.1:9").unwrap().id("a").unwrap()
}

async fn register(registrar: Registrar) -> Registration {
    registrar.register("greeter", a()).await.unwrap()
}

/// What clients are told of `a`, and when that began, from now on.
struct Told(Updates);

impl Told {
    async fn by(registry: &Memory) -> Self {
        let mut updates = registry.resolve(&greeter());
        assert!(matches!(updates.next().await, Some(Update::Reset(_))));
        Self(updates)
    }

    async fn next(&mut self) -> Change {
        let Some(Update::Delta(mut changes)) = timeout(SOON, self.0.next()).await.unwrap() else {
            panic!("no change")
        };
        assert_eq!(changes.len(), 1);
        changes.remove(0)
    }

    /// The next record, which must say so.
    async fn serving(&mut self, serving: bool) -> Arc<Instance> {
        match self.next().await {
            Change::Put(instance) if instance.serving == serving => instance,
            other => panic!("not serving={serving}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_is_announced_when_its_health_service_says_serving_and_marked_when_it_stops() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let (reporter, server) = health_reporter();
    reporter.set_service_status("echo", NotServing).await;
    let registrar = registrar(&registry).health(Grpc::watch("echo").of(server));

    let registration = register(registrar).await;
    told.serving(false).await;
    assert_eq!(registration.state(), State::Draining);
    assert!(registration.unwell().is_some());
    let began = Instant::now();
    reporter.set_service_status("echo", Serving).await;
    told.serving(true).await;
    registration.until(State::Registered).await.unwrap();
    assert!(registration.unwell().is_none());
    reporter.set_service_status("echo", NotServing).await;
    told.serving(false).await;

    assert_eq!(Instant::now(), began, "it is told at once");
    let why = registration.unwell().unwrap().chain();
    assert!(why.contains("NOT_SERVING"), "{why}");
    registration.close().await.unwrap();
    assert!(matches!(told.next().await, Change::Remove(_)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_stuck_takes_no_new_calls_until_it_moves_again() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let dog = Watchdog::new(Duration::from_secs(10));

    let _registration = register(registrar(&registry).health(dog.clone())).await;
    told.serving(false).await;
    told.serving(true).await;
    for _ in 0..10 {
        sleep(Duration::from_secs(5)).await;
        dog.pet();
    }
    let stuck = Instant::now();
    told.serving(false).await;
    assert_eq!(Instant::now() - stuck, Duration::from_secs(10));
    dog.pet();

    told.serving(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_self_check_marks_after_three_failures_and_unmarks_after_two_successes() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let full = Arc::new(Mutex::new(false));
    let disk = Arc::clone(&full);
    let checks = Checks::new(health::ask(move || {
        let full = *disk.lock().unwrap();
        async move { if full { Err("no room on disk") } else { Ok(()) } }
    }));

    let registration = register(registrar(&registry).health(checks)).await;
    told.serving(false).await;
    told.serving(true).await;
    sleep(Duration::from_secs(60)).await;
    *full.lock().unwrap() = true;
    let began = Instant::now();
    told.serving(false).await;

    let after = Instant::now() - began;
    let (least, most) = (Duration::from_secs(9), Duration::from_secs(17));
    assert!(after >= least && after <= most, "{after:?}");
    let why = registration.unwell().unwrap().chain();
    assert!(why.ends_with("no room on disk"), "{why}");
    *full.lock().unwrap() = false;
    told.serving(true).await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_a_server_is_unwell_is_said_and_the_mark_stays() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let dog = Watchdog::new(Duration::from_secs(10));
    let registration = register(registrar(&registry).health(dog.clone())).await;
    told.serving(false).await;
    told.serving(true).await;
    told.serving(false).await;

    registration.update(|i| i.weight(7)).await.unwrap();

    assert_eq!(told.serving(false).await.weight, 7);
    dog.pet();
    assert_eq!(told.serving(true).await.weight, 7);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_drained_on_purpose_stays_so_however_well_it_is() {
    let registry = Memory::default();
    let dog = Watchdog::new(Duration::from_secs(10));
    let registration = register(registrar(&registry).health(dog.clone())).await;
    registration.until(State::Registered).await.unwrap();
    registration.drain().await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(registration.unwell().is_some());

    dog.pet();
    while registration.unwell().is_some() {
        sleep(Duration::from_millis(1)).await;
    }

    sleep(Duration::from_secs(1)).await;
    assert!(!registry.instances(&greeter())[0].serving);
    registration.update(|i| i.serving(true)).await.unwrap();
    assert!(registry.instances(&greeter())[0].serving);
}

#[tokio::test(start_paused = true)]
async fn those_who_are_to_be_told_hear_each_change_and_the_end() {
    let registry = Memory::default();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let dog = Watchdog::new(Duration::from_secs(10));
    let registrar = registrar(&registry).health(dog.clone()).tell(move |well| {
        hears.lock().unwrap().push(well);
        async {}
    });
    let registration = register(registrar).await;
    registration.until(State::Registered).await.unwrap();

    sleep(Duration::from_secs(11)).await;
    dog.pet();
    registration.until(State::Registered).await.unwrap();
    registration.close().await.unwrap();
    sleep(Duration::from_millis(1)).await;

    assert_eq!(*heard.lock().unwrap(), [true, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_asks_is_well_until_it_leaves() {
    let registry = Memory::default();
    let (reporter, server) = health_reporter();
    let hears = reporter.clone();
    let registrar = registrar(&registry).tell(move |well| {
        let (reporter, status) = (hears.clone(), if well { Serving } else { NotServing });
        async move { reporter.set_service_status("echo", status).await }
    });
    let clients = Registrar::on(Memory::default()).check(false);
    let seen = clients.health(Grpc::watch("echo").of(server));
    let seen = register(seen).await;

    let registration = register(registrar).await;
    seen.until(State::Registered).await.unwrap();
    registration.close().await.unwrap();
    seen.until(State::Draining).await.unwrap();

    let why = seen.unwell().unwrap().chain();
    assert!(why.contains("NOT_SERVING"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn one_who_hangs_when_told_does_not_keep_a_server_from_being_marked() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let dog = Watchdog::new(Duration::from_secs(10));
    let registrar = registrar(&registry).health(dog.clone());
    let began = Instant::now();

    let _registration = register(registrar.tell(|_| std::future::pending())).await;

    told.serving(false).await;
    told.serving(true).await;
    told.serving(false).await;
    assert_eq!(Instant::now() - began, Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn one_who_panics_when_told_does_not_keep_a_server_from_serving() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let dog = Watchdog::new(Duration::from_secs(10));
    let registrar = registrar(&registry).health(dog.clone());

    let _registration = register(registrar.tell(async |_| panic!("told"))).await;

    told.serving(false).await;
    told.serving(true).await;
    told.serving(false).await;
}

#[tokio::test(start_paused = true)]
async fn what_could_never_work_is_refused_before_anything_is_registered() {
    let registry = Memory::default();
    let refused = async |checks: Checks| {
        let registering = registrar(&registry).health(checks);
        let refused = registering.register("greeter", a()).await.unwrap_err();
        refused.to_string()
    };

    let never = refused(Watchdog::new(Duration::ZERO).into()).await;
    assert!(
        never.ends_with("patience is 0ns: it is from 1ms to 3600s"),
        "{never}"
    );
    let nowhere = refused(Http::get("").into()).await;
    assert!(nowhere.contains("path is \"\""), "{nowhere}");
    assert!(registry.instances(&greeter()).is_empty());
}

#[tokio::test]
async fn a_server_is_asked_where_it_listens_and_is_not_held_up_when_it_stops() {
    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let patient = Patient::allowing("a", Echo::new("a"), None).await;
    let registrar = Registrar::on(registry.clone()).health(Grpc::watch("echo"));
    let registering = registrar.register("greeter", patient.instance.clone());
    let registration = registering.await.unwrap();
    told.serving(false).await;
    patient.says(Serving).await;
    told.serving(true).await;

    let stopped = timeout(SOON, patient.stop()).await;

    assert!(stopped.is_ok(), "it waits for a watch of its own");
    told.serving(false).await;
    registration.close().await.unwrap();
}

#[cfg(feature = "server")]
#[tokio::test]
async fn a_server_that_serves_in_one_call_is_asked_while_it_does_and_finishes_in_time() {
    use tokio::{net::TcpListener, sync::oneshot};
    use tonic::transport::Server;

    let registry = Memory::default();
    let mut told = Told::by(&registry).await;
    let (reporter, health) = health_reporter();
    reporter.set_service_status("echo", Serving).await;
    let router = Server::builder().add_service(health);
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
    let registrar = Registrar::on(registry).notice(Duration::ZERO);
    let registrar = registrar.health(Grpc::watch("echo"));
    let (stop, stopped) = oneshot::channel::<()>();

    let serving = tokio::spawn(async move {
        let serving = registrar.serve_until("greeter", instance, listener, router, stopped);
        serving.await.unwrap()
    });
    told.serving(false).await;
    told.serving(true).await;
    reporter.set_service_status("echo", NotServing).await;
    told.serving(false).await;
    stop.send(()).unwrap();

    let served = timeout(SOON, serving).await.unwrap().unwrap();
    assert!(served.finished && served.withdrawn.is_ok(), "{served:?}");
}
