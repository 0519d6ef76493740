//! Other balancers on our endpoints: tower's, and tonic's own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;

use std::{collections::BTreeSet, sync::Arc};

use echo::{EchoClient, EchoRequest};
use futures_util::StreamExt;
use net::{ByHand, Net};
use tonic::body::Body;
use tonic_fleet::{Channel, ServedBy, discover::Ready, resolve::Change};
use tower::{Service, ServiceExt, balance::p2c::Balance, buffer::Buffer, discover};

type Told = discover::Change<tonic_fleet::InstanceId, tonic_fleet::discover::One>;

fn words(change: &Told) -> String {
    match change {
        discover::Change::Insert(id, _) => format!("+{id}"),
        discover::Change::Remove(id) => format!("-{id}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_discovered_is_connected_and_what_leaves_is_told() {
    let net = Net::default();
    let (publisher, resolve) = ByHand::new();
    let channel = Channel::over("greeter".parse().unwrap(), resolve).connect_with(net.clone());
    let mut ready = Ready::of(&channel.build().unwrap());
    let [a, b] = ["a", "b"].map(|id| net.serve(id));

    publisher.reset([a.instance.clone(), net.refusing("r"), b.instance.clone()]);
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(words(&ready.next().await.unwrap().unwrap()));
    }
    assert_eq!(seen, BTreeSet::from(["+a".to_owned(), "+b".to_owned()]));
    publisher.delta([Change::Remove(a.instance.id.clone())]);
    assert_eq!(words(&ready.next().await.unwrap().unwrap()), "-a");
    publisher.delta([Change::Put(Arc::new(b.instance.clone().weight(3)))]);

    assert_eq!(words(&ready.next().await.unwrap().unwrap()), "+b");
}

#[tokio::test(start_paused = true)]
async fn towers_balancer_calls_our_endpoints() {
    let net = Net::default();
    let (publisher, resolve) = ByHand::new();
    let channel = Channel::over("greeter".parse().unwrap(), resolve).connect_with(net.clone());
    let channel = channel.build().unwrap();
    let servers = ["a", "b", "c"].map(|id| net.serve(id));
    publisher.reset(servers.iter().map(|server| server.instance.clone()));
    channel.ready(3).await;
    let balance: Balance<Ready, http::Request<Body>> = Balance::new(Ready::of(&channel));
    let mut client = EchoClient::new(Buffer::new(balance, 16).map_err(tonic::Status::from_error));
    let mut seen = BTreeSet::new();

    for _ in 0..100 {
        let response = client.unary_echo(EchoRequest::default()).await.unwrap();
        seen.insert(
            response
                .extensions()
                .get::<ServedBy>()
                .unwrap()
                .id()
                .to_string(),
        );
    }

    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_that_lost_its_connection_says_so_and_sends_nothing() {
    let net = Net::default();
    let (publisher, resolve) = ByHand::new();
    let channel = Channel::over("greeter".parse().unwrap(), resolve).connect_with(net.clone());
    let channel = channel.build().unwrap();
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    let mut ready = Ready::of(&channel);
    let discover::Change::Insert(_, mut one) = ready.next().await.unwrap().unwrap() else {
        panic!("an insertion comes first");
    };
    let view = channel.view();

    server.kill();
    channel.changed(view.number()).await;
    let failed = one
        .ready()
        .await
        .unwrap()
        .call(http::Request::new(Body::empty()))
        .await;

    let status = failed.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("a is not connected"), "{status}");
    assert_eq!(server.echo.served(), 0);
}

#[cfg(feature = "tonic-channel")]
#[tokio::test]
async fn tonics_balancer_is_fed() {
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::{Endpoint, Server};
    use tonic_fleet::{Instance, discover::feed};

    let (publisher, resolve) = ByHand::new();
    let (channel, changes) = tonic::transport::Channel::balance_channel(8);
    let make = |instance: &Instance| {
        Endpoint::from_shared(format!("http://{}", instance.addresses[0])).ok()
    };
    let feeding =
        tokio::spawn(
            async move { feed(&resolve, &"greeter".parse().unwrap(), changes, make).await },
        );
    let mut servers = Vec::new();
    for id in ["a", "b"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        servers.push(
            Instance::at(listener.local_addr().unwrap())
                .and_then(|i| i.id(id))
                .unwrap(),
        );
        let echo = echo::EchoServer::new(echo::Echo::new(id));
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_service(echo)
                .serve_with_incoming(incoming),
        );
    }

    publisher.reset(servers);
    let mut client = EchoClient::new(channel);
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let response = client.unary_echo(EchoRequest::default()).await.unwrap();
        seen.insert(
            response
                .metadata()
                .get(echo::BACKEND)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
        );
    }
    drop(client);

    // The feed ends with the balancer.
    feeding.await.unwrap();
}
