//! How evenly a subset for each client spreads connections, and what a change of the fleet costs: S17.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use serde::Serialize;
use tonic_fleet::{
    Instance,
    balance::{Rehearsal, RoundRobin},
    stage::{Seat, Subset},
};

use crate::{
    claims::Claim,
    clock::Clock,
    dice::Dice,
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

/// How clients take their subsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Choice {
    /// Drawn anew when anything changes.
    Drawn,
    /// Ranked by hash: gRFC A68, ours.
    Hashed,
    /// By numbers of clients and servers: Rocksteadier, ours.
    Numbered,
}

/// What a fleet looks like.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub fleet: Fleet,
    pub choice: Choice,
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
    /// The most connections of a server then, against the mean.
    pub most: f64,
}

struct Client {
    chooses: Chooses,
    /// By number.
    seen: BTreeSet<usize>,
}

enum Chooses {
    Drawn(Dice, BTreeSet<usize>),
    /// As a channel does.
    Ours(Box<Rehearsal>),
}

/// All clients of a fleet, and the time for them all.
struct Clients {
    all: Vec<Client>,
    size: usize,
    servers: BTreeSet<usize>,
    clock: Clock,
    now: Time,
}

/// Long enough for whoever left without a word to be let go of.
const SETTLED: Time = 120 * SECOND;
/// What is claimed of those with numbers, and from how many clients on the spread is so even.
const EVEN: f64 = 1.05;
const COSTS: f64 = 1.1;

impl Choice {
    const ALL: [Self; 3] = [Self::Drawn, Self::Hashed, Self::Numbered];

    fn name(self) -> &'static str {
        match self {
            Self::Drawn => "drawn anew",
            Self::Hashed => "by hash (A68)",
            Self::Numbered => "by number (Rocksteadier)",
        }
    }

    fn of(self, client: usize, size: usize, seed: u64) -> Chooses {
        let ours =
            |subset| Chooses::Ours(Box::new(Rehearsal::within(RoundRobin::default(), subset)));
        let subset = Subset::of(size).seed(seed + client as u64);
        match self {
            Self::Drawn => Chooses::Drawn(Dice::new(seed, client as u64), BTreeSet::new()),
            Self::Hashed => ours(subset),
            Self::Numbered => ours(subset.seat(Seat::fixed(client as u32))),
        }
    }
}

impl Clients {
    fn of(fleet: Fleet, choice: Choice, seed: u64, clock: Clock) -> Self {
        let client = |n: usize| Client {
            chooses: choice.of(n, fleet.size, seed),
            seen: BTreeSet::new(),
        };
        let mut clients = Self {
            all: (0..fleet.clients).map(client).collect(),
            size: fleet.size,
            servers: BTreeSet::new(),
            clock,
            now: 0,
        };
        clients.join(0..fleet.servers);
        clients
    }

    /// How many new connections a client has when these join, on average.
    fn join(&mut self, servers: Range<usize>) -> f64 {
        self.servers.extend(servers.clone());
        for client in &mut self.all {
            servers.clone().for_each(|server| client.hears(server));
        }
        self.settle()
    }

    /// The same when these leave.
    fn leave(&mut self, servers: Range<usize>) -> f64 {
        for server in servers {
            self.servers.remove(&server);
            self.all.iter_mut().for_each(|client| client.loses(server));
        }
        self.settle()
    }

    fn settle(&mut self) -> f64 {
        self.now += SETTLED;
        self.clock.reach(self.now);
        let size = self.size;
        let new = self.all.iter_mut().map(|client| client.new_ones(size));
        new.sum::<usize>() as f64 / self.all.len() as f64
    }

    /// How many clients the server has that has most, and the one that has fewest, against the mean.
    fn spread(&self) -> (f64, f64) {
        let count = |server: &usize| {
            let have = self
                .all
                .iter()
                .filter(|client| client.seen.contains(server));
            have.count() as f64
        };
        let counts: Vec<f64> = self.servers.iter().map(count).collect();
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let most = counts.iter().copied().fold(0.0, f64::max);
        let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
        (most / mean, least / mean)
    }
}

impl Client {
    fn hears(&mut self, server: usize) {
        match &mut self.chooses {
            Chooses::Drawn(_, all) => _ = all.insert(server),
            Chooses::Ours(rehearsal) => rehearsal.put(instance(server)),
        }
    }

    fn loses(&mut self, server: usize) {
        match &mut self.chooses {
            Chooses::Drawn(_, all) => _ = all.remove(&server),
            Chooses::Ours(rehearsal) => rehearsal.remove(&instance(server).id),
        }
    }

    /// How many are new to it since it was last asked.
    fn new_ones(&mut self, size: usize) -> usize {
        let now: BTreeSet<usize> = match &mut self.chooses {
            Chooses::Drawn(dice, all) => drawn(dice, all, size),
            Chooses::Ours(rehearsal) => {
                let ready = rehearsal.ready().iter();
                ready
                    .map(|endpoint| number(endpoint.id().as_str()))
                    .collect()
            }
        };
        let new = now.difference(&self.seen).count();
        self.seen = now;
        new
    }
}

/// So many of these.
fn drawn(dice: &mut Dice, all: &BTreeSet<usize>, size: usize) -> BTreeSet<usize> {
    let mut all: Vec<usize> = all.iter().copied().collect();
    let size = size.min(all.len());
    for place in 0..size {
        let other = place + dice.below(all.len() - place);
        all.swap(place, other);
    }
    all[..size].iter().copied().collect()
}

