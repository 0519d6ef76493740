//! What happens to which fleet: the scenarios, and how a seed bends them.

use crate::{
    dice::Dice,
    server::{Order, SECOND, Time},
};

/// A fleet, its callers, and what befalls it. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub asks: &'static str,
    pub servers: usize,
    pub clients: usize,
    pub cores: usize,
    pub order: Order,
    pub sizes: Sizes,
    /// A call's work on a core of speed 1, on average.
    pub work: f64,
    /// A server takes so much longer for a call, whatever its speed.
    pub over: f64,
    /// Calls, as a part of what `base` can do.
    pub load: f64,
    /// One way, on average.
    pub net: f64,
    pub speeds: Speeds,
    pub bad: usize,
    pub fate: Fate,
    /// Until then nothing is measured.
    pub warm_up: f64,
    /// How long is measured, after that.
    pub lasts: f64,
    /// Callers wait no longer.
    pub patience: f64,
    pub retries: Retries,
}

/// Whether a call that failed, or was waited for in vain, is made again.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// So often.
    pub most: u32,
    /// Calls allow so many of them: a client has ten in hand at first, and no more than that ever.
    pub budget: f64,
}

const NEVER: Retries = Retries {
    most: 0,
    budget: 0.0,
};
const TWICE: Retries = Retries {
    most: 2,
    budget: f64::INFINITY,
};
const WITHIN_A_TENTH: Retries = Retries {
    budget: 0.1,
    ..TWICE
};

/// How the work of calls is spread around its mean.
#[derive(Clone, Copy, Debug)]
pub enum Sizes {
    Exponential,
    /// Normal, as wide as its mean, and never below nothing.
    Normal,
    /// One in twenty takes ten times as long.
    Bimodal,
}

/// How fast servers are.
#[derive(Clone, Copy, Debug)]
pub enum Speeds {
    Equal,
    /// Every second one has half the speed; three in ten have a bad neighbour, who has them change all the
    /// time, while the others have more than their share.
    Neighbours,
    /// Every second one has neighbours that leave it just its share; the others have twice that and more.
    Contended,
}

/// What befalls the first `bad` servers.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    None,
    /// So much of their speed is left, for so long.
    Slow {
        left: f64,
        lasts: f64,
    },
    /// One after the other, and then the first again, stands still for a second, every so many.
    Pause {
        every: f64,
    },
    /// They fail at once, for so long.
    Fail {
        lasts: f64,
    },
    /// They are not there at first, and cold when they come.
    Join,
}

/// What befalls servers begins so long after that: what they did when they were well counts as before.
pub const CALM: Time = 2 * SECOND;
/// Those who fail say so after this.
pub const AT_ONCE: Time = SECOND / 10_000;

const FOREVER: f64 = 1e6;

const BASE: Scenario = Scenario {
    name: "S1",
    asks: "equals",
    servers: 20,
    clients: 20,
    cores: 4,
    order: Order::FirstComeFirstServed,
    sizes: Sizes::Exponential,
    work: 0.020,
    over: 0.0,
    load: 0.8,
    net: 0.000_25,
    speeds: Speeds::Equal,
    bad: 0,
    fate: Fate::None,
    warm_up: 15.0,
    lasts: 30.0,
    patience: 5.0,
    retries: NEVER,
};

/// Half of the fleet stands still for ten seconds, and callers are impatient.
const FROZEN: Scenario = Scenario {
    name: "S16",
    asks: "half stand still for 10 s, no retries",
    bad: 10,
    fate: Fate::Slow {
        left: 0.0,
        lasts: 10.0,
    },
    lasts: 70.0,
    patience: 1.0,
    ..BASE
};

const ANTAGONISTS: Scenario = Scenario {
    speeds: Speeds::Neighbours,
    load: 0.9,
    ..BASE
};

