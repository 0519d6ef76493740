//! Everybody who can be compared, by name.

use std::{cell::OnceCell, sync::Arc};

use tonic_fleet::{
    balance::{self, Adaptive, Affinity, Maglev, Rendezvous, RingHash},
    stage::Subset,
};

use crate::{
    balancer::Balancer,
    clock::Clock,
    dice::Dice,
    example::BestOfThree,
    figures::Figures,
    ours::{Asking, Ours},
    rivals::{
        Framework, Frameworks, LeastRequest, Oracle, PREQUAL_RS, PUBLISHED, PeakEwma, Prequal,
        Random, RoundRobin, Shares, Weighted, Whose,
    },
    scenario::Scenario,
    world,
};

/// The crate's own are called as `balance::named` calls them. First whom equals are shared out by best.
pub const OURS: [&str; 12] = [
    "round_robin",
    "adaptive",
    "random",
    "weighted",
    "weighted_random",
    "least_loaded",
    "orca",
    "peak_ewma",
    "probing",
    "ring_hash",
    "maglev",
    "rendezvous",
];

/// Those of ours whose picks know nothing of each other, and what so even a choice would do that has no other fault.
pub const BY_CHANCE: [(&str, &str); 5] = [
    ("random", "plain_random"),
    ("weighted_random", "plain_random"),
    ("ring_hash", "ring_shares"),
    ("maglev", "maglev_shares"),
    ("rendezvous", "plain_random"),
];

/// The same where nobody is given much more than its part.
pub const BOUNDED: [&str; 3] = ["ring_bounded", "maglev_bounded", "rendezvous_bounded"];

/// The others, and what they are.
const OTHERS: [(&str, &str); 18] = [
    ("oracle", "knows all"),
    (
        "ring_bounded",
        "ours, at most 1.25 times the mean of a client's calls in flight",
    ),
    ("maglev_bounded", "the same"),
    ("rendezvous_bounded", "the same"),
    ("ring_shares", "any, with the shares that ring_hash gives"),
    ("maglev_shares", "any, with the shares that maglev gives"),
    (
        "adaptive_subset",
        "ours, each client among ten servers of its own",
    ),
    ("best_of_three", "a policy of one's own: examples/policy"),
    ("tower", "tower's P2C + PeakEWMA"),
    ("plain_random", "tonic's balance_channel: any"),
    ("plain_round_robin", "each in turn, whatever it does"),
    (
        "least_request",
        "Envoy's and A48's: fewer in flight, of two",
    ),
    (
        "grpc_weighted",
        "grpc-go's A58: shares by what servers report",
    ),
    (
        "linkerd_biaser",
        "tower's, where a failure counts as five seconds",
    ),
    ("kratos", "P2C by latency, in flight, successes"),
    ("go_zero", "P2C likewise, slower to forget"),
    ("prequal", "a pool of probes, with the paper's constants"),
    ("prequal_rs", "a pool of probes, as prequal-rs has it"),
];

const SUBSET: usize = 10;
/// Of the mean of a client's calls in flight.
const BOUND: f64 = 1.25;
/// From so many picks for each server it is told which shares a policy gives.
const PICKS: usize = 20_000;

/// Streams of chance for those who choose.
const OF_BALANCERS: u64 = 3 << 32;

/// All names, and what they stand for.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let ours = OURS.into_iter().map(|name| (name, "ours"));
    ours.chain(OTHERS)
}

pub fn is_known(name: &str) -> bool {
    all().any(|(known, _)| known == name)
}

/// What the clients of a run have in common.
#[derive(Default)]
struct Run {
    clock: Clock,
    shares: OnceCell<Arc<[f64]>>,
}

/// Runs a scenario with all its clients choosing in this way.
pub fn run(name: &str, scenario: &Scenario, seed: u64) -> Figures {
    let run = Run::default();
    balance::seed(seed);
    world::run(scenario, seed, |client, scenario| {
        let dice = Dice::new(seed, OF_BALANCERS + client as u64);
        run.client(name, scenario, dice)
    })
}

impl Run {
    fn client(&self, name: &str, scenario: &Scenario, dice: Dice) -> Box<dyn Balancer> {
        let n = scenario.at_first();
        self.of_ours(name, scenario, &dice)
            .unwrap_or_else(|| match name {
                "oracle" => Box::new(Oracle::new(n, scenario.cores, dice)),
                "ring_shares" => Box::new(Shares::new(self.shares("ring_hash", n), dice)),
                "maglev_shares" => Box::new(Shares::new(self.shares("maglev", n), dice)),
                "tower" => Box::new(PeakEwma::new(Whose::Towers, n, dice)),
                "plain_random" => Box::new(Random::new(n, dice)),
                "plain_round_robin" => Box::new(RoundRobin::new(n, dice)),
                "least_request" => Box::new(LeastRequest::new(n, dice)),
                "grpc_weighted" => Box::new(Weighted::new(n, dice)),
                "linkerd_biaser" => Box::new(PeakEwma::new(Whose::Linkerds, n, dice)),
                "kratos" => Box::new(Frameworks::new(Framework::Kratos, n, dice)),
                "go_zero" => Box::new(Frameworks::new(Framework::GoZero, n, dice)),
                "prequal" => Box::new(Prequal::new(PUBLISHED, n, dice)),
                "prequal_rs" => Box::new(Prequal::new(PREQUAL_RS, n, dice)),
                unknown => unreachable!("{unknown:?}: names are looked at before"),
            })
    }

