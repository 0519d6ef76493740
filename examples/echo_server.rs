//! Answers as an echo service, registered while it does.

mod echo;
mod flags;

use std::{env, net::SocketAddr, pin::pin, process::ExitCode, time::Duration};

use echo::{Echo, EchoServer};
use flags::{Flags, Stop, print};
use futures_util::StreamExt;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{self, SignalKind},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_fleet::{Instance, InstanceId, Registrar, Registration, ServiceName, register::State};

const USAGE: &str = "\
Answers as grpc.examples.echo.Echo and grpc.health.v1.Health, registered while it does. Prints one JSON
object a line for each thing that happens. SIGTERM and Ctrl-C: marks itself as draining, withdraws, lets
calls in flight end, and exits 0.

  --registry URL       where to register: etcd://127.0.0.1:2379; FLEET_REGISTRY, unless given
  --service NAME       as what: services-echo
  --listen ADDRESS     where to listen; 127.0.0.1:0, a free port, unless given
  --id ID              what tells it from the others; random unless given
  --weight N           its share of calls; 1 unless given, 0 for none
  --zone NAME          where it runs
  --ttl S              the seconds after which the registry forgets it if it dies; 10 unless given
  --delay-ms D         how long each answer waits; 0 unless given
  --layout NAME        how instances stand in etcd, instead of the registry's own ?layout=
  --count N            how many servers to be, each with a port and an id of its own; 1 unless given
  --help               prints this

RUST_LOG=tonic_fleet=debug shows on standard error what the registration does.";

/// How long calls in flight may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// How long clients have to hear that a server leaves, before it takes no more calls.
const NOTICE: Duration = Duration::from_millis(500);

/// What to be, as the flags say it.
struct Plan {
    service: ServiceName,
    listen: SocketAddr,
    id: Option<InstanceId>,
    weight: u32,
    zone: Option<String>,
    delay: Duration,
    count: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    flags::trace();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop.end("echo_server"),
    }
}

async fn run() -> Result<(), Stop> {
    let flags = Flags::read(USAGE)?;
    let plan = Plan::of(&flags)?;
    let registrar = registrar(&flags)?;
    let leave = CancellationToken::new();

    let mut servers = JoinSet::new();
    for number in 0..plan.count {
        let one = plan.server(number, &registrar).await?;
        servers.spawn(one.run(leave.clone()));
    }
    let mut served = 0;
    loop {
        tokio::select! {
            () = signal(), if !leave.is_cancelled() => leave.cancel(),
            ended = servers.join_next() => match ended {
                Some(Ok(result)) => served += result?,
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => break,
            },
        }
    }
    print(&json!({"event": "stopped", "served": served}));
    Ok(())
}

