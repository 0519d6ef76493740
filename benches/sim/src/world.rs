//! A fleet and its callers, from one event to the next.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    figures::{Figures, Notes},
    scenario::{AT_ONCE, CALM, Fate, PATIENCE, Scenario, WARM_UP},
    server::{SECOND, Server, Time},
};

/// Streams of chance: calls, nets and neighbours are the same for all policies.
const OF_CLIENTS: u64 = 1 << 32;
const OF_SERVERS: u64 = 2 << 32;

/// How often one that warms up is given its new speed.
const WARMTH: Time = SECOND / 4;

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
}

struct Call {
    client: u32,
    picked: Picked,
    began: Time,
    back: Time,
    work: f64,
    over: bool,
    failed: bool,
}

struct Client {
    balancer: Box<dyn Balancer>,
    dice: Dice,
}

/// A server's speed, by what it is made of.
#[derive(Clone)]
struct Making {
    noise: f64,
    fate: f64,
    dice: Dice,
}

struct World {
    scenario: Scenario,
    now: Time,
    told: u64,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    deadlines: VecDeque<(Time, u32)>,
    calls: Vec<Call>,
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
            self.tell(WARM_UP + CALM, Event::Fate(0));
        }
    }

    fn run(&mut self) {
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
            let over = at > self.scenario.ends() + PATIENCE;
            match event {
                _ if over => return,
                Event::Begins(client) => self.begins(client as usize),
                Event::Arrives(call) => self.arrives(call as usize),
                Event::Done(server, generation) => self.done(server as usize, generation),
                Event::Answered(call) => self.answered(call as usize),
                Event::Noise(server) => self.noise(server as usize),
                Event::Fate(step) => self.fate(step),
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
        let work = self.scenario.size(&mut caller.dice);
        let net = self.scenario.net;
        let [there, back] = [(); 2].map(|()| seconds(net * caller.dice.between(0.8, 1.2)));
        let fleet = Fleet {
            servers: &self.servers,
            coming: &self.coming,
            work,
        };
        let picked = caller.balancer.pick(self.now, fleet);
        self.notes.picked(picked.server, self.now);
        self.coming[picked.server] += work;
        let call = self.calls.len() as u32;
        self.calls.push(Call {
            client: client as u32,
            picked,
            began: self.now,
            back,
            work,
            over: false,
            failed: false,
        });
        self.deadlines.push_back((self.now + PATIENCE, call));
        self.tell(self.now + there, Event::Arrives(call));
    }

    fn arrives(&mut self, call: usize) {
        let Call {
            picked,
            work,
            back,
            over,
            ..
        } = self.calls[call];
        let server = &mut self.servers[picked.server];
        self.coming[picked.server] -= work;
        if over {
            return;
        }
        if server.fails {
            self.calls[call].failed = true;
            return self.tell(self.now + AT_ONCE + back, Event::Answered(call as u32));
        }
        server.takes(call as u32, work, self.now);
        self.changed(picked.server);
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
        if let Some(call) = self.servers[server].done(self.now, wants) {
            let at = self.now + self.calls[call as usize].back;
            self.tell(at, Event::Answered(call));
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

    fn is_over(&mut self, call: usize, end: End) {
        let call = &mut self.calls[call];
        if std::mem::replace(&mut call.over, true) {
            return;
        }
        let took = self.now - call.began;
        let caller = &mut self.clients[call.client as usize];
        caller.balancer.ended(call.picked, end, took, self.now);
        self.notes.ended(call.began, took, end);
    }

    fn noise(&mut self, server: usize) {
        let making = &mut self.makings[server];
        making.noise = self.scenario.speeds.noise(server, &mut making.dice);
        let next = self.now + seconds(making.dice.between(0.7, 1.3));
        self.tell(next, Event::Noise(server as u32));
        self.speed(server);
    }

    fn speed(&mut self, server: usize) {
        let Making { noise, fate, .. } = self.makings[server];
        let speed = self.scenario.speeds.base(server) * noise * fate;
        self.servers[server].runs_at(speed, self.now);
        self.changed(server);
    }

    /// What befalls the bad ones, step by step.
    fn fate(&mut self, step: u32) {
        let bad = self.notes.bad();
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

fn seconds(seconds: f64) -> Time {
    (seconds * SECOND as f64) as Time
}
