//! How evenly a subset for each client spreads connections, and what a change of the fleet costs: S17.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use serde::Serialize;
use tonic_fleet::{
    Instance, InstanceId,
    balance::{Rehearsal, RoundRobin},
    stage::Subset,
};

use crate::{
    clock::Clock,
    server::{SECOND, Time},
};

/// So many clients with a subset each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Fleet {
    pub clients: usize,
    pub servers: usize,
    pub size: usize,
}

pub const FLEETS: [Fleet; 3] = [
    Fleet {
        clients: 40,
        servers: 100,
        size: 10,
    },
    Fleet {
        clients: 500,
        servers: 100,
        size: 20,
    },
    Fleet {
        clients: 500,
        servers: 400,
        size: 20,
    },
];

/// What a fleet looks like.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub fleet: Fleet,
    /// Connections of the server with most of them, and of that with fewest, against the mean.
    pub most: f64,
    pub least: f64,
    pub changes: Vec<Changed>,
}

/// What a change of the fleet does.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    pub what: &'static str,
    /// New connections of a client, and how many there must be on average for the spread to stay even.
    pub connections: f64,
    pub ideal: f64,
}

struct Client {
    rehearsal: Rehearsal,
    seen: BTreeSet<InstanceId>,
}

/// All clients of a fleet, and the time for them all.
struct Clients {
    all: Vec<Client>,
    clock: Clock,
    now: Time,
}

/// Long enough for whoever left without a word to be let go of.
const SETTLED: Time = 120 * SECOND;

impl Clients {
    fn of(fleet: Fleet, seed: u64, clock: Clock) -> Self {
        let client = |n: usize| {
            let subset = Subset::of(fleet.size).seed(seed + n as u64);
            let mut rehearsal = Rehearsal::within(RoundRobin::default(), subset);
            (0..fleet.servers).for_each(|server| rehearsal.put(instance(server)));
            let seen = BTreeSet::new();
            Client { rehearsal, seen }
        };
        let mut clients = Self {
            all: (0..fleet.clients).map(client).collect(),
            clock,
            now: 0,
        };
        clients.changed(|_| ());
        clients
    }

    /// How many new connections a client has after a change, on average.
    fn changed(&mut self, change: impl Fn(&mut Rehearsal)) -> f64 {
        self.all.iter_mut().for_each(|client| {
            change(&mut client.rehearsal);
        });
        self.now += SETTLED;
        self.clock.reach(self.now);
        let new = self.all.iter_mut().map(Client::new_ones);
        new.sum::<usize>() as f64 / self.all.len() as f64
    }

    /// How many clients have each of the servers.
    fn counts(&self, servers: usize) -> Vec<f64> {
        let count = |server| {
            let id = instance(server).id;
            let have = self.all.iter().filter(|client| client.seen.contains(&id));
            have.count() as f64
        };
        (0..servers).map(count).collect()
    }
}

impl Client {
    /// How many are new to it since it was last asked.
    fn new_ones(&mut self) -> usize {
        let ready = self.rehearsal.ready().iter();
        let now: BTreeSet<InstanceId> = ready.map(|endpoint| endpoint.id().clone()).collect();
        let new = now.difference(&self.seen).count();
        self.seen = now;
        new
    }
}

/// All fleets, each with clients whose seeds begin with this one, on a clock that is paused.
pub fn all(seed: u64) -> Vec<Spread> {
    let clock = Clock::default();
    let of = |fleet| Spread::of(fleet, seed, clock.clone());
    FLEETS.into_iter().map(of).collect()
}

impl Spread {
    fn of(fleet: Fleet, seed: u64, clock: Clock) -> Self {
        let mut clients = Clients::of(fleet, seed, clock);
        let counts = clients.counts(fleet.servers);
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let (k, n) = (fleet.size as f64, fleet.servers as f64);
        let few = fleet.servers / 10;
        let more = fleet.servers..fleet.servers + few;
        let put = |it: &mut Rehearsal, servers: Range<usize>| {
            servers.for_each(|server| it.put(instance(server)));
        };
        let remove = |it: &mut Rehearsal, servers: Range<usize>| {
            servers.for_each(|server| it.remove(&instance(server).id));
        };
        let one = || more.start..more.start + 1;
        let joins = clients.changed(|it| put(it, one()));
        let leaves = clients.changed(|it| remove(it, one()));
        let tenth_joins = clients.changed(|it| put(it, more.clone()));
        let tenth_leaves = clients.changed(|it| remove(it, more.clone()));
        let restart = |server: usize| {
            let away = clients.changed(|it| remove(it, server..server + 1));
            away + clients.changed(|it| put(it, server..server + 1))
        };
        let restarts = (0..few).map(restart).sum();
        let few = few as f64;
        let changed = |what, connections, ideal| Changed {
            what,
            connections,
            ideal,
        };
        Self {
            fleet,
            most: counts.iter().copied().fold(0.0, f64::max) / mean,
            least: counts.iter().copied().fold(f64::INFINITY, f64::min) / mean,
            changes: vec![
                changed("one joins", joins, k / (n + 1.0)),
                changed("it leaves", leaves, k / (n + 1.0)),
                changed("a tenth joins", tenth_joins, k * few / (n + few)),
                changed("it leaves", tenth_leaves, k * few / (n + few)),
                changed("a tenth restarts, one by one", restarts, 2.0 * k * few / n),
            ],
        }
    }
}

fn instance(server: usize) -> Instance {
    let address = format!("10.0.{}.{}:50051", server / 250, server % 250 + 1);
    let instance = Instance::at(address).and_then(|it| it.id(format!("s{server:05}")));
    instance.expect("these are good names")
}

/// A line for each change.
pub fn table(all: &[Spread]) -> String {
    let mut text =
        String::from("\nS17: subsets as gRFC A68 takes them; new connections a client\n");
    for spread in all {
        let Fleet {
            clients,
            servers,
            size,
        } = spread.fleet;
        let (most, least) = (spread.most, spread.least);
        let _ = writeln!(
            text,
            "  {clients} clients, {size} of {servers} servers: {least:.2} to {most:.2} of the mean connections a server"
        );
        for changed in &spread.changes {
            let _ = writeln!(
                text,
                "    {:<30}{:>8.3}, ideal {:.3}",
                changed.what, changed.connections, changed.ideal
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::paused;

    #[test]
    fn a_change_of_the_fleet_costs_about_as_few_connections_as_it_must() {
        let fleet = Fleet {
            clients: 60,
            servers: 30,
            size: 6,
        };

        let spread = paused(|| Spread::of(fleet, 1, Clock::default())).unwrap();

        assert!((1.0..2.0).contains(&spread.most), "{spread:?}");
        for changed in &spread.changes {
            let ratio = changed.connections / changed.ideal;
            assert!((0.5..1.5).contains(&ratio), "{changed:?}");
        }
        assert!(table(&[spread]).contains("one joins"));
    }
}
