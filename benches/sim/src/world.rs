//! A fleet and its callers, from one event to the next.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    figures::{Figures, Notes},
    scenario::{AT_ONCE, CALM, Fate, Scenario},
    server::{Report, SECOND, Server, Time, seconds},
};

/// Streams of chance: calls, nets and neighbours are the same for all policies.
pub const OF_CLIENTS: u64 = 1 << 32;
pub const OF_SERVERS: u64 = 2 << 32;
const ASIDE: u64 = 4 << 32;

/// So many retries a client may have in hand.
const TOKENS: f64 = 10.0;

/// How often one that warms up is given its new speed.
pub const WARMTH: Time = SECOND / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client's next call begins.
    Begins(u32),
    /// A call is at its server.
    Arrives(u32),
    /// A server is done with a call, if nothing has changed since that was told.
    Done(u32, u32),
    /// The answer is back.
    Answered(u32),
    /// A server's neighbours change.
    Noise(u32),
    /// What befalls the bad ones goes on.
    Fate(u32),
    /// A probe is at its server.
    Asked(u32),
    /// What a server said is back.
    Told(u32),
}

struct Call {
    client: u32,
    picked: Picked,
    /// The first try, and this one.
    made: Time,
    began: Time,
    arrived: Time,
    /// How many calls its server had then.
    there: u32,
    back: Time,
    work: f64,
    tries: u32,
    over: bool,
    failed: bool,
    report: Option<Report>,
}

/// A question to a server how it is.
struct Probe {
    client: u32,
    server: u32,
    back: Time,
    report: Option<Report>,
}

struct Client {
    balancer: Box<dyn Balancer>,
    dice: Dice,
    /// For what not all policies do: it takes no chance from what all do alike.
    aside: Dice,
    /// Retries that it may make.
    tokens: f64,
}

/// A server's speed, by what it is made of.
#[derive(Clone)]
struct Making {
    noise: f64,
    fate: f64,
    dice: Dice,
}

impl Making {
    fn speed(&self, scenario: &Scenario, server: usize) -> f64 {
        scenario.speeds.base(server) * self.noise * self.fate
    }
}

struct World {
    scenario: Scenario,
    now: Time,
    told: u64,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    deadlines: VecDeque<(Time, u32)>,
    calls: Vec<Call>,
    probes: Vec<Probe>,
    clients: Vec<Client>,
    servers: Vec<Server>,
    coming: Vec<f64>,
    makings: Vec<Making>,
    notes: Notes,
}

/// Runs a scenario to its end, with balancers made for each client.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    mut balancer: impl FnMut(usize, &Scenario) -> Box<dyn Balancer>,
) -> Figures {
    let client = |n| Client {
        balancer: balancer(n, scenario),
        dice: Dice::new(seed, OF_CLIENTS + n as u64),
        aside: Dice::new(seed, ASIDE + n as u64),
        tokens: TOKENS,
    };
    let clients = (0..scenario.clients).map(client).collect();
    let makings: Vec<Making> = (0..scenario.servers)
        .map(|n| {
            let mut dice = Dice::new(seed, OF_SERVERS + n as u64);
            let noise = scenario.speeds.noise(n, &mut dice);
            let fate = 1.0;
            Making { noise, fate, dice }
        })
        .collect();
    let server = |(n, making): (usize, &Making)| {
        let speed = scenario.speeds.base(n) * making.noise;
        Server::new(scenario.order, scenario.cores, speed)
    };
    let mut world = World {
        now: 0,
        told: 0,
        events: BinaryHeap::new(),
        deadlines: VecDeque::new(),
        calls: Vec::new(),
        probes: Vec::new(),
        clients,
        servers: makings.iter().enumerate().map(server).collect(),
        coming: vec![0.0; scenario.servers],
        makings,
        notes: Notes::new(scenario),
        scenario: scenario.clone(),
    };
    world.begin();
    world.run();
    world.notes.figures()
}

impl World {
    fn begin(&mut self) {
        for client in 0..self.clients.len() {
            self.next_call(client);
        }
        if self.scenario.speeds.change() {
            for server in 0..self.servers.len() {
                let first = self.makings[server].dice.between(0.0, 1.0);
                self.tell(seconds(first), Event::Noise(server as u32));
            }
        }
        if !matches!(self.scenario.fate, Fate::None) {
            self.tell(self.scenario.warm() + CALM, Event::Fate(0));
        }
    }

