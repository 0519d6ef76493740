//! What is to be run.

use std::{fmt::Write, path::PathBuf};

use crate::{
    contenders,
    scenario::{self, Scenario},
};

/// What is to be run.
#[derive(Debug)]
pub struct Arguments {
    pub scenarios: Vec<Scenario>,
    /// The first is the base of all ratios.
    pub policies: Vec<String>,
    pub seeds: Vec<u64>,
    /// Whether each seed bends the scenario.
    pub bend: bool,
    pub json: Option<PathBuf>,
    pub pictures: Option<PathBuf>,
}

pub enum Asked {
    Help,
    Run(Box<Arguments>),
}

/// Those that are compared unless others are asked for.
const USUAL: [&str; 5] = [
    "tower",
    "plain_random",
    "least_loaded",
    "adaptive",
    "oracle",
];
/// The seeds that nothing was tuned on begin here.
const FIRST_SEED: u64 = 1000;
const SEEDS: u64 = 2;
const MANY_SEEDS: u64 = 10;

const HELP: &str = "\
Policies against each other in simulated fleets.

  scripts/sim [SCENARIO…]   these, or all; `herd` is 40 fleets of equals, from 2 servers to 100
    --policies A,B,…        compares these; the first is the base of the ratios
    --seeds N               2 unless given
    --first-seed N          1000 unless given; what was tuned was tuned on others
    --full                  ten seeds and all policies: more than half an hour, where the default takes a few minutes
    --exact                 the scenarios as they are written, and not each parameter up to a fifth off
    --json FILE             all figures of all runs
    --svg FOLDER            pictures: tails by scenario, and the share of a bad server over time

A ratio is the geometric mean of paired ratios, seed by seed, and the interval in which it lies with 95 %
confidence. Times are in milliseconds. `share` is what bad servers were given against a fair share, `fail` how
many failures a client saw, `back` how many seconds a server that is well again waits for four fifths of its share.
";

impl Arguments {
    pub fn read(words: &[String]) -> Result<Asked, String> {
        let mut these = Self {
            scenarios: Vec::new(),
            policies: USUAL.map(String::from).into(),
            seeds: Vec::new(),
            bend: true,
            json: None,
            pictures: None,
        };
        let (mut first, mut count) = (FIRST_SEED, SEEDS);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match word.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--policies" => these.policies = policies(value()?)?,
                "--seeds" => count = number(word, value()?)?,
                "--first-seed" => first = number(word, value()?)?,
                "--full" => {
                    count = MANY_SEEDS;
                    these.policies = everybody();
                }
                "--exact" => these.bend = false,
                "--json" => these.json = Some(value()?.into()),
                "--svg" => these.pictures = Some(value()?.into()),
                "herd" => {
                    these.bend = false;
                    these.scenarios.extend(scenario::herds());
                }
                name => these.scenarios.push(
                    Scenario::named(name)
                        .ok_or_else(|| format!("there is no scenario {name:?}"))?,
                ),
            }
        }
        if count == 0 {
            return Err("--seeds is 0: at least one is needed".to_owned());
        }
        if these.scenarios.is_empty() {
            these.scenarios = scenario::ALL.into();
        }
        these.seeds = (first..first.saturating_add(count)).collect();
        Ok(Asked::Run(Box::new(these)))
    }
}

fn policies(list: &str) -> Result<Vec<String>, String> {
    let all: Vec<String> = list.split(',').map(str::to_owned).collect();
    match all.iter().find(|name| !contenders::is_known(name)) {
        Some(unknown) => Err(format!("there is no policy {unknown:?}")),
        None => Ok(all),
    }
}

/// The usual base first.
fn everybody() -> Vec<String> {
    let others = contenders::all()
        .map(|(name, _)| name)
        .filter(|name| *name != USUAL[0]);
    std::iter::once(USUAL[0])
        .chain(others)
        .map(str::to_owned)
        .collect()
}

fn number(word: &str, text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{word} {text:?} is no number"))
}

pub fn help() -> String {
    let mut help = HELP.to_owned();
    help += "\nScenarios:\n";
    for scenario in scenario::ALL {
        let Scenario {
            name,
            asks,
            servers,
            clients,
            ..
        } = scenario;
        let _ = writeln!(
            help,
            "  {name:<5} {servers:>4} servers, {clients:>3} clients: {asks}"
        );
    }
    help += "\nPolicies:\n";
    for (name, what) in contenders::all() {
        let _ = writeln!(help, "  {name:<18} {what}");
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Asked, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arguments::read(&words)
    }

    #[test]
    fn what_is_asked_for_is_run() {
        let Ok(Asked::Run(these)) = read("s3 S10 --seeds 3 --policies random,tower --exact") else {
            panic!("it is good");
        };

        let names: Vec<_> = these
            .scenarios
            .iter()
            .map(|scenario| scenario.name)
            .collect();
        assert_eq!(names, ["S3", "S10"]);
        assert_eq!(these.seeds, [1000, 1001, 1002]);
        assert_eq!(these.policies, ["random", "tower"]);
        assert!(!these.bend);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, name) in [
            ("S99", "S99"),
            ("--policies best", "best"),
            ("--seeds", "--seeds"),
            ("--seeds many", "many"),
            ("--seeds 0", "at least one"),
        ] {
            let wrong = read(line).err().unwrap();
            assert!(wrong.contains(name), "{wrong}");
        }
    }

    #[test]
    fn help_names_everything() {
        let help = help();

        assert!(
            help.contains("S15s") && help.contains("least_loaded"),
            "{help}"
        );
    }
}
