//! Calls over tonic's own channels, with our registries, policies and deadlines.
#![cfg(feature = "tonic-channel")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use futures_util::{StreamExt, future::join_all, stream};
use tokio::{
    net::TcpSocket,
    runtime::{self, Handle, Runtime},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Status,
    transport::{Endpoint, Server},
};
use tonic_fleet::{
    Builder, Channel, Event, Instance, ServedBy, State, balance::RoundRobin, resolve::Fixed,
};

const ANYWHERE: &str = "127.0.0.1:0";

const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a runtime of its own, so that all there is of it can end at once.
struct Host {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Host {
    fn up(id: &str, at: &str, delay: Duration) -> Self {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _entered = runtime.enter();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            // One that was there before may not be gone yet.
            while socket.bind(at.parse().unwrap()).is_err() {
                std::thread::yield_now();
            }
            socket.listen(128).unwrap()
        };
        let address = listener.local_addr().unwrap();
        let echo = EchoServer::new(Echo::new(id).delay(delay));
        let server = Server::builder().add_service(echo);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn over(hosts: &[&Host]) -> Builder {
    let addresses = hosts.iter().map(|host| host.address.to_string());
    let servers = Fixed::at(addresses.collect::<Vec<_>>()).unwrap();
    let reach = |instance: &Instance| {
        let address = instance.addresses.first()?;
        Endpoint::from_shared(format!("http://{address}")).ok()
    };
    Channel::over("echo".parse().unwrap(), servers)
        .policy(RoundRobin::default())
        .over_tonic(reach)
}

fn say(message: &str) -> EchoRequest {
    EchoRequest {
        message: message.into(),
    }
}

async fn ask(channel: &Channel) -> Result<String, Status> {
    let mut client = EchoClient::new(channel.clone());
    let answer = client.unary_echo(say("hello")).await?;
    assert_eq!(answer.get_ref().message, "hello");
    let served = answer.extensions().get::<ServedBy>().unwrap();
    Ok(served.address().to_string())
}

#[tokio::test]
async fn our_policies_share_calls_out_among_tonics_channels() {
    let a = Host::up("a", ANYWHERE, Duration::ZERO);
    let b = Host::up("b", ANYWHERE, Duration::ZERO);
    let channel = over(&[&a, &b]).build().unwrap();
    channel.ready(2).await;

    let mut counts = BTreeMap::<_, usize>::new();
    for answer in join_all((0..40).map(|_| ask(&channel))).await {
        *counts.entry(answer.unwrap()).or_default() += 1;
    }

    assert_eq!(
        counts,
        BTreeMap::from([a, b].map(|host| (host.address.to_string(), 20)))
    );
    let view = channel.view();
    assert!(
        view.ready()
            .iter()
            .all(|e| (e.calls(), e.in_flight()) == (20, 0)),
        "{view}"
    );
}

#[tokio::test]
async fn all_four_kinds_of_call_work() {
    let a = Host::up("a", ANYWHERE, Duration::ZERO);
    let channel = over(&[&a]).build().unwrap();
    let mut client = EchoClient::new(channel.clone());
    let large = "x".repeat(1 << 20);

    let unary = client.unary_echo(say(&large)).await.unwrap();
    let answers = client.server_streaming_echo(say("many")).await.unwrap();
    let asked = stream::iter(["one", "two"].map(say));
    let last = client.client_streaming_echo(asked.clone()).await.unwrap();
    let both = client.bidirectional_streaming_echo(asked).await.unwrap();

    assert_eq!(unary.get_ref().message.len(), large.len());
    assert_eq!(answers.into_inner().count().await, 10);
    assert_eq!(last.get_ref().message, "two");
    let both = both.into_inner().map(|answer| answer.unwrap().message);
    assert_eq!(both.collect::<Vec<_>>().await, ["one", "two"]);
    assert_eq!(channel.view().known()[0].in_flight(), 0);
}

#[tokio::test]
async fn a_deadline_ends_one_call_and_not_the_channel() {
    let a = Host::up("a", ANYWHERE, Duration::from_secs(3600));
    let channel = over(&[&a]).build().unwrap();
    channel.ready(1).await;
    let mut late = Request::new(say("late"));
    late.set_timeout(Duration::from_millis(50));

    let status = EchoClient::new(channel.clone())
        .unary_echo(late)
        .await
        .unwrap_err();

    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    assert_eq!(channel.view().known()[0].state(), State::Ready);
}

#[tokio::test]
async fn a_server_that_dies_is_out_with_the_first_call_that_shows_it_and_back_when_it_is() {
    let a = Host::up("a", ANYWHERE, Duration::ZERO);
    let at = a.address.to_string();
    let channel = over(&[&a]).patience(PATIENCE).build().unwrap();
    ask(&channel).await.unwrap();
    let mut events = channel.events();

    drop(a);
    let dying = async {
        while ask(&channel).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, dying).await.expect("the death is seen");

    let lost = timeout(PATIENCE, events.next()).await;
    assert!(matches!(lost, Ok(Some(Event::Lost(..)))), "{lost:?}");
    let _again = Host::up("a", &at, Duration::ZERO);
    ask(&channel)
        .await
        .expect("it waits for the new connection");
}

#[tokio::test]
async fn a_call_in_flight_outlives_the_channel_and_nothing_outlives_both() {
    let a = Host::up("a", ANYWHERE, Duration::ZERO);
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let channel = over(&[&a]).build().unwrap();
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    let mut client = EchoClient::new(channel);
    let answers = client.bidirectional_streaming_echo(ReceiverStream::new(asked));
    let mut answers = answers.await.unwrap().into_inner();

    drop(client);
    ask.send(say("still there")).await.unwrap();
    assert_eq!(
        answers.next().await.unwrap().unwrap().message,
        "still there"
    );
    drop((ask, answers));

    let over = async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, over).await.expect("all tasks end");
}
