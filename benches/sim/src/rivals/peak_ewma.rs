//! tower's: two choices by peak-sensitive latency and calls in flight (`tower::load::PeakEwma` in `tower::balance::p2c`).

use std::ops::Range;

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::{SECOND, Time},
};

/// What is taken for granted of a server before it has answered, as in tower's own example.
const DEFAULT_RTT: f64 = 0.030;
/// In seconds, as in tower's own example.
const DECAY: f64 = 10.0;

/// See the module's documentation.
pub struct PeakEwma {
    servers: Vec<Seen>,
    dice: Dice,
}

#[derive(Clone)]
struct Seen {
    cost: f64,
    at: Time,
    pending: u32,
}

impl PeakEwma {
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

    fn observe(&mut self, rtt: f64, at: Time) {
        if self.cost < rtt {
            self.cost = rtt;
        } else {
            let elapsed = (at - self.at) as f64 / SECOND as f64;
            let decay = (-elapsed / DECAY).exp();
            self.cost = self.cost * decay + rtt * (1.0 - decay);
        }
        self.at = at;
    }

    /// Who looks lets it fade.
    fn load(&mut self, at: Time) -> f64 {
        self.observe(0.0, at);
        self.cost * f64::from(self.pending + 1)
    }
}

impl Balancer for PeakEwma {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        let (a, b) = self.dice.two_below(self.servers.len());
        let less = if self.servers[a].load(at) <= self.servers[b].load(at) {
            a
        } else {
            b
        };
        self.servers[less].pending += 1;
        Picked::plain(less)
    }

    /// However it ended.
    fn ended(&mut self, picked: Picked, _: End, took: Time, at: Time) {
        let server = &mut self.servers[picked.server];
        server.pending -= 1;
        server.observe(took as f64 / SECOND as f64, at);
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.servers.resize(servers.end, Seen::new(at));
    }
}
