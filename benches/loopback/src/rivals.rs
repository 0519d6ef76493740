//! Each contender as a client of its own, whom it may call, and how it hears of more.

use std::{error::Error, net::SocketAddr, time::Duration};

use http::{Request, Response};
use sim::reality::Rival;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};
use tonic::{
    Status,
    body::Body,
    transport::{Channel as Tonic, Endpoint, channel},
};
use tonic_fleet::{Channel as Ours, Instance, Memory, ServiceName, balance};
use tower::{
    BoxError, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::Change,
    load::{CompleteOnResponse, PeakEwmaDiscover},
    util::BoxCloneSyncService,
};

/// Either contender, as a generated client takes it.
pub type Caller = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// One client.
pub struct Client {
    pub caller: Caller,
    hears: Hears,
}

/// How a client hears of a server.
enum Hears {
    Ours(Memory, ServiceName, Ours),
    Tonic(mpsc::Sender<channel::Change<usize, Endpoint>>),
    Tower(mpsc::UnboundedSender<Change<usize, Tonic>>),
}

/// tower's own example.
const DEFAULT_RTT: Duration = Duration::from_millis(30);
const DECAY: Duration = Duration::from_secs(10);
const ROOM: usize = 1024;

/// A client that knows nobody yet.
pub fn client(rival: Rival) -> Result<Client, Box<dyn Error>> {
    match rival {
        Rival::Tonic => {
            let (channel, changes) = Tonic::balance_channel(ROOM);
            let channel = channel.map_err(|error| Status::from_error(error.into()));
            Ok(Client {
                caller: BoxCloneSyncService::new(channel),
                hears: Hears::Tonic(changes),
            })
        }
        Rival::Tower => Ok(tower()),
        Rival::LeastLoaded | Rival::Adaptive => {
            let (registry, service) = (Memory::default(), ServiceName::new("echo")?);
            let channel = Ours::over(service.clone(), registry.clone())
                .policy(balance::named(rival.in_sim())?)
                .build()?;
            let caller = channel.clone().map_response(|answer| answer.map(Body::new));
            Ok(Client {
                caller: BoxCloneSyncService::new(caller),
                hears: Hears::Ours(registry, service, channel),
            })
        }
    }
}

fn tower() -> Client {
    let (changes, heard) = mpsc::unbounded_channel();
    let heard = UnboundedReceiverStream::new(heard).map(Ok::<_, BoxError>);
    let measured = PeakEwmaDiscover::new(heard, DEFAULT_RTT, DECAY, CompleteOnResponse::default());
    let balance: Balance<_, Request<Body>> = Balance::new(measured);
    let caller = Buffer::new(balance, ROOM).map_err(Status::from_error);
    Client {
        caller: BoxCloneSyncService::new(caller),
        hears: Hears::Tower(changes),
    }
}

impl Client {
    /// It may call this server from now on.
    pub fn hear(&self, server: usize, address: SocketAddr) -> Result<(), Box<dyn Error>> {
        let endpoint = || Endpoint::from_shared(format!("http://{address}"));
        match &self.hears {
            Hears::Ours(registry, service, _) => {
                let id = format!("s{server:03}");
                registry.put(service, Instance::at(address)?.id(id)?);
            }
            Hears::Tonic(changes) => {
                changes.try_send(channel::Change::Insert(server, endpoint()?))?;
            }
            Hears::Tower(changes) => {
                changes.send(Change::Insert(server, endpoint()?.connect_lazy()))?;
            }
        }
        Ok(())
    }

    /// Waits for so many connections, where that can be known.
    pub async fn ready(&self, servers: usize) {
        if let Hears::Ours(.., channel) = &self.hears {
            channel.ready(servers).await;
        }
    }
}
