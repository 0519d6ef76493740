//! Everybody in turn, round by round, so that what the machine does meanwhile hits all alike.

use std::{io::Write, time::Duration};

use load::{Failure, Figures};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    cases::{Case, many},
    contender::{Contender, Servers},
    peers::{BASE, Peer},
    report,
};

/// What all contenders have shown at one case.
#[derive(Debug, Serialize)]
pub struct Compared {
    pub case: Case,
    pub rows: Vec<Row>,
}

/// One contender's medians.
#[derive(Debug, Serialize)]
pub struct Row {
    pub peer: &'static str,
    pub title: &'static str,
    /// Why its figures do not count.
    pub void: Option<String>,
    pub calls_per_second: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
    pub p999_micros: f64,
    pub cpu_micros: f64,
    pub allocations: f64,
    pub allocated_bytes: f64,
    /// Against the base in the same round.
    pub calls_ratio: Option<f64>,
    pub cpu_ratio: Option<f64>,
    pub p99_ratio: Option<f64>,
}

pub fn all(arguments: &Arguments, peers: &[Peer]) -> Result<Vec<Compared>, Failure> {
    let count = arguments.cases.len();
    println!("{}", budget(arguments, peers));
    let mut compared = Vec::new();
    for (n, case) in arguments.cases.iter().enumerate() {
        let result = one(
            arguments,
            peers,
            case,
            &format!("case {} of {count}", n + 1),
        )?;
        report::print(&result);
        compared.push(result);
    }
    Ok(compared)
}

/// What is about to be run, and how long that takes.
fn budget(arguments: &Arguments, peers: &[Peer]) -> String {
    let (cases, rounds) = (arguments.cases.len(), arguments.rounds);
    let contenders = |case: &Case| peers.iter().filter(|peer| peer.can(case.servers)).count();
    let turns: usize = arguments.cases.iter().map(contenders).sum();
    // One round more warms up, another counts allocations; starting takes a moment as well.
    let each = arguments.round * u32::try_from(rounds + 2).unwrap_or(u32::MAX);
    let all = (each + Duration::from_millis(200)) * u32::try_from(turns).unwrap_or(u32::MAX);
    let minutes = usize::try_from(all.as_secs().div_ceil(60)).unwrap_or(usize::MAX);
    format!(
        "{}, {}, {} of {} ms: about {}",
        many(cases, "case"),
        many(peers.len(), "contender"),
        many(rounds, "round"),
        arguments.round.as_millis(),
        many(minutes, "minute")
    )
}

/// A contender and what it has shown so far; after something went wrong, what that was.
struct Turn {
    peer: Peer,
    state: Result<Contender, String>,
    rounds: Vec<Figures>,
    counted: Figures,
}

fn one(
    arguments: &Arguments,
    peers: &[Peer],
    case: &Case,
    place: &str,
) -> Result<Compared, Failure> {
    let servers = Servers::start(case.server, case.servers)?;
    let can = |peer: &&Peer| peer.can(case.servers);
    let turn = |peer: &Peer| Turn {
        peer: *peer,
        state: Contender::start(peer, &servers.addresses).map_err(|error| error.to_string()),
        rounds: Vec::new(),
        counted: Figures::default(),
    };
    let mut turns: Vec<Turn> = peers.iter().filter(can).map(turn).collect();
    // The first round warms up; the last counts allocations, and no time.
    let last = arguments.rounds + 1;
    for round in 0..=last {
        progress(&format!("{place}: {case}, round {round} of {last}"));
        for turn in &mut turns {
            turn.go(case, arguments, round > 0, round == last);
        }
    }
    progress("");
    Ok(Compared {
        case: case.clone(),
        rows: rows(turns),
    })
}

impl Turn {
    fn go(&mut self, case: &Case, arguments: &Arguments, keep: bool, count: bool) {
        let Ok(contender) = &mut self.state else {
            return;
        };
        match contender.round(case.burden(arguments.rate), arguments.round, count) {
            Ok(figures) if figures.failed > 0 && keep => {
                let first = figures.error.as_deref().unwrap_or("unknown");
                self.state = Err(format!("{} calls failed: {first}", figures.failed));
            }
            Ok(figures) if figures.calls == 0 && keep => {
                self.state = Err("made no call in a round".to_owned());
            }
            Ok(figures) if count => self.counted = figures,
            Ok(figures) if keep => self.rounds.push(figures),
            Ok(_) => {}
            Err(error) => self.state = Err(error.to_string()),
        }
    }
}

fn rows(turns: Vec<Turn>) -> Vec<Row> {
    let base = turns
        .iter()
        .find(|turn| turn.peer.name == BASE && turn.state.is_ok())
        .map(|turn| turn.rounds.clone());
    turns
        .into_iter()
        .map(|turn| row(turn, base.as_deref()))
        .collect()
}

fn row(turn: Turn, base: Option<&[Figures]>) -> Row {
    let rounds = turn.rounds;
    let over = |of: fn(&Figures) -> f64| median(rounds.iter().map(of).collect());
    let ratio = |of: fn(&Figures) -> f64| {
        let pairs = rounds.iter().zip(base?);
        Some(median(
            pairs.map(|(ours, base)| of(ours) / of(base)).collect(),
        ))
    };
    let (rate, cpu): (fn(&Figures) -> f64, fn(&Figures) -> f64) = (
        |f| f.calls as f64 / f.seconds,
        |f| f.cpu_micros / f.calls as f64,
    );
    let counted = turn.counted.calls.max(1) as f64;
    let void = turn.state.err();
    let sound = void.is_none();
    Row {
        peer: turn.peer.name,
        title: turn.peer.title,
        calls_per_second: over(rate),
        p50_micros: over(|f| f.p50),
        p99_micros: over(|f| f.p99),
        p999_micros: over(|f| f.p999),
        cpu_micros: over(cpu),
        allocations: turn.counted.allocations as f64 / counted,
        allocated_bytes: turn.counted.allocated as f64 / counted,
        calls_ratio: ratio(rate).filter(|_| sound),
        cpu_ratio: ratio(cpu).filter(|_| sound),
        p99_ratio: ratio(|f| f.p99).filter(|_| sound),
        void,
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.get(figures.len() / 2).copied();
    middle.unwrap_or(0.0)
}

/// On standard error, over the line before, where a person watches.
fn progress(what: &str) {
    use std::io::IsTerminal;
    let mut error = std::io::stderr();
    if error.is_terminal() {
        let _ = write!(error, "\r\x1b[K{what}");
    } else if what.contains("round 0 ") {
        let _ = writeln!(error, "{what}");
    }
    let _ = error.flush();
}
