//! What was found: a table for each case as it is done, and everything as JSON.

use std::fs;

use load::Failure;
use serde::Serialize;

use crate::{
    arguments::Arguments,
    compare::{Compared, Row},
    machine::Machine,
    peers::Peers,
    plot,
};

pub fn print(compared: &Compared) {
    println!("\n{}  ({})", compared.case.title(), compared.case);
    println!(
        "{:<24}{:>9}{:>7}{:>9}{:>9}{:>10}{:>9}{:>7}{:>8}{:>10}",
        "",
        "calls/s",
        "ratio",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "CPU µs",
        "ratio",
        "allocs",
        "bytes"
    );
    for row in &compared.rows {
        println!("{}", line(row));
    }
}

fn line(row: &Row) -> String {
    if let Some(why) = &row.void {
        return format!("{:<24} void: {why}", row.title);
    }
    let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    format!(
        "{:<24}{:>9.0}{:>7}{:>9.0}{:>9.0}{:>10.0}{:>9.2}{:>7}{:>8.1}{:>10.0}",
        row.title,
        row.calls_per_second,
        ratio(row.calls_ratio),
        row.p50_micros,
        row.p99_micros,
        row.p999_micros,
        row.cpu_micros,
        ratio(row.cpu_ratio),
        row.allocations,
        row.allocated_bytes
    )
}

#[derive(Serialize)]
struct Report {
    command: String,
    rounds: usize,
    /// Calls a second, where they were paced.
    rate: Option<u32>,
    round_millis: u128,
    machine: Machine,
    peers: Peers,
    cases: Vec<Compared>,
}

pub fn write(
    arguments: &Arguments,
    machine: Machine,
    peers: Peers,
    cases: Vec<Compared>,
) -> Result<(), Failure> {
    let report = Report {
        command: format!("scripts/bench-peers {}", arguments.said),
        rounds: arguments.rounds,
        rate: arguments.rate,
        round_millis: arguments.round.as_millis(),
        machine,
        peers,
        cases,
    };
    fs::create_dir_all(&arguments.out)?;
    let pace = arguments
        .rate
        .map(|rate| format!("{rate} calls a second; "));
    let foot = pace.unwrap_or_default() + &report.machine.line();
    for directory in [Some(&arguments.out), arguments.plots.as_ref()]
        .into_iter()
        .flatten()
    {
        plot::draw(&report.cases, &foot, directory)?;
    }
    let path = arguments.out.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!(
        "\nratios are to tonic balance_channel, round by round; CPU and allocations are the client's, a call"
    );
    println!("{} and pictures beside it", path.display());
    Ok(())
}