/// All fleets, each with clients whose seeds begin with this one, on a clock that is paused.
pub fn all(seed: u64) -> Vec<Spread> {
    let clock = Clock::default();
    let each = FLEETS.into_iter();
    let each = each.flat_map(|fleet| Choice::ALL.map(|choice| (fleet, choice)));
    each.map(|(fleet, choice)| Spread::of(fleet, choice, seed, clock.clone()))
        .collect()
}

impl Spread {
    fn of(fleet: Fleet, choice: Choice, seed: u64, clock: Clock) -> Self {
        let mut clients = Clients::of(fleet, choice, seed, clock);
        let (most, least) = clients.spread();
        let (k, n) = (fleet.size as f64, fleet.servers as f64);
        let few = fleet.servers / 10;
        let more = fleet.servers..fleet.servers + few;
        let one = || more.start..more.start + 1;
        let mut changes = Vec::new();
        let mut changed = |what, connections, ideal, clients: &Clients| {
            changes.push(Changed {
                what,
                connections,
                ideal,
                most: clients.spread().0,
            });
        };
        let joins = clients.join(one());
        changed("one joins", joins, k / (n + 1.0), &clients);
        let leaves = clients.leave(one());
        changed("it leaves", leaves, k / (n + 1.0), &clients);
        let joins = clients.join(more.clone());
        let part = few as f64 / (n + few as f64);
        changed("a tenth joins", joins, k * part, &clients);
        let leaves = clients.leave(more);
        changed("it leaves", leaves, k * part, &clients);
        let restart = |server: usize| {
            let away = clients.leave(server..server + 1);
            away + clients.join(server..server + 1)
        };
        let restarts = (0..few).map(restart).sum();
        let ideal = 2.0 * k * few as f64 / n;
        changed("a tenth restarts, one by one", restarts, ideal, &clients);
        Self {
            fleet,
            choice,
            most,
            least,
            changes,
        }
    }

    fn named(&self) -> String {
        let Fleet {
            clients,
            servers,
            size,
        } = self.fleet;
        format!("S17 {clients}x{servers} by {size}")
    }
}

/// That numbers make for an even spread, and for few new connections.
pub fn claims(all: &[Spread]) -> Vec<Claim> {
    let numbered = all.iter().filter(|it| it.choice == Choice::Numbered);
    let claims = numbered.flat_map(|spread| {
        let name = spread.named();
        let even = Claim::new(&name, "most connections / mean", spread.most, EVEN);
        let costs = spread.changes.iter().map(move |changed| {
            let says = format!("{}: new / ideal", changed.what);
            Claim::new(&name, says, changed.connections / changed.ideal, COSTS)
        });
        std::iter::once(even).chain(costs)
    });
    claims.collect()
}

fn instance(server: usize) -> Instance {
    let address = format!("10.0.{}.{}:50051", server / 250, server % 250 + 1);
    let instance = Instance::at(address).and_then(|it| it.id(format!("s{server:05}")));
    let instance = instance.expect("these are good names");
    instance.tag("ordinal", server.to_string())
}

/// Of a server, by its id.
fn number(id: &str) -> usize {
    id[1..].parse().expect("it is the number of a server")
}

/// A line for each change.
pub fn table(all: &[Spread]) -> String {
    let mut text = String::from(
        "\nS17: subsets; new connections a client, and the most connections of a server then against the mean\n",
    );
    for spread in all {
        let (most, least) = (spread.most, spread.least);
        let _ = writeln!(
            text,
            "  {}, {}: {least:.2} to {most:.2} of the mean connections a server",
            spread.named(),
            spread.choice.name(),
        );
        for changed in &spread.changes {
            let _ = writeln!(
                text,
                "    {:<30}{:>8.3}, ideal {:.3}; most {:.2}",
                changed.what, changed.connections, changed.ideal, changed.most
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::paused;

    fn spread(choice: Choice) -> Spread {
        let fleet = Fleet {
            clients: 60,
            servers: 30,
            size: 6,
        };
        paused(|| Spread::of(fleet, choice, 1, Clock::default())).unwrap()
    }

    #[test]
    fn a_change_of_the_fleet_costs_about_as_few_connections_as_it_must() {
        for choice in [Choice::Hashed, Choice::Numbered] {
            let spread = spread(choice);

            assert!((1.0..2.0).contains(&spread.most), "{spread:?}");
            for changed in &spread.changes {
                let ratio = changed.connections / changed.ideal;
                assert!((0.5..1.5).contains(&ratio), "{changed:?}");
            }
            assert!(table(&[spread]).contains("one joins"));
        }
    }

    #[test]
    fn numbers_make_for_an_even_spread_and_chance_for_many_new_connections() {
        let [drawn, numbered] = [Choice::Drawn, Choice::Numbered].map(spread);

        assert_eq!((numbered.least, numbered.most), (1.0, 1.0));
        let claims = claims(&[drawn.clone(), numbered]);
        assert_eq!(claims.len(), 6, "of those with numbers only");
        assert!(claims.iter().all(Claim::holds), "{claims:#?}");
        assert!(drawn.most > 1.1, "{drawn:?}");
        assert!(drawn.changes[0].connections > 10.0 * drawn.changes[0].ideal);
    }
}
