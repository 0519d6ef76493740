//! Servers restarted one after the other, by a registrar and under load, lose no call.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Server};
use tonic_fleet::{
    Channel, Instance, Memory, Registrar, Result, ServiceName,
    register::{Register, Served},
    resolve::Resolve,
};

/// A server that runs until it is told to leave.
struct Running {
    leave: oneshot::Sender<()>,
    server: JoinHandle<Result<Served>>,
}

async fn start(registrar: Registrar, id: &str, delay: Duration) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = Instance::at(listener.local_addr().unwrap())
        .unwrap()
        .id(id)
        .unwrap();
    let router = Server::builder().add_service(EchoServer::new(Echo::new(id).delay(delay)));
    let (leave, left) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        registrar
            .serve_until("greeter", instance, listener, router, left)
            .await
    });
    Running { leave, server }
}

/// Callers that call until they are stopped, and the failures among their calls.
struct Load {
    stop: CancellationToken,
    callers: Vec<JoinHandle<Vec<Status>>>,
    calls: Arc<AtomicU64>,
}

impl Load {
    fn on(channel: &Channel, callers: usize) -> Self {
        let (stop, calls) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let call = |_| {
            let (stop, calls) = (stop.clone(), Arc::clone(&calls));
            let mut client = EchoClient::new(channel.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.is_cancelled() {
                    let message = "hello".into();
                    let answer = client.unary_echo(EchoRequest { message }).await;
                    calls.fetch_add(1, Relaxed);
                    failed.extend(answer.err());
                }
                failed
            })
        };
        let callers = (0..callers).map(call).collect();
        Self {
            stop,
            callers,
            calls,
        }
    }

    /// Returns when so many more calls were made.
    async fn calls(&self, more: u64) {
        let until = self.calls.load(Relaxed) + more;
        while self.calls.load(Relaxed) < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> Vec<Status> {
        self.stop.cancel();
        let mut failed = Vec::new();
        for caller in self.callers {
            failed.extend(caller.await.unwrap());
        }
        failed
    }
}

/// Replaces each of five servers three times: the next one starts, the last one leaves.
async fn roll(registry: impl Register + Resolve + Clone, registrar: Registrar, delay: Duration) {
    let service: ServiceName = "greeter".parse().unwrap();
    let ids = ["a", "b", "c", "d", "e"];
    let mut servers = Vec::new();
    for id in ids {
        servers.push(start(registrar.clone(), id, delay).await);
    }
    let channel = Channel::over(service, registry).build().unwrap();
    let load = Load::on(&channel, 64);
    load.calls(500).await;

    for round in 0..3 {
        for (at, id) in ids.iter().enumerate() {
            let next = start(registrar.clone(), &format!("{id}{round}"), delay).await;
            let last = std::mem::replace(&mut servers[at], next);
            drop(last.leave);
            let served = last.server.await.unwrap().unwrap();
            assert!(served.withdrawn.is_ok() && served.finished, "{served:?}");
            load.calls(200).await;
        }
    }
    let failed = load.end().await;

    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed[0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_in_memory_loses_no_call() {
    let registry = Memory::default();
    let registrar = Registrar::on(registry.clone()).notice(Duration::from_millis(50));

    roll(registry, registrar, Duration::from_millis(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_that_gives_clients_no_time_to_notice_loses_no_call() {
    let registry = Memory::default();
    let registrar = Registrar::on(registry.clone()).notice(Duration::ZERO);

    roll(registry, registrar, Duration::from_millis(2)).await;
}
