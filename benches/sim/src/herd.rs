//! Whether policies herd: all fleets of equals, and what it is where one does worse there than taking turns.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    claims::Claim,
    compare::{Compared, Ratio, Row},
    contenders::BY_CHANCE,
};

/// The base of the claim that nobody herds.
pub const BASE: &str = "round_robin";
/// So many times what it is compared with may p99 be.
const MOST: f64 = 1.2;

/// What one policy does in all fleets of equals.
#[derive(Debug, Default)]
struct Grid {
    fleets: usize,
    /// Where it is worse than taking turns, and by how much.
    worse: Vec<(f64, String)>,
    /// The worst against choices by chance with the same shares, where its own are such; and whether it is clear
    /// that it is worse than those.
    ideal: Option<(f64, String)>,
    is_worse: bool,
}

/// That no policy does worse among equals than taking turns. Those whose picks know nothing of each other do: the
/// [verdict](verdicts) holds them against what chance does with the same shares.
pub fn claims(compared: &Compared) -> Vec<Claim> {
    if !is_one(compared) {
        return Vec::new();
    }
    let fleet = fleet(compared);
    let claim = |row: &Row| {
        let says = format!("{}: p99 / {BASE}", row.policy);
        Claim::new(&fleet, says, row.p99.high, MOST)
    };
    ours(compared).map(claim).collect()
}

fn is_one(compared: &Compared) -> bool {
    compared.rows.first().is_some_and(|row| row.policy == BASE)
}

fn fleet(compared: &Compared) -> String {
    let Compared {
        servers,
        clients,
        asks,
        ..
    } = compared;
    format!("{servers}x{clients} {asks}")
}

/// Those the claim is about: all but the base, and what some of them are held against.
fn ours(compared: &Compared) -> impl Iterator<Item = &Row> {
    let is_ideal = |name: &str| BY_CHANCE.iter().any(|(_, ideal)| *ideal == name);
    let others = compared.rows.iter().skip(1);
    others.filter(move |row| !is_ideal(&row.policy))
}

/// The p99 of one whose picks are by chance, against what chance does with the same shares.
fn beside_chance(compared: &Compared, row: &Row) -> Option<Ratio> {
    let (_, ideal) = BY_CHANCE.iter().find(|(name, _)| *name == row.policy)?;
    let ideal = compared.rows.iter().find(|row| row.policy == *ideal)?;
    Some(Ratio::of(&row.runs, &ideal.runs, |figures| figures.p99))
}

/// What is to be said of each policy over all fleets of equals; nothing where there were none.
pub fn verdicts(all: &[Compared]) -> String {
    let mut grids: BTreeMap<&str, Grid> = BTreeMap::new();
    for compared in all.iter().filter(|compared| is_one(compared)) {
        for row in ours(compared) {
            grids.entry(&row.policy).or_default().take(compared, row);
        }
    }
    if grids.is_empty() {
        return String::new();
    }
    let mut text = format!("\nherds: p99 against {BASE}'s, in fleets of equals\n");
    for (policy, grid) in grids {
        let _ = writeln!(text, "  {policy:<20} {}", grid.verdict());
    }
    text
}

impl Grid {
    fn take(&mut self, compared: &Compared, row: &Row) {
        self.fleets += 1;
        let (ratio, fleet) = (row.p99.high, fleet(compared));
        if let Some(chance) = beside_chance(compared, row) {
            self.is_worse |= chance.low > MOST;
            if self
                .ideal
                .as_ref()
                .is_none_or(|(worst, _)| chance.mean > *worst)
            {
                self.ideal = Some((chance.mean, fleet.clone()));
            }
        }
        if ratio > MOST {
            self.worse.push((ratio, fleet));
        }
    }

    fn verdict(&self) -> String {
        let worst = self.worse.iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((ratio, fleet)) = worst else {
            return format!(
                "does not herd: at most {MOST} times as long in all {}",
                self.fleets
            );
        };
        let worse = format!(
            "longer than {MOST} times in {} of {}, {ratio:.2} times in {fleet}",
            self.worse.len(),
            self.fleets
        );
        match &self.ideal {
            Some((chance, fleet)) if self.is_worse => {
                format!(
                    "HERDS: {worse}; {chance:.2} times what chance does with the same shares in {fleet}"
                )
            }
            Some((chance, fleet)) => format!(
                "does not herd, but its calls fall by chance: {worse}; what chance does with the same shares takes \
                 as long but for what seeds leave open, at most {chance:.2} times, in {fleet}"
            ),
            None => format!("HERDS: {worse}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claims, compare::Ratio, figures::Figures};

    fn figures(p99: f64) -> Figures {
        Figures {
            p99,
            ..Figures::default()
        }
    }

    fn fleet_of(rows: &[(&str, f64)]) -> Compared {
        let row = |&(policy, p99): &(&str, f64)| Row {
            policy: policy.to_owned(),
            mean: figures(p99),
            p99: Ratio {
                mean: p99,
                low: p99,
                high: p99,
            },
            p999: Ratio::default(),
            runs: vec![figures(p99)],
        };
        Compared {
            scenario: "herd".to_owned(),
            asks: "equals, near".to_owned(),
            servers: 20,
            clients: 2,
            bad: 0,
            fails: false,
            rows: rows.iter().map(row).collect(),
        }
    }

    #[test]
    fn a_herd_is_named_with_its_fleet() {
        let compared = fleet_of(&[(BASE, 1.0), ("adaptive", 1.3)]);

        let claims = claims(&compared);
        let verdicts = verdicts(&[compared]);

        let table = claims::table(&claims);
        assert!(
            table.contains("20x2 equals") && table.contains("0 of 1 hold"),
            "{table}"
        );
        assert!(
            verdicts.contains("HERDS") && verdicts.contains("1.30 times in 20x2"),
            "{verdicts}"
        );
    }

    #[test]
    fn whose_picks_are_by_chance_is_held_against_chance() {
        let near = fleet_of(&[(BASE, 1.0), ("random", 1.4), ("plain_random", 1.35)]);
        let far = fleet_of(&[(BASE, 1.0), ("random", 1.4), ("plain_random", 1.0)]);

        let one = verdicts(std::slice::from_ref(&near));
        let both = verdicts(&[near, far]);

        assert!(
            one.contains("random               does not herd, but"),
            "{one}"
        );
        assert!(one.contains("in 1 of 1") && !one.contains("plain"), "{one}");
        assert!(
            both.contains("HERDS") && both.contains("in 2 of 2"),
            "{both}"
        );
    }

    #[test]
    fn other_scenarios_say_nothing_of_herds() {
        let compared = fleet_of(&[("tower", 1.0), ("adaptive", 1.3)]);

        assert_eq!(
            (claims(&compared).len(), verdicts(&[compared])),
            (0, String::new())
        );
    }
}
