//! Servers that fall ill and recover, and callers that count.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use tokio::{
    sync::Semaphore,
    time::{Instant, interval, sleep},
};
use tonic::{
    Code, Request, Status, body::Body, metadata::MetadataValue, server::NamedService,
    transport::Server,
};
use tonic_fleet::{
    Builder, Channel, ServedBy, balance,
    resolve::{Change, Publisher},
};

use crate::{
    echo::{Echo, EchoClient, EchoRequest, EchoServer},
    net::{ByHand, Net, Running},
};

/// Servers, a channel to them, and a caller.
pub struct Ward {
    pub channel: Channel,
    /// Of each call.
    pub deadline: Duration,
    net: Net,
    publisher: Publisher,
    patients: Vec<(Patient, Running)>,
}

/// How long one that is well takes.
const WORK: Duration = Duration::from_millis(2);

/// What is wrong with a server.
#[derive(Clone, Copy, Debug)]
pub enum Illness {
    None,
    /// It answers at once, with `UNAVAILABLE`.
    Fails,
    /// It answers after this time.
    Slow(Duration),
    /// It fails for so long, is well for as long, and so on.
    Flaps(Duration),
    /// It breaks off every stream.
    Resets,
    /// It answers at once, with this.
    Says(Code),
    /// It pushes back for a second.
    Overloaded,
    /// It does one call at a time, each in this time.
    Works(Duration),
}

/// What became of calls.
#[derive(Default)]
pub struct Tally {
    pub failed: usize,
    pub by: BTreeMap<String, usize>,
    pub took: Vec<(String, Duration)>,
}

/// A server with an illness, or none.
#[derive(Clone)]
struct Patient {
    well: EchoServer<Echo>,
    illness: Arc<Mutex<Illness>>,
    asked: Arc<AtomicU64>,
    desk: Arc<Semaphore>,
    born: Instant,
}

impl Ward {
    /// So many servers, all connected, and well.
    pub async fn of(n: usize, with: impl FnOnce(Builder) -> Builder) -> Self {
        balance::seed(7);
        let net = Net::default();
        let (publisher, resolve) = ByHand::new();
        let builder = Channel::over("greeter".parse().unwrap(), resolve);
        let channel = with(builder.connect_with(net.clone())).build().unwrap();
        let mut ward = Self {
            channel,
            deadline: Duration::from_millis(200),
            net,
            publisher,
            patients: Vec::new(),
        };
        ward.patients = (0..n).map(|n| ward.patient(n)).collect();
        let instances = ward.patients.iter().map(|(_, at)| at.instance.clone());
        ward.publisher.reset(instances);
        ward.channel.ready(n).await;
        ward
    }

    fn patient(&self, n: usize) -> (Patient, Running) {
        let id = format!("s{n}");
        let echo = Echo::new(&id);
        let patient = Patient {
            well: EchoServer::new(echo.clone()),
            illness: Arc::new(Mutex::new(Illness::None)),
            asked: Arc::default(),
            desk: Arc::new(Semaphore::new(1)),
            born: Instant::now(),
        };
        let running = self.run(&id, echo, &patient);
        (patient, running)
    }

    fn run(&self, id: &str, echo: Echo, patient: &Patient) -> Running {
        let at = format!("{id}.test:1");
        let server = Server::builder();
        self.net.serve_with(server, id, &at, echo, patient.clone())
    }

    /// From now on, this is what is wrong with this one.
    pub fn falls(&self, n: usize, illness: Illness) {
        *self.patients[n].0.illness.lock().unwrap() = illness;
    }

    /// It does one call at a time, each in this time.
    pub fn works(&self, n: usize, time: Duration) {
        self.falls(n, Illness::Works(time));
    }

    pub fn freeze(&self, n: usize) {
        self.patients[n].1.freeze();
    }

    /// One more.
    pub fn joins(&mut self, n: usize) {
        let patient = self.patient(n);
        let instance = patient.1.instance.clone();
        self.publisher.delta([Change::Put(Arc::new(instance))]);
        self.patients.push(patient);
    }

