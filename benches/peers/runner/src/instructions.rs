//! How many instructions a call takes the client's process, kernel aside: what a busy machine cannot blur.

use std::{fs, path::Path, time::Duration};

use load::Failure;
use serde::Serialize;

use crate::{
    arguments::Arguments,
    cases::Case,
    contender::{Contender, Servers},
    machine::Machine,
    peers::{ALL, BASE, OURS, Peer},
    plot::{self, Bar, Bars},
};

/// Under valgrind, everything takes some fifty times as long.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(4);

#[derive(Serialize)]
struct Counted {
    peer: &'static str,
    instructions: Option<f64>,
    void: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    command: String,
    machine: &'a Machine,
    cases: Vec<(Case, Vec<Counted>)>,
}

pub fn run(arguments: &Arguments, machine: &Machine, peers: &[Peer]) -> Result<(), Failure> {
    fs::create_dir_all(&arguments.out)?;
    let log = arguments.out.join("cachegrind.log");
    let mut cases = Vec::new();
    for case in &arguments.cases {
        println!("\n{}  ({case})", case.title());
        println!("{:<24}{:>20}{:>7}", "", "instructions a call", "ratio");
        let able = peers.iter().filter(|peer| peer.can(case.servers));
        let count = |peer: &Peer| match one(peer, case, &log) {
            Ok(count) => Counted {
                peer: peer.name,
                instructions: Some(count),
                void: None,
            },
            Err(error) => Counted {
                peer: peer.name,
                instructions: None,
                void: Some(error.to_string()),
            },
        };
        // The base first, so that each line can say its ratio at once.
        let (base, others): (Vec<_>, Vec<_>) = able.partition(|peer| peer.name == BASE);
        let mut counted: Vec<Counted> = Vec::new();
        for peer in base.into_iter().chain(others) {
            let row = count(peer);
            let base = counted.first().unwrap_or(&row);
            let base = base.instructions.filter(|_| base.peer == BASE);
            println!("{}", line(peer, &row, base));
            counted.push(row);
        }
        cases.push((case.clone(), counted));
    }
    let picture = picture(&cases, &machine.line());
    for directory in [Some(&arguments.out), arguments.plots.as_ref()]
        .into_iter()
        .flatten()
    {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("instructions.svg"), &picture)?;
    }
    let command = format!("scripts/bench-peers {}", arguments.said);
    let path = arguments.out.join("instructions.json");
    let report = Report {
        command,
        machine,
        cases,
    };
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("\nin the client's process, by valgrind's cachegrind; the kernel's are not counted");
    println!("{} and a picture beside it", path.display());
    Ok(())
}

/// A panel for each case, a row for each contender that could do all of them.
fn picture(cases: &[(Case, Vec<Counted>)], place: &str) -> String {
    let in_all = |peer: &&Peer| {
        let has = |rows: &[Counted]| rows.iter().any(|row| row.peer == peer.name);
        cases.iter().all(|(_, rows)| has(rows))
    };
    let panel = |(case, rows): &(Case, Vec<Counted>)| {
        let bar = |peer: &Peer| Bar {
            title: peer.title.to_owned(),
            colour: plot::colour(peer.name),
            bold: peer.name == OURS,
            value: rows
                .iter()
                .find(|row| row.peer == peer.name)
                .and_then(|row| row.instructions),
        };
        Bars {
            title: case.short(),
            bars: ALL.iter().filter(in_all).map(bar).collect(),
        }
    };
    let panels: Vec<Bars> = cases.iter().map(panel).collect();
    let title = "Instructions of the client a call, the kernel's not counted";
    plot::bars(title, &panels, place)
}

fn line(peer: &Peer, counted: &Counted, base: Option<f64>) -> String {
    match (counted.instructions, base, &counted.void) {
        (Some(count), Some(base), _) => {
            format!("{:<24}{count:>20.0}{:>7.2}", peer.title, count / base)
        }
        (Some(count), None, _) => format!("{:<24}{count:>20.0}", peer.title),
        (None, _, why) => {
            let why = why.as_deref().unwrap_or("unknown");
            format!("{:<24} void: {why}", peer.title)
        }
    }
}

/// What a long run has more than a short one is what its calls have taken: both start and connect alike.
fn one(peer: &Peer, case: &Case, log: &Path) -> Result<f64, Failure> {
    let servers = Servers::start(case.server, case.servers)?;
    let mut totals = [(0.0, 0.0); 2];
    for (total, time) in totals.iter_mut().zip([SHORT, LONG]) {
        let mut contender = Contender::counted(peer, &servers.addresses, log)?;
        let figures = contender.round(case.burden(None), time, false)?;
        if let Some(error) = figures.error {
            return Err(format!("{} calls failed: {error}", figures.failed).into());
        }
        contender.end()?;
        *total = (figures.calls as f64, total_in(&fs::read_to_string(log)?)?);
    }
    let [(few, less), (many, more)] = totals;
    if many <= few {
        return Err("the longer run made no more calls than the shorter".into());
    }
    Ok((more - less) / (many - few))
}

/// `==123== I refs:        1,234,567`, or with a space less.
fn total_in(log: &str) -> Result<f64, Failure> {
    let line = log.lines().find_map(|line| {
        let (_, count) = line.split_once("refs:")?;
        count.trim().replace(',', "").parse().ok()
    });
    line.ok_or_else(|| "valgrind has counted nothing: is it installed?".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_says() {
        let log = "==9== Command: ./x\n==9== \n==9== I   refs:      1,234,567\n";

        assert_eq!(total_in(log).unwrap(), 1_234_567.0);
        assert!(total_in("==9== Command: ./x\n").is_err());
    }
}
