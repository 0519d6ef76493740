//! grpc-go's weighted round robin (gRFC A58): shares by what servers report with each answer.

use std::ops::Range;

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::{Report, SECOND, Time},
};

/// What is reported counts only when it has been for so long, and no longer than that after the last.
const BLACKOUT: Time = 10 * SECOND;
const EXPIRES: Time = 180 * SECOND;
const EVERY: Time = SECOND;
/// How much of the failures among calls counts as use of the server.
const PENALTY: f64 = 1.0;

/// See the module's documentation.
pub struct Weighted {
    servers: Vec<Seen>,
    /// None where all weights are equal, or too few are known.
    strides: Option<Vec<u64>>,
    turn: u64,
    built: Option<Time>,
}

#[derive(Clone, Default)]
struct Seen {
    weight: f64,
    since: Option<Time>,
    last: Time,
}

impl Weighted {
    pub fn new(among: usize, mut dice: Dice) -> Self {
        Self {
            servers: vec![Seen::default(); among],
            strides: None,
            turn: dice.roll() >> 32,
            built: None,
        }
    }

    fn build(&mut self, at: Time) {
        self.built = Some(at);
        let weights: Vec<f64> = self
            .servers
            .iter_mut()
            .map(|seen| seen.weight(at))
            .collect();
        let known = weights.iter().filter(|weight| **weight > 0.0);
        let n = known.clone().count();
        let mean = known.sum::<f64>() / n.max(1) as f64;
        let most = weights.iter().copied().fold(0.0, f64::max);
        let scaled = weights.iter().map(|&weight| {
            let weight = if weight > 0.0 { weight } else { mean };
            (weight / most * MOST as f64).round() as u64
        });
        let scaled: Vec<u64> = scaled.collect();
        let equal = scaled.windows(2).all(|two| two[0] == two[1]);
        self.strides = (n >= 2 && !equal).then_some(scaled);
    }
}

/// The greatest weight, when all are scaled.
const MOST: u64 = 65_535;

impl Seen {
    fn weight(&mut self, at: Time) -> f64 {
        if at - self.last > EXPIRES {
            self.since = None;
        }
        match self.since {
            Some(since) if at - since >= BLACKOUT => self.weight,
            _ => 0.0,
        }
    }
}

impl Balancer for Weighted {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        if self.built.is_none_or(|built| at - built >= EVERY) {
            self.build(at);
        }
        let n = self.servers.len() as u64;
        loop {
            let (place, round) = (self.turn % n, self.turn / n);
            self.turn += 1;
            let stays = self.strides.as_ref().is_none_or(|strides| {
                let weight = strides[place as usize];
                (weight * round + place * (MOST / 2)) % MOST >= MOST - weight
            });
            if stays {
                return Picked::plain(place as usize);
            }
        }
    }

    fn told(&mut self, server: usize, report: &Report, at: Time) {
        let use_of_it = report.busy + report.failures / report.calls.max(1e-9) * PENALTY;
        if report.calls <= 0.0 || use_of_it <= 0.0 {
            return;
        }
        let seen = &mut self.servers[server];
        seen.weight = report.calls / use_of_it;
        seen.last = at;
        seen.since.get_or_insert(at);
    }

    fn ended(&mut self, _: Picked, _: End, _: Time, _: Time) {}

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.servers.resize(servers.end, Seen::default());
        self.build(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_blackout_shares_are_as_reported() {
        let mut weighted = Weighted::new(3, Dice::new(1, 1));
        let fleet = Fleet {
            servers: &[],
            coming: &[],
            work: 0.0,
        };
        let mut counts = |at| {
            for (server, busy) in [(0, 0.25), (1, 0.5), (2, 0.5)] {
                let report = Report {
                    busy,
                    calls: 100.0,
                    ..Report::default()
                };
                weighted.told(server, &report, at);
            }
            let mut counts = [0_i32; 3];
            for _ in 0..4000 {
                counts[weighted.pick(at, fleet).server] += 1;
            }
            counts
        };

        let early = counts(SECOND);
        let late = counts(12 * SECOND);

        assert!(early.iter().all(|count| (1333..=1334).contains(count)));
        let near = |count: i32, should: i32| (count - should).abs() < 20;
        assert!(near(late[0], 2000) && near(late[1], 1000), "{late:?}");
    }
}
