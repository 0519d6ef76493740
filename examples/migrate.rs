//! A fleet moves from one etcd layout to another, under load, without a call lost.
//!
//! ```console
//! $ export $(scripts/setup); $ETCD_BIN --data-dir /tmp/etcd &
//! $ cargo run --example migrate
//! ```
//!
//! The servers stand where kratos looks for them, and are to stand in our own layout. First the callers read
//! both; then the servers restart, one after another, and stand in both, on one lease; then the callers read
//! the new one; last the servers restart once more, and leave the old one. A URL behind `--`, or
//! `FLEET_REGISTRY`, names another etcd.

mod echo;

use std::{
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server as Tonic, server::TcpIncoming};
use tonic_fleet::{Channel, Instance, Registrar};

type Failure = Box<dyn Error + Send + Sync>;

const OLD: &str = "kratos";
const BOTH: &str = "kratos,json";
const NEW: &str = "json";

/// How many servers, and how many callers.
const SERVERS: usize = 3;
const CALLERS: usize = 8;
/// How long each step is watched.
const WHILE: Duration = Duration::from_millis(500);

/// A server that runs until it is told to stop.
struct Server {
    name: String,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), Failure>>,
}

/// What calls come to.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let given = env::args()
        .nth(1)
        .or_else(|| env::var("FLEET_REGISTRY").ok());
    let registry = given.unwrap_or_else(|| "etcd://127.0.0.1:2379".into());
    let mut servers = Vec::new();
    for nth in 1..=SERVERS {
        servers.push(Server::start(&registry, &format!("echo-{nth}"), OLD).await?);
    }
    let (channels, chosen) = watch::channel(channel(&registry, OLD)?);
    let tally = Arc::new(Tally::default());
    for _ in 0..CALLERS {
        tokio::spawn(call(chosen.clone(), Arc::clone(&tally)));
    }

    tally.show("all servers and callers use kratos").await;
    channels.send_replace(channel(&registry, BOTH)?);
    tally.show("callers read both").await;
    restart(&registry, &mut servers, BOTH).await?;
    tally.show("servers stand in both").await;
    channels.send_replace(channel(&registry, NEW)?);
    tally.show("callers read json").await;
    restart(&registry, &mut servers, NEW).await?;
    tally.show("servers stand in json").await;

    drop(channels);
    for server in servers {
        server.stop().await?;
    }
    match tally.failed.load(Relaxed) {
        0 => Ok(()),
        failed => Err(format!("{failed} calls failed").into()),
    }
}

/// Calls to whoever stands in these layouts.
fn channel(registry: &str, layouts: &str) -> Result<Channel, Failure> {
    let target = format!("{registry}/echo?layout={layouts}&ttl=2s").parse()?;
    Ok(Channel::builder(target).build()?)
}

/// One server after another, each with its successor there before it goes, as with a rolling update.
async fn restart(registry: &str, servers: &mut [Server], layouts: &str) -> Result<(), Failure> {
    for server in servers {
        let next = Server::start(registry, &format!("{}'", server.name), layouts).await?;
        std::mem::replace(server, next).stop().await?;
    }
    Ok(())
}

/// Calls for as long as there is a channel; goes over to another in the middle of it.
async fn call(channels: watch::Receiver<Channel>, tally: Arc<Tally>) {
    while channels.has_changed().is_ok() {
        let channel = channels.borrow().clone();
        let request = EchoRequest {
            message: "hello".into(),
        };
        match EchoClient::new(channel).unary_echo(request).await {
            Ok(_) => tally.answered.fetch_add(1, Relaxed),
            Err(status) => {
                println!("  {status}");
                tally.failed.fetch_add(1, Relaxed)
            }
        };
        sleep(Duration::from_millis(1)).await;
    }
}

impl Server {
    async fn start(registry: &str, name: &str, layouts: &str) -> Result<Self, Failure> {
        let registrar = Registrar::new(format!("{registry}?layout={layouts}&ttl=2s").parse()?)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let instance = Instance::at(listener.local_addr()?)?.id(name)?;
        let registration = registrar.required(true).register("echo", instance).await?;
        println!("  {name} stands at {}", registration.key());
        let stop = CancellationToken::new();
        let left = registration.leave_on(stop.clone().cancelled_owned());
        let server = Tonic::builder()
            .add_service(EchoServer::new(Echo::new(name)))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), left);
        let ended = tokio::spawn(async move {
            let served = server.await;
            // Lives as long as the server does.
            drop(registration);
            Ok(served?)
        });
        Ok(Self {
            name: name.to_owned(),
            stop,
            ended,
        })
    }

    async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        self.ended.await?
    }
}

impl Tally {
    async fn show(&self, what: &str) {
        let before = self.answered.load(Relaxed);
        sleep(WHILE).await;
        let answered = self.answered.load(Relaxed) - before;
        let failed = self.failed.load(Relaxed);
        println!("{what}: {answered} calls answered in {WHILE:?}, {failed} failed so far");
    }
}
