//! Two choices by peak-sensitive latency and calls in flight: tower's (`tower::load::PeakEwma` in
//! `tower::balance::p2c`), and linkerd's load biaser, where a failure counts as a very long call.

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
/// What a failure counts as with linkerd, in seconds.
const PENALTY: f64 = 5.0;

/// See the module's documentation.
pub struct PeakEwma {
    whose: Whose,
    servers: Vec<Seen>,
    dice: Dice,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Whose {
    Towers,
    Linkerds,
}

#[derive(Clone)]
struct Seen {
    cost: f64,
    at: Time,
    pending: u32,
}

impl PeakEwma {
    pub fn new(whose: Whose, among: usize, dice: Dice) -> Self {
        Self {
            whose,
            servers: vec![Seen::new(0); among],
            dice,
        }
    }

    fn load(&mut self, server: usize, at: Time) -> f64 {
        let whose = self.whose;
        let server = &mut self.servers[server];
        let cost = match whose {
            // Who looks lets it fade, and begins to count anew.
            Whose::Towers => {
                server.observe(0.0, at);
                server.cost
            }
            Whose::Linkerds => server.faded(at),
        };
        cost * f64::from(server.pending + 1)
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

    fn faded(&self, at: Time) -> f64 {
        self.cost * self.decay(at)
    }

    fn observe(&mut self, rtt: f64, at: Time) {
        self.cost = if self.cost < rtt {
            rtt
        } else {
            let decay = self.decay(at);
            self.cost * decay + rtt * (1.0 - decay)
        };
        self.at = at;
    }
}

impl Balancer for PeakEwma {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        let (a, b) = self.dice.two_below(self.servers.len());
        let [of_a, of_b] = [a, b].map(|server| self.load(server, at));
        let less = if of_a <= of_b { a } else { b };
        self.servers[less].pending += 1;
        Picked::plain(less)
    }

    /// With tower, however it ended.
    fn ended(&mut self, picked: Picked, end: End, took: Time, at: Time) {
        let server = &mut self.servers[picked.server];
        server.pending -= 1;
        let took = took as f64 / SECOND as f64;
        let counts = match (self.whose, end) {
            (Whose::Linkerds, End::Failed) => PENALTY.max(server.faded(at)),
            _ => took,
        };
        server.observe(counts, at);
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.servers.resize(servers.end, Seen::new(at));
    }
}
