//! ginepro's channel: tonic's `balance_channel`, kept up to date by asking again and again.
#![allow(clippy::all, reason = "generated code beside")]

// The generated client finds its codec where tonic has put it since.
extern crate self as tonic_prost;
pub use tonic::codec::ProstCodec;

#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
#[path = "../../common/grpc.rs"]
mod grpc;

use std::{
    collections::HashSet,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ginepro::{LoadBalancedChannel, LookupService, ResolutionStrategy, ServiceDefinition};
use grpc::Grpc;
use load::{Failure, Peer};

struct Ginepro {
    channel: LoadBalancedChannel,
    listed: Listed,
}

#[derive(Clone, Default)]
struct Listed(Arc<Mutex<HashSet<SocketAddr>>>);

#[async_trait::async_trait]
impl LookupService for Listed {
    async fn resolve_service_endpoints(
        &self,
        _: &ServiceDefinition,
    ) -> Result<HashSet<SocketAddr>, anyhow::Error> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }
}

impl Peer for Ginepro {
    type Caller = Grpc<LoadBalancedChannel>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let listed = Listed(Arc::new(Mutex::new(servers.iter().copied().collect())));
        let channel = LoadBalancedChannel::builder(("echo", 80))
            .lookup_service(listed.clone())
            // Ten seconds unless said; the others are told of a change at once.
            .dns_probe_interval(Duration::from_secs(1))
            .resolution_strategy(ResolutionStrategy::Eager {
                timeout: Duration::from_secs(5),
            })
            .channel()
            .await?;
        Ok(Self { channel, listed })
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.channel.clone(), message)
    }

    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        let mut listed = self.listed.0.lock().unwrap_or_else(PoisonError::into_inner);
        *listed = servers.iter().copied().collect();
        Ok(())
    }
}

fn main() -> ExitCode {
    load::run::<Ginepro>()
}
