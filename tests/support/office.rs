//! Servers that do with each attempt what the test says, and keep a record of who came.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use http_body_util::{BodyExt, Full};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, body::Body, server::NamedService, transport::Server};
use tonic_fleet::{
    Builder, Channel, Instance, ServedBy,
    resolve::{Fixed, Publisher},
};

use crate::{
    echo::{Echo, EchoClient, EchoRequest, EchoServer},
    net::{ByHand, Net, Running},
};

/// A channel to servers that a test directs.
pub struct Office {
    pub channel: Channel,
    pub record: Record,
    _alive: Alive,
}

enum Alive {
    Memory {
        _servers: Vec<Running>,
        _publisher: Publisher,
    },
    Sockets {
        _servers: Vec<AbortOnDropHandle<()>>,
    },
}

/// What a server does with an attempt.
pub enum Act {
    /// Answers after so long.
    Answers(Duration),
    /// Reads the request, and fails without headers.
    Fails(Status),
    /// Works for it at one of these desks, so long as is said when it gets there.
    Works(Arc<Semaphore>, Takes),
    Never,
}

/// How long work takes at the moment.
pub type Takes = Box<dyn Fn() -> Duration + Send>;

/// An attempt as its server sees it.
pub struct Visit {
    pub server: usize,
    /// How many came here before.
    pub nth: usize,
    pub headers: HeaderMap,
}

/// Who came, in turn, and who was sent away by the caller.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Kept>>, Arc<watch::Sender<usize>>);

#[derive(Default)]
struct Kept {
    /// The servers that each call went to.
    calls: HashMap<String, Vec<usize>>,
    visits: Vec<usize>,
    cancelled: Vec<usize>,
    read: usize,
}

type Plot = dyn Fn(&Visit) -> Act + Send + Sync;

#[derive(Clone)]
struct Clerk {
    number: usize,
    plot: Arc<Plot>,
    record: Record,
    echo: EchoServer<Echo>,
}

/// The header that names a call.
pub const CALL: &str = "x-call";

impl Office {
    /// So many servers, all connected, that act like this.
    pub async fn of(
        n: usize,
        with: impl FnOnce(Builder) -> Builder,
        plot: impl Fn(&Visit) -> Act + Send + Sync + 'static,
    ) -> Self {
        let net = Net::default();
        let (publisher, resolve) = ByHand::new();
        let builder = Channel::over("greeter".parse().unwrap(), resolve);
        let channel = with(builder.connect_with(net.clone())).build().unwrap();
        let (record, plot): (_, Arc<Plot>) = (Record::default(), Arc::new(plot));
        let servers: Vec<_> = (0..n)
            .map(|number| {
                let (id, echo, clerk) = Clerk::new(number, &plot, &record);
                net.serve_with(Server::builder(), &id, &format!("{id}.test:1"), echo, clerk)
            })
            .collect();
        publisher.reset(servers.iter().map(|server| server.instance.clone()));
        channel.ready(n).await;
        Self {
            channel,
            record,
            _alive: Alive::Memory {
                _servers: servers,
                _publisher: publisher,
            },
        }
    }

    /// The same over sockets.
    pub async fn on_sockets(
        n: usize,
        with: impl FnOnce(Builder) -> Builder,
        plot: impl Fn(&Visit) -> Act + Send + Sync + 'static,
    ) -> Self {
        let (record, plot): (_, Arc<Plot>) = (Record::default(), Arc::new(plot));
        let (mut servers, mut instances) = (Vec::new(), Vec::new());
        for number in 0..n {
            let (id, _, clerk) = Clerk::new(number, &plot, &record);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
            instances.push(instance.id(id).unwrap());
            let router = Server::builder().add_service(clerk);
            let serving = router.serve_with_incoming(TcpListenerStream::new(listener));
            let serving = tokio::spawn(async move { serving.await.unwrap() });
            servers.push(AbortOnDropHandle::new(serving));
        }
        let builder = Channel::over("greeter".parse().unwrap(), Fixed::new(instances));
        let channel = with(builder).build().unwrap();
        channel.ready(n).await;
        Self {
            channel,
            record,
            _alive: Alive::Sockets { _servers: servers },
        }
    }

