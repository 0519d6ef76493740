//! What happens to the servers, and when: as in the simulator, with the same chance.

use crate::{
    dice::Dice,
    scenario::{CALM, Fate, Scenario},
    server::{SECOND, Time, seconds},
    world::{OF_SERVERS, WARMTH},
};

/// What happens to one server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Its neighbours leave it so much of its speed.
    Noise(f64),
    /// What befalls it does.
    Fate(f64),
    Fails(bool),
    /// Clients learn of it.
    Joins,
}

/// All that will happen, in order, and how fast servers are by now.
pub struct Timeline {
    changes: std::vec::IntoIter<(Time, usize, Change)>,
    /// Base, noise, fate.
    speeds: Vec<[f64; 3]>,
}

impl Timeline {
    pub fn of(scenario: &Scenario, seed: u64) -> Self {
        let mut changes = Vec::new();
        let mut speeds = Vec::new();
        for server in 0..scenario.servers {
            let mut dice = Dice::new(seed, OF_SERVERS + server as u64);
            let noise = scenario.speeds.noise(server, &mut dice);
            speeds.push([scenario.speeds.base(server), noise, 1.0]);
            if !scenario.speeds.change() {
                continue;
            }
            let mut at = seconds(dice.between(0.0, 1.0));
            while at < scenario.ends() {
                let noise = scenario.speeds.noise(server, &mut dice);
                changes.push((at, server, Change::Noise(noise)));
                at += seconds(dice.between(0.7, 1.3));
            }
        }
        let bad = match scenario.fate {
            Fate::Join => scenario.at_first()..scenario.servers,
            _ => 0..scenario.bad,
        };
        for (turn, server) in bad.enumerate() {
            let fate = befalls(scenario, turn);
            changes.extend(fate.into_iter().map(|(at, change)| (at, server, change)));
        }
        changes.sort_by_key(|(at, ..)| *at);
        Self {
            changes: changes.into_iter(),
            speeds,
        }
    }

    pub fn speed(&self, server: usize) -> f64 {
        self.speeds[server].iter().product()
    }

    /// The next change, which has happened then.
    pub fn next(&mut self) -> Option<(Time, usize, Change)> {
        let next = self.changes.next();
        match next {
            Some((_, server, Change::Noise(noise))) => self.speeds[server][1] = noise,
            Some((_, server, Change::Fate(fate))) => self.speeds[server][2] = fate,
            _ => {}
        }
        next
    }
}

/// What befalls one of the bad ones, whose turn it is after so many others.
fn befalls(scenario: &Scenario, turn: usize) -> Vec<(Time, Change)> {
    let begins = scenario.warm() + CALM;
    match scenario.fate {
        Fate::None => Vec::new(),
        Fate::Fail { lasts } => vec![
            (begins, Change::Fails(true)),
            (begins + seconds(lasts), Change::Fails(false)),
        ],
        Fate::Slow { left, lasts } => vec![
            (begins, Change::Fate(left)),
            (begins + seconds(lasts), Change::Fate(1.0)),
        ],
        Fate::Pause { every } => {
            let pauses = (0..).map(|n| begins + n * seconds(every));
            let pauses = pauses.take_while(|at| *at < scenario.ends());
            let mine = pauses.skip(turn).step_by(scenario.bad);
            mine.flat_map(|at| [(at, Change::Fate(0.0)), (at + SECOND, Change::Fate(1.0))])
                .collect()
        }
        Fate::Join => {
            let mut changes = vec![(begins, Change::Fate(0.1)), (begins, Change::Joins)];
            changes.extend((1..=40).map(|step: u64| {
                let age = (step * WARMTH) as f64 / SECOND as f64;
                let warm = (0.1 + 0.9 * age / 10.0).min(1.0);
                (begins + step * WARMTH, Change::Fate(warm))
            }));
            changes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_in_order_and_follows_from_the_seed() {
        let all = |name, seed| {
            let mut timeline = Timeline::of(&Scenario::named(name).unwrap(), seed);
            std::iter::from_fn(|| timeline.next()).collect::<Vec<_>>()
        };
        for name in ["S1", "S3", "S6", "S7", "S8", "S10"] {
            let changes = all(name, 1);

            assert!(changes.is_sorted_by_key(|(at, ..)| *at), "{name}");
            assert_eq!(changes, all(name, 1), "{name}");
        }
        assert_eq!(all("S1", 1), []);
        assert_ne!(all("S3", 1), all("S3", 2));
    }

    #[test]
    fn those_who_pause_take_turns() {
        let mut timeline = Timeline::of(&Scenario::named("S7").unwrap(), 1);

        let changes: Vec<_> = std::iter::from_fn(|| timeline.next()).collect();

        let pauses = changes.iter().filter(|it| it.2 == Change::Fate(0.0));
        assert_eq!(pauses.map(|it| it.1).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(
            changes
                .chunks(2)
                .all(|it| it[0].1 == it[1].1 && it[0].0 + SECOND == it[1].0)
        );
    }

    #[test]
    fn those_who_join_come_cold_and_end_warm() {
        let mut timeline = Timeline::of(&Scenario::named("S10").unwrap(), 1);

        let first = timeline.next().unwrap();
        assert_eq!((first.1, first.2), (20, Change::Fate(0.1)));
        assert!((timeline.speed(20) - 0.1).abs() < 1e-9);
        let rest = std::iter::from_fn(|| timeline.next());
        assert_eq!(rest.filter(|it| it.2 == Change::Joins).count(), 10);

        assert!((20..30).all(|server| (timeline.speed(server) - 1.0).abs() < 1e-9));
    }
}
