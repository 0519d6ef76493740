//! Everything as it comes, the registry in memory.

use std::{net::SocketAddr, sync::Arc};

use load::{Failure, Peer};
use tonic_fleet::{Channel, Instance, ServiceName, resolve::Memory};

use crate::grpc::Grpc;

pub struct Fleet {
    channel: Channel,
    registry: Memory,
    service: ServiceName,
}

impl Peer for Fleet {
    type Caller = Grpc<Channel>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let service: ServiceName = "echo".parse()?;
        let registry = Memory::default();
        let channel = Channel::over(service.clone(), registry.clone()).build()?;
        let mut fleet = Self {
            channel,
            registry,
            service,
        };
        fleet.change(servers)?;
        Ok(fleet)
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.channel.clone(), message)
    }

    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        for known in self.registry.instances(&self.service) {
            let listed = |server: &SocketAddr| *known.id.as_str() == server.to_string();
            if !servers.iter().any(listed) {
                // What a lease that runs out looks like: nobody has said goodbye.
                self.registry.vanish(&self.service, &known.id);
            }
        }
        for server in servers {
            let instance = Instance::at(*server)?.id(server.to_string())?;
            self.registry.put(&self.service, instance);
        }
        Ok(())
    }
}
