//! The crate's own policies, as a channel uses them, on a clock that the simulation moves.

use std::{ops::Range, time::Duration};

use tonic::Code;
use tonic_fleet::{
    Instance,
    balance::{Policy, Probing, Question, Rehearsal, Rehearsed},
    orca::{self, Load},
    stage::Subset,
};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    clock::Clock,
    server::{Report, SECOND, Time},
};

/// One client with a policy of the crate's.
pub struct Ours {
    rehearsal: Rehearsal,
    clock: Clock,
    calls: Vec<Option<Rehearsed>>,
    free: Vec<usize>,
    /// What the server of the call that ends next said of itself.
    report: Option<Report>,
}

/// One client that asks servers how busy they are.
pub struct Asking {
    ours: Ours,
    policy: Probing,
    cores: usize,
    asked: Vec<(usize, Time, Question)>,
    now: Time,
}

/// A question is not waited for longer than that, as in a channel.
const PATIENCE: Time = SECOND / 4;

impl Ours {
    /// Seeds are told before: [`tonic_fleet::balance::seed`].
    pub fn new(among: usize, clock: &Clock, policy: impl Policy) -> Self {
        Self::over(among, clock, Rehearsal::of(policy))
    }

    /// The same, with a subset for this client.
    pub fn within(among: usize, clock: &Clock, policy: impl Policy, subset: Subset) -> Self {
        Self::over(among, clock, Rehearsal::within(policy, subset))
    }

    fn over(among: usize, clock: &Clock, rehearsal: Rehearsal) -> Self {
        let mut ours = Self {
            rehearsal,
            clock: clock.clone(),
            calls: Vec::new(),
            free: Vec::new(),
            report: None,
        };
        ours.put(0..among);
        ours
    }

    /// How many of so many calls each of the servers is given, where none is busy.
    pub fn shares(&mut self, servers: usize, calls: usize) -> Vec<usize> {
        let mut counts = vec![0; servers];
        for _ in 0..calls {
            let call = self.rehearsal.call().expect("there are servers");
            counts[number(call.endpoint().id().as_str())] += 1;
            call.ended(Code::Ok);
        }
        counts
    }

    fn put(&mut self, servers: Range<usize>) {
        for server in servers {
            let address = format!("10.0.{}.{}:1", server / 250, server % 250 + 1);
            let instance = Instance::at(address).and_then(|i| i.id(format!("s{server:05}")));
            self.rehearsal.put(instance.expect("these are good names"));
        }
    }
}

impl Balancer for Ours {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        self.clock.reach(at);
        let call = self.rehearsal.call().expect("there are servers");
        let server = number(call.endpoint().id().as_str());
        let ticket = self.free.pop().unwrap_or(self.calls.len());
        if ticket == self.calls.len() {
            self.calls.push(Some(call));
        } else {
            self.calls[ticket] = Some(call);
        }
        Picked { server, ticket }
    }

    fn told(&mut self, _: usize, report: &Report, _: Time) {
        self.report = Some(*report);
    }

    fn ended(&mut self, picked: Picked, end: End, _: Time, at: Time) {
        self.clock.reach(at);
        let mut call = self.calls[picked.ticket].take().expect("it ends once");
        self.free.push(picked.ticket);
        if let Some(report) = self.report.take() {
            call.reported(&in_orca(&report));
        }
        match end {
            End::Answered => {
                call.answered();
                call.ended(Code::Ok);
            }
            End::Failed => call.ended(Code::Unavailable),
            End::Late => call.late(),
        }
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.clock.reach(at);
        self.put(servers);
    }
}

/// As a server's recorder says it.
fn in_orca(said: &Report) -> orca::Report {
    let mut report = orca::Report::default();
    report.cpu_utilization = said.busy;
    report.rps_fractional = said.calls;
    report.eps = said.failures;
    report
}

/// Of a server, by its id.
fn number(id: &str) -> usize {
    id[1..].parse().expect("it is the number of a server")
}

impl Asking {
    pub fn new(among: usize, clock: &Clock, cores: usize) -> Self {
        let policy = Probing::by_hand();
        Self {
            ours: Ours::new(among, clock, policy.clone()),
            policy,
            cores,
            asked: Vec::new(),
            now: 0,
        }
    }
}

impl Balancer for Asking {
    fn pick(&mut self, at: Time, fleet: Fleet<'_>) -> Picked {
        self.now = at;
        self.ours.pick(at, fleet)
    }

    fn told(&mut self, server: usize, report: &Report, at: Time) {
        self.ours.told(server, report, at);
    }

    fn ended(&mut self, picked: Picked, end: End, took: Time, at: Time) {
        self.ours.ended(picked, end, took, at);
    }

    fn probes(&mut self) -> Vec<usize> {
        let now = self.now;
        self.asked.retain(|(_, at, _)| now - at < PATIENCE);
        let mut servers = Vec::new();
        while let Some(question) = self.policy.question() {
            let server = number(question.endpoint().id().as_str());
            servers.push(server);
            self.asked.push((server, now, question));
        }
        servers
    }

    fn probed(&mut self, server: usize, report: &Report, at: Time) {
        self.ours.clock.reach(at);
        let Some(place) = self.asked.iter().position(|(asked, ..)| *asked == server) else {
            return;
        };
        let (.., question) = self.asked.swap_remove(place);
        let crowd = f64::from(report.in_flight + 1) / self.cores as f64;
        question.answered(&Load {
            in_flight: report.in_flight,
            latency: Duration::from_secs_f64(report.latency),
            service: Duration::from_secs_f64(report.latency / crowd.max(1.0)),
        });
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.ours.joined(servers, at);
    }
}
