//! Whether anybody listens.

use std::sync::Arc;

use super::{Probe, Probing, places};
use crate::{
    Instance,
    transport::{self, Connect},
};

/// Connects, and hangs up.
///
/// It says less than it seems to: the kernel of a process that stands still takes connections, too. A
/// channel's own connections show more; this is for a port other than that of the calls.
#[derive(Clone, Debug)]
pub struct Tcp {
    connect: Arc<dyn Connect>,
    port: Option<u16>,
}

impl Tcp {
    /// Connects to this port instead of that of the calls.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// What connects instead of TCP and Unix sockets.
    #[must_use]
    pub fn connect_with(mut self, connect: impl Connect) -> Self {
        self.connect = Arc::new(connect);
        self
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            connect: Arc::new(transport::Tcp::default()),
            port: None,
        }
    }
}

impl Probe for Tcp {
    fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a> {
        let ask = async move |address| places::connect(&*self.connect, &address).await.map(drop);
        Box::pin(places::any(instance, self.port, ask))
    }
}