/// Returns when somebody wants us to stop.
async fn signal() {
    let Ok(mut terminate) = unix::signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn registrar(flags: &Flags) -> Result<Registrar, Stop> {
    let url = match flags.text("--registry") {
        Some(url) => url.to_owned(),
        None => env::var("FLEET_REGISTRY").map_err(|error| {
            let example = "--registry etcd://127.0.0.1:2379";
            Stop::Wrong(match error {
                env::VarError::NotPresent => {
                    format!("--registry is missing: write {example}, or set FLEET_REGISTRY")
                }
                env::VarError::NotUnicode(_) => {
                    format!("FLEET_REGISTRY is not UTF-8: set it anew, or write {example}")
                }
            })
        })?,
    };
    let ttl = flags.number("--ttl", 2..=86_400)?;
    let url = flags::with_parameter(&url, "ttl", ttl.map(|ttl| ttl.to_string()).as_deref());
    let url = flags::with_parameter(&url, "layout", flags.text("--layout"));
    let url = url.parse().map_err(Stop::refused("--registry"))?;
    Registrar::new(url).map_err(Stop::refused("--registry"))
}

impl Plan {
    fn of(flags: &Flags) -> Result<Self, Stop> {
        let service = flags.needed("--service", "services-echo")?;
        let weight = flags.number("--weight", 0..=1_000_000)?.unwrap_or(1);
        let listen = flags.text("--listen").unwrap_or("127.0.0.1:0");
        let plan = Self {
            service: service.parse().map_err(Stop::refused("--service"))?,
            listen: listen.parse().map_err(|_| {
                Stop::Wrong(format!(
                    "--listen {} is not an IP address and port: write --listen 127.0.0.1:0",
                    flags::shown(listen)
                ))
            })?,
            id: flags.parsed("--id")?,
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            zone: flags.text("--zone").map(str::to_owned),
            delay: Duration::from_millis(flags.number("--delay-ms", 0..=3_600_000)?.unwrap_or(0)),
            count: flags.number("--count", 1..=20_000)?.unwrap_or(1),
        };
        if plan.count > 1 && plan.listen.port() != 0 {
            return Err(Stop::Wrong(format!(
                "--count {} and --listen {listen} cannot both be: each server needs a port of its own, so write port 0",
                plan.count
            )));
        }
        Ok(plan)
    }

    /// The server of this number, listening and not yet registered.
    async fn server(&self, number: u64, registrar: &Registrar) -> Result<One, Stop> {
        let listener = TcpListener::bind(self.listen).await.map_err(|error| {
            Stop::Failed(format!(
                "cannot listen at {}: {error}; choose another --listen",
                self.listen
            ))
        })?;
        let addr = listener
            .local_addr()
            .map_err(|error| Stop::Failed(format!("listening at no address: {error}")))?;
        let mut instance = Instance::at(addr)
            .map_err(Stop::refused("--listen"))?
            .weight(self.weight);
        if let Some(id) = &self.id {
            let id = match self.count {
                1 => id.to_string(),
                _ => format!("{id}-{number}"),
            };
            instance = instance.id(id).map_err(Stop::refused("--id"))?;
        }
        if let Some(zone) = &self.zone {
            instance = instance.zone(&**zone);
        }
        print(&json!({"event": "listening", "addr": addr.to_string(), "id": instance.id}));
        Ok(One {
            registrar: registrar.clone(),
            service: self.service.clone(),
            echo: Echo::new(instance.id.as_str()).delay(self.delay),
            listener,
            instance,
        })
    }
}

/// One server.
struct One {
    registrar: Registrar,
    service: ServiceName,
    echo: Echo,
    listener: TcpListener,
    instance: Instance,
}

impl One {
    /// Serves until told to leave; gives how many calls it has answered.
    async fn run(self, leave: CancellationToken) -> Result<u64, Stop> {
        let stop = CancellationToken::new();
        let (health, health_server) = tonic_health::server::health_reporter();
        health.set_serving::<EchoServer<Echo>>().await;
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .add_service(EchoServer::new(self.echo.clone()))
            .add_service(health_server)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let mut serving = pin!(serving);

        let id = self.instance.id.clone();
        let staying = async {
            // Clients may come before this returns: what is registered already listens.
            let registration = self.registrar.register(self.service, self.instance).await;
            let registration = registration.map_err(|error| {
                Stop::Failed(format!("cannot register {id}: {}", error.chain()))
            })?;
            tell(&id, &registration, &leave).await;
            health.set_not_serving::<EchoServer<Echo>>().await;
            withdraw(&id, registration).await;
            tokio::time::sleep(NOTICE).await;
            Ok(())
        };
        tokio::select! {
            stayed = staying => stayed?,
            ended = &mut serving => {
                ended.map_err(|error| Stop::Failed(format!("cannot serve: {error}")))?;
                return Ok(self.echo.served());
            }
        }
        stop.cancel();
        // What has not ended by then is cut.
        let _ = tokio::time::timeout(DRAIN, serving).await;
        Ok(self.echo.served())
    }
}

/// Prints how a registration stands, each time that changes, until it is time to leave.
async fn tell(id: &InstanceId, registration: &Registration, leave: &CancellationToken) {
    let mut states = registration.states();
    while let Some(Some(state)) = leave.run_until_cancelled(states.next()).await {
        let error = registration.error().filter(|_| state != State::Registered);
        let mut line = json!({"event": state.code(), "id": id, "key": registration.key()});
        if let Some(error) = error {
            line["error"] = error.chain().into();
        }
        print(&line);
    }
    leave.cancelled().await;
}

async fn withdraw(id: &InstanceId, registration: Registration) {
    let key = registration.key().to_owned();
    let mut line = json!({"event": "withdrawn", "id": id, "key": key});
    if let Err(error) = registration.close().await {
        line["error"] = error.chain().into();
    }
    print(&line);
}
