//! What the crate says of its policies, and whether it is so: `scripts/sim claims`.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    compare::{Compared, Row},
    figures::Figures,
};

/// Whom the claims are about, and against whom; the first is the base of ratios.
pub const POLICIES: [&str; 4] = ["tower", "adaptive", "plain_random", "plain_round_robin"];

/// Something that was said, with what was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    pub scenario: String,
    pub says: String,
    pub most: f64,
    /// What must not be more than `most`: of ratios, the upper end of where they lie with 95 % confidence.
    pub seen: f64,
}

impl Claim {
    pub fn new(scenario: &str, says: impl Into<String>, seen: f64, most: f64) -> Self {
        let (scenario, says) = (scenario.to_owned(), says.into());
        Self {
            scenario,
            says,
            most,
            seen,
        }
    }

    pub fn holds(&self) -> bool {
        self.seen <= self.most
    }
}

/// p99 against tower's, by scenario; everywhere else it is to be no worse.
const P99: [(&[&str], f64); 4] = [
    (&["S3", "S4", "S4ps", "S5"], 0.60),
    (&["S9", "S12", "S13", "S14"], 0.75),
    (&["S10"], 0.15),
    (&["S11"], 0.35),
];
const NO_WORSE: f64 = 1.02;
const P999: [(&[&str], f64); 2] = [(&["S3", "S4", "S4ps", "S5"], 0.60), (&["S7"], 0.50)];
/// In percent: where random or round robin err so much and no server fails, we do not err at all.
const ERRORS_OF_OTHERS: f64 = 5.0;
/// In percent of all calls: errors where servers fail, and what may be spent on finding out.
const ERRORS: [(&str, f64); 2] = [("S8", 0.1), ("S9", 0.4)];
const EXPLORING: f64 = 0.1;
const FAILURES: f64 = 4.0;
const SHARE: f64 = 0.02;
/// In seconds.
const BACK: [(&str, f64); 2] = [("S15f", 10.0), ("S15s", 5.0)];

/// What is claimed of `adaptive` in this scenario, as it turned out. Nothing where it did not run.
pub fn of(compared: &Compared) -> Vec<Claim> {
    let row = |name: &str| compared.rows.iter().find(|row| row.policy == name);
    let (Some(ours), Some(_)) = (row("adaptive"), row("tower")) else {
        return Vec::new();
    };
    let mut claims = tails(&compared.scenario, ours);
    let others = ["plain_random", "plain_round_robin"].into_iter();
    let worst = others
        .filter_map(|name| Some(row(name)?.mean.errors))
        .reduce(f64::max);
    if worst.is_some_and(|errors| errors >= ERRORS_OF_OTHERS) && !compared.fails {
        let errors = errors_of_worst(ours);
        claims.push(Claim::new(
            &compared.scenario,
            "errors %, others have 5 and more",
            errors,
            0.0,
        ));
    }
    claims.extend(incidents(compared, ours));
    claims
}

fn tails(scenario: &str, ours: &Row) -> Vec<Claim> {
    let most = |of: &[(&[&str], f64)]| {
        let found = of.iter().find(|(names, _)| names.contains(&scenario));
        found.map(|(_, most)| *most)
    };
    let p99 = most(&P99).unwrap_or(NO_WORSE);
    let mut claims = vec![Claim::new(scenario, "p99 / tower", ours.p99.high, p99)];
    if let Some(p999) = most(&P999) {
        claims.push(Claim::new(scenario, "p99.9 / tower", ours.p999.high, p999));
    }
    claims
}

