//! What happens to a registration when things happen to etcd: rows of the fault matrix, by their numbers.
//!
//! Against a real etcd: the one that `ETCD_BIN` names, or that is on the PATH.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used)]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/keys.rs"]
mod keys;
#[path = "support/proxy.rs"]
mod proxy;

use std::time::Duration;

use etcd::{Cluster, Etcd};
use etcd_client::Client;
use keys::{Event, Events, SOON, a, greeter, lives, register, registry, standing, until};
use proxy::{Mode, Proxy};
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use tonic_fleet::{Instance, Register, Registration, register::State};

#[tokio::test]
async fn row_1_etcd_killed_and_restarted_keeps_the_lease() {
    let mut etcd = Etcd::start().await;
    let registration = register(&(etcd.url() + "?ttl=20s")).await;
    let before = standing(&mut etcd.client().await).await;

    etcd.kill();
    until(&registration, State::Retrying).await;
    etcd.restart().await;
    until(&registration, State::Registered).await;

    assert_eq!(standing(&mut etcd.client().await).await, before);
}

#[tokio::test]
async fn etcd_killed_for_three_leases_brings_the_key_back_and_it_stays() {
    let mut etcd = Etcd::start().await;
    let registration = register(&(etcd.url() + "?ttl=2s")).await;

    etcd.kill();
    until(&registration, State::Lost).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(registration.state(), State::Lost);
    etcd.restart().await;
    let back = Instant::now();
    until(&registration, State::Registered).await;

    println!("back after {:?}", Instant::now() - back);
    let (instance, lease) = standing(&mut etcd.client().await).await.unwrap();
    assert_eq!(instance, a());
    sleep(Duration::from_secs(3)).await;
    let now = standing(&mut etcd.client().await).await;
    assert_eq!(now, Some((instance, lease)), "it stays, on the same lease");
}

#[tokio::test]
async fn row_2_a_member_that_is_asked_to_end_is_left_for_another() {
    let mut cluster = Cluster::start().await;
    let registry = registry(&(cluster.url() + "?ttl=3s"));
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let before = standing(&mut cluster.0[0].client().await).await;
    let used = registry.etcd().member().to_string();

    cluster.at(&used).terminate();
    sleep(Duration::from_secs(4)).await;

    let other = cluster
        .0
        .iter()
        .find(|member| member.address() != used)
        .unwrap();
    assert_eq!(standing(&mut other.client().await).await, before);
    until(&registration, State::Registered).await;
}

#[tokio::test]
async fn row_3_etcd_frozen_for_less_than_a_lease_loses_nothing() {
    let etcd = Etcd::start().await;
    let registration = register(&(etcd.url() + "?ttl=16s")).await;
    let before = standing(&mut etcd.client().await).await;

    etcd.freeze();
    until(&registration, State::Retrying).await;
    etcd.thaw();
    until(&registration, State::Registered).await;

    assert_eq!(standing(&mut etcd.client().await).await, before);
}

#[tokio::test]
async fn row_4_keys_that_a_thawing_etcd_deletes_are_back() {
    let etcd = Etcd::start().await;
    let url = etcd.url() + "?ttl=2s";
    let registration = register(&url).await;
    let mut events = Events::of(&etcd).await;

    for frozen in [3, 7] {
        etcd.freeze();
        until(&registration, State::Lost).await;
        sleep(Duration::from_secs(frozen - 2)).await;
        etcd.thaw();
        let (mut deleted, thawed) = (None, Instant::now());
        let (back, instance) = loop {
            match events.next().await {
                (at, Event::Delete) => deleted = Some(at),
                (at, Event::Put(instance, _)) => break (at, instance),
            }
        };

        assert_eq!(instance, a());
        println!(
            "frozen for {frozen} s: back after {:?}",
            back - deleted.unwrap_or(thawed)
        );
        until(&registration, State::Registered).await;
    }
}

#[tokio::test]
async fn row_5_one_member_of_three_dead_or_frozen_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let registry = registry(&(cluster.url() + "?ttl=5s"));
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let before = standing(&mut cluster.0[0].client().await).await;
    let used = registry.etcd().member().to_string();
    let other = cluster
        .addresses()
        .into_iter()
        .find(|address| *address != used)
        .unwrap();

    has_follow(&cluster, &used).await;
    cluster.at(&used).freeze();
    sleep(Duration::from_secs(6)).await;
    until(&registration, State::Registered).await;
    cluster.at(&used).thaw();
    cluster.ready().await;
    assert_eq!(
        standing(&mut cluster.at(&other).client().await).await,
        before
    );
    let used = registry.etcd().member().to_string();
    let other = cluster
        .addresses()
        .into_iter()
        .find(|address| *address != used)
        .unwrap();
    cluster.at(&used).kill();
    sleep(Duration::from_secs(6)).await;
    until(&registration, State::Registered).await;

    assert_eq!(
        standing(&mut cluster.at(&other).client().await).await,
        before
    );
}

