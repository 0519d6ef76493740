//! Echo servers that say how they are, and callers that note who answered.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::Router},
};
use tonic_fleet::{Builder, Channel, Event, Events, Instance, ServedBy, resolve::Fixed};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::echo::{Echo, EchoClient, EchoRequest, EchoServer};

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Clinic {
    pub patients: Vec<Patient>,
}

/// A server that says of the service `echo` how it is.
pub struct Patient {
    pub instance: Instance,
    pub echo: Echo,
    /// How often it was asked how it is; a watch is one question.
    pub asked: Arc<AtomicUsize>,
    reporter: HealthReporter,
    stop: CancellationToken,
    serving: AbortOnDropHandle<()>,
}

impl Clinic {
    /// So many well servers, called `s0` and so on, that take so long for an answer.
    pub async fn of(n: usize, delay: Duration) -> Self {
        let mut patients = Vec::new();
        for id in 0..n {
            patients.push(Patient::new(&format!("s{id}"), delay).await);
        }
        Self { patients }
    }

    pub fn instances(&self) -> impl Iterator<Item = Instance> {
        self.patients.iter().map(|patient| patient.instance.clone())
    }
}

impl Patient {
    pub async fn new(id: &str, delay: Duration) -> Self {
        let echo = Echo::new(id).delay(delay);
        Self::allowing(id, echo, None).await
    }

    /// One that allows so many calls at once on a connection.
    pub async fn allowing(id: &str, echo: Echo, calls: Option<u32>) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        let asked = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&asked);
        let count = move |request| {
            counter.fetch_add(1, SeqCst);
            Ok(request)
        };
        let router = Server::builder()
            .max_concurrent_streams(calls)
            .add_service(EchoServer::new(echo.clone()))
            .add_service(InterceptedService::new(health, count));
        let patient = Self::serving(id, echo, reporter, router).await;
        let patient = Self { asked, ..patient };
        patient.says(ServingStatus::Serving).await;
        patient
    }

    pub async fn without_health(id: &str) -> Self {
        let echo = Echo::new(id);
        let (reporter, _) = tonic_health::server::health_reporter();
        let router = Server::builder().add_service(EchoServer::new(echo.clone()));
        Self::serving(id, echo, reporter, router).await
    }

    async fn serving(id: &str, echo: Echo, reporter: HealthReporter, router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = Instance::at(listener.local_addr().unwrap()).and_then(|i| i.id(id));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let served = router.serve_with_incoming_shutdown(incoming, stopped);
            served.await.unwrap();
        });
        Self {
            instance: instance.unwrap(),
            echo,
            asked: Arc::default(),
            reporter,
            stop,
            serving: AbortOnDropHandle::new(serving),
        }
    }

    pub async fn says(&self, status: ServingStatus) {
        self.says_of("echo", status).await;
    }

    pub async fn says_of(&self, service: &str, status: ServingStatus) {
        self.reporter.set_service_status(service, status).await;
    }

    /// Takes no new calls, and returns when those it has are over.
    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// A channel to them.
pub fn builder(clinic: &Clinic) -> Builder {
    let servers = Fixed::new(clinic.instances());
    Channel::over("echo".parse().unwrap(), servers)
}

/// Returns when exactly so many are ready.
pub async fn becomes(channel: &Channel, ready: usize) {
    let became = timeout(SOON, async {
        let mut view = channel.view();
        while view.ready().len() != ready {
            view = channel.changed(view.number()).await;
        }
    });
    let became = became.await;
    assert!(became.is_ok(), "not {ready} ready: {}", channel.view());
}

/// The next event.
pub async fn next(events: &mut Events) -> Event {
    timeout(SOON, events.next()).await.unwrap().unwrap()
}

/// One call; who answered.
pub async fn ask(channel: &Channel) -> Result<String, Status> {
    let message = String::from("hello");
    let mut client = EchoClient::new(channel.clone());
    let answer = client.unary_echo(EchoRequest { message }).await?;
    let served = answer.extensions().get::<ServedBy>().unwrap();
    Ok(served.id().to_string())
}

/// Callers that never stop calling.
pub struct Load {
    noted: Arc<Mutex<Noted>>,
    _callers: Vec<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct Noted {
    /// When the latest call began that this server answered.
    latest: HashMap<String, Instant>,
    failed: Vec<Status>,
}

impl Load {
    pub fn on(channel: &Channel, callers: usize) -> Self {
        let noted = Arc::<Mutex<Noted>>::default();
        let callers = (0..callers).map(|_| call(channel.clone(), Arc::clone(&noted)));
        Self {
            _callers: callers.map(AbortOnDropHandle::new).collect(),
            noted,
        }
    }

    pub fn latest(&self, id: &str) -> Option<Instant> {
        self.noted.lock().unwrap().latest.get(id).copied()
    }

    pub fn failed(&self) -> Vec<Status> {
        self.noted.lock().unwrap().failed.clone()
    }
}

fn call(channel: Channel, noted: Arc<Mutex<Noted>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let began = Instant::now();
            let answer = ask(&channel).await;
            let mut noted = noted.lock().unwrap();
            match answer {
                Ok(id) => {
                    let latest = noted.latest.entry(id).or_insert(began);
                    *latest = began.max(*latest);
                }
                Err(status) => noted.failed.push(status),
            }
        }
    })
}
