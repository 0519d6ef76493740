//! The registry in this process, and the registration that every backend shares, in paused time.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep};
use tonic_fleet::{
    ErrorKind, Instance, Memory, Register, ServiceName,
    register::State,
    resolve::{Change, Resolve, Update, Updates},
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

fn a() -> Instance {
    Instance::at("10.0.0.1:1").unwrap().id("a").unwrap()
}

/// The next update, in short words.
async fn next(updates: &mut Updates) -> String {
    match updates.next().await.unwrap() {
        Update::Reset(all) => format!("={}", all.iter().map(|i| i.id.as_str()).collect::<String>()),
        Update::Delta(changes) => changes
            .iter()
            .fold("~".into(), |words, change| match change {
                Change::Put(i) => {
                    format!("{words}+{}*{}", i.id, if i.serving { i.weight } else { 0 })
                }
                Change::Remove(id) => format!("{words}-{id}"),
                Change::Vanish(id) => format!("{words}?{id}"),
                _ => format!("{words}!"),
            }),
        Update::Stale(_) => "stale".into(),
        _ => "!".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_hears_of_what_registers_changes_and_leaves() {
    let registry = Memory::default();
    let mut updates = registry.resolve(&greeter());
    assert_eq!(next(&mut updates).await, "=");

    let registration = registry.register(&greeter(), a()).await.unwrap();
    assert_eq!(next(&mut updates).await, "~+a*1");
    registration.update(|i| i.weight(3)).await.unwrap();
    assert_eq!(next(&mut updates).await, "~+a*3");
    registration.drain().await.unwrap();
    assert_eq!(registration.state(), State::Draining);
    assert_eq!(next(&mut updates).await, "~+a*0");
    registration.close().await.unwrap();

    assert_eq!(next(&mut updates).await, "~-a");
    assert!(registry.instances(&greeter()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_registration_withdraws_unwaited() {
    let registry = Memory::default();
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let mut states = registration.states();
    assert_eq!(states.next().await, Some(State::Registered));

    drop(registration);

    assert_eq!(states.next().await, Some(State::Withdrawn));
    assert_eq!(states.next().await, None);
    assert!(registry.instances(&greeter()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_deleted_or_overwritten_by_hand_is_put_back() {
    let registry = Memory::default();
    let mut updates = registry.resolve(&greeter());
    let _registration = registry.register(&greeter(), a()).await.unwrap();
    assert_eq!(next(&mut updates).await, "=a");

    registry.vanish(&greeter(), &a().id);
    assert_eq!(next(&mut updates).await, "~?a");
    assert_eq!(next(&mut updates).await, "~+a*1");
    registry.put(&greeter(), a().weight(9));
    assert_eq!(next(&mut updates).await, "~+a*9");
    assert_eq!(next(&mut updates).await, "~+a*1");
    registry.remove(&greeter(), &a().id);
    assert_eq!(next(&mut updates).await, "~-a");

    assert_eq!(next(&mut updates).await, "~+a*1");
}

#[tokio::test(start_paused = true)]
async fn an_outage_makes_resolvers_stale_and_keepers_retry_and_its_end_brings_what_was_wished() {
    let registry = Memory::default();
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let mut updates = registry.resolve(&greeter());
    assert_eq!(next(&mut updates).await, "=a");

    registry.outage(true);
    assert_eq!(next(&mut updates).await, "stale");
    registration.until(State::Retrying).await.unwrap();
    let began = Instant::now();
    let error = registration.update(|i| i.weight(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(Instant::now() - began, Duration::from_secs(5));
    registration.until(State::Lost).await.unwrap();
    let lost = Instant::now() - began;
    assert!(
        lost >= Duration::from_secs(9) && lost <= Duration::from_secs(20),
        "{lost:?}"
    );
    assert_eq!(registry.instances(&greeter())[0].weight, 1);
    registry.outage(false);

    assert_eq!(next(&mut updates).await, "~");
    assert_eq!(next(&mut updates).await, "~+a*5");
    registration.until(State::Registered).await.unwrap();
    assert!(registration.error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_registration_begun_in_an_outage_retries_until_it_stands() {
    let registry = Memory::default();
    registry.outage(true);
    let mut updates = registry.resolve(&greeter());
    assert_eq!(next(&mut updates).await, "stale");

    let registration = registry.register(&greeter(), a()).await.unwrap();
    assert_eq!(registration.state(), State::Retrying);
    sleep(Duration::from_secs(60)).await;
    registry.outage(false);

    assert_eq!(next(&mut updates).await, "=");
    assert_eq!(next(&mut updates).await, "~+a*1");
    registration.until(State::Registered).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_vanishes_when_its_lease_ends_and_is_back_when_it_thaws() {
    let registry = Memory::default().ttl(Duration::from_secs(4));
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let mut updates = registry.resolve(&greeter());
    assert_eq!(next(&mut updates).await, "=a");

    registry.freeze(&greeter(), &a().id);
    let frozen = Instant::now();
    assert_eq!(next(&mut updates).await, "~?a");
    assert_eq!(Instant::now() - frozen, Duration::from_secs(4));
    registry.thaw(&greeter(), &a().id);

    assert_eq!(next(&mut updates).await, "~+a*1");
    assert_eq!(registration.state(), State::Registered);
}

#[tokio::test(start_paused = true)]
async fn a_living_strangers_id_is_refused_and_a_leaving_ones_is_taken_over() {
    let registry = Memory::default();
    let first = registry.register(&greeter(), a()).await.unwrap();
    let other = Instance::at("10.0.0.2:2").unwrap().id("a").unwrap();

    let refused = registry
        .register(&greeter(), other.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("10.0.0.1:1"), "{refused}");
    first.drain().await.unwrap();
    let second = registry.register(&greeter(), other.clone()).await.unwrap();
    first.close().await.unwrap();

    assert_eq!(second.state(), State::Registered);
    assert_eq!(*registry.instances(&greeter())[0], other);
}

#[tokio::test(start_paused = true)]
async fn several_services_stand_on_one_registration() {
    let registry = Memory::default();
    let health: ServiceName = "health".parse().unwrap();
    let registration = registry.register(&greeter(), a()).await.unwrap();

    registration.also(&health).await.unwrap();
    registration.update(|i| i.zone("eu")).await.unwrap();
    assert_eq!(registry.instances(&greeter()), registry.instances(&health));
    assert_eq!(registry.instances(&health)[0].zone.as_deref(), Some("eu"));
    registration.close().await.unwrap();

    assert!(registry.instances(&greeter()).is_empty());
    assert!(registry.instances(&health).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_no_client_could_use_is_refused_and_changes_nothing() {
    let registry = Memory::default();
    let registration = registry.register(&greeter(), a()).await.unwrap();

    let other_id = registration
        .update(|i| i.clone().id("b").unwrap_or(i))
        .await;
    let no_address = registration
        .update(|mut i| {
            i.addresses.clear();
            i
        })
        .await;

    assert_eq!(other_id.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(no_address.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(*registration.instance(), a());
    let nowhere = Instance::at("0.0.0.0:80").unwrap();
    let refused = registry.register(&greeter(), nowhere).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn a_close_waits_no_longer_than_its_limit() {
    let registry = Memory::default();
    let registration = registry.register(&greeter(), a()).await.unwrap();
    registry.freeze(&greeter(), &a().id);
    let began = Instant::now();

    let error = registration.close().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(Instant::now() - began, Duration::from_secs(3));
    sleep(Duration::from_secs(10)).await;
    assert!(registry.instances(&greeter()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn registries_of_one_name_are_one_while_anybody_uses_them() {
    let registration = Memory::named("shared")
        .register(&greeter(), a())
        .await
        .unwrap();
    let mut updates = Memory::named("shared").resolve(&greeter());
    assert_eq!(next(&mut updates).await, "=a");
    assert!(Memory::named("other").instances(&greeter()).is_empty());

    registration.close().await.unwrap();
    assert_eq!(next(&mut updates).await, "~-a");
    drop(updates);

    let put = Memory::named("shared");
    put.put(&greeter(), a());
    drop(put);
    assert!(Memory::named("shared").instances(&greeter()).is_empty());
}

#[test]
fn what_a_dead_runtime_registered_vanishes() {
    let registry = Memory::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let registration = runtime
        .block_on(registry.register(&greeter(), a()))
        .unwrap();
    let mut updates = registry.resolve(&greeter());
    assert!(updates.next().now_or_never().is_some());

    drop(runtime);

    let vanished = updates.next().now_or_never().flatten().unwrap();
    assert!(matches!(vanished, Update::Delta(c) if matches!(c[..], [Change::Vanish(_)])));
    assert_eq!(registration.state(), State::Retrying);
    let why = registration.error().unwrap().to_string();
    assert!(why.contains("has been shut down"), "{why}");
    let until = registration.until(State::Registered).now_or_never();
    assert!(until.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_registrations_come_and_go() {
    let registry = Memory::default();
    let mut all = Vec::new();
    for n in 0..1000 {
        let instance = Instance::at("10.0.0.1:1")
            .unwrap()
            .id(format!("i{n}"))
            .unwrap();
        all.push(registry.register(&greeter(), instance).await.unwrap());
    }
    assert_eq!(registry.instances(&greeter()).len(), 1000);

    let registered: Arc<Instance> = all[7].instance();
    assert_eq!(registered.id.as_str(), "i7");
    for registration in all {
        registration.close().await.unwrap();
    }

    assert!(registry.instances(&greeter()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_update_may_look_at_what_it_changes() {
    let registry = Memory::default();
    let registration = registry.register(&greeter(), a()).await.unwrap();

    let heavier = |instance: Instance| instance.weight(registration.instance().weight + 1);
    registration.update(heavier).await.unwrap();

    assert_eq!(registration.instance().weight, 2);
}
