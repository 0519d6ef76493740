//! Prequal (NSDI'24): servers are asked ahead of calls how busy they are, and calls go by a pool of their answers.

use std::{collections::VecDeque, ops::Range};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::{Report, SECOND, Time},
};

/// What tells the published one from that of prequal-rs.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Of the in-flight counts of late, this part counts as few.
    few: f64,
    /// Probes, and answers that are dropped, a call.
    probes: f64,
    drops: f64,
    /// Whether the fastest of those with few is taken, or the one with fewest.
    fastest: bool,
    /// Whether answers to calls count as answers to probes, and five failures in a row eject.
    guarded: bool,
}

/// With the constants of the paper.
pub const PUBLISHED: Rules = Rules {
    few: 0.84,
    probes: 3.0,
    drops: 1.0,
    fastest: true,
    guarded: false,
};
/// As prequal-rs runs its own test bed.
pub const PREQUAL_RS: Rules = Rules {
    few: 0.6,
    probes: 0.5,
    drops: 0.25,
    fastest: false,
    guarded: true,
};

const POOL: usize = 16;
const OLD: Time = SECOND;
/// So many in-flight counts say what is few.
const COUNTS: usize = 128;
const FAILURES: u32 = 5;
const EJECTED: Time = SECOND;
const EJECTED_AT_MOST: Time = 30 * SECOND;

/// See the module's documentation.
pub struct Prequal {
    rules: Rules,
    servers: Vec<Guard>,
    pool: VecDeque<Answer>,
    counts: VecDeque<u32>,
    dice: Dice,
    /// Parts of probes and drops that are due.
    probes: f64,
    drops: f64,
    drops_worst: bool,
}

struct Answer {
    server: usize,
    in_flight: u32,
    latency: f64,
    at: Time,
    uses: u32,
}

#[derive(Clone, Default)]
struct Guard {
    failures: u32,
    ejections: u32,
    until: Time,
}

impl Prequal {
    pub fn new(rules: Rules, among: usize, dice: Dice) -> Self {
        Self {
            rules,
            servers: vec![Guard::default(); among],
            pool: VecDeque::new(),
            counts: VecDeque::new(),
            dice,
            probes: 0.0,
            drops: 0.0,
            drops_worst: false,
        }
    }

    /// How often an answer may be used, so that as many come as go.
    fn uses(&mut self) -> u32 {
        let left = 1.0 - POOL as f64 / self.servers.len() as f64;
        let surplus = left * self.rules.probes - self.rules.drops;
        if surplus <= 0.0 {
            return u32::MAX;
        }
        let uses = (2.0 / surplus).max(1.0);
        uses as u32 + u32::from(self.dice.unit() < uses.fract())
    }

    fn add(&mut self, server: usize, report: &Report, at: Time) {
        if self.rules.guarded && at < self.servers[server].until {
            return;
        }
        if self.pool.len() == POOL {
            self.pool.pop_front();
        }
        self.counts.push_back(report.in_flight);
        if self.counts.len() > COUNTS {
            self.counts.pop_front();
        }
        let uses = self.uses();
        self.pool.push_back(Answer {
            server,
            in_flight: report.in_flight,
            latency: report.latency,
            at,
            uses,
        });
    }

    fn few(&self) -> u32 {
        let mut counts: Vec<u32> = self.counts.iter().copied().collect();
        counts.sort_unstable();
        let place = (counts.len() as f64 * self.rules.few) as usize;
        let last = counts.len().saturating_sub(1);
        counts.get(place.min(last)).copied().unwrap_or(0)
    }

    /// From better to worse: those with few calls by latency, then the others by their calls.
    fn rank(&self, answer: &Answer, few: u32) -> (bool, f64) {
        let many = answer.in_flight > few;
        let by_latency = self.rules.fastest && !many;
        let cost = if by_latency {
            answer.latency
        } else {
            f64::from(answer.in_flight)
        };
        (many, cost)
    }

    fn place(&self, worst: bool) -> Option<usize> {
        let few = self.few();
        let ranked = self.pool.iter().enumerate();
        let ranked = ranked.map(|(place, answer)| (self.rank(answer, few), place));
        let order = |a: &((bool, f64), usize), b: &((bool, f64), usize)| {
            a.0.0.cmp(&b.0.0).then(a.0.1.total_cmp(&b.0.1))
        };
        let found = if worst {
            ranked.max_by(order)
        } else {
            ranked.min_by(order)
        };
        found.map(|(_, place)| place)
    }

    /// Answers that are due to be dropped: the oldest and the worst by turns.
    fn drop_some(&mut self) {
        self.drops += self.rules.drops;
        while self.drops >= 1.0 {
            self.drops -= 1.0;
            self.drops_worst = !self.drops_worst;
            let place = if self.drops_worst {
                self.place(true)
            } else {
                Some(0)
            };
            place.and_then(|place| self.pool.remove(place));
        }
    }

    fn anybody(&mut self, at: Time) -> usize {
        let mut any = self.dice.below(self.servers.len());
        for _ in 0..8 {
            if at >= self.servers[any].until {
                break;
            }
            any = self.dice.below(self.servers.len());
        }
        any
    }
}

impl Balancer for Prequal {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        self.pool.retain(|answer| at - answer.at < OLD);
        let best = (self.pool.len() >= 2).then(|| self.place(false)).flatten();
        let Some(place) = best else {
            return Picked::plain(self.anybody(at));
        };
        let answer = &mut self.pool[place];
        let server = answer.server;
        answer.in_flight += 1;
        answer.uses -= 1;
        if answer.uses == 0 {
            self.pool.remove(place);
        }
        self.drop_some();
        Picked::plain(server)
    }

    fn probes(&mut self) -> Vec<usize> {
        self.probes += self.rules.probes;
        let mut asked = Vec::new();
        while self.probes >= 1.0 {
            self.probes -= 1.0;
            let server = self.dice.below(self.servers.len());
            if !asked.contains(&server) {
                asked.push(server);
            }
        }
        asked
    }

    fn probed(&mut self, server: usize, report: &Report, at: Time) {
        self.add(server, report, at);
    }

    fn told(&mut self, server: usize, report: &Report, at: Time) {
        if self.rules.guarded {
            self.add(server, report, at);
        }
    }

    fn ended(&mut self, picked: Picked, end: End, _: Time, at: Time) {
        if !self.rules.guarded {
            return;
        }
        let ejected = self.servers.iter().filter(|guard| at < guard.until);
        let may = (ejected.count() + 1) * 2 <= self.servers.len();
        let guard = &mut self.servers[picked.server];
        if end != End::Failed {
            *guard = Guard::default();
            return;
        }
        guard.failures += 1;
        if guard.failures >= FAILURES && may {
            let lasts = EJECTED << guard.ejections.min(5);
            guard.until = at + lasts.min(EJECTED_AT_MOST);
            guard.ejections += 1;
        }
        self.pool.retain(|answer| answer.server != picked.server);
    }

    fn joined(&mut self, servers: Range<usize>, _: Time) {
        self.servers.resize(servers.end, Guard::default());
    }
}
