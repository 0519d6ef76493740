//! Everybody on the same seeds, and ratios of what they showed.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use serde::Serialize;

use crate::{
    arguments::Part,
    clock, contenders,
    dice::Dice,
    figures::{Figures, fingerprint},
    scenario::{Fate, Scenario},
};

/// What all have shown in one scenario.
#[derive(Debug, Serialize)]
pub struct Compared {
    pub scenario: String,
    pub asks: String,
    pub servers: usize,
    pub clients: usize,
    pub bad: usize,
    /// Whether the bad ones answer at once that they cannot.
    pub fails: bool,
    pub rows: Vec<Row>,
}

/// What one has shown, over all seeds.
#[derive(Debug, Serialize)]
pub struct Row {
    pub policy: String,
    /// Means; of percentiles, geometric ones.
    pub mean: Figures,
    /// Against the base, on the same seeds.
    pub p99: Ratio,
    pub p999: Ratio,
    pub runs: Vec<Figures>,
}

/// A geometric mean of paired ratios, and where it lies with 95 % confidence.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ratio {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// How often ratios are drawn again to see how far their mean might have been off.
const DRAWS: usize = 2000;

/// Runs a scenario for each seed and policy of this part, on all cores; the first policy is the base.
pub fn compare(
    scenario: &Scenario,
    part: &Part,
    progress: impl Fn(&str, u64) + Sync,
) -> io::Result<Compared> {
    let policies = &part.policies;
    let runs = all(scenario, part, progress)?;
    let base = runs[0].clone();
    let row = |(policy, runs): (&String, Vec<Figures>)| Row {
        policy: policy.clone(),
        mean: mean(&runs),
        p99: Ratio::of(&runs, &base, |figures| figures.p99),
        p999: Ratio::of(&runs, &base, |figures| figures.p999),
        runs,
    };
    Ok(Compared {
        scenario: scenario.name.to_owned(),
        asks: scenario.asks.to_owned(),
        servers: scenario.servers,
        clients: scenario.clients,
        bad: scenario.bad,
        fails: matches!(scenario.fate, Fate::Fail { .. }),
        rows: policies.iter().zip(runs).map(row).collect(),
    })
}

/// Seed by seed for each policy. A run's clock and chance are those of its thread, so that runs do not meet.
fn all(
    scenario: &Scenario,
    part: &Part,
    progress: impl Fn(&str, u64) + Sync,
) -> io::Result<Vec<Vec<Figures>>> {
    let (policies, seeds) = (&part.policies, &part.seeds);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let job = next.fetch_add(1, Relaxed);
            let Some(&seed) = seeds.get(job / policies.len()) else {
                return Ok::<_, io::Error>(done);
            };
            let policy = &policies[job % policies.len()];
            progress(policy, seed);
            let bent = match part.bend {
                true => scenario.clone().bent(seed),
                false => scenario.clone(),
            };
            let figures = clock::paused(|| contenders::run(policy, &bent, seed))?;
            done.push((job, figures));
        }
    };
    let mut done = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::new();
        for thread in threads {
            done.extend(thread.join().expect("a run does not panic")?);
        }
        Ok::<_, io::Error>(done)
    })?;
    done.sort_unstable_by_key(|(job, _)| *job);
    let mut runs = vec![Vec::new(); policies.len()];
    for (job, figures) in done {
        runs[job % policies.len()].push(figures);
    }
    Ok(runs)
}

impl Ratio {
    pub fn of(runs: &[Figures], base: &[Figures], what: fn(&Figures) -> f64) -> Self {
        let logs: Vec<f64> = runs
            .iter()
            .zip(base)
            .map(|(run, base)| (what(run).max(1e-3) / what(base).max(1e-3)).ln())
            .collect();
        let n = logs.len();
        let mut dice = Dice::new(n as u64, 0);
        let mut again = || (0..n).map(|_| logs[dice.below(n)]).sum::<f64>() / n as f64;
        let mut means: Vec<f64> = (0..DRAWS).map(|_| again()).collect();
        means.sort_unstable_by(f64::total_cmp);
        Self {
            mean: (logs.iter().sum::<f64>() / n as f64).exp(),
            low: means[DRAWS / 40].exp(),
            high: means[DRAWS - 1 - DRAWS / 40].exp(),
        }
    }
}

fn mean(runs: &[Figures]) -> Figures {
    let n = runs.len() as f64;
    let plain = |what: fn(&Figures) -> f64| runs.iter().map(what).sum::<f64>() / n;
    let geometric = |what: fn(&Figures) -> f64| {
        (runs.iter().map(|run| what(run).max(1e-3).ln()).sum::<f64>() / n).exp()
    };
    let bins = runs.iter().map(|run| run.shares.len()).min().unwrap_or(0);
    let share = |bin: usize| runs.iter().map(|run| run.shares[bin]).sum::<f64>() / n;
    let back = runs.iter().filter_map(|run| run.back);
    let goodput = runs.iter().filter_map(|run| run.goodput);
    Figures {
        calls: runs.iter().map(|run| run.calls).sum(),
        p50: geometric(|run| run.p50),
        p99: geometric(|run| run.p99),
        p999: geometric(|run| run.p999),
        mean: plain(|run| run.mean),
        errors: plain(|run| run.errors),
        share: plain(|run| run.share),
        failures: plain(|run| run.failures),
        // The worst: a claim about the mean would hide it.
        back: back.reduce(f64::max),
        tries: plain(|run| run.tries),
        goodput: goodput.reduce(f64::min),
        shares: (0..bins).map(share).collect(),
        picks: runs.iter().fold(0, |all, run| fingerprint(all, run.picks)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(p99: &[f64]) -> Vec<Figures> {
        let run = |&p99: &f64| Figures {
            p99,
            ..Figures::default()
        };
        p99.iter().map(run).collect()
    }

    #[test]
    fn runs_side_by_side_are_as_those_alone_and_in_their_places() {
        let part = Part {
            scenarios: Vec::new(),
            policies: ["tower", "adaptive", "peak_ewma"].map(String::from).into(),
            seeds: vec![1, 2],
            bend: true,
        };
        let short = Scenario {
            warm_up: 1.0,
            lasts: 2.0,
            servers: 4,
            clients: 2,
            ..Scenario::named("S1").unwrap()
        };

        let compared = compare(&short, &part, |_, _| ()).unwrap();

        for (row, name) in compared.rows.iter().zip(&part.policies) {
            assert_eq!(&row.policy, name);
            for (run, seed) in row.runs.iter().zip([1, 2]) {
                let bent = short.clone().bent(seed);
                let alone = clock::paused(|| contenders::run(name, &bent, seed)).unwrap();
                assert_eq!(format!("{run:?}"), format!("{alone:?}"), "{name}");
            }
        }
    }

    #[test]
    fn ratios_are_paired_and_the_confidence_is_what_seeds_leave_open() {
        let base = runs(&[10.0, 100.0, 1000.0, 40.0]);
        let half = runs(&[5.0, 50.0, 500.0, 20.0]);
        let mixed = runs(&[5.0, 200.0, 500.0, 80.0]);

        let [half, mixed] = [half, mixed].map(|runs| Ratio::of(&runs, &base, |f| f.p99));

        assert!((half.low - 0.5).abs() < 1e-9 && (half.high - 0.5).abs() < 1e-9);
        assert!((mixed.mean - 1.0).abs() < 1e-9, "{mixed:?}");
        assert!(mixed.low < 0.6 && mixed.high > 1.7, "{mixed:?}");
    }
}
