//! The registry as plain calls.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, future::join_all};
use tokio::time::timeout;
use tonic_fleet::{
    ErrorKind, Instance,
    coord::{Coordinator, Event, EventKind, Events},
};

use crate::{SOON, etcd::Etcd, keys};

/// A coordinator whose registrations outlive any pause of a machine that is busy.
async fn coordinator(etcd: &Etcd) -> Coordinator {
    let url = etcd.url() + "?ttl=60s";
    Coordinator::connect(url.parse().unwrap()).await.unwrap()
}

fn instance(id: &str) -> Instance {
    Instance::at("10.0.0.1:1").unwrap().id(id).unwrap()
}

async fn next(events: &mut Events) -> Event {
    let next = timeout(SOON, events.next()).await;
    next.expect("an event").expect("it goes on")
}

#[tokio::test]
async fn who_registers_is_found_until_it_is_unregistered() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let (writer, reader) = (one.registry().unwrap(), other.registry().unwrap());
    let mut events = reader.watch("shop/cart").unwrap();

    writer.register("shop/cart", instance("a")).await.unwrap();
    let first = next(&mut events).await;
    assert_eq!(
        (first.kind, first.instance),
        (EventKind::Put, instance("a"))
    );
    writer.register("shop", instance("b")).await.unwrap();
    writer
        .register("shop/cart", instance("a").weight(3))
        .await
        .unwrap();

    let found = reader.discover("shop/cart").await.unwrap();
    assert_eq!(found, [instance("a").weight(3)]);
    let services = reader.services().await.unwrap();
    let services: Vec<_> = services.iter().map(|name| name.as_str()).collect();
    assert_eq!(services, ["shop", "shop/cart"]);
    let event = next(&mut events).await;
    assert_eq!(event.kind, EventKind::Put);
    assert_eq!(event.instance, instance("a").weight(3));
    assert!(writer.unregister("shop/cart", "a").await.unwrap());
    assert!(!writer.unregister("shop/cart", "a").await.unwrap());
    assert!(reader.discover("shop/cart").await.unwrap().is_empty());
    let event = loop {
        let event = next(&mut events).await;
        if event.kind == EventKind::Delete {
            break event;
        }
        assert!(event.instance.is_draining(), "it was marked before");
    };
    assert_eq!(event.service.as_str(), "shop/cart");
}

#[tokio::test]
async fn closing_withdraws_what_was_registered() {
    let etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await;
    let registry = coordinator.registry().unwrap();
    registry.register("shop", instance("a")).await.unwrap();
    let events = registry.watch("shop").unwrap();
    assert_eq!(keys(&etcd, "/services/").await, ["/services/shop/a"]);

    coordinator.close().await.unwrap();

    assert_eq!(keys(&etcd, "").await, [""; 0]);
    timeout(SOON, events.collect::<Vec<_>>())
        .await
        .expect("it ends");
    assert!(registry.register("shop", instance("a")).await.is_err());
}

#[tokio::test]
async fn services_are_not_listed_where_nothing_tells_them_from_other_keys() {
    let etcd = Etcd::start().await;
    let url = etcd.url() + "?layout=go-zero";
    let coordinator = Coordinator::connect(url.parse().unwrap()).await.unwrap();

    let refused = coordinator
        .registry()
        .unwrap()
        .services()
        .await
        .unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("?prefix="), "{refused}");
}

#[tokio::test]
async fn who_stands_in_two_layouts_is_one() {
    let etcd = Etcd::start().await;
    let url = etcd.url() + "?layout=json,kratos&ttl=60s";
    let coordinator = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let registry = coordinator.registry().unwrap();
    let mut events = registry.watch("shop").unwrap();

    registry.register("shop", instance("a")).await.unwrap();
    registry.register("shop", instance("b")).await.unwrap();

    assert_eq!(keys(&etcd, "/").await.len(), 4);
    assert_eq!(registry.discover("shop").await.unwrap().len(), 2);
    assert_eq!(registry.services().await.unwrap().len(), 1);
    registry.unregister("shop", "a").await.unwrap();
    registry.unregister("shop", "b").await.unwrap();

    let mut gone = Vec::new();
    while gone.len() < 2 {
        let event = next(&mut events).await;
        if event.kind == EventKind::Delete {
            gone.push(event.instance.id.to_string());
        }
    }
    // Each layout is watched by itself, and in which order two who leave are told of is not promised.
    gone.sort_unstable();
    assert_eq!(gone, ["a", "b"], "each once");
}

#[tokio::test]
async fn a_change_that_nobody_waits_for_withdraws_nobody() {
    let etcd = Etcd::start().await;
    let registry = coordinator(&etcd).await.registry().unwrap();
    registry.register("shop", instance("a")).await.unwrap();

    let change = registry.register("shop", instance("a").weight(3));
    assert!(change.now_or_never().is_none());

    assert!(registry.unregister("shop", "a").await.unwrap());
}

#[tokio::test]
async fn of_several_who_register_one_id_at_once_the_last_counts() {
    let etcd = Etcd::start().await;
    let registry = coordinator(&etcd).await.registry().unwrap();
    let weights = [1, 2, 3, 4];

    let all = weights.map(|weight| registry.register("shop", instance("a").weight(weight)));
    for registered in join_all(all).await {
        registered.unwrap();
    }

    assert_eq!(keys(&etcd, "/services/").await, ["/services/shop/a"]);
    let found = registry.discover("shop").await.unwrap();
    assert_eq!(found, [instance("a").weight(4)]);
    assert!(registry.unregister("shop", "a").await.unwrap());
    assert_eq!(keys(&etcd, "/services/").await, [""; 0]);
}

#[tokio::test]
async fn services_have_one_name_whatever_the_url_puts_before_it() {
    let etcd = Etcd::start().await;
    let url = etcd.url() + "/prod?ttl=60s";
    let coordinator = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let registry = coordinator.registry().unwrap();

    registry.register("shop", instance("a")).await.unwrap();
    let mut events = registry.watch("shop").unwrap();

    assert_eq!(keys(&etcd, "/services/").await, ["/services/prod/shop/a"]);
    let listed = registry.services().await.unwrap();
    assert_eq!(listed, [next(&mut events).await.service]);
    assert_eq!(listed[0].as_str(), "shop");
}

#[tokio::test]
async fn closing_one_coordinator_leaves_what_another_made_of_it_holds() {
    let etcd = Etcd::start().await;
    let one = coordinator(&etcd).await;
    let other = one.clone().ttl(Duration::from_secs(77));
    let (mine, theirs) = (one.registry().unwrap(), other.registry().unwrap());
    mine.register("shop", instance("a")).await.unwrap();
    theirs.register("shop", instance("b")).await.unwrap();
    let mut events = theirs.watch("shop").unwrap();
    for _ in ["a", "b"] {
        assert_eq!(next(&mut events).await.kind, EventKind::Put);
    }

    one.close().await.unwrap();

    assert_eq!(keys(&etcd, "/services/").await, ["/services/shop/b"]);
    while next(&mut events).await.kind != EventKind::Delete {}
    let mut client = etcd.client().await;
    let got = client.get("/services/shop/b", None).await.unwrap();
    let lease = client.lease_time_to_live(got.kvs()[0].lease(), None).await;
    assert_eq!(lease.unwrap().granted_ttl(), 77);
    other.close().await.unwrap();
    assert_eq!(keys(&etcd, "").await, [""; 0]);
}
