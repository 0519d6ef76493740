//! What happens to a registration when things happen to its keys, its lease and its process.
//!
//! Against a real etcd: the one that `ETCD_BIN` names, or that is on the PATH.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used)]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/keys.rs"]
mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd::Etcd;
use etcd_client::{Client, GetOptions, KeyValue};
use futures_util::future::try_join_all;
use keys::{
    AT_ONCE, Event, Events, KEY, SOON, a, greeter, lives, register, registry, seldom_renewed,
    standing, until,
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tonic_fleet::{ErrorKind, Instance, Register, register::State, stage::Seat};

#[tokio::test]
async fn a_registration_stands_on_a_lease_and_leaves_marked_with_nothing_left_behind() {
    let etcd = Etcd::start().await;
    let mut events = Events::of(&etcd).await;

    let registration = register(&etcd.url()).await;
    assert_eq!(registration.state(), State::Registered);
    assert_eq!(registration.key(), KEY);
    let (_, instance, lease) = events.put().await;
    assert_eq!(instance, a());
    registration.update(|i| i.weight(3)).await.unwrap();
    let (_, instance, same) = events.put().await;
    assert_eq!((instance, same), (a().weight(3), lease));
    registration.close().await.unwrap();

    let (_, mark) = events.next().await;
    assert_eq!(mark, Event::Put(a().weight(3).serving(false), lease));
    assert_eq!(events.next().await.1, Event::Delete);
    assert!(!lives(&mut etcd.client().await, lease).await);
}

#[tokio::test]
async fn a_dropped_registration_leaves_in_the_same_order() {
    let etcd = Etcd::start().await;
    let mut events = Events::of(&etcd).await;
    let registration = register(&etcd.url()).await;
    let (_, _, lease) = events.put().await;

    drop(registration);

    assert_eq!(events.next().await.1, Event::Put(a().serving(false), lease));
    assert_eq!(events.next().await.1, Event::Delete);
}

#[tokio::test]
async fn several_services_stand_on_one_lease() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registration = register(&etcd.url()).await;

    registration
        .also(&"shop/cart".parse().unwrap())
        .await
        .unwrap();
    let options = Some(GetOptions::new().with_prefix());
    let all = client.get("/services/", options.clone()).await.unwrap();
    let keys = all
        .kvs()
        .iter()
        .map(|kv| kv.key_str().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(keys, [KEY, "/services/shop/cart/a"]);
    assert_eq!(all.kvs()[0].lease(), all.kvs()[1].lease());
    registration.close().await.unwrap();

    let all = client.get("/services/", options).await.unwrap();
    assert!(all.kvs().is_empty());
}

#[tokio::test]
async fn row_19_a_process_that_stood_still_is_lost_by_its_own_clock_and_registers_anew() {
    let etcd = Etcd::start().await;
    let registration = register(&(etcd.url() + "?ttl=2s")).await;
    let (_, before) = standing(&mut etcd.client().await).await.unwrap();

    let mut events = Events::of(&etcd).await;
    // Nothing runs on this thread meanwhile, as after SIGSTOP.
    std::thread::sleep(Duration::from_millis(4_500));
    // It may have been lost and be back before anybody looks at its state.
    let (_, instance, after) = events.put().await;
    until(&registration, State::Registered).await;

    assert_eq!(instance, a());
    assert_ne!(before, after);
}

#[tokio::test]
async fn row_20_a_key_that_is_deleted_or_overwritten_by_hand_is_back_at_once() {
    let etcd = Etcd::start().await;
    let registration = register(&seldom_renewed(&etcd)).await;
    let (_, lease) = standing(&mut etcd.client().await).await.unwrap();
    let mut events = Events::of(&etcd).await;

    etcd.delete(KEY).await;
    let deleted = events.deleted().await;
    let (back, instance, on) = events.put().await;
    assert_eq!((instance, on), (a(), lease));
    assert!(back - deleted < AT_ONCE, "{:?}", back - deleted);
    println!("deleted: back after {:?}", back - deleted);
    etcd.put(KEY, serde_json::to_vec(&a().weight(9)).unwrap())
        .await;
    let (overwritten, _, none) = events.put().await;
    assert_eq!(none, 0);
    let (back, instance, on) = events.put().await;

    assert_eq!((instance, on), (a(), lease));
    assert!(back - overwritten < AT_ONCE, "{:?}", back - overwritten);
    until(&registration, State::Registered).await;
}

#[tokio::test]
async fn row_20_a_lease_that_an_operator_revokes_is_replaced_at_once() {
    let etcd = Etcd::start().await;
    let registration = register(&seldom_renewed(&etcd)).await;
    let mut client = etcd.client().await;
    let (_, lease) = standing(&mut client).await.unwrap();
    let mut events = Events::of(&etcd).await;

    client.lease_revoke(lease).await.unwrap();
    let deleted = events.deleted().await;
    let (back, instance, on) = events.put().await;

    assert_eq!(instance, a());
    assert_ne!(on, lease);
    assert!(back - deleted < AT_ONCE, "{:?}", back - deleted);
    println!("revoked: back after {:?}", back - deleted);
    until(&registration, State::Registered).await;
}

#[tokio::test]
async fn row_20_a_fight_over_a_key_is_slowed_down_and_reported() {
    let etcd = Etcd::start().await;
    let registration = register(&etcd.url()).await;
    let mut client = etcd.client().await;
    let mut events = Events::of(&etcd).await;
    let mut puts = Vec::new();

    for _ in 0..10 {
        client.delete(KEY, None).await.unwrap();
        puts.push(events.put().await.0);
    }

    // The first few are put right without a wait, and no more than seconds are ever waited.
    println!("{:?} for ten rounds", puts[9] - puts[0]);
    assert!(puts[9] - puts[3] > Duration::from_secs(1), "{puts:?}");
    until(&registration, State::Registered).await;
}

#[tokio::test]
async fn row_21_without_space_the_lease_is_kept_and_the_change_waits() {
    let etcd = Etcd::with(&["--quota-backend-bytes=8388608"]).await;
    let registration = register(&(etcd.url() + "?ttl=6s")).await;
    let mut client = etcd.client().await;
    let before = standing(&mut client).await;
    let mut n = 0;
    while client
        .put(format!("/fill/{n}"), vec![0; 1 << 20], None)
        .await
        .is_ok()
    {
        n += 1;
    }

    let error = registration.update(|i| i.weight(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(registration.state(), State::NoSpace);
    sleep(Duration::from_secs(7)).await;
    assert_eq!(
        standing(&mut client).await,
        before,
        "it outlives its lease's time"
    );
    let member = client.status().await.unwrap().header().unwrap().member_id();
    let options = Some(GetOptions::new().with_prefix());
    client
        .delete(
            "/fill/",
            Some(etcd_client::DeleteOptions::new().with_prefix()),
        )
        .await
        .unwrap();
    let revision = client
        .get("/fill/", options)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    client.compact(revision, None).await.unwrap();
    client.defragment().await.unwrap();
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(member);
    let (deactivate, no_space) = (
        etcd_client::AlarmAction::Deactivate,
        etcd_client::AlarmType::Nospace,
    );
    client
        .alarm(deactivate, no_space, Some(options))
        .await
        .unwrap();
    until(&registration, State::Registered).await;

    let (_, lease) = before.unwrap();
    assert_eq!(standing(&mut client).await, Some((a().weight(3), lease)));
}

#[tokio::test]
async fn row_22_a_token_that_runs_out_is_renewed_and_wrong_credentials_are_denied() {
    let etcd = Etcd::with(&["--auth-token-ttl=2"]).await;
    let mut client = etcd.client().await;
    client.role_add("root").await.unwrap();
    client.user_add("root", "hunter2", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let url = |password: &str| format!("etcd://root:{password}@{}?ttl=12s", etcd.address());

    let denied = registry(&url("wrong"))
        .register(&greeter(), a())
        .await
        .unwrap_err();
    let registration = register(&url("hunter2")).await;
    let mut states = registration.states();
    sleep(Duration::from_secs(8)).await;
    registration.update(|i| i.weight(3)).await.unwrap();

    assert_eq!(denied.kind(), ErrorKind::Denied);
    assert!(!denied.chain().contains("wrong"), "{}", denied.chain());
    let mut seen = Vec::new();
    while let Some(Some(state)) =
        futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut states))
    {
        seen.push(state);
    }
    assert!(!seen.contains(&State::Lost), "{seen:?}");
    registration.close().await.unwrap();
}

#[tokio::test]
async fn row_23_etcd_that_is_absent_at_the_start_is_waited_for_in_the_background() {
    let mut etcd = Etcd::prepared(&[]);

    // It answers although there is no etcd, and there is none for as long as it likes.
    let registered = timeout(SOON, register(&etcd.url())).await;
    let registration = registered.expect("it does not wait for etcd");
    assert_eq!(registration.state(), State::Retrying);
    let why = registration.error().unwrap().chain();
    assert!(why.contains("refused"), "{why}");
    sleep(Duration::from_secs(1)).await;
    etcd.restart().await;
    until(&registration, State::Registered).await;

    assert_eq!(standing(&mut etcd.client().await).await.unwrap().0, a());
}

#[tokio::test]
async fn row_27_leaving_a_frozen_etcd_takes_two_seconds_and_says_so() {
    let etcd = Etcd::start().await;
    let registration = register(&etcd.url()).await;

    etcd.freeze();
    let began = Instant::now();
    let error = registration.close().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Timeout);
    let took = Instant::now() - began;
    assert!(
        took >= Duration::from_millis(1_900) && took < AT_ONCE,
        "{took:?}"
    );
    etcd.thaw();
}

#[tokio::test]
async fn row_28_a_predecessor_that_leaves_late_leaves_its_successor_alone() {
    let etcd = Etcd::start().await;
    let first = register(&etcd.url()).await;
    let successor = Instance::at("10.0.0.2:2").unwrap().id("a").unwrap();

    first.drain().await.unwrap();
    let second = registry(&etcd.url())
        .register(&greeter(), successor.clone())
        .await
        .unwrap();
    first.close().await.unwrap();
    sleep(Duration::from_millis(200)).await;

    assert_eq!(second.state(), State::Registered);
    let (instance, _) = standing(&mut etcd.client().await).await.unwrap();
    assert_eq!(instance, successor);
}

#[tokio::test]
async fn a_living_strangers_key_is_refused_and_left_alone() {
    let etcd = Etcd::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let living = Instance::at(listener.local_addr().unwrap())
        .unwrap()
        .id("a")
        .unwrap();
    let first = registry(&etcd.url())
        .register(&greeter(), living.clone())
        .await
        .unwrap();

    let refused = registry(&etcd.url())
        .register(&greeter(), a())
        .await
        .unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let address = listener.local_addr().unwrap().to_string();
    assert!(refused.to_string().contains(&address), "{refused}");
    assert_eq!(standing(&mut etcd.client().await).await.unwrap().0, living);
    assert_eq!(first.state(), State::Registered);
}

#[tokio::test]
async fn a_dead_predecessors_key_is_taken_over_at_once() {
    let etcd = Etcd::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = Instance::at(listener.local_addr().unwrap())
        .unwrap()
        .id("a")
        .unwrap();
    drop(listener);
    let old = etcd
        .put_leased(KEY, serde_json::to_vec(&dead).unwrap(), 60)
        .await;
    let began = Instant::now();

    let registration = register(&etcd.url()).await;

    assert!(Instant::now() - began < AT_ONCE, "not at its lease's end");
    assert_eq!(registration.state(), State::Registered);
    let mut client = etcd.client().await;
    let (instance, lease) = standing(&mut client).await.unwrap();
    assert_eq!(instance, a());
    client.lease_revoke(old).await.unwrap();
    assert_eq!(standing(&mut client).await, Some((instance, lease)));
}

#[tokio::test]
async fn a_process_that_was_replaced_while_it_stood_still_does_not_take_its_place_back() {
    let etcd = Etcd::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let successor = Instance::at(listener.local_addr().unwrap())
        .unwrap()
        .id("a")
        .unwrap();
    let registration = register(&(etcd.url() + "?ttl=2s")).await;
    let mut client = etcd.client().await;
    let (_, lease) = standing(&mut client).await.unwrap();

    // The successor comes between the end of the lease and our waking up.
    std::thread::sleep(Duration::from_millis(2_500));
    let _ = client.lease_revoke(lease).await;
    etcd.put_leased(KEY, serde_json::to_vec(&successor).unwrap(), 60)
        .await;
    until(&registration, State::Conflict).await;

    assert_eq!(standing(&mut client).await.unwrap().0, successor);
}

/// Who has which number: by the number, the lease.
async fn numbers(client: &mut Client, whose: &str) -> BTreeMap<u32, i64> {
    let prefix = format!("/fleet/numbers/{whose}/greeter/-/");
    let all = GetOptions::new().with_prefix();
    let got = client.get(prefix.as_str(), Some(all)).await.unwrap();
    let number = |kv: &KeyValue| {
        let key = kv.key_str().unwrap();
        key[prefix.len()..].parse().unwrap()
    };
    got.kvs()
        .iter()
        .map(|kv| (number(kv), kv.lease()))
        .collect()
}

#[tokio::test]
async fn no_two_seats_have_a_number_and_there_are_no_gaps_between_them() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd.url());

    let greeter = greeter();
    let seats = (0..8).map(|_| registry.seat(&greeter));
    let seats = try_join_all(seats).await.unwrap();
    let had: BTreeSet<u32> = seats.iter().map(Seat::number).collect();

    assert_eq!(had.len(), 8);
    let mut client = etcd.client().await;
    assert!(numbers(&mut client, "clients").await.keys().eq(&had));
    drop(seats);
    timeout(SOON, async {
        while !numbers(&mut client, "clients").await.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(registry.seat(&greeter).await.unwrap().number(), 0);
}

#[tokio::test]
async fn the_number_of_one_who_died_is_free_when_its_lease_ends() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let dead = etcd
        .put_leased("/fleet/numbers/clients/greeter/-/0", "", 60)
        .await;
    let registry = registry(&etcd.url());
    let second = registry.seat(&greeter()).await.unwrap();
    assert_eq!(second.number(), 1);

    client.lease_revoke(dead).await.unwrap();

    let third = registry.seat(&greeter()).await.unwrap();
    assert_eq!((second.number(), third.number()), (1, 0));
}

