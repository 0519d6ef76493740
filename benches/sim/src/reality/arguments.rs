//! What is to be run.

use std::{ops::Range, path::PathBuf};

use super::Rival;
use crate::{arguments::Common, scenario::Scenario};

/// What is to be run.
#[derive(Debug)]
pub struct Arguments {
    pub scenarios: Vec<Scenario>,
    pub seeds: Range<u64>,
    pub json: Option<PathBuf>,
}

pub enum Asked {
    Help,
    Run(Box<Arguments>),
}

const SCENARIOS: [&str; 5] = ["S1", "S3", "S6", "S8", "S10"];
/// Calls a second of all clients together: a third of a core, so that servers wait for work and not for the machine.
const RATE: f64 = 1000.0;
const SEEDS: u64 = 1;

pub const HELP: &str = "\
The simulator's claims on real tonic servers: ours against tonic's balance_channel and tower's P2C + PeakEWMA.

  scripts/loopback [S1] [S3] [S6] [S8] [S10]   these scenarios, or all
    --seeds N        1 unless given
    --first-seed N   1000 unless given
    --quick          nine seconds for each contender and scenario, where it is half a minute
    --json FILE      all figures

Twenty servers in a process of their own, four permits each, sleep as long as a call's work takes at their speed, which the
scenario changes; twenty clients call them a thousand times a second in all. The contenders take turns, each on servers of its
own, with the same calls. `late` is how many milliseconds calls began too late, and `over` how many servers slept too long for
each: what a machine does that is too busy. The simulator runs the same with servers that take as much longer, and is printed
beside: `off` is how far reality's ratio is from the simulator's.
";

impl Arguments {
    pub fn read(words: &[String]) -> Result<Asked, String> {
        let (mut names, mut quick, mut common) = (Vec::new(), false, Common::default());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--quick" => quick = true,
                _ if common.takes(word, &mut words)? => {}
                name => names.push(name.to_owned()),
            }
        }
        if names.is_empty() {
            names = SCENARIOS.map(String::from).into();
        }
        let scenarios = names.iter().map(|name| scenario(name, quick));
        Ok(Asked::Run(Box::new(Self {
            scenarios: scenarios.collect::<Result<_, _>>()?,
            seeds: common.seeds(SEEDS),
            json: common.json,
        })))
    }

    /// What is about to be run, and how long it takes.
    pub fn heading(&self) -> String {
        let lasts = self.scenarios.iter().map(|it| it.warm_up + it.lasts + 2.0);
        let count = self.seeds.end - self.seeds.start;
        let minutes = lasts.sum::<f64>() * (Rival::ALL.len() as u64 * count) as f64 / 60.0;
        format!(
            "{} scenarios, {} contenders, {count} seeds: about {minutes:.0} minutes; ratios are against {}",
            self.scenarios.len(),
            Rival::ALL.len(),
            Rival::ALL[0].name(),
        )
    }
}

/// The simulator's, with as much work a call as leaves a thousand calls a second.
fn scenario(name: &str, quick: bool) -> Result<Scenario, String> {
    let known = SCENARIOS.iter().any(|it| it.eq_ignore_ascii_case(name));
    let found = Scenario::named(name).filter(|_| known);
    let mut it = found.ok_or_else(|| format!("there is no scenario {name:?} here"))?;
    it.work *= it.rate() * it.clients as f64 / RATE;
    // Nearly: what loopback and two processes take.
    it.net = 0.000_3;
    (it.warm_up, it.lasts) = if quick { (3.0, 6.0) } else { (8.0, 22.0) };
    Ok(it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Asked, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arguments::read(&words)
    }

    #[test]
    fn what_is_asked_for_is_run_at_a_thousand_calls_a_second() {
        let Ok(Asked::Run(these)) = read("s3 --quick --seeds 3") else {
            panic!("it is good");
        };

        let [scenario] = &these.scenarios[..] else {
            panic!("{these:?}");
        };
        let rate = scenario.rate() * scenario.clients as f64;
        assert!((rate - RATE).abs() < 1.0, "{rate}");
        assert_eq!(these.seeds, 1000..1003);
        assert!(these.heading().contains("about 2 minutes"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, name) in [
            ("S4", "S4"),
            ("--seeds none", "none"),
            ("--seeds 0", "at least one"),
            ("--json", "--json"),
        ] {
            let wrong = read(line).err().unwrap();
            assert!(wrong.contains(name), "{wrong}");
        }
    }
}
