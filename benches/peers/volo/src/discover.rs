//! A registry that is told what it says.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use async_broadcast::{Receiver, Sender, broadcast};
use load::Failure;
use pilota::FastStr;
use volo::{
    context::Endpoint,
    discovery::{Change, Discover, Instance, diff_address},
    net::Address,
};

/// There is one service.
const NAME: FastStr = FastStr::from_static_str("echo");

#[derive(Clone)]
pub struct Listed {
    all: Arc<Mutex<Vec<Arc<Instance>>>>,
    tell: Sender<Change<FastStr>>,
    /// Keeps the channel open while nobody listens.
    told: Receiver<Change<FastStr>>,
}

impl Listed {
    pub fn new(servers: &[SocketAddr]) -> Self {
        let (mut tell, told) = broadcast(64);
        tell.set_overflow(true);
        let all = Arc::new(Mutex::new(instances(servers)));
        Self { all, tell, told }
    }

    pub fn change(&self, servers: &[SocketAddr]) -> Result<(), Failure> {
        let now = instances(servers);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *all, now.clone());
        let (change, differs) = diff_address(NAME, before, now);
        if differs {
            self.tell.try_broadcast(change)?;
        }
        Ok(())
    }
}

impl Discover for Listed {
    type Key = FastStr;
    type Error = Infallible;

    async fn discover<'s>(&'s self, _: &'s Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self
            .all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn key(&self, _: &Endpoint) -> FastStr {
        NAME
    }

    fn watch(&self, _: Option<&[FastStr]>) -> Option<Receiver<Change<FastStr>>> {
        Some(self.told.new_receiver())
    }
}

fn instances(servers: &[SocketAddr]) -> Vec<Arc<Instance>> {
    let instance = |server: &SocketAddr| {
        Arc::new(Instance {
            address: Address::Ip(*server),
            weight: 1,
            tags: Default::default(),
        })
    };
    servers.iter().map(instance).collect()
}
