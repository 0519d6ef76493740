//! What a run has shown.

use std::ops::Range;

use serde::Serialize;

use crate::{
    balancer::End,
    scenario::{CALM, Fate, Scenario},
    server::{SECOND, Time},
};

/// How often it is noted who is called.
const BIN: Time = SECOND / 2;
/// Whoever has not come round by then, after what befell the fleet is over, will not.
const LONG_AFTER: Time = 25 * SECOND;

/// Taken while a simulation runs.
pub struct Notes {
    warm: Time,
    ends: Time,
    begins: Time,
    over: Option<Time>,
    servers: usize,
    clients: usize,
    bad: Range<usize>,
    /// Microseconds of each call that was answered, or given up.
    took: Vec<u32>,
    failed: u64,
    late: u64,
    tries: u64,
    /// Calls that began a while after it was over, and those of them that were answered.
    after: u64,
    answered_after: u64,
    calls: Vec<u64>,
    to_bad: Vec<u64>,
    picks: u32,
}

/// Times are in milliseconds unless they say otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub calls: u64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub mean: f64,
    /// In percent: calls that failed, and those that were given up.
    pub errors: f64,
    /// What the bad servers were given while they were bad, against a fair share.
    pub share: f64,
    /// How many failures a client saw.
    pub failures: f64,
    /// Seconds until one that was bad was given four fifths of its share again.
    pub back: Option<f64>,
    /// How often a call was tried, on average.
    pub tries: f64,
    /// In percent: calls that were answered long after all servers were well again.
    pub goodput: Option<f64>,
    /// The share of the bad servers, twice a second, from the end of the warm-up on.
    pub shares: Vec<f64>,
    /// A fingerprint of who was called, call by call: the same for the same seed, on every run.
    pub picks: u32,
}

impl Notes {
    pub fn new(scenario: &Scenario) -> Self {
        let bins = (scenario.ends() / BIN + 2) as usize;
        // Those who join come last, so that the others are there from the first.
        let bad = match scenario.fate {
            Fate::Join => scenario.at_first()..scenario.servers,
            _ => 0..scenario.bad,
        };
        Self {
            warm: scenario.warm(),
            ends: scenario.ends(),
            begins: scenario.warm() + CALM,
            over: scenario.over(),
            servers: scenario.servers,
            clients: scenario.clients,
            bad,
            took: Vec::new(),
            failed: 0,
            late: 0,
            tries: 0,
            after: 0,
            answered_after: 0,
            calls: vec![0; bins],
            to_bad: vec![0; bins],
            picks: 0,
        }
    }

    pub fn bad(&self) -> Range<usize> {
        self.bad.clone()
    }

    pub fn picked(&mut self, server: usize, at: Time) {
        let bin = (at / BIN) as usize;
        self.calls[bin] += 1;
        self.to_bad[bin] += u64::from(self.bad.contains(&server));
        self.picks = fingerprint(self.picks, server as u32);
    }

    /// A call ended, after so many tries.
    pub fn ended(&mut self, began: Time, took: Time, end: End, tries: u32) {
        if began < self.warm {
            return;
        }
        self.tries += u64::from(tries);
        if self.over.is_some_and(|over| began > over + LONG_AFTER) {
            self.after += 1;
            self.answered_after += u64::from(end == End::Answered);
        }
        match end {
            End::Failed => return self.failed += 1,
            End::Late => self.late += 1,
            End::Answered => {}
        }
        self.took.push((took / 1000) as u32);
    }

    /// The bad servers' share of the calls in these bins, against a fair one.
    fn share(&self, bins: Range<usize>) -> f64 {
        let sum = |counts: &[u64]| counts[bins.clone()].iter().sum::<u64>() as f64;
        let fair = self.bad.len() as f64 / self.servers as f64;
        sum(&self.to_bad) / sum(&self.calls).max(1.0) / fair.max(1e-9)
    }

    pub fn figures(mut self) -> Figures {
        let bin = |at: Time| (at / BIN) as usize;
        let (first, last) = (bin(self.warm), bin(self.ends));
        let over = self.over.map_or(last, bin);
        let share = self.share(bin(self.begins)..over);
        let shares = (first..last).map(|n| self.share(n..n + 1)).collect();
        let back = self.over.map(|_| {
            let mut windows = over..last.saturating_sub(4);
            let back = windows.find(|&n| self.share(n..n + 4) >= 0.8);
            (back.unwrap_or(last) - over) as f64 * BIN as f64 / SECOND as f64
        });
        self.took.sort_unstable();
        let calls = self.took.len() as u64 + self.failed;
        let at = |part: f64| {
            let place = (self.took.len() as f64 * part) as usize;
            let took = self.took.get(place.min(self.took.len().saturating_sub(1)));
            took.map_or(0.0, |&micros| f64::from(micros) / 1000.0)
        };
        let sum: f64 = self.took.iter().map(|&micros| f64::from(micros)).sum();
        Figures {
            calls,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            mean: sum / 1000.0 / self.took.len().max(1) as f64,
            errors: (self.failed + self.late) as f64 * 100.0 / calls.max(1) as f64,
            share: if self.bad.is_empty() { 0.0 } else { share },
            failures: self.failed as f64 / self.clients as f64,
            back,
            tries: self.tries as f64 / calls.max(1) as f64,
            goodput: (self.after > 0)
                .then(|| self.answered_after as f64 * 100.0 / self.after as f64),
            shares,
            picks: self.picks,
        }
    }
}

/// Of all that came before, and this.
pub fn fingerprint(before: u32, this: u32) -> u32 {
    (before.rotate_left(5) ^ this).wrapping_mul(0x9E37_79B1)
}
