//! What a caller sees when a channel has lost what it lives on.

use futures_util::{StreamExt, stream};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_fleet::{
    Instance, ServiceName, State,
    balance::RoundRobin,
    resolve::{Resolve, Update, Updates},
};

use super::*;

/// Says who is there, and panics.
struct Hysteric(Instance);

impl Resolve for Hysteric {
    fn resolve(&self, _: &ServiceName) -> Updates {
        let all = stream::iter([Update::Reset(vec![self.0.clone().into()])]);
        Box::pin(all.chain(stream::once(async {
            panic!("this is what the test is about")
        })))
    }
}

fn runtime() -> Runtime {
    RuntimeBuilder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Where an echo server listens, on the runtime that this is called in.
async fn echo_server() -> Instance {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
    let server = Server::builder().add_service(EchoServer::new(Echo::new("a")));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    instance
}

#[test]
fn a_call_after_its_channels_runtime_was_shut_down_fails_at_once_and_says_why() {
    let (own, other) = (runtime(), runtime());
    let instance = other.block_on(echo_server());
    let channel = own.block_on(async {
        let channel = Channel::over("greeter".parse().unwrap(), Fixed::new([instance]));
        let channel = channel.patience(SOON * 60).build().unwrap();
        let mut client = EchoClient::new(channel.clone());
        client.unary_echo(ask("hello")).await.unwrap();
        channel
    });
    let waiting = other.spawn({
        let channel = channel.clone();
        async move { channel.ready(2).await }
    });

    own.shutdown_background();

    other.block_on(async {
        let ended = timeout(SOON, waiting).await.unwrap().unwrap();
        let mut client = EchoClient::new(channel.clone());
        let asked = client.unary_echo(ask("hello"));
        let status = timeout(SOON, asked).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("has been shut down"), "{status}");
        assert_eq!(ended.ready().len(), 0);
        assert!(ended.to_string().contains("has been shut down"), "{ended}");
        assert!(ended.to_json()["ended"].is_string());
    });
}

#[tokio::test]
async fn a_resolver_that_panics_leaves_the_channel_those_it_named() {
    let instance = echo_server().await;
    let channel = Channel::over("greeter".parse().unwrap(), Hysteric(instance));
    let channel = channel.build().unwrap();

    let mut client = EchoClient::new(channel.clone());
    let answered = timeout(SOON, client.unary_echo(ask("hello")))
        .await
        .unwrap();
    let mut view = channel.view();
    while view.stale(Instant::now()).is_none() {
        view = timeout(SOON, channel.changed(view.number())).await.unwrap();
    }

    assert_eq!(answered.unwrap().into_inner().message, "hello");
    assert!(view.to_string().contains("the resolver panicked"), "{view}");
    assert_eq!(view.ready().len(), 1);
}

/// Where a server listens that says the same head to all, and nothing after it.
async fn server_of_one_head(head: http::Response<()>) -> Instance {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let head = head.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let _ = respond.send_response(head.clone(), true);
                }
            });
        }
    });
    instance
}

#[tokio::test]
async fn details_that_nobody_can_read_bring_no_caller_down() {
    let head = http::Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", "5")
        .header("grpc-message", "no such thing")
        .header("grpc-status-details-bin", "!!!");
    let instance = server_of_one_head(head.body(()).unwrap()).await;
    let channel = Channel::over("greeter".parse().unwrap(), Fixed::new([instance]));
    let mut client = EchoClient::new(channel.build().unwrap());

    let asked = timeout(SOON, client.unary_echo(ask("hello"))).await;

    let status = asked.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "no such thing")
    );
}

#[tokio::test]
async fn a_server_whose_answers_have_no_status_is_left_out() {
    let page = http::Response::builder().header("content-type", "text/html");
    let wrong = server_of_one_head(page.body(()).unwrap()).await;
    let id = wrong.id.clone();
    let servers = Fixed::new([wrong, echo_server().await]);
    let channel = Channel::over("greeter".parse().unwrap(), servers);
    let channel = channel.policy(RoundRobin::default()).build().unwrap();
    timeout(SOON, channel.ready(2)).await.unwrap();

    let mut client = EchoClient::new(channel.clone());
    let asked = async {
        while channel.view().ready().len() > 1 {
            if let Err(status) = client.unary_echo(ask("hello")).await {
                assert_eq!(status.code(), Code::Unknown, "{status}");
            }
        }
    };
    timeout(SOON, asked).await.unwrap();

    let view = channel.view();
    let left_out = view.known().find(&id).unwrap();
    assert_eq!(left_out.state(), State::Ejected);
}
