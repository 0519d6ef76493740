//! Reality beside the simulator.

use std::fmt::Write;

use serde::Serialize;

use super::{Lag, Rival};
use crate::{compare::Ratio, figures::Figures, scenario::Scenario};

/// What one contender has shown, seed by seed.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub rival: Rival,
    pub real: Vec<Figures>,
    pub sim: Vec<Figures>,
    /// Of reality.
    pub lags: Vec<Lag>,
}

/// What all have shown in one scenario.
#[derive(Debug, Serialize)]
pub struct Compared {
    scenario: String,
    asks: String,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    shown: Shown,
    /// p99 against the first contender's.
    real: Ratio,
    sim: Ratio,
}

/// What is claimed: so much of both rivals' p99, in these scenarios.
const AHEAD: f64 = 0.75;
const AHEAD_IN: [&str; 2] = ["S3", "S10"];
/// How far the simulator's ratios may be off.
const OFF: f64 = 0.20;
/// In milliseconds: sleepers wake late by about one.
const BUSY: f64 = 2.0;

impl Shown {
    pub fn by(rival: Rival) -> Self {
        Self {
            rival,
            real: Vec::new(),
            sim: Vec::new(),
            lags: Vec::new(),
        }
    }
}

impl Row {
    fn off(&self) -> f64 {
        self.real.mean / self.sim.mean - 1.0
    }
}

impl Compared {
    /// The first of those shown is the base.
    pub fn new(scenario: &Scenario, shown: Vec<Shown>) -> Self {
        let p99 = |figures: &Figures| figures.p99;
        let base = shown
            .first()
            .map(|base| (base.real.clone(), base.sim.clone()));
        let (real, sim) = base.unwrap_or_default();
        let row = |shown: Shown| Row {
            real: Ratio::of(&shown.real, &real, p99),
            sim: Ratio::of(&shown.sim, &sim, p99),
            shown,
        };
        Self {
            scenario: scenario.name.to_owned(),
            asks: scenario.asks.to_owned(),
            rows: shown.into_iter().map(row).collect(),
        }
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{}: {}\n", self.scenario, self.asks);
        let _ = writeln!(
            text,
            "  {:<22}{:>7}{:>8}{:>8}{:>9}{:>7}{:>6}{:>6}  |{:>8}{:>8}  |{:>7}{:>7}{:>8}",
            "p99 in ms",
            "p50",
            "p99",
            "p99.9",
            "errors %",
            "share",
            "late",
            "over",
            "sim p50",
            "p99",
            "ratio",
            "sim",
            "off",
        );
        for row in &self.rows {
            let Shown {
                real, sim, lags, ..
            } = &row.shown;
            let _ = writeln!(
                text,
                "  {:<22}{:>7.1}{:>8.1}{:>8.1}{:>9.3}{:>7.3}{:>6.1}{:>6.1}  |{:>8.1}{:>8.1}  |{:>7.3}{:>7.3}{:>7.0}%",
                row.shown.rival.name(),
                mean(real, |it| it.p50),
                mean(real, |it| it.p99),
                mean(real, |it| it.p999),
                mean(real, |it| it.errors),
                mean(real, |it| it.share),
                mean(lags, |it| it.begins),
                mean(lags, |it| it.works),
                mean(sim, |it| it.p50),
                mean(sim, |it| it.p99),
                row.real.mean,
                row.sim.mean,
                row.off() * 100.0,
            );
        }
        text
    }

    fn row(&self, rival: Rival) -> Option<&Row> {
        self.rows.iter().find(|row| row.shown.rival == rival)
    }

    /// What holds here of what is claimed, a line each.
    fn claims(&self) -> Vec<String> {
        let Some(ours) = self.row(Rival::Adaptive) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        let mut line = |says: String, seen: f64, most: f64| {
            let verdict = if seen <= most { "holds" } else { "DOES NOT" };
            let name = &self.scenario;
            lines.push(format!(
                "  {verdict:<9} {name:<5} {says:<46} {seen:>6.2}, at most {most}\n"
            ));
        };
        if AHEAD_IN.contains(&self.scenario.as_str()) {
            for rival in [Rival::Tower, Rival::Tonic] {
                if let Some(row) = self.row(rival) {
                    let says = format!("adaptive's p99 / {}", rival.name());
                    line(says, ours.real.mean / row.real.mean, AHEAD);
                }
            }
        }
        let says = "adaptive's p99 / tower's, off the simulator by".to_owned();
        line(says, ours.off().abs(), OFF);
        lines
    }
}

fn mean<T>(all: &[T], what: fn(&T) -> f64) -> f64 {
    all.iter().map(what).sum::<f64>() / all.len().max(1) as f64
}

/// What is claimed, and whether it is so; and whether that can be relied on.
pub fn claims(all: &[Compared]) -> String {
    let lines = all.iter().flat_map(Compared::claims);
    let mut text = format!("\nclaims\n{}", lines.collect::<String>());
    let rows = all.iter().flat_map(|compared| &compared.rows);
    let lags = rows.flat_map(|row| &row.shown.lags);
    let late = lags
        .map(|lag| lag.begins.max(lag.works))
        .fold(0.0, f64::max);
    if late > BUSY {
        let _ = writeln!(
            text,
            "\nthe machine was busy: in one run things were {late:.1} ms late on average, where {BUSY} or less is usual; \
             what it shows is to be measured again"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rival: Rival, real: f64, sim: f64) -> Shown {
        let figures = |p99| Figures {
            p99,
            ..Figures::default()
        };
        Shown {
            rival,
            real: vec![figures(real)],
            sim: vec![figures(sim)],
            lags: vec![Lag::default()],
        }
    }

    #[test]
    fn reality_is_held_against_the_simulator() {
        let scenario = Scenario::named("S3").unwrap();
        let all = vec![
            shown(Rival::Tower, 200.0, 100.0),
            shown(Rival::Tonic, 130.0, 400.0),
            shown(Rival::Adaptive, 100.0, 60.0),
        ];

        let compared = Compared::new(&scenario, all);
        let said = claims(&[compared]);

        let verdicts = said
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        let verdicts: Vec<&str> = verdicts.collect();
        assert_eq!(verdicts, ["claims", "holds", "DOES", "holds"], "{said}");
        assert!(said.contains("0.77, at most 0.75"), "{said}");
        assert!(!said.contains("busy"), "{said}");
    }

    #[test]
    fn a_machine_that_was_too_busy_is_said_to_have_been() {
        let scenario = Scenario::named("S1").unwrap();
        let mut tower = shown(Rival::Tower, 200.0, 100.0);
        tower.lags[0].begins = 8.6;

        let said = claims(&[Compared::new(&scenario, vec![tower])]);

        assert!(
            said.contains("busy: in one run things were 8.6 ms late"),
            "{said}"
        );
    }
}
