//! Servers that say how they are, and a client that heeds it: `cargo run --example health`.
//!
//! Three servers register in memory, each tied to its own `grpc.health.v1` and to a watchdog. One turns
//! `NOT_SERVING`, another is stuck; calls go to whoever is well, and none fails.

mod echo;

use std::{collections::BTreeMap, error::Error, time::Duration};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use tokio::{net::TcpListener, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_fleet::{
    Channel, Instance, Memory, Registrar, Registration, ServedBy,
    health::{Grpc, Watchdog},
};
use tonic_health::{
    ServingStatus::{NotServing, Serving},
    server::{HealthReporter, health_reporter},
};

/// What is kept of a server while it runs.
struct Running {
    reporter: HealthReporter,
    dog: Watchdog,
    _registration: Registration,
}

/// How long a server may give no sign of life.
const PATIENCE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let registry = Memory::default();
    let mut servers = Vec::new();
    for id in ["a", "b", "c"] {
        servers.push(serve(id, &registry).await?);
    }
    let channel = Channel::over("echo".parse()?, registry)
        .health(Grpc::watch("echo"))
        .build()?;

    step(&channel, "all are well", &servers, 3).await?;
    let a = &servers[0].reporter;
    a.set_service_status("echo", NotServing).await;
    step(&channel, "a says NOT_SERVING", &servers, 2).await?;
    a.set_service_status("echo", Serving).await;
    step(&channel, "a says SERVING", &servers, 3).await?;
    step(
        &channel,
        "c is stuck: nobody feeds its dog",
        &servers[..2],
        2,
    )
    .await?;
    step(&channel, "c moves again", &servers, 3).await
}

async fn serve(id: &str, registry: &Memory) -> Result<Running, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::at(listener.local_addr()?)?.id(id)?;
    let (reporter, health) = health_reporter();
    reporter.set_service_status("echo", Serving).await;
    let server = Server::builder()
        .add_service(EchoServer::new(Echo::new(id)))
        .add_service(health.clone());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let dog = Watchdog::new(PATIENCE);
    let registrar = Registrar::on(registry.clone())
        .health(Grpc::watch("echo").of(health))
        .health(dog.clone());
    Ok(Running {
        _registration: registrar.register("echo", instance).await?,
        reporter,
        dog,
    })
}

/// Waits, with these servers alive, until so many take calls; and shows who takes them.
async fn step(
    channel: &Channel,
    what: &str,
    alive: &[Running],
    takers: usize,
) -> Result<(), Box<dyn Error>> {
    let feed = async {
        loop {
            alive.iter().for_each(|server| server.dog.pet());
            sleep(PATIENCE / 4).await;
        }
    };
    let show = async {
        let mut view = channel.view();
        while view.ready().len() != takers {
            view = channel.changed(view.number()).await;
        }
        let mut answered = BTreeMap::<String, usize>::new();
        for _ in 0..300 {
            let message = "hello".into();
            let mut client = EchoClient::new(channel.clone());
            let answer = client.unary_echo(EchoRequest { message }).await?;
            let who = answer.extensions().get::<ServedBy>();
            let who = who.map(|served| served.id().to_string());
            *answered.entry(who.unwrap_or_default()).or_default() += 1;
        }
        println!(
            "{what}: 300 calls were answered by {answered:?}\n{}\n",
            channel.view()
        );
        Ok(())
    };
    tokio::select! {
        () = feed => Ok(()),
        shown = show => shown,
    }
}
