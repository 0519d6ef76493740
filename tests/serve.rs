//! A tonic server that is announced, withdrawn and drained, with real sockets.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{net::SocketAddr, time::Duration};

use echo::{Echo, EchoClient, EchoRequest, EchoResponse, EchoServer};
use futures_util::StreamExt;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Streaming,
    transport::{Endpoint, Server, server::Router},
};
use tonic_fleet::{
    ErrorKind, Instance, Memory, Registrar, Result, ServiceName,
    register::{Served, State},
    resolve::{Change, Resolve, Update},
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

fn router() -> Router {
    Server::builder().add_service(EchoServer::new(Echo::new("a")))
}

async fn call(addr: SocketAddr) -> Result<(), tonic::Status> {
    let endpoint = Endpoint::try_from(format!("http://{addr}")).unwrap();
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let message = "hello".into();
    let mut client = EchoClient::new(channel);
    client.unary_echo(EchoRequest { message }).await.map(drop)
}

/// A call that runs: the server has answered that it has begun.
struct Calling {
    say: mpsc::UnboundedSender<EchoRequest>,
    answers: Streaming<EchoResponse>,
}

impl Calling {
    async fn at(addr: SocketAddr) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        let mut client = EchoClient::connect(format!("http://{addr}")).await.unwrap();
        let asked = UnboundedReceiverStream::new(said);
        let answers = client.bidirectional_streaming_echo(asked).await.unwrap();
        let answers = answers.into_inner();
        Self { say, answers }
    }
}

struct Running {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<Served>>,
}

async fn run(registrar: Registrar) -> Running {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let instance = Instance::at(own).unwrap().id("a").unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(async move {
        registrar
            .serve_until("greeter", instance, listener, router(), stopped)
            .await
    });
    let addr = ([127, 0, 0, 1], own.port()).into();
    Running { addr, stop, server }
}

#[tokio::test]
async fn a_server_is_announced_at_a_routable_address_and_leaves_in_order() {
    let registry = Memory::default();
    let mut updates = registry.resolve(&greeter());
    assert!(matches!(updates.next().await, Some(Update::Reset(all)) if all.is_empty()));

    let running = run(Registrar::on(registry)).await;
    let Some(Update::Delta(changes)) = updates.next().await else {
        panic!()
    };
    let [Change::Put(announced)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(announced.addresses[0].to_string(), running.addr.to_string());
    call(running.addr).await.unwrap();
    drop(running.stop);
    let Some(Update::Delta(changes)) = updates.next().await else {
        panic!()
    };
    assert!(matches!(changes[..], [Change::Remove(_)]), "{changes:?}");

    // Those who have not noticed yet are still served.
    call(running.addr).await.unwrap();
    let served = running.server.await.unwrap().unwrap();
    assert!(served.withdrawn.is_ok() && served.finished);
    assert!(call(running.addr).await.is_err());
}

#[tokio::test]
async fn a_call_that_runs_when_the_server_leaves_finishes() {
    let registrar = Registrar::on(Memory::default()).notice(Duration::ZERO);
    let running = run(registrar).await;
    let Calling { say, mut answers } = Calling::at(running.addr).await;

    drop(running.stop);
    while call(running.addr).await.is_ok() {}
    say.send(EchoRequest::default()).unwrap();
    assert!(answers.message().await.unwrap().is_some());
    drop(say);
    let served = running.server.await.unwrap().unwrap();

    assert!(served.finished);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_call_that_runs_longer_than_the_drain_is_left_behind() {
    let registrar = Registrar::on(Memory::default()).notice(Duration::ZERO);
    let registrar = registrar.finish_timeout(Duration::from_millis(100));
    let running = run(registrar).await;
    let calling = Calling::at(running.addr).await;

    drop(running.stop);
    let served = running.server.await.unwrap().unwrap();

    assert!(!served.finished);
    drop(calling);
}

#[tokio::test]
async fn a_server_serves_while_the_registry_is_out_of_reach_and_is_announced_when_it_is_back() {
    let registry = Memory::default();
    registry.outage(true);
    let registrar = Registrar::on(registry.clone()).patience(Duration::from_millis(50));

    let running = run(registrar.notice(Duration::ZERO)).await;
    call(running.addr).await.unwrap();
    assert!(registry.instances(&greeter()).is_empty());
    let mut updates = registry.resolve(&greeter());
    assert!(matches!(updates.next().await, Some(Update::Stale(_))));
    registry.outage(false);

    assert!(matches!(updates.next().await, Some(Update::Reset(all)) if all.is_empty()));
    assert!(
        matches!(updates.next().await, Some(Update::Delta(c)) if matches!(c[..], [Change::Put(_)]))
    );
    drop(running.stop);
    running.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_withdraw_says_so_and_stops_all_the_same() {
    let registry = Memory::default();
    let running = run(Registrar::on(registry.clone())).await;
    let mut updates = registry.resolve(&greeter());
    while registry.instances(&greeter()).is_empty() {
        updates.next().await;
    }

    registry.outage(true);
    drop(running.stop);
    let served = running.server.await.unwrap().unwrap();

    assert!(served.withdrawn.is_err() && served.finished);
}

#[tokio::test]
async fn what_does_not_listen_is_not_registered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
    drop(listener);
    let registrar = Registrar::on(Memory::default());

    let refused = registrar
        .register("greeter", instance.clone())
        .await
        .unwrap_err();
    let unchecked = registrar.check(false).register("greeter", instance).await;

    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("bind first"), "{refused}");
    assert_eq!(unchecked.unwrap().state(), State::Registered);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_required_must_answer_in_time() {
    let registry = Memory::default();
    registry.outage(true);
    let registrar = Registrar::on(registry)
        .check(false)
        .patience(Duration::from_secs(2));
    let instance = Instance::at("10.0.0.1:1").unwrap();
    let began = Instant::now();

    let tolerant = registrar
        .register("greeter", instance.clone())
        .await
        .unwrap();
    assert_eq!(Instant::now() - began, Duration::from_secs(2));
    let strict = registrar
        .required(true)
        .register("greeter", instance)
        .await
        .unwrap_err();

    assert_eq!(tolerant.state(), State::Retrying);
    assert_eq!(strict.kind(), ErrorKind::Timeout);
    assert!(strict.chain().contains("outage"), "{}", strict.chain());
}

#[tokio::test(start_paused = true)]
async fn several_services_are_registered_at_once() {
    let registry = Memory::default();
    let registrar = Registrar::on(registry.clone()).check(false);
    let instance = Instance::at("10.0.0.1:1").unwrap();

    let registration = registrar
        .register_all(["greeter", "health"], instance.clone())
        .await
        .unwrap();
    let none = registrar
        .register_all([] as [&str; 0], instance)
        .await
        .unwrap_err();

    assert_eq!(registration.service(), greeter());
    assert_eq!(registry.instances(&"health".parse().unwrap()).len(), 1);
    assert_eq!(none.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn leaving_is_marked_withdrawn_and_noticed_before_the_server_stops() {
    let registry = Memory::default();
    let registrar = Registrar::on(registry.clone())
        .check(false)
        .notice(Duration::from_secs(3));
    let registration = registrar
        .register("greeter", Instance::at("10.0.0.1:1").unwrap())
        .await
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let leaving = tokio::spawn(registration.leave_on(stopped));
    let began = Instant::now();

    drop(stop);
    registration.until(State::Withdrawn).await.unwrap();
    assert!(registry.instances(&greeter()).is_empty());
    assert!(!leaving.is_finished());
    leaving.await.unwrap();

    assert_eq!(Instant::now() - began, Duration::from_secs(3));
}
