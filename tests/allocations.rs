//! What a unary call allocates on the client's side, codec included, and what an endpoint without a connection
//! holds. Servers have a thread of their own, and what other threads allocate is not counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{future::Future, net::SocketAddr, thread};

use echo::{Echo, EchoClient, EchoRequest, EchoResponse, EchoServer};
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Server};
use tonic_fleet::{
    Address, Channel, Instance,
    codec::Lean,
    resolve::Fixed,
    transport::{Connect, Connecting},
};
use tonic_prost::ProstCodec;

/// The message of a call and of its answer, which callers make and get: one allocation each.
const MESSAGE: &str = "sixteen bytes 16";

const CALLS: u64 = 500;

/// Allocations, and the bytes they were for.
#[derive(Debug)]
struct Cost {
    allocations: u64,
    bytes: u64,
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// An echo server that ends when what is returned is dropped.
fn served() -> (SocketAddr, oneshot::Sender<()>) {
    let (end, ended) = oneshot::channel::<()>();
    let (say, said) = std::sync::mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say.send(listener.local_addr().unwrap()).unwrap();
            let server = Server::builder().add_service(EchoServer::new(Echo::new("a")));
            let incoming = TcpListenerStream::new(listener);
            let over = async { drop(ended.await) };
            server.serve_with_incoming_shutdown(incoming, over).await
        })
    });
    (said.recv().unwrap(), end)
}

/// What each of many calls costs, when the first have made the room that is kept.
fn measured<F: Future<Output = ()>>(call: impl Fn(Channel) -> F) -> Cost {
    let (address, _server) = served();
    let runtime = runtime();
    let channel = runtime.block_on(async {
        let servers = Fixed::at([address.to_string()]).unwrap();
        let channel = Channel::over("echo".parse().unwrap(), servers).build();
        let channel = channel.unwrap();
        channel.ready(1).await;
        for _ in 0..CALLS {
            call(channel.clone()).await;
        }
        channel
    });
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..CALLS {
                call(channel.clone()).await;
            }
        });
    });
    Cost {
        allocations: counted.count_total / CALLS,
        bytes: counted.bytes_total / CALLS,
    }
}

#[test]
fn a_generated_client_costs_a_call_22_allocations_beside_its_messages() {
    let cost = measured(|channel| async {
        let message = MESSAGE.to_owned();
        let mut client = EchoClient::new(channel);
        let answer = client.unary_echo(EchoRequest { message });
        assert_eq!(answer.await.unwrap().into_inner().message, MESSAGE);
    });

    assert!(cost.allocations <= 22 + 2, "{cost:?}");
    // Of which 16 KiB are tonic's two buffers.
    assert!(cost.bytes <= (16 + 5) << 10, "{cost:?}");
}

#[test]
fn with_small_buffers_a_call_allocates_less_than_five_kibibytes() {
    let cost = measured(|channel| async {
        let message = MESSAGE.to_owned();
        let path = PathAndQuery::from_static("/grpc.examples.echo.Echo/UnaryEcho");
        let codec = Lean::<ProstCodec<EchoRequest, EchoResponse>>::default();
        let mut client = Grpc::new(channel);
        let answer = client.unary(Request::new(EchoRequest { message }), path, codec);
        assert_eq!(answer.await.unwrap().into_inner().message, MESSAGE);
    });

    assert!(cost.allocations <= 22 + 2, "{cost:?}");
    assert!(cost.bytes < 5 << 10, "{cost:?}");
}

/// Of whom one hears nothing.
#[derive(Debug)]
struct Never;

impl Connect for Never {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn an_endpoint_that_is_not_connected_weighs_less_than_a_kibibyte() {
    const HELD: usize = 10_000;
    let runtime = runtime();
    let mut held = None;

    let counted = allocation_counter::measure(|| {
        let id = |n| Instance::at("10.0.0.1:50051")?.id(format!("echo-7d9f8c6b5-{n:05}"));
        let instances = (0..HELD).map(id).collect::<Result<Vec<_>, _>>().unwrap();
        held = Some(runtime.block_on(async {
            let channel = Channel::over("echo".parse().unwrap(), Fixed::new(instances))
                .connect_with(Never)
                .build()
                .unwrap();
            while channel.view().known().len() < HELD {
                channel.changed(channel.view().number()).await;
            }
            channel
        }));
    });

    let each = counted.bytes_current / HELD as i64;
    assert!((1..1_024).contains(&each), "{each} bytes each");
}
