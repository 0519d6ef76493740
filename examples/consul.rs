//! Servers that a Consul agent knows, and a client that finds them by it:
//!
//! ```console
//! $ consul agent -dev &
//! $ cargo run --example consul --features consul                   # or with another URL behind `--`
//! ```
//!
//! Three servers register with the agent, each with a TTL check that follows its own health, and one gRPC
//! check that the agent runs. One turns unwell, and is well again; another leaves. Calls go to whoever is
//! well, and none fails. Kill the agent meanwhile, and start it again: nothing more happens.

mod echo;

use std::{collections::BTreeMap, env, error::Error, time::Duration};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_fleet::{
    Channel, Instance, Registrar, Registration, RegistryUrl, ServedBy,
    consul::{Check, Registry},
    health::Grpc,
};
use tonic_health::{
    ServingStatus::{NotServing, Serving},
    server::{HealthReporter, health_reporter},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1);
    let url: RegistryUrl = url
        .as_deref()
        .unwrap_or("consul://127.0.0.1:8500?ttl=3s")
        .parse()?;
    let registry = Registry::open(&url)?;
    let mut servers = Vec::new();
    for id in ["a", "b", "c"] {
        servers.push(serve(id, &registry).await?);
    }
    let channel = Channel::builder(url.service("consul-example")?).build()?;

    step(&channel, "all are well", &["a", "b", "c"]).await?;
    let (reporter, _) = &servers[0];
    reporter.set_service_status("echo", NotServing).await;
    step(
        &channel,
        "a says NOT_SERVING: its check is critical",
        &["b", "c"],
    )
    .await?;
    reporter.set_service_status("echo", Serving).await;
    step(&channel, "a says SERVING", &["a", "b", "c"]).await?;
    let (_, leaver) = servers.remove(2);
    leaver.close().await?;
    step(&channel, "c has left", &["a", "b"]).await?;

    for (_, registration) in servers {
        registration.close().await?;
    }
    println!("all have left");
    Ok(())
}

/// A server on a port of its own, registered as it is well.
async fn serve(
    id: &str,
    registry: &Registry,
) -> Result<(HealthReporter, Registration), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::at(listener.local_addr()?)?.id(id)?;
    let (reporter, health) = health_reporter();
    reporter.set_service_status("echo", Serving).await;
    let server = Server::builder()
        .add_service(EchoServer::new(Echo::new(id)))
        .add_service(health.clone());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let registry = registry.clone().tag("example").check(Check::grpc(""));
    let registrar = Registrar::on(registry)
        .health(Grpc::watch("echo").of(health))
        // An agent that does not answer is an error here; a server proper would start without.
        .required(true);
    let registration = registrar.register("consul-example", instance).await?;
    println!("{} stands with the agent", registration.key());
    Ok((reporter, registration))
}

/// Waits until those and nobody else take calls, and shows who takes them.
async fn step(channel: &Channel, what: &str, takers: &[&str]) -> Result<(), Box<dyn Error>> {
    let waiting = async {
        let mut view = channel.view();
        while !view
            .ready()
            .iter()
            .map(|e| e.id().as_str())
            .eq(takers.iter().copied())
        {
            view = channel.changed(view.number()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .map_err(|_| format!("not within half a minute: {what}\n{}", channel.view()))?;
    let mut answered = BTreeMap::<String, usize>::new();
    for _ in 0..300 {
        let message = "hello".into();
        let mut client = EchoClient::new(channel.clone());
        let answer = client.unary_echo(EchoRequest { message }).await?;
        let who = answer.extensions().get::<ServedBy>();
        let who = who.map(|served| served.id().to_string());
        *answered.entry(who.unwrap_or_default()).or_default() += 1;
    }
    println!("{what}: 300 calls were answered by {answered:?}");
    Ok(())
}
