//! What is to be run.

use std::{fmt::Write, ops::Range, path::PathBuf};

use crate::{
    claims, contenders, herd,
    scenario::{self, Scenario},
};

/// What is to be run.
#[derive(Debug)]
pub struct Arguments {
    pub parts: Vec<Part>,
    /// Whether it is said at the end what holds of what we claim.
    pub claims: bool,
    /// The first seed of clients with subsets, if these are looked at.
    pub subsets: Option<u64>,
    pub json: Option<PathBuf>,
    pub pictures: Option<PathBuf>,
}

/// Scenarios that the same policies run.
#[derive(Clone, Debug)]
pub struct Part {
    pub scenarios: Vec<Scenario>,
    /// The first is the base of all ratios.
    pub policies: Vec<String>,
    pub seeds: Vec<u64>,
    /// Whether each seed bends the scenario.
    pub bend: bool,
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
/// Large fleets of equals differ little from seed to seed, and take their time; small ones have the many.
const LARGE_HERD_SEEDS: u64 = 3;
const SMALL_HERD: usize = 5;

const HELP: &str = "\
Policies against each other in simulated fleets.

  scripts/sim [SCENARIO…]   these, or all; `herd` is 40 fleets of equals, from 2 servers to 100, near and far, of
                            which `20x500` is the two of 20 servers and 500 clients; `ramp` is S18,
                            nine loads from three quarters to much too much; `subsets` is S17, how even they are and what a
                            change of the fleet costs, drawn by chance, by gRFC A68 and by Rocksteadier
  scripts/sim claims [SCENARIO…]
                            what the crate claims of `adaptive`, of all its policies in `herd`, and of subsets: what holds
                            and what does not; ten seeds, three for large fleets of equals; half an hour or so on two cores
    --policies A,B,…        compares these; the first is the base of the ratios
    --seeds N               2 unless given
    --first-seed N          1000 unless given; what was tuned was tuned on others
    --full                  ten seeds and all policies: hours, where the default takes a few minutes
    --perturb               each parameter up to a fifth off, as the seed decides: so it is done unless --exact is given
    --exact                 the scenarios as they are written; `herd` always is
    --json FILE             all figures of all runs
    --svg FOLDER            pictures: tails by scenario, and the share of a bad server over time

A ratio is the geometric mean of paired ratios, seed by seed, and the interval in which it lies with 95 %
confidence. Times are in milliseconds. `share` is what bad servers were given against a fair share, `fail` how
many failures a client saw, `back` how many seconds a server that is well again waits for four fifths of its share,
`tries` how often a call was made, and `good` how many were answered long after all servers were well again.
";

/// What the bench on loopback is told as well.
#[derive(Debug)]
pub struct Common {
    first: u64,
    count: Option<u64>,
    pub json: Option<PathBuf>,
}

/// As the words say, before what is not said is filled in.
struct Words {
    scenarios: Vec<Scenario>,
    herds: Vec<Scenario>,
    subsets: bool,
    policies: Option<Vec<String>>,
    common: Common,
    bend: bool,
    claims: bool,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            first: FIRST_SEED,
            count: None,
            json: None,
        }
    }
}

impl Common {
    /// Whether this word is one of these; the next is its value.
    pub fn takes<'w>(
        &mut self,
        word: &str,
        rest: &mut impl Iterator<Item = &'w String>,
    ) -> Result<bool, String> {
        match word {
            "--seeds" => self.count = Some(number(word, value(word, rest)?)?),
            "--first-seed" => self.first = number(word, value(word, rest)?)?,
            "--json" => self.json = Some(value(word, rest)?.into()),
            _ => return Ok(false),
        }
        match self.count {
            Some(0) => Err("--seeds is 0: at least one is needed".to_owned()),
            _ => Ok(true),
        }
    }

    /// So many, unless others were asked for.
    pub fn seeds(&self, usual: u64) -> Range<u64> {
        let count = self.count.unwrap_or(usual);
        self.first..self.first.saturating_add(count)
    }
}

fn value<'w>(
    word: &str,
    rest: &mut impl Iterator<Item = &'w String>,
) -> Result<&'w String, String> {
    rest.next().ok_or_else(|| format!("{word} wants a value"))
}