/// Has another member lead than the one at this address. One that leads, stands still for longer than a lease and goes
/// on revokes what was renewed with others meanwhile: etcd's fault, and not what is asked here.
async fn has_follow(cluster: &Cluster, address: &str) {
    for _ in 0..10 {
        let leader = &cluster.0[cluster.leader().await];
        if leader.address() != address {
            return;
        }
        let other = cluster.0.iter().find(|member| member.address() != address);
        let status = other.unwrap().client().await.status().await.unwrap();
        let other = status.header().unwrap().member_id();
        // What came of it is looked at again.
        let _ = leader.client().await.move_leader(other).await;
    }
    panic!("{address} leads, and nobody takes over");
}

#[tokio::test]
async fn row_6_a_killed_leader_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let registration = register(&(cluster.url() + "?ttl=4s")).await;
    let before = standing(&mut cluster.0[0].client().await).await;

    let leader = cluster.leader().await;
    cluster.0[leader].kill();
    sleep(Duration::from_secs(5)).await;
    until(&registration, State::Registered).await;

    let other = &cluster.0[(leader + 1) % 3];
    assert_eq!(standing(&mut other.client().await).await, before);
}

#[tokio::test]
async fn row_7_without_a_majority_it_is_lost_in_time_and_back_with_it() {
    let mut cluster = Cluster::start().await;
    let registration = register(&(cluster.url() + "?ttl=3s")).await;

    cluster.0[0].kill();
    cluster.0[1].kill();
    let cut = Instant::now();
    until(&registration, State::Lost).await;
    println!("lost after {:?}", Instant::now() - cut);
    cluster.0[0].spawn();
    cluster.0[1].spawn();
    cluster.ready().await;
    until(&registration, State::Registered).await;

    let (instance, _) = standing(&mut cluster.0[2].client().await).await.unwrap();
    assert_eq!(instance, a());
}

#[tokio::test]
async fn rows_9_and_10_after_wiped_data_it_is_registered_anew() {
    let mut etcd = Etcd::start().await;
    let registration = register(&(etcd.url() + "?ttl=5s")).await;
    for others in [0, 300] {
        etcd.wipe();
        etcd.restart().await;
        let back = Instant::now();
        let mut client = etcd.client().await;
        for n in 0..others {
            client.put(format!("/others/{n}"), "", None).await.unwrap();
        }

        let mut events = Events::of(&etcd).await;
        if standing(&mut client).await.is_none() {
            events.put().await;
        }

        println!("back after {:?}", Instant::now() - back);
        until(&registration, State::Registered).await;
        assert_eq!(standing(&mut client).await.unwrap().0, a());
    }
}

#[tokio::test]
async fn row_16_a_cut_that_nobody_is_told_of_is_lost_in_time_and_heals() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let registration = register(&format!("etcd://{}?ttl=3s", proxy.address())).await;

    proxy.set(Mode::Hole);
    let cut = Instant::now();
    until(&registration, State::Lost).await;
    println!("lost after {:?}", Instant::now() - cut);
    proxy.set(Mode::Pass);
    let healed = Instant::now();
    until(&registration, State::Registered).await;

    println!("healed after {:?}", Instant::now() - healed);
    assert_eq!(standing(&mut etcd.client().await).await.unwrap().0, a());
}

#[tokio::test]
async fn row_17_when_only_answers_are_cut_off_one_key_stands_on_the_lease_that_lives() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let registration = register(&format!("etcd://{}?ttl=3s", proxy.address())).await;

    proxy.set(Mode::HoleToClient);
    until(&registration, State::Lost).await;
    sleep(Duration::from_secs(2)).await;
    proxy.set(Mode::Pass);
    until(&registration, State::Registered).await;

    let mut client = etcd.client().await;
    sleep(Duration::from_secs(4)).await;
    let alone = settles(async || {
        let (instance, lease) = standing(&mut client).await.ok_or("no key stands")?;
        let all = leases(&mut client).await;
        match instance == a() && all == [lease] {
            true => Ok(()),
            false => Err(format!("{instance:?} on {lease} of {all:?}")),
        }
    });
    alone.await;
}

