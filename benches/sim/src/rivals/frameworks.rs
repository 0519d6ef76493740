//! What Go's frameworks do, each in its own client: two choices by latency, calls in flight and successes.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::{SECOND, Time},
};

/// What tells kratos and go-zero from each other.
#[derive(Clone, Copy, PartialEq)]
pub enum Framework {
    Kratos,
    GoZero,
}

/// See the module's documentation.
pub struct Frameworks {
    framework: Framework,
    servers: Vec<Seen>,
    dice: Dice,
    calls: u64,
}

#[derive(Clone)]
struct Seen {
    /// In seconds.
    lag: f64,
    /// From 0 to 1.
    success: f64,
    at: Time,
    picked: Time,
    /// When the calls that are in flight began.
    in_flight: BTreeMap<u64, Time>,
}

impl Frameworks {
    pub fn new(framework: Framework, among: usize, dice: Dice) -> Self {
        Self {
            framework,
            servers: vec![Seen::new(0); among],
            dice,
            calls: 0,
        }
    }

    /// Who was not picked for so long is, when it is drawn.
    fn forced(&self) -> Time {
        match self.framework {
            Framework::Kratos => 3 * SECOND,
            Framework::GoZero => SECOND,
        }
    }

    /// In seconds.
    fn decay(&self) -> f64 {
        match self.framework {
            Framework::Kratos => 0.6,
            Framework::GoZero => 10.0,
        }
    }

    fn cost(&self, server: usize, at: Time) -> f64 {
        let seen = &self.servers[server];
        let in_flight = seen.in_flight.len() as f64 + 1.0;
        match self.framework {
            // Where nothing is known yet, a quarter of a second.
            Framework::Kratos if seen.lag == 0.0 => 0.250_f64.sqrt() * in_flight / seen.success(),
            Framework::Kratos => {
                let lag = seen.lag.max(seen.predicted(at));
                (lag + 0.005).sqrt() * in_flight / seen.success()
            }
            Framework::GoZero => (seen.lag * 1e9 + 1.0).sqrt() * in_flight,
        }
    }

    /// Two to choose from: of go-zero's three tries the first in which both are well, or the last.
    fn drawn(&mut self) -> (usize, usize) {
        let n = self.servers.len();
        let mut drawn = self.dice.two_below(n);
        if self.framework == Framework::GoZero {
            for _ in 0..2 {
                let well = |server: usize| self.servers[server].success > 0.5;
                if well(drawn.0) && well(drawn.1) {
                    break;
                }
                drawn = self.dice.two_below(n);
            }
        }
        drawn
    }
}

impl Seen {
    fn new(at: Time) -> Self {
        Self {
            lag: 0.0,
            success: 1.0,
            at,
            picked: at,
            in_flight: BTreeMap::new(),
        }
    }

    fn success(&self) -> f64 {
        self.success.max(1e-3)
    }

    /// How long those have waited that wait longer than usual, if most do.
    fn predicted(&self, at: Time) -> f64 {
        let ages = self.in_flight.values();
        let ages = ages.map(|&began| (at - began) as f64 / SECOND as f64);
        let (n, sum) = ages
            .filter(|age| *age > self.lag)
            .fold((0, 0.0), |(n, sum), age| (n + 1, sum + age));
        if n > self.in_flight.len() / 2 {
            sum / n as f64
        } else {
            0.0
        }
    }
}

impl Balancer for Frameworks {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        let (a, b) = self.drawn();
        let (less, more) = if self.cost(a, at) <= self.cost(b, at) {
            (a, b)
        } else {
            (b, a)
        };
        let starves = at - self.servers[more].picked > self.forced();
        let picked = if starves { more } else { less };
        self.calls += 1;
        let server = &mut self.servers[picked];
        server.picked = at;
        server.in_flight.insert(self.calls, at);
        Picked {
            server: picked,
            ticket: self.calls as usize,
        }
    }

    fn ended(&mut self, picked: Picked, end: End, took: Time, at: Time) {
        let decay = self.decay();
        let server = &mut self.servers[picked.server];
        server.in_flight.remove(&(picked.ticket as u64));
        let elapsed = (at - server.at) as f64 / SECOND as f64;
        let old = (-elapsed / decay).exp();
        server.at = at;
        let lag = took as f64 / SECOND as f64;
        let of_old = if server.lag == 0.0 { 0.0 } else { old };
        server.lag = server.lag * of_old + lag * (1.0 - of_old);
        let good = f64::from(u8::from(end == End::Answered));
        server.success = server.success * old + good * (1.0 - old);
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.servers.resize(servers.end, Seen::new(at));
    }
}
