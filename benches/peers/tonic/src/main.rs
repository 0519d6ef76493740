//! tonic's own `Channel`, its `balance_channel`, and tower's balancer with peak EWMA over channels of tonic's.
#![allow(clippy::all, reason = "generated code beside")]

#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
#[path = "../../common/grpc.rs"]
mod grpc;

use std::{
    collections::HashSet, convert::Infallible, net::SocketAddr, pin::Pin, process::ExitCode,
    sync::Arc, time::Duration,
};

use futures_util::{Stream, StreamExt};
use grpc::Grpc;
use http::Request;
use load::{Failure, Peer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, channel::Change},
};
use tower::{
    Service,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::Change as Discovered,
    load::{CompleteOnResponse, peak_ewma::PeakEwma},
};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("channel") => load::run::<One>(),
        Some("balance") => load::run::<Balanced>(),
        Some("p2c") => load::run::<Tower>(),
        _ => {
            eprintln!("say: peer-tonic channel|balance|p2c");
            ExitCode::from(2)
        }
    }
}

fn endpoint(server: SocketAddr) -> Result<Endpoint, Failure> {
    Ok(Endpoint::from_shared(format!("http://{server}"))?.tcp_nodelay(true))
}

/// A channel to the first of the servers.
struct One(Channel);

impl Peer for One {
    type Caller = Grpc<Channel>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let first = *servers.first().ok_or("no server")?;
        Ok(Self(endpoint(first)?.connect_lazy()))
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.0.clone(), message)
    }
}

/// What differs from what was known before.
#[derive(Default)]
struct Known(HashSet<SocketAddr>);

impl Known {
    fn differs(&mut self, servers: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let now: HashSet<_> = servers.iter().copied().collect();
        let new = now.difference(&self.0).copied().collect();
        let gone = self.0.difference(&now).copied().collect();
        self.0 = now;
        (new, gone)
    }
}

struct Balanced {
    channel: Channel,
    changes: mpsc::Sender<Change<SocketAddr, Endpoint>>,
    known: Known,
}

impl Peer for Balanced {
    type Caller = Grpc<Channel>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let (channel, changes) = Channel::balance_channel(1024);
        let mut balanced = Self {
            channel,
            changes,
            known: Known::default(),
        };
        balanced.change(servers)?;
        Ok(balanced)
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.channel.clone(), message)
    }

    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        let (new, gone) = self.known.differs(servers);
        for server in new {
            self.changes
                .try_send(Change::Insert(server, endpoint(server)?))?;
        }
        for server in gone {
            self.changes.try_send(Change::Remove(server))?;
        }
        Ok(())
    }
}

type Loaded = PeakEwma<Channel, CompleteOnResponse>;
type Discovering =
    Pin<Box<dyn Stream<Item = Result<Discovered<SocketAddr, Loaded>, Infallible>> + Send>>;
type P2c = Balance<Discovering, Request<Body>>;
type Shared = Buffer<Request<Body>, <P2c as Service<Request<Body>>>::Future>;

/// Two random choices by peak EWMA, shared through a `Buffer`, as tower's own examples do.
struct Tower {
    shared: Shared,
    changes: mpsc::UnboundedSender<Change<SocketAddr, Channel>>,
    known: Known,
}

impl Peer for Tower {
    type Caller = Grpc<Shared>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let (changes, changed) = mpsc::unbounded_channel();
        let discovered = UnboundedReceiverStream::new(changed).map(|change| {
            Ok(match change {
                Change::Insert(key, channel) => Discovered::Insert(
                    key,
                    PeakEwma::new(
                        channel,
                        Duration::from_millis(50),
                        1e9,
                        CompleteOnResponse::default(),
                    ),
                ),
                Change::Remove(key) => Discovered::Remove(key),
            })
        });
        let discovered: Discovering = Box::pin(discovered);
        let shared = Buffer::new(Balance::new(discovered), 1024);
        let mut tower = Self {
            shared,
            changes,
            known: Known::default(),
        };
        tower.change(servers)?;
        Ok(tower)
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.shared.clone(), message)
    }

    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        let (new, gone) = self.known.differs(servers);
        for server in new {
            self.changes
                .send(Change::Insert(server, endpoint(server)?.connect_lazy()))?;
        }
        for server in gone {
            self.changes.send(Change::Remove(server))?;
        }
        Ok(())
    }
}
