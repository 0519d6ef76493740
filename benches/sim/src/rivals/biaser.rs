//! linkerd's load biaser: two choices as tower's, where a failure counts as a very long call.

use std::ops::Range;

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::{SECOND, Time},
};

const DEFAULT_RTT: f64 = 0.030;
const DECAY: f64 = 10.0;
/// In seconds.
const PENALTY: f64 = 5.0;

/// See the module's documentation.
pub struct Biaser {
    servers: Vec<Seen>,
    dice: Dice,
}

#[derive(Clone)]
struct Seen {
    cost: f64,
    at: Time,
    pending: u32,
}

impl Biaser {
    pub fn new(among: usize, dice: Dice) -> Self {
        let servers = vec![Seen::new(0); among];
        Self { servers, dice }
    }
}

impl Seen {
    fn new(at: Time) -> Self {
        Self {
            cost: DEFAULT_RTT,
            at,
            pending: 0,
        }
    }

    fn decay(&self, at: Time) -> f64 {
        (-((at - self.at) as f64 / SECOND as f64) / DECAY).exp()
    }

    /// Who looks changes nothing.
    fn load(&self, at: Time) -> f64 {
        self.cost * self.decay(at) * f64::from(self.pending + 1)
    }

    fn observe(&mut self, rtt: f64, at: Time) {
        let decay = self.decay(at);
        self.cost = if self.cost < rtt {
            rtt
        } else {
            self.cost * decay + rtt * (1.0 - decay)
        };
        self.at = at;
    }
}

impl Balancer for Biaser {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        let (a, b) = self.dice.two_below(self.servers.len());
        let a_is_less = self.servers[a].load(at) <= self.servers[b].load(at);
        let less = if a_is_less { a } else { b };
        self.servers[less].pending += 1;
        Picked::plain(less)
    }

    fn ended(&mut self, picked: Picked, end: End, took: Time, at: Time) {
        let server = &mut self.servers[picked.server];
        server.pending -= 1;
        let took = took as f64 / SECOND as f64;
        let counts = match end {
            End::Failed => PENALTY.max(server.cost * server.decay(at)),
            End::Answered | End::Late => took,
        };
        server.observe(counts, at);
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.servers.resize(servers.end, Seen::new(at));
    }
}
