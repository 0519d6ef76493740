//! What the command line asks for.

use std::{path::PathBuf, time::Duration};

use crate::cases::{self, Case};

pub const HELP: &str = "\
scripts/bench-peers: what a call costs through tonic-fleet and through its peers, on this machine

  --quick                some cases, few rounds: under three minutes once all is built
  --full                 every case there is: hours
  --case CASE            only this one; may be said again. WORK/SERVERS/CALLERS/BYTES[/SERVER], as in unary/4/64/16
                         WORK is unary or stream, SERVER is lean (the client is the limit) or tonic
  --peers A,B            only these: fleet fleet-lean channel balance p2c ginepro volo grpc codec raw
  --rate N               unary calls a second from all callers together, each at its time; else as fast as they are answered
  --rounds N             rounds that count, each contender in turn in each (5)
  --millis N             how long a round is (700)
  --out DIR              where report.json and the plots go (target/peers/report)
  --scenario             instead: eight servers, one slow, one dying, one joining, as each contender's callers see it
  --instructions         instead: how many instructions a call takes each; slow, and needs valgrind
  --plots DIR            puts the plots that the README shows there as well";

#[derive(Debug)]
pub struct Arguments {
    pub help: bool,
    /// Only look whether the arguments are right.
    pub check: bool,
    pub scenario: bool,
    pub instructions: bool,
    pub cases: Vec<Case>,
    pub peers: Option<Vec<String>>,
    pub rate: Option<u32>,
    pub rounds: usize,
    pub round: Duration,
    pub out: PathBuf,
    pub plots: Option<PathBuf>,
    /// As it was said.
    pub said: String,
}

impl Arguments {
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let words: Vec<String> = words.into_iter().collect();
        let mut parsed = Self {
            help: false,
            check: false,
            scenario: false,
            instructions: false,
            cases: Vec::new(),
            peers: None,
            rate: None,
            rounds: 5,
            round: Duration::from_millis(700),
            out: "target/peers/report".into(),
            plots: None,
            said: words.join(" "),
        };
        let (mut quick, mut full) = (false, false);
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.ok_or_else(|| format!("{word} needs a value; --help says which"))
            };
            match word.as_str() {
                "--help" | "-h" => parsed.help = true,
                "--check" => parsed.check = true,
                "--instructions" => parsed.instructions = true,
                "--scenario" => parsed.scenario = true,
                "--quick" => quick = true,
                "--full" => full = true,
                "--case" => parsed.cases.push(value()?.parse()?),
                "--peers" => {
                    parsed.peers = Some(value()?.split(',').map(str::to_owned).collect());
                }
                "--rate" => parsed.rate = Some(rate(&value()?)?),
                "--rounds" => parsed.rounds = number(&word, &value()?)?,
                "--millis" => {
                    parsed.round = Duration::from_millis(number(&word, &value()?)? as u64);
                }
                "--out" => parsed.out = value()?.into(),
                "--plots" => parsed.plots = Some(value()?.into()),
                _ => return Err(format!("{word} means nothing here; --help says what does")),
            }
        }
        if parsed.scenario && (quick || full || !parsed.cases.is_empty()) {
            return Err(
                "--scenario has no cases: say it without --quick, --full and --case".into(),
            );
        }
        if parsed.rate.is_some() && (parsed.scenario || parsed.instructions) {
            return Err("--rate is for cases: say it without --scenario and --instructions".into());
        }
        if parsed.scenario && parsed.instructions {
            return Err("say one of --scenario and --instructions".into());
        }
        match (parsed.cases.is_empty(), quick, full) {
            // Each takes minutes for a case.
            (true, false, false) if parsed.instructions => parsed.cases = cases::quick(),
            (false, false, false) => {}
            (true, false, false) => parsed.cases = cases::usual(),
            (true, false, true) => parsed.cases = cases::full(),
            (true, true, false) => {
                parsed.cases = cases::quick();
                parsed.rounds = parsed.rounds.min(3);
                parsed.round = parsed.round.min(Duration::from_millis(400));
            }
            _ => return Err("say one of --quick, --full and --case".into()),
        }
        Ok(parsed)
    }
}

fn rate(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(rate @ 1..=1_000_000) => Ok(rate),
        _ => Err(format!(
            "--rate takes a number from 1 to 1000000, not {value:?}"
        )),
    }
}

fn number(option: &str, value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{option} takes a number above zero, not {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        for (line, told) in [
            ("--fast", "--fast means nothing here; --help says what does"),
            ("--rounds", "--rounds needs a value; --help says which"),
            (
                "--rounds many",
                "--rounds takes a number above zero, not \"many\"",
            ),
            (
                "--scenario --quick",
                "--scenario has no cases: say it without --quick, --full and --case",
            ),
            ("--quick --full", "say one of --quick, --full and --case"),
            (
                "--case unary/4",
                "the case unary/4 is not WORK/SERVERS/CALLERS/BYTES, as in unary/4/64/16",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), told);
        }
    }

    #[test]
    fn a_case_may_be_said_more_than_once() {
        let arguments = parse("--case unary/4/64/16 --case stream/1/1/4096/tonic").unwrap();

        let named: Vec<String> = arguments.cases.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["unary/4/64/16/lean", "stream/1/1/4096/tonic"]);
    }

    #[test]
    fn the_quick_ones_are_fewer_and_shorter() {
        let (quick, usual) = (parse("--quick").unwrap(), parse("").unwrap());

        assert!(quick.cases.len() < usual.cases.len());
        assert!(quick.round < usual.round && quick.rounds < usual.rounds);
    }
}