/// All there are.
pub const ALL: [Scenario; 23] = [
    BASE,
    Scenario {
        name: "S2",
        asks: "many equals, few long calls",
        servers: 100,
        clients: 100,
        sizes: Sizes::Bimodal,
        work: 0.015,
        lasts: 15.0,
        ..BASE
    },
    Scenario {
        name: "S3",
        asks: "bad neighbours",
        work: 0.040,
        lasts: 60.0,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S4",
        asks: "bad neighbours, many",
        servers: 100,
        clients: 100,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S4ps",
        asks: "the same, with shared cores",
        servers: 100,
        clients: 100,
        order: Order::Shared,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S5",
        asks: "bad neighbours, many who call seldom",
        servers: 100,
        clients: 500,
        load: 0.8,
        work: 0.040,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S6",
        asks: "one ten times slower",
        bad: 1,
        fate: Fate::Slow {
            left: 0.1,
            lasts: FOREVER,
        },
        ..BASE
    },
    Scenario {
        name: "S7",
        asks: "one that pauses, each time another",
        load: 0.7,
        // No more than pause while it is measured.
        bad: 6,
        fate: Fate::Pause { every: 6.0 },
        ..BASE
    },
    Scenario {
        name: "S7same",
        asks: "one that pauses again and again",
        load: 0.7,
        bad: 1,
        fate: Fate::Pause { every: 6.0 },
        ..BASE
    },
    Scenario {
        name: "S8",
        asks: "one that fails at once",
        load: 0.75,
        bad: 1,
        fate: Fate::Fail { lasts: FOREVER },
        ..BASE
    },
    Scenario {
        name: "S9",
        asks: "two that fail, bad neighbours",
        load: 0.8,
        work: 0.040,
        bad: 2,
        fate: Fate::Fail { lasts: FOREVER },
        lasts: 60.0,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S10",
        asks: "ten cold ones join",
        servers: 30,
        bad: 10,
        fate: Fate::Join,
        lasts: 15.0,
        ..BASE
    },
    Scenario {
        name: "S11",
        asks: "nearly too much",
        servers: 100,
        clients: 100,
        order: Order::Shared,
        sizes: Sizes::Normal,
        speeds: Speeds::Contended,
        work: 0.080,
        load: 1.57,
        ..BASE
    },
    Scenario {
        name: "S12",
        asks: "bad neighbours, far away",
        servers: 100,
        clients: 100,
        load: 0.8,
        work: 0.005,
        net: 0.020,
        lasts: 5.0,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S13",
        asks: "bad neighbours, two gateways",
        clients: 2,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S14",
        asks: "bad neighbours, five servers",
        servers: 5,
        load: 0.8,
        work: 0.040,
        lasts: 90.0,
        ..ANTAGONISTS
    },
    Scenario {
        name: "S15f",
        asks: "one fails, and is well again",
        load: 0.6,
        bad: 1,
        fate: Fate::Fail { lasts: 20.0 },
        lasts: 60.0,
        ..BASE
    },
    Scenario {
        name: "S15s",
        asks: "one is slow, and is well again",
        load: 0.6,
        bad: 1,
        fate: Fate::Slow {
            left: 0.05,
            lasts: 20.0,
        },
        lasts: 60.0,
        ..BASE
    },
    FROZEN,
    Scenario {
        name: "S16r",
        asks: "the same, two retries",
        retries: TWICE,
        ..FROZEN
    },
    Scenario {
        name: "S16b",
        asks: "the same, within a tenth of all calls",
        retries: WITHIN_A_TENTH,
        ..FROZEN
    },
    Scenario {
        name: "S16rps",
        asks: "two retries, shared cores",
        order: Order::Shared,
        retries: TWICE,
        ..FROZEN
    },
    Scenario {
        name: "S16bps",
        asks: "within a tenth, shared cores",
        order: Order::Shared,
        retries: WITHIN_A_TENTH,
        ..FROZEN
    },
];

/// Fleets of equals, of all sizes, near and far: nobody should do worse there than in turn.
pub fn herds() -> Vec<Scenario> {
    let servers = [2, 3, 5, 20, 100].into_iter();
    let fleets = servers.flat_map(|servers| [1, 2, 20, 500].map(|clients| (servers, clients)));
    let each = fleets.flat_map(|(servers, clients)| herd(servers, clients));
    each.collect()
}

/// One fleet of equals, near and far.
fn herd(servers: usize, clients: usize) -> [Scenario; 2] {
    [0.000_1, 0.020].map(|net| Scenario::plain(servers, clients, net))
}

/// The same, named by how many servers and clients there are: `20x500`.
pub fn herd_named(name: &str) -> Option<[Scenario; 2]> {
    let (servers, clients) = name.split_once('x')?;
    let (servers, clients) = (servers.parse().ok()?, clients.parse().ok()?);
    let known = (2..=1000).contains(&servers) && (1..=10_000).contains(&clients);
    known.then(|| herd(servers, clients))
}

/// S11's fleet at nine loads, as a part of what each server was bought for (NSDI'24, figure 6).
pub fn ramp() -> Vec<Scenario> {
    let steps = [
        ("S18a", 0.75),
        ("S18b", 0.83),
        ("S18c", 0.93),
        ("S18d", 1.03),
        ("S18e", 1.14),
        ("S18f", 1.27),
        ("S18g", 1.41),
        ("S18h", 1.57),
        ("S18i", 1.74),
    ];
    let nearly_too_much = Scenario::named("S11");
    let step = |(name, load)| {
        Some(Scenario {
            name,
            load,
            asks: "a step of the ramp of loads",
            ..nearly_too_much.clone()?
        })
    };
    steps.into_iter().filter_map(step).collect()
}

impl Scenario {
    pub fn named(name: &str) -> Option<Self> {
        let is_it = |scenario: &Self| scenario.name.eq_ignore_ascii_case(name);
        let found = ALL.into_iter().find(is_it);
        found.or_else(|| {
            // The ramp is made of one of those above.
            let step = name.len() > 3 && name[..3].eq_ignore_ascii_case("S18");
            step.then(|| ramp().into_iter().find(is_it))?
        })
    }