    fn run(&mut self) {
        let tries = u64::from(self.scenario.retries.most) + 1;
        let last = self.scenario.ends() + tries * self.scenario.patience();
        loop {
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            if let Some(&(at, call)) = self.deadlines.front()
                && next.is_none_or(|next| at <= next)
            {
                self.deadlines.pop_front();
                self.now = at;
                self.is_late(call as usize);
                continue;
            }
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                return;
            };
            self.now = at;
            match event {
                _ if at > last => return,
                Event::Begins(client) => self.begins(client as usize),
                Event::Arrives(call) => self.arrives(call as usize),
                Event::Done(server, generation) => self.done(server as usize, generation),
                Event::Answered(call) => self.answered(call as usize),
                Event::Noise(server) => self.noise(server as usize),
                Event::Fate(step) => self.fate(step),
                Event::Asked(probe) => self.asked(probe),
                Event::Told(probe) => self.told(probe),
            }
        }
    }

    fn tell(&mut self, at: Time, event: Event) {
        self.told += 1;
        self.events.push(Reverse((at, self.told, event)));
    }

    fn next_call(&mut self, client: usize) {
        let mean = 1.0 / self.scenario.rate();
        let at = self.now + seconds(self.clients[client].dice.gap(mean));
        if at < self.scenario.ends() {
            self.tell(at, Event::Begins(client as u32));
        }
    }

    fn begins(&mut self, client: usize) {
        self.next_call(client);
        let caller = &mut self.clients[client];
        let budget = self.scenario.retries.budget;
        caller.tokens = (caller.tokens + budget).min(TOKENS);
        let work = self.scenario.size(&mut caller.dice);
        let net = self.scenario.net;
        let ways = [(); 2].map(|()| seconds(net * caller.dice.between(0.8, 1.2)));
        self.is_made(client, work, ways, self.now, 1);
        self.probe(client);
    }

    /// A call of so much work leaves, for the first time or again.
    fn is_made(&mut self, client: usize, work: f64, ways: [Time; 2], made: Time, tries: u32) {
        let fleet = Fleet {
            servers: &self.servers,
            coming: &self.coming,
            work,
        };
        let picked = self.clients[client].balancer.pick(self.now, fleet);
        self.notes.picked(picked.server, self.now);
        self.coming[picked.server] += work;
        let [there, back] = ways;
        let call = self.calls.len() as u32;
        self.calls.push(Call {
            client: client as u32,
            picked,
            made,
            began: self.now,
            arrived: 0,
            there: 0,
            back,
            work,
            tries,
            over: false,
            failed: false,
            report: None,
        });
        let late = self.now + self.scenario.patience();
        self.deadlines.push_back((late, call));
        self.tell(self.now + there, Event::Arrives(call));
    }

    /// Asks those whom the client's balancer wants to be asked.
    fn probe(&mut self, client: usize) {
        for server in self.clients[client].balancer.probes() {
            let dice = &mut self.clients[client].aside;
            let net = self.scenario.net;
            let [there, back] = [(); 2].map(|()| seconds(net * dice.between(0.8, 1.2)));
            let probe = self.probes.len() as u32;
            self.probes.push(Probe {
                client: client as u32,
                server: server as u32,
                back,
                report: None,
            });
            self.tell(self.now + there, Event::Asked(probe));
        }
    }

    fn asked(&mut self, probe: u32) {
        let asked = &mut self.probes[probe as usize];
        let server = &mut self.servers[asked.server as usize];
        let Some(report) = server.report(self.now) else {
            return;
        };
        asked.report = Some(Report {
            latency: server.latency(self.now),
            ..report
        });
        let at = self.now + asked.back;
        self.tell(at, Event::Told(probe));
    }

    fn told(&mut self, probe: u32) {
        let Probe {
            client,
            server,
            report,
            ..
        } = self.probes[probe as usize];
        let caller = &mut self.clients[client as usize];
        if let Some(report) = report {
            caller.balancer.probed(server as usize, &report, self.now);
        }
    }

    fn arrives(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let (server, work) = (call.picked.server, call.work);
        self.coming[server] -= work;
        if call.over {
            return;
        }
        let it = &mut self.servers[server];
        if it.fails {
            it.failed(self.now);
            call.failed = true;
            call.report = it.report(self.now);
            let at = self.now + AT_ONCE + call.back;
            return self.tell(at, Event::Answered(number as u32));
        }
        (call.arrived, call.there) = (self.now, it.in_flight());
        let over = self.scenario.over * self.makings[server].speed(&self.scenario, server);
        it.takes(number as u32, work + over, self.now);
        self.changed(server);
    }

    /// What was told about this server's next is told anew.
    fn changed(&mut self, server: usize) {
        let it = &mut self.servers[server];
        it.generation += 1;
        let (next, generation) = (it.next(), it.generation);
        if let Some(at) = next {
            self.tell(at.max(self.now), Event::Done(server as u32, generation));
        }
    }

    fn done(&mut self, server: usize, generation: u32) {
        if self.servers[server].generation != generation {
            return;
        }
        let calls = &self.calls;
        let wants = |call: u32| !calls[call as usize].over;
        let it = &mut self.servers[server];
        if let Some(number) = it.done(self.now, wants) {
            let call = &mut self.calls[number as usize];
            let took = (self.now - call.arrived) as f64 / SECOND as f64;
            it.answered(call.there, took, self.now);
            call.report = it.report(self.now);
            let at = self.now + call.back;
            self.tell(at, Event::Answered(number));
        }
        self.changed(server);
    }

    fn answered(&mut self, call: usize) {
        let end = if self.calls[call].failed {
            End::Failed
        } else {
            End::Answered
        };
        self.is_over(call, end);
    }

    fn is_late(&mut self, call: usize) {
        self.is_over(call, End::Late);
    }

    fn is_over(&mut self, number: usize, end: End) {
        let call = &mut self.calls[number];
        if std::mem::replace(&mut call.over, true) {
            return;
        }
        let Call {
            client,
            picked,
            made,
            work,
            tries,
            ..
        } = *call;
        let took = self.now - call.began;
        let report = call.report.filter(|_| end != End::Late);
        let caller = &mut self.clients[client as usize];
        if let Some(report) = report {
            caller.balancer.told(picked.server, &report, self.now);
        }
        caller.balancer.ended(picked, end, took, self.now);
        let may = tries <= self.scenario.retries.most && caller.tokens >= 1.0;
        if end == End::Answered || !may {
            return self.notes.ended(made, self.now - made, end, tries);
        }
        caller.tokens -= 1.0;
        let net = self.scenario.net;
        let ways = [(); 2].map(|()| seconds(net * caller.aside.between(0.8, 1.2)));
        self.is_made(client as usize, work, ways, made, tries + 1);
    }

    fn noise(&mut self, server: usize) {
        let making = &mut self.makings[server];
        making.noise = self.scenario.speeds.noise(server, &mut making.dice);
        let next = self.now + seconds(making.dice.between(0.7, 1.3));
        self.tell(next, Event::Noise(server as u32));
        self.speed(server);
    }

    fn speed(&mut self, server: usize) {
        let speed = self.makings[server].speed(&self.scenario, server);
        self.servers[server].runs_at(speed, self.now);
        self.changed(server);
    }

    /// What befalls the bad ones, step by step.
    fn fate(&mut self, step: u32) {
        let mut bad = self.notes.bad();
        let mut fate = 1.0;
        let next = match self.scenario.fate {
            Fate::None => return,
            Fate::Fail { lasts } => {
                bad.clone().for_each(|n| self.servers[n].fails = step == 0);
                (step == 0).then(|| seconds(lasts))
            }
            Fate::Slow { left, lasts } => {
                fate = if step == 0 { left } else { 1.0 };
                (step == 0).then(|| seconds(lasts))
            }
            Fate::Pause { every } => {
                let stands = step.is_multiple_of(2);
                let turn = bad.start + step as usize / 2 % bad.len();
                bad = turn..turn + 1;
                fate = f64::from(u8::from(!stands));
                Some(if stands { SECOND } else { seconds(every - 1.0) })
            }
            Fate::Join => {
                if step == 0 {
                    let clients = &mut self.clients;
                    clients
                        .iter_mut()
                        .for_each(|c| c.balancer.joined(bad.clone(), self.now));
                }
                let age = f64::from(step) * WARMTH as f64 / SECOND as f64;
                fate = (0.1 + 0.9 * age / 10.0).min(1.0);
                (fate < 1.0).then_some(WARMTH)
            }
        };
        for server in bad {
            self.makings[server].fate = fate;
            self.speed(server);
        }
        if let Some(after) = next {
            self.tell(self.now + after, Event::Fate(step + 1));
        }
    }
}