    fn of_ours(&self, name: &str, scenario: &Scenario, dice: &Dice) -> Option<Box<dyn Balancer>> {
        let (n, clock) = (scenario.at_first(), &self.clock);
        let bounded = || Affinity::default().bounded(BOUND);
        Some(match name {
            "probing" => Box::new(Asking::new(n, clock, scenario.cores)),
            "ring_bounded" => Box::new(Ours::new(n, clock, RingHash::by(bounded()))),
            "maglev_bounded" => Box::new(Ours::new(n, clock, Maglev::by(bounded()))),
            "rendezvous_bounded" => Box::new(Ours::new(n, clock, Rendezvous::by(bounded()))),
            "adaptive_subset" => {
                let subset = Subset::of(SUBSET).seed(dice.clone().roll());
                Box::new(Ours::within(n, clock, Adaptive::default(), subset))
            }
            "best_of_three" => Box::new(Ours::new(n, clock, BestOfThree::default())),
            ours => Box::new(Ours::new(n, clock, balance::named(ours).ok()?)),
        })
    }

    /// The shares that a policy gives servers of which nobody is busy.
    fn shares(&self, name: &str, servers: usize) -> Arc<[f64]> {
        let counted = || {
            let policy = balance::named(name).expect("it is one of ours");
            let mut ours = Ours::new(servers, &self.clock, policy);
            Shares::sums(&ours.shares(servers, PICKS * servers))
        };
        Arc::clone(self.shares.get_or_init(counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::paused, server::SECOND};

    fn short() -> Scenario {
        Scenario {
            // Reports of servers count after ten seconds.
            warm_up: 9.0,
            lasts: 4.0,
            servers: 5,
            clients: 3,
            ..Scenario::named("S8").unwrap()
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_figures_and_another_gives_others_of_the_same_calls_for_all() {
        let run = |name, seed| run(name, &short(), seed);
        paused(|| {
            // Far from where other tests began to count time, and at no whole second.
            Clock::default().reach(3600 * SECOND + 123_456_789);
            let calls = run("plain_random", 1).calls;
            for (name, _) in all() {
                let [one, same, other] = [1, 1, 2].map(|seed| run(name, seed));

                assert_eq!(one.calls, calls, "{name}");
                assert_eq!(format!("{one:?}"), format!("{same:?}"), "{name}");
                assert_ne!(one.picks, other.picks, "{name}");
            }
        })
        .unwrap();
    }

    #[test]
    fn whose_picks_know_nothing_of_each_other_are_as_even_as_shares_by_chance() {
        let scenario = Scenario {
            warm_up: 1.0,
            servers: 5,
            clients: 3,
            ..Scenario::named("S1").unwrap()
        };
        for (name, ideal) in BY_CHANCE {
            let [name, ideal] =
                [name, ideal].map(|name| paused(|| run(name, &scenario, 1)).unwrap().p50);

            assert!((0.8..1.25).contains(&(name / ideal)), "{name} {ideal}");
        }
    }

    #[test]
    fn a_server_that_fails_is_left_alone_by_those_who_eject_and_liked_by_those_who_only_take_the_time()
     {
        let share = |name| paused(|| run(name, &short(), 1)).unwrap().share;

        assert!(share("round_robin") < 0.2);
        assert!((0.9..1.1).contains(&share("plain_random")));
        assert!(share("tower") > 1.5);
        assert!(share("linkerd_biaser") < 0.2);
        assert!(share("kratos") < share("tower"));
        assert!(share("oracle") < 0.01);
    }

    #[test]
    fn what_is_published_of_others_is_seen_here() {
        let ratio = |one: &str, other: &str, scenario: &str| {
            let scenario = Scenario {
                warm_up: 5.0,
                lasts: 6.0,
                ..Scenario::named(scenario).unwrap()
            };
            let p99 = |name| paused(|| run(name, &scenario, 1)).unwrap().p99;
            p99(one) / p99(other)
        };

        assert!(
            ratio("prequal", "plain_round_robin", "S1") > 3.0,
            "it herds"
        );
        assert!(ratio("prequal_rs", "tower", "S3") < 1.0);
        assert!(ratio("oracle", "adaptive", "S3") < 0.9);
    }

    #[test]
    fn a_fleet_comes_round_only_where_retries_have_a_budget() {
        let goodput = |name: &str| {
            let scenario = Scenario {
                clients: 4,
                servers: 4,
                bad: 2,
                warm_up: 5.0,
                lasts: 40.0,
                ..Scenario::named(name).unwrap()
            };
            let figures = paused(|| run("tower", &scenario, 1)).unwrap();
            figures.goodput.unwrap()
        };

        assert!(goodput("S16") > 99.0);
        assert!(goodput("S16r") < 90.0);
        assert!(goodput("S16b") > 99.0);
    }
}