    fn plain(servers: usize, clients: usize, net: f64) -> Self {
        // As long as it takes for some hundred thousand calls.
        let rate = 0.8 * servers as f64 * 4.0 / 0.020;
        Self {
            name: "herd",
            asks: if net < 0.001 {
                "equals, near"
            } else {
                "equals, far away"
            },
            servers,
            clients,
            net,
            lasts: (60_000.0 / rate).clamp(5.0, 60.0),
            ..BASE
        }
    }

    /// The same, with its parameters up to a fifth higher or lower, as the seed decides.
    pub fn bent(mut self, seed: u64) -> Self {
        let mut dice = Dice::new(seed, u64::from_le_bytes(*b"bent    "));
        let mut bend = |value: f64| value * dice.between(0.8, 1.2);
        self.work = bend(self.work);
        self.net = bend(self.net);
        let few = |n: f64| n.round().max(2.0) as usize;
        self.clients = few(bend(self.clients as f64));
        if self.servers > 10 {
            self.servers = few(bend(self.servers as f64)).max(self.bad + 5);
        }
        // What is left over, so that no fleet is asked for more than it can do.
        let most = self.speeds.mean();
        let left = bend(1.0 - self.load / most);
        self.load = (1.0 - left) * most;
        if let Fate::Pause { every } = &mut self.fate {
            *every = bend(*every);
        }
        self
    }

    /// How many servers there are at first.
    pub fn at_first(&self) -> usize {
        match self.fate {
            Fate::Join => self.servers - self.bad,
            _ => self.servers,
        }
    }

    /// Calls a second of one client.
    pub fn rate(&self) -> f64 {
        let base: f64 = (0..self.at_first()).map(|n| self.speeds.base(n)).sum();
        self.load * base * self.cores as f64 / self.work / self.clients as f64
    }

    pub fn warm(&self) -> Time {
        (self.warm_up * SECOND as f64) as Time
    }

    pub fn ends(&self) -> Time {
        self.warm() + (self.lasts * SECOND as f64) as Time
    }

    pub fn patience(&self) -> Time {
        (self.patience * SECOND as f64) as Time
    }

    /// When what befalls the bad ones is over.
    pub fn over(&self) -> Option<Time> {
        let (Fate::Slow { lasts, .. } | Fate::Fail { lasts }) = self.fate else {
            return None;
        };
        let over = self.warm() + CALM + (lasts * SECOND as f64) as Time;
        (over < self.ends()).then_some(over)
    }

    /// The work of a call.
    pub fn size(&self, dice: &mut Dice) -> f64 {
        let mean = self.work;
        match self.sizes {
            Sizes::Exponential => dice.gap(mean),
            // Those below nothing count as nothing, which makes the mean so much greater.
            Sizes::Normal => (mean / 1.083_3 * (1.0 + dice.normal())).max(0.000_01),
            Sizes::Bimodal => {
                let short = mean / (0.95 + 0.05 * 10.0);
                if dice.unit() < 0.05 {
                    10.0 * short
                } else {
                    short
                }
            }
        }
    }
}

impl Speeds {
    /// The speed that a server was bought for.
    pub fn base(self, server: usize) -> f64 {
        match self {
            Self::Equal | Self::Contended => 1.0,
            Self::Neighbours => [1.0, 0.5][server % 2],
        }
    }

    /// How much of that it has, from now until its neighbours change.
    pub fn noise(self, server: usize, dice: &mut Dice) -> f64 {
        match self {
            Self::Equal => 1.0,
            Self::Neighbours if server * 7 % 20 < 6 => {
                let bad = dice.unit() < 0.5;
                let (low, high) = if bad { (0.3, 0.7) } else { (0.9, 1.3) };
                dice.between(low, high)
            }
            Self::Neighbours => dice.between(1.2, 2.0),
            Self::Contended if server.is_multiple_of(2) => dice.between(0.8, 1.2),
            Self::Contended => dice.between(1.94, 2.54),
        }
    }

    /// How much of it they have on average.
    fn mean(self) -> f64 {
        match self {
            Self::Equal => 1.0,
            Self::Neighbours => 0.3 * 0.8 + 0.7 * 1.6,
            Self::Contended => 1.62,
        }
    }

    pub fn change(self) -> bool {
        matches!(self, Self::Neighbours | Self::Contended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_bends_a_scenario_always_alike_and_asks_no_more_than_can_be_done() {
        for scenario in ALL {
            for seed in 1000..1010 {
                let bent = scenario.clone().bent(seed);

                assert_eq!(
                    format!("{bent:?}"),
                    format!("{:?}", scenario.clone().bent(seed))
                );
                assert!(bent.load < bent.speeds.mean(), "{bent:?}");
                assert!((0.79..1.21).contains(&(bent.work / scenario.work)));
                assert!(bent.servers > bent.bad);
            }
        }
    }

    #[test]
    fn sizes_have_their_mean() {
        let mut dice = Dice::new(1, 1);
        for name in ["S1", "S2", "S11"] {
            let scenario = Scenario::named(name).unwrap();
            let sum: f64 = (0..100_000).map(|_| scenario.size(&mut dice)).sum();

            assert!(
                (sum / 100_000.0 / scenario.work - 1.0).abs() < 0.03,
                "{name}"
            );
        }
    }
}
