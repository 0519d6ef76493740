//! A policy of one's own, rehearsed and on a channel: `cargo run --example policy`.
//!
//! The policy is the file `policy/best_of_three.rs`. A rehearsal asks it for call after call without a network;
//! then real servers, of which one fails everything, are called through a channel. The guide is the
//! documentation of `tonic_fleet::balance`.

#[path = "policy/best_of_three.rs"]
mod best_of_three;
mod echo;

use std::{collections::BTreeMap, error::Error, net::SocketAddr};

use best_of_three::BestOfThree;
use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Status, transport::Server};
use tonic_fleet::{Channel, Instance, ServedBy, balance::Rehearsal, resolve::Fixed};

const CALLS: usize = 1000;

/// How often each was called.
type Counts = BTreeMap<String, usize>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("rehearsed, c fails: {:?}", rehearsed()?);
    println!("on a channel, c fails: {:?}", called().await?);
    Ok(())
}

/// Whom it would call, where `c` fails each call. All that a channel does for every policy is done here too.
fn rehearsed() -> Result<Counts, tonic_fleet::Error> {
    let mut rehearsal = Rehearsal::of(BestOfThree::default());
    for id in ["a", "b", "c", "d"] {
        rehearsal.put(Instance::at("10.0.0.1:50051")?.id(id)?);
    }
    let mut counts = Counts::new();
    for _ in 0..CALLS {
        let Some(call) = rehearsal.call() else { break };
        let id = call.endpoint().id().to_string();
        let code = if id == "c" { Code::Internal } else { Code::Ok };
        call.ended(code);
        *counts.entry(id).or_default() += 1;
    }
    Ok(counts)
}

/// Whom it does call, on loopback, with as many that fail.
async fn called() -> Result<Counts, Box<dyn Error>> {
    let mut instances = Vec::new();
    for id in ["a", "b", "c", "d"] {
        instances.push(Instance::at(serve(id).await?)?.id(id)?);
    }
    let channel = Channel::over("echo".parse()?, Fixed::new(instances))
        .policy(BestOfThree::default())
        .build()?;
    channel.ready(4).await;
    let mut client = EchoClient::new(channel);
    let mut counts = Counts::new();
    for _ in 0..CALLS {
        let message = "hello".into();
        let who = match client.unary_echo(EchoRequest { message }).await {
            Ok(answer) => match answer.extensions().get::<ServedBy>() {
                Some(server) => server.id().to_string(),
                None => continue,
            },
            Err(_) => "failed".to_owned(),
        };
        *counts.entry(who).or_default() += 1;
    }
    Ok(counts)
}

async fn serve(id: &'static str) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let failing = move |request: Request<()>| match id {
        "c" => Err(Status::internal("its disk is full")),
        _ => Ok(request),
    };
    let server = EchoServer::with_interceptor(Echo::new(id), failing);
    let serving = Server::builder().add_service(server);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(address)
}
