//! A fleet under load: servers registered in etcd, a channel that finds them, and callers that count.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Server};
use tonic_fleet::{Channel, Instance, Registrar, Registration, register::State};

use crate::echo::{Echo, EchoClient, EchoRequest, EchoServer};

/// Servers, a channel to them, and callers that never stop calling.
pub struct Fleet {
    pub channel: Channel,
    pub servers: Vec<Member>,
    answered: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<Status>>>,
    done: CancellationToken,
    callers: Vec<JoinHandle<()>>,
}

/// A server and its registration.
pub struct Member {
    pub id: String,
    pub registration: Registration,
    pub echo: Echo,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

/// How long anything may take to come right again after the fault is mended.
const PATIENCE: Duration = Duration::from_secs(60);

impl Fleet {
    /// So many servers, all registered here with this time to live, all connected, and under load.
    pub async fn of(n: usize, url: &str, ttl: &str) -> Self {
        Self::between(n, url, url, ttl).await
    }

    /// The same, registered with one registry and found by another, which is the same to whoever looks.
    pub async fn between(n: usize, register: &str, resolve: &str, ttl: &str) -> Self {
        let url = format!("{register}?ttl={ttl}");
        let mut servers = Vec::new();
        for id in 0..n {
            servers.push(Member::start(&format!("s{id}"), &url).await);
        }
        let target = format!("{resolve}/greeter?ttl={ttl}");
        let channel = Channel::builder(target.parse().unwrap()).build().unwrap();
        timeout(PATIENCE, channel.ready(n))
            .await
            .expect("all servers connect");
        let mut fleet = Self {
            channel,
            servers,
            answered: Arc::default(),
            failed: Arc::default(),
            done: CancellationToken::new(),
            callers: Vec::new(),
        };
        fleet.callers = (0..16).map(|_| fleet.call()).collect();
        fleet
    }

    fn call(&self) -> JoinHandle<()> {
        let mut client = EchoClient::new(self.channel.clone());
        let (answered, failed) = (Arc::clone(&self.answered), Arc::clone(&self.failed));
        let done = self.done.clone();
        tokio::spawn(async move {
            while !done.is_cancelled() {
                let message = String::from("hello");
                match client.unary_echo(EchoRequest { message }).await {
                    Ok(_) => drop(answered.fetch_add(1, SeqCst)),
                    Err(status) => failed.lock().unwrap().push(status),
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
    }

    /// Waits while callers call.
    pub async fn during(&self, time: Duration) {
        sleep(time).await;
    }

    /// Returns when the channel knows that it hears nothing of the registry.
    pub async fn stale(&self) {
        let since = Instant::now();
        while self.channel.view().stale(Instant::now()).is_none() {
            let waited = Instant::now() - since;
            assert!(waited < PATIENCE, "not stale: {}", self.channel.view());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns when all servers stand in the registry, by their own account, and are ready in the view.
    pub async fn whole(&self) {
        let began = Instant::now();
        for server in &self.servers {
            let registered = server.registration.until(State::Registered);
            let registered = timeout(PATIENCE, registered).await;
            registered
                .unwrap_or_else(|_| panic!("{}: {:?}", server.id, server.registration.error()))
                .unwrap();
        }
        let all: BTreeSet<&str> = self.servers.iter().map(|server| &*server.id).collect();
        loop {
            let view = self.channel.view();
            let ready: BTreeSet<&str> = view.ready().iter().map(|e| e.id().as_str()).collect();
            let known: BTreeSet<&str> = view.known().iter().map(|e| e.id().as_str()).collect();
            let doubted = view.known().iter().any(|e| e.is_suspect());
            if ready == all && known == all && !doubted && view.stale(Instant::now()).is_none() {
                return;
            }
            assert!(Instant::now() - began < PATIENCE, "not whole: {view}");
            let _ = timeout(Duration::from_secs(1), self.channel.changed(view.number())).await;
        }
    }

    /// Ends the load; says how many calls were answered, and that none failed.
    pub async fn unharmed(mut self) -> u64 {
        self.done.cancel();
        for caller in self.callers.drain(..) {
            caller.await.unwrap();
        }
        let failed = self.failed.lock().unwrap();
        let view = self.channel.view();
        assert!(
            failed.is_empty(),
            "{} calls failed, the first: {}\n{view}",
            failed.len(),
            failed[0]
        );
        let answered = self.answered.load(SeqCst);
        assert!(answered > 100, "only {answered} calls were answered");
        answered
    }
}

impl Member {
    /// A server on a port of its own, registered.
    pub async fn start(id: &str, url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let echo = Echo::new(id);
        let router = Server::builder().add_service(EchoServer::new(echo.clone()));
        let serving = tokio::spawn(async move {
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        let registrar = Registrar::new(url.parse().unwrap()).unwrap();
        let instance = Instance::at(at)
            .and_then(|instance| instance.id(id))
            .unwrap();
        Self {
            id: id.into(),
            registration: registrar.register("greeter", instance).await.unwrap(),
            echo,
            _serving: tokio_util::task::AbortOnDropHandle::new(serving),
        }
    }
}
