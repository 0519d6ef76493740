//! The registry as plain calls.

use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;
use tonic_fleet::{
    ErrorKind, Instance,
    coord::{Coordinator, Event, EventKind, Events},
};

use crate::{SOON, coordinator, etcd::Etcd, keys};

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
    for weight in [1, 3] {
        let event = next(&mut events).await;
        assert_eq!(event.kind, EventKind::Put);
        assert_eq!(event.instance, instance("a").weight(weight));
    }
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
    let url = etcd.url() + "?layout=json,kratos";
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