impl Arguments {
    pub fn read(words: &[String]) -> Result<Asked, String> {
        let mut said = Words {
            scenarios: Vec::new(),
            herds: Vec::new(),
            subsets: false,
            policies: None,
            common: Common::default(),
            bend: true,
            claims: false,
        };
        let mut pictures = None;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--policies" => said.policies = Some(policies(value(word, &mut words)?)?),
                "--full" => {
                    said.common.count = Some(MANY_SEEDS);
                    said.policies = Some(everybody());
                }
                "--perturb" => said.bend = true,
                "--exact" => said.bend = false,
                "--svg" => pictures = Some(value(word, &mut words)?.into()),
                "claims" => said.claims = true,
                "herd" => said.herds.extend(scenario::herds()),
                "subsets" => said.subsets = true,
                "ramp" => said.scenarios.extend(scenario::ramp()),
                _ if said.common.takes(word, &mut words)? => {}
                name => match scenario::herd_named(name) {
                    Some(herd) => said.herds.extend(herd),
                    None => said.scenarios.push(
                        Scenario::named(name)
                            .ok_or_else(|| format!("there is no scenario {name:?}"))?,
                    ),
                },
            }
        }
        Ok(Asked::Run(Box::new(Self {
            claims: said.claims,
            subsets: (said.subsets || said.is_all() && said.claims).then_some(said.common.first),
            json: said.common.json.clone(),
            parts: said.parts(),
            pictures,
        })))
    }
}

impl Words {
    /// Nothing is named.
    fn is_all(&self) -> bool {
        self.scenarios.is_empty() && self.herds.is_empty() && !self.subsets
    }

    fn parts(self) -> Vec<Part> {
        let all = self.is_all();
        let seeds = |usual| self.common.seeds(usual).collect();
        let policies = |usual: &[&str]| {
            let usual = || usual.iter().map(|&name| name.to_owned()).collect();
            self.policies.clone().unwrap_or_else(usual)
        };
        let many = if self.claims { MANY_SEEDS } else { SEEDS };
        let usual: &[&str] = if self.claims {
            &claims::POLICIES
        } else {
            &USUAL
        };
        let named = Part {
            policies: policies(usual),
            seeds: seeds(many),
            bend: self.bend,
            scenarios: if all {
                scenario::ALL.into()
            } else {
                self.scenarios.clone()
            },
        };
        let mut among_equals = policies(&among_equals());
        if self.claims && among_equals[0] != herd::BASE {
            among_equals.insert(0, herd::BASE.to_owned());
        }
        let herds = if all && self.claims {
            scenario::herds()
        } else {
            self.herds.clone()
        };
        let is_small = |it: &Scenario| it.servers <= SMALL_HERD && it.clients <= 20;
        let (small, large): (Vec<_>, Vec<_>) = herds.into_iter().partition(is_small);
        let part = |scenarios, usual| Part {
            policies: among_equals.clone(),
            seeds: seeds(usual),
            bend: false,
            scenarios,
        };
        let herds = [part(small, MANY_SEEDS), part(large, LARGE_HERD_SEEDS)];
        let parts = std::iter::once(named).chain(herds);
        parts.filter(|part| !part.scenarios.is_empty()).collect()
    }
}

/// All of ours, and what those by chance are held against.
fn among_equals() -> Vec<&'static str> {
    let ideals = contenders::BY_CHANCE.map(|(_, ideal)| ideal);
    let mut all: Vec<_> = contenders::OURS
        .into_iter()
        .chain(contenders::BOUNDED)
        .chain(ideals)
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|name| seen.insert(*name));
    all
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

        let [part] = &these.parts[..] else {
            panic!("{these:?}");
        };
        let names: Vec<_> = part
            .scenarios
            .iter()
            .map(|scenario| scenario.name)
            .collect();
        assert_eq!(names, ["S3", "S10"]);
        assert_eq!(part.seeds, [1000, 1001, 1002]);
        assert_eq!(part.policies, ["random", "tower"]);
        assert!(!part.bend && !these.claims);
    }

    #[test]
    fn claims_are_tried_on_all_scenarios_and_herds_or_on_those_that_are_named() {
        let parts = |line| match read(line) {
            Ok(Asked::Run(these)) if these.claims => {
                let sizes = these.parts.iter().map(|part| part.scenarios.len());
                let policies = these.parts.iter().map(|part| part.policies[0].clone());
                sizes.zip(policies).collect::<Vec<_>>()
            }
            _ => panic!("{line:?}"),
        };

        let (tower, turns) = ("tower".to_owned(), "round_robin".to_owned());
        let all = [
            (scenario::ALL.len(), tower.clone()),
            (18, turns.clone()),
            (22, turns.clone()),
        ];
        assert_eq!(parts("claims"), all);
        assert_eq!(parts("claims S3 S7"), [(2, tower)]);
        let herds = [(18, turns.clone()), (22, turns.clone())];
        assert_eq!(parts("claims herd --policies adaptive"), herds);
        assert_eq!(parts("claims 2x20 --policies adaptive"), [(2, turns)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, name) in [
            ("S99", "S99"),
            ("1x20", "1x20"),
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
