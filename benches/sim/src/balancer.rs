//! What chooses the server of a call, one for each client.

use crate::server::{Report, Server, Time};

/// One client's way of choosing.
pub trait Balancer {
    /// The server of a call that begins now. It ends with [`Balancer::ended`], always.
    fn pick(&mut self, at: Time, fleet: Fleet<'_>) -> Picked;

    /// A call to this server ended like this, after so long.
    fn ended(&mut self, picked: Picked, end: End, took: Time, at: Time);

    /// What a server said of itself with an answer, just before [`Balancer::ended`].
    fn told(&mut self, _server: usize, _report: &Report, _at: Time) {}

    /// Whom to ask now, beside the call, how they are.
    fn probes(&mut self) -> Vec<usize> {
        Vec::new()
    }

    /// What one who was asked said, as long ago as its answer was under way.
    fn probed(&mut self, _server: usize, _report: &Report, _at: Time) {}

    /// Those from here on joined.
    fn joined(&mut self, servers: std::ops::Range<usize>, at: Time);
}

/// What only the oracle may look at, and how big the next call is.
#[derive(Clone, Copy)]
pub struct Fleet<'a> {
    pub servers: &'a [Server],
    /// Seconds that calls need which are on their way there.
    pub coming: &'a [f64],
    pub work: f64,
}

/// A server, and whatever the balancer wants to remember of the call.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    pub server: usize,
    pub ticket: usize,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Answered,
    /// The server said that it cannot.
    Failed,
    /// The caller waited no longer.
    Late,
}

impl Picked {
    pub fn plain(server: usize) -> Self {
        Self { server, ticket: 0 }
    }
}