    pub fn weighs(&self, n: usize, weight: u32) {
        let instance = self.patients[n].1.instance.clone().weight(weight);
        self.publisher.delta([Change::Put(Arc::new(instance))]);
    }

    /// It is killed, and there again at once.
    pub fn restarts(&mut self, n: usize) {
        self.patients[n].1.kill();
        let echo = Echo::new(&format!("s{n}"));
        self.patients[n].1 = self.run(&format!("s{n}"), echo, &self.patients[n].0);
    }

    /// How many calls it has been given.
    pub fn asked(&self, n: usize) -> u64 {
        self.patients[n].0.asked.load(SeqCst)
    }

    /// So many calls, spread evenly over this time.
    pub async fn call(&self, calls: usize, time: Duration) -> Tally {
        let pause = interval(time / u32::try_from(calls).unwrap());
        let clock = stream::unfold(pause, |mut pause| async {
            pause.tick().await;
            Some(((), pause))
        });
        let asked = clock.take(calls).map(|()| self.timed());
        let answers = asked.buffer_unordered(10_000);
        answers
            .fold(Tally::default(), |mut tally, answer| async {
                match answer {
                    Ok((id, took)) => {
                        *tally.by.entry(id.clone()).or_default() += 1;
                        tally.took.push((id, took));
                    }
                    Err(_) => tally.failed += 1,
                }
                tally
            })
            .await
    }

    async fn timed(&self) -> Result<(String, Duration), Status> {
        let began = Instant::now();
        let id = ask(self.channel.clone(), self.deadline).await?;
        Ok((id, Instant::now() - began))
    }

    /// One call, that may take ten seconds.
    pub fn one(&self) -> impl Future<Output = Result<String, Status>> + Send + use<> {
        ask(self.channel.clone(), Duration::from_secs(10))
    }
}

async fn ask(channel: Channel, deadline: Duration) -> Result<String, Status> {
    let message = String::from("hello");
    let mut request = Request::new(EchoRequest { message });
    request.set_timeout(deadline);
    let response = EchoClient::new(channel).unary_echo(request).await?;
    let served = response.extensions().get::<ServedBy>().unwrap();
    Ok(served.id().to_string())
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed, answered by {:?}", self.failed, self.by)
    }
}

impl Patient {
    async fn answer(mut self, request: http::Request<Body>) -> http::Response<Body> {
        let illness = *self.illness.lock().unwrap();
        let failure = || Status::unavailable("out of order").into_http();
        match illness {
            Illness::None => sleep(WORK).await,
            Illness::Fails => return failure(),
            Illness::Slow(time) => sleep(time).await,
            Illness::Flaps(time) => {
                let lived = Instant::now() - self.born;
                if (lived.as_nanos() / time.as_nanos()).is_multiple_of(2) {
                    return failure();
                }
            }
            Illness::Resets => return reset(),
            Illness::Says(code) => return Status::new(code, "no").into_http(),
            Illness::Overloaded => {
                let mut status = Status::unavailable("too much");
                let wait = MetadataValue::from_static("1000");
                status.metadata_mut().insert("grpc-retry-pushback-ms", wait);
                return status.into_http();
            }
            Illness::Works(time) => {
                let _at_the_desk = self.desk.acquire().await.unwrap();
                sleep(time).await;
            }
        }
        tower::Service::call(&mut self.well, request).await.unwrap()
    }
}

/// A response that breaks off after its head.
fn reset() -> http::Response<Body> {
    let broken = stream::once(async { Err::<http_body::Frame<Bytes>, _>(io::Error::other("cut")) });
    let head = http::Response::builder().header("content-type", "application/grpc");
    head.body(Body::new(StreamBody::new(broken))).unwrap()
}

impl tower::Service<http::Request<Body>> for Patient {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.asked.fetch_add(1, SeqCst);
        let patient = self.clone();
        Box::pin(async move { Ok(patient.answer(request).await) })
    }
}

impl NamedService for Patient {
    const NAME: &'static str = <EchoServer<Echo> as NamedService>::NAME;
}