    /// A call of this name, which says who answered.
    pub fn call(&self, name: &str) -> impl Future<Output = Result<String, Status>> + use<> {
        let mut client = EchoClient::new(self.channel.clone());
        let request = request(name);
        async move {
            let response = client.unary_echo(request).await?;
            let served = response.extensions().get::<ServedBy>().unwrap();
            Ok(served.id().to_string())
        }
    }
}

/// The request of a call of this name.
pub fn request(name: &str) -> Request<EchoRequest> {
    let message = String::from("hello");
    let mut request = Request::new(EchoRequest { message });
    request.metadata_mut().insert(CALL, name.parse().unwrap());
    request
}

impl Record {
    /// The servers that each call went to.
    pub fn calls(&self) -> HashMap<String, Vec<usize>> {
        self.0.lock().unwrap().calls.clone()
    }

    pub fn of(&self, call: &str) -> Vec<usize> {
        self.calls().remove(call).unwrap_or_default()
    }

    pub fn attempts(&self) -> usize {
        self.0.lock().unwrap().visits.iter().sum()
    }

    /// How many bytes of requests came.
    pub fn read(&self) -> usize {
        self.0.lock().unwrap().read
    }

    /// The servers that saw their attempt cancelled, as soon as there are so many.
    pub async fn cancelled(&self, at_least: usize) -> Vec<usize> {
        let mut seen = self.1.subscribe();
        seen.wait_for(|&n| n >= at_least).await.unwrap();
        self.0.lock().unwrap().cancelled.clone()
    }

    fn visit(&self, server: usize, headers: &HeaderMap) -> usize {
        let mut kept = self.0.lock().unwrap();
        if let Some(call) = headers.get(CALL) {
            let call = call.to_str().unwrap().to_owned();
            kept.calls.entry(call).or_default().push(server);
        }
        if kept.visits.len() <= server {
            kept.visits.resize(server + 1, 0);
        }
        kept.visits[server] += 1;
        kept.visits[server] - 1
    }
}

/// Tells when an attempt is dropped before it is answered.
struct Witness(Record, usize, bool);

impl Drop for Witness {
    fn drop(&mut self) {
        if !self.2 {
            let mut kept = self.0.0.lock().unwrap();
            kept.cancelled.push(self.1);
            self.0.1.send_replace(kept.cancelled.len());
        }
    }
}

impl Clerk {
    fn new(number: usize, plot: &Arc<Plot>, record: &Record) -> (String, Echo, Self) {
        let id = format!("s{number}");
        let echo = Echo::new(&id);
        let clerk = Self {
            number,
            plot: Arc::clone(plot),
            record: record.clone(),
            echo: EchoServer::new(echo.clone()),
        };
        (id, echo, clerk)
    }

    async fn serve(mut self, request: http::Request<Body>) -> http::Response<Body> {
        let nth = self.record.visit(self.number, request.headers());
        let mut witness = Witness(self.record.clone(), self.number, false);
        let visit = Visit {
            server: self.number,
            nth,
            headers: request.headers().clone(),
        };
        let (head, body) = request.into_parts();
        let all = body.collect().await.unwrap().to_bytes();
        self.record.0.lock().unwrap().read += all.len();
        let answer = match (self.plot)(&visit) {
            Act::Answers(after) => {
                sleep(after).await;
                self.echo(head, all).await
            }
            Act::Works(desks, time) => {
                let at_a_desk = desks.acquire_owned().await.unwrap();
                sleep(time()).await;
                drop(at_a_desk);
                self.echo(head, all).await
            }
            Act::Fails(status) => status.into_http(),
            Act::Never => std::future::pending().await,
        };
        witness.2 = true;
        answer
    }

    async fn echo(&mut self, head: Parts, all: Bytes) -> http::Response<Body> {
        let request = http::Request::from_parts(head, Body::new(Full::new(all)));
        tower::Service::call(&mut self.echo, request).await.unwrap()
    }
}

impl tower::Service<http::Request<Body>> for Clerk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let clerk = self.clone();
        Box::pin(async move { Ok(clerk.serve(request).await) })
    }
}

impl NamedService for Clerk {
    const NAME: &'static str = <EchoServer<Echo> as NamedService>::NAME;
}