/// Of those that fail at once or are slow: what they are given, what that costs, and when they are back.
fn incidents(compared: &Compared, ours: &Row) -> Vec<Claim> {
    let name = compared.scenario.as_str();
    let bad = compared.bad.max(1) as f64;
    let worst = |what: fn(&Figures) -> f64| ours.runs.iter().map(what).fold(0.0, f64::max);
    let claim = |says: &str, seen, most| Claim::new(name, says, seen, most);
    let given = |list: &[(&str, f64)]| list.iter().find(|it| it.0 == name).map(|it| it.1);
    let mut claims = Vec::new();
    if let Some(most) = given(&ERRORS) {
        let failures = worst(|run| run.failures) / bad;
        claims.push(claim("errors %", ours.mean.errors, most));
        claims.push(claim("share of a failing one", ours.mean.share, SHARE));
        claims.push(claim("failures a client and incident", failures, FAILURES));
    }
    if let Some(most) = given(&BACK) {
        let back = worst(|run| run.back.unwrap_or(f64::INFINITY));
        let spent = ours.mean.share * bad / compared.servers as f64 * 100.0;
        claims.push(claim("seconds until it is back", back, most));
        claims.push(claim("% of calls spent on it", spent, EXPLORING));
    }
    claims
}

fn errors_of_worst(row: &Row) -> f64 {
    row.runs.iter().map(|run| run.errors).fold(0.0, f64::max)
}

/// A line for each, those that do not hold again at the end.
pub fn table(claims: &[Claim]) -> String {
    let line = |claim: &Claim| {
        let Claim {
            scenario,
            says,
            most,
            seen,
        } = claim;
        let verdict = if claim.holds() { "holds" } else { "DOES NOT" };
        format!("  {verdict:<9} {scenario:<24} {says:<42} {seen:>8.3}, at most {most}\n")
    };
    let mut text = String::from("\nclaims\n");
    text.extend(claims.iter().map(line));
    let broken: Vec<&Claim> = claims.iter().filter(|claim| !claim.holds()).collect();
    let held = claims.len() - broken.len();
    let _ = writeln!(text, "\n{held} of {} hold", claims.len());
    if !broken.is_empty() {
        text += "those that do not:\n";
        text.extend(broken.into_iter().map(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Ratio;

    fn row(policy: &str, ratio: f64, errors: f64) -> Row {
        let ratio = Ratio {
            mean: ratio - 0.1,
            low: ratio - 0.2,
            high: ratio,
        };
        let mean = Figures {
            errors,
            share: 0.03,
            failures: 6.0,
            back: Some(7.0),
            ..Figures::default()
        };
        Row {
            policy: policy.to_owned(),
            runs: vec![mean.clone()],
            mean,
            p99: ratio,
            p999: ratio,
        }
    }

    fn compared(scenario: &str, bad: usize, rows: Vec<Row>) -> Compared {
        Compared {
            scenario: scenario.to_owned(),
            asks: String::new(),
            servers: 20,
            clients: 20,
            bad,
            fails: ["S8", "S9"].contains(&scenario),
            rows,
        }
    }

    fn broken(claims: &[Claim]) -> Vec<&str> {
        let broken = claims.iter().filter(|claim| !claim.holds());
        broken.map(|claim| claim.says.as_str()).collect()
    }

    #[test]
    fn the_upper_end_of_a_ratio_must_hold() {
        let rows = |ratio| {
            let random = row("plain_random", 9.0, 7.0);
            vec![row("tower", 1.0, 0.0), row("adaptive", ratio, 0.1), random]
        };

        let held = of(&compared("S3", 0, rows(0.6)));
        let not = of(&compared("S3", 0, rows(0.61)));
        let elsewhere = of(&compared("S1", 0, rows(1.02)));

        let errors = "errors %, others have 5 and more";
        assert_eq!(broken(&held), [errors]);
        assert_eq!(broken(&not), ["p99 / tower", "p99.9 / tower", errors]);
        assert_eq!(broken(&elsewhere), [errors]);
    }

    #[test]
    fn a_server_that_fails_is_counted_for_itself() {
        let rows = || vec![row("tower", 1.0, 9.0), row("adaptive", 0.5, 0.3)];

        let one = of(&compared("S8", 1, rows()));
        let two = of(&compared("S9", 2, rows()));
        let slow = of(&compared("S15s", 1, rows()));

        let (share, failures) = ("share of a failing one", "failures a client and incident");
        assert_eq!(broken(&one), ["errors %", share, failures]);
        assert_eq!(broken(&two), [share], "six failures of two servers");
        assert_eq!(
            broken(&slow),
            ["seconds until it is back", "% of calls spent on it"]
        );
    }
}