#[tokio::test]
async fn one_who_was_frozen_takes_another_number_when_somebody_has_its_own() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut seat = registry(&etcd.url()).seat(&greeter()).await.unwrap();
    assert_eq!(seat.number(), 0);
    let lease = numbers(&mut client, "clients").await[&0];

    // While it slept its lease ended, and another took what it had.
    etcd.put_leased("/fleet/numbers/clients/greeter/-/0", "", 60)
        .await;
    client.lease_revoke(lease).await.unwrap();
    timeout(SOON, seat.changed()).await.unwrap();

    assert_eq!(seat.number(), 1);
    assert_eq!(numbers(&mut client, "clients").await.len(), 2);
}

#[tokio::test]
async fn a_seat_that_loses_its_lease_takes_the_same_number_again() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let seat = registry(&etcd.url()).seat(&greeter()).await.unwrap();
    let before = numbers(&mut client, "clients").await;

    client.lease_revoke(before[&0]).await.unwrap();

    let again = async {
        loop {
            let now = numbers(&mut client, "clients").await;
            if now.contains_key(&0) {
                return now;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let after = timeout(SOON, again).await.unwrap();
    assert_ne!(after, before);
    assert_eq!((seat.number(), after.len()), (0, 1));
}

/// Lets the time pass after which everybody looks whether there is a gap, on leases that last longer.
async fn until_all_have_looked_for_gaps() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(91)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn whoever_has_one_too_many_moves_down_into_a_gap() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registry = registry(&(etcd.url() + "?ttl=3600s"));
    let mut seats = Vec::new();
    for number in 0..3 {
        seats.push(registry.seat(&greeter()).await.unwrap());
        assert_eq!(seats[number].number() as usize, number);
    }

    drop(seats.remove(0));
    gone(&mut client, 0).await;
    until_all_have_looked_for_gaps().await;
    timeout(SOON, seats[1].changed()).await.unwrap();

    assert_eq!((seats[0].number(), seats[1].number()), (1, 0));
    let left = numbers(&mut client, "clients").await;
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_number_whose_key_is_deleted_by_hand_is_taken_again() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registry = registry(&(etcd.url() + "?ttl=3600s"));
    let first = registry.seat(&greeter()).await.unwrap();
    let second = registry.seat(&greeter()).await.unwrap();

    etcd.delete("/fleet/numbers/clients/greeter/-/0").await;
    until_all_have_looked_for_gaps().await;

    // Each has one, whoever of them was the first to look.
    let both = BTreeSet::from([0, 1]);
    let again = async {
        loop {
            let stand = numbers(&mut client, "clients").await.into_keys().collect();
            if both == stand && both == [first.number(), second.number()].into() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, again).await.unwrap();
}

/// Waits until nobody has this number.
async fn gone(client: &mut Client, number: u32) {
    let gone = async {
        while numbers(client, "clients").await.contains_key(&number) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_registration_bears_its_number_and_gives_it_back() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registry = registry(&format!("{}?ordinals=true", etcd.url()));
    let first = registry.register(&greeter(), a()).await.unwrap();

    let (stands, lease) = standing(&mut client).await.unwrap();
    assert_eq!(stands, a().tag("ordinal", "0"));
    assert_eq!(
        numbers(&mut client, "servers").await,
        BTreeMap::from([(0, lease)])
    );
    let other = Instance::at("10.0.0.2:1").unwrap().id("b").unwrap();
    let second = registry.register(&greeter(), other).await.unwrap();
    first.close().await.unwrap();

    let left = numbers(&mut client, "servers").await;
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [1]);
    second.close().await.unwrap();
    assert!(numbers(&mut client, "servers").await.is_empty());
}