#[tokio::test]
async fn row_18_a_storm_of_resets_is_no_storm_of_attempts() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let registration = register(&format!("etcd://{}?ttl=3s", proxy.address())).await;

    proxy.set(Mode::Reset);
    let (before, began) = (proxy.attempts(), Instant::now());
    sleep(Duration::from_secs(6)).await;
    let attempts = proxy.attempts() - before;
    let during = Instant::now() - began;
    proxy.set(Mode::Pass);
    until(&registration, State::Registered).await;

    println!("{attempts} attempts in {during:?}");
    assert!(attempts < 120, "{attempts} attempts");
}

/// Seconds of faults; `FLEET_SOAK_SECONDS` asks for more.
fn soak() -> Duration {
    let asked = std::env::var("FLEET_SOAK_SECONDS").ok();
    Duration::from_secs(asked.map_or(15, |seconds| seconds.parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_faults_in_any_order_each_registration_stands_once_and_leaves_nothing() {
    let mut etcd = Etcd::start().await;
    let proxy = Proxy::before(&etcd.address()).await;
    let url = format!("etcd://{}?ttl=2s", proxy.address());
    let mut all = Vec::new();
    for n in 0..20 {
        let instance = Instance::at("10.0.0.1:1")
            .unwrap()
            .id(format!("i{n:02}"))
            .unwrap();
        all.push(registry(&url).register(&greeter(), instance).await.unwrap());
    }
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);

    let began = Instant::now();
    while Instant::now() - began < soak() {
        let pause = Duration::from_millis(random.random_range(0..3_000));
        match random.random_range(0..8) {
            0 => {
                etcd.kill();
                sleep(pause).await;
                etcd.restart().await;
            }
            1 => {
                etcd.freeze();
                sleep(pause).await;
                etcd.thaw();
            }
            2 => {
                etcd.wipe();
                etcd.restart().await;
            }
            3 => {
                let modes = [
                    Mode::Hole,
                    Mode::HoleToClient,
                    Mode::HoleToServer,
                    Mode::Reset,
                ];
                proxy.set(modes[random.random_range(0..modes.len())]);
                sleep(pause).await;
                proxy.set(Mode::Pass);
            }
            4 => {
                let mut client = etcd.client().await;
                for status in client.leases().await.unwrap().leases() {
                    let _ = client.lease_revoke(status.id()).await;
                }
            }
            5 => etcd.delete("/services/greeter/i07").await,
            6 => {
                let (at, weight) = (random.random_range(0..20), random.random_range(1..9));
                let _ = all[at].update(|i| i.weight(weight)).await;
            }
            _ => sleep(pause).await,
        }
    }
    for registration in &all {
        until(registration, State::Registered).await;
    }
    // Deletions of a cluster that thawed may still be on their way.
    sleep(Duration::from_secs(3)).await;

    let mut client = etcd.client().await;
    settles(async || {
        for registration in &all {
            stands(registration, &mut client).await?;
        }
        match leases(&mut client).await.len() {
            20 => Ok(()),
            many => Err(format!("{many} leases")),
        }
    })
    .await;
    for registration in all {
        // On a machine that is busy it may be late to say that it is gone.
        drop(registration.close().await);
    }
    settles(async || match leases(&mut client).await.len() {
        0 => Ok(()),
        many => Err(format!("{many} leases are left")),
    })
    .await;
}

/// Waits until it is so: a lease of seconds may be lost and replaced once more where a machine stands still.
async fn settles<E: ToString>(mut is: impl AsyncFnMut() -> Result<(), E>) {
    let until = Instant::now() + SOON;
    while let Err(why) = is().await {
        assert!(Instant::now() < until, "{}", why.to_string());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn leases(client: &mut Client) -> Vec<i64> {
    let leases = client.leases().await.unwrap();
    leases.leases().iter().map(|status| status.id()).collect()
}

/// Whether a registration says that it stands, and does, on a lease that lives.
async fn stands(registration: &Registration, client: &mut Client) -> Result<(), String> {
    let got = client.get(registration.key(), None).await.unwrap();
    let kv = got.kvs().first();
    let kv = kv.ok_or_else(|| format!("no key: {registration:?}"))?;
    let instance: Instance = serde_json::from_slice(kv.value()).unwrap();
    let right = instance == *registration.instance() && lives(client, kv.lease()).await;
    match right && registration.state() == State::Registered {
        true => Ok(()),
        false => Err(format!("{instance:?} stands for {registration:?}")),
    }
}
