//! Pictures of what was found, as SVG.

mod bars;
mod lines;
mod svg;

use std::{fs, path::Path};

use load::{Failure, Work};

pub use bars::{Bar, Bars, bars};
pub use lines::{Axis, Line, Mark, Panel, lines};

use crate::{
    compare::{Compared, Row},
    peers::{self, BASE, OURS},
};

/// The same for a contender in every picture.
pub fn colour(peer: &str) -> &'static str {
    match peer {
        OURS => "#d6336c",
        "fleet-lean" => "#f783ac",
        BASE => "#1971c2",
        "channel" => "#74c0fc",
        "p2c" => "#0c8599",
        "ginepro" => "#2f9e44",
        "volo" => "#e67700",
        "grpc" => "#9c36b5",
        "codec" => "#868e96",
        _ => "#343a40",
    }
}

/// Draws what these cases can show: what a call costs, and how that changes with servers and callers.
pub fn draw(cases: &[Compared], foot: &str, into: &Path) -> Result<(), Failure> {
    fs::create_dir_all(into)?;
    if let Some(shown) = at(cases, 4, 64).or(cases.first()) {
        fs::write(into.join("cost.svg"), cost(shown, foot))?;
    }
    let by_servers = across(cases, |case| (case.callers == 64).then_some(case.servers));
    let by_callers = across(cases, |case| (case.servers == 4).then_some(case.callers));
    let panels: Vec<Panel> = [
        (
            by_servers,
            "calls a second with 64 callers, by servers",
            "servers",
        ),
        (
            by_callers,
            "calls a second over 4 servers, by callers",
            "callers",
        ),
    ]
    .into_iter()
    .filter(|(cases, ..)| cases.len() > 1)
    .map(|(cases, title, along)| rates(&cases, title, along))
    .collect();
    if !panels.is_empty() {
        let title = "Unary echo of 16 bytes, one client core, lean servers on another";
        fs::write(into.join("scale.svg"), lines(title, &panels, &[], foot, 2))?;
    }
    Ok(())
}

fn small(compared: &Compared) -> bool {
    let case = &compared.case;
    case.work == Work::Unary && case.bytes == 16 && case.server == "lean"
}

fn at(cases: &[Compared], servers: usize, callers: usize) -> Option<&Compared> {
    let mut small = cases.iter().filter(|compared| small(compared));
    small.find(|c| c.case.servers == servers && c.case.callers == callers)
}

/// Those with a place along an axis, in its order.
fn across(
    cases: &[Compared],
    place: impl Fn(&crate::cases::Case) -> Option<usize>,
) -> Vec<(usize, &Compared)> {
    let small = cases.iter().filter(|compared| small(compared));
    let mut across: Vec<_> = small
        .filter_map(|compared| Some((place(&compared.case)?, compared)))
        .collect();
    across.sort_by_key(|(place, _)| *place);
    across
}

fn rates(cases: &[(usize, &Compared)], title: &str, along: &str) -> Panel {
    let line = |peer: &peers::Peer| {
        let at = |(_, compared): &(usize, &Compared)| {
            let row = compared.rows.iter().find(|row| row.peer == peer.name)?;
            row.void.is_none().then_some(row.calls_per_second)
        };
        Line {
            title: peer.title.to_owned(),
            colour: colour(peer.name),
            bold: peer.name == OURS,
            points: cases
                .iter()
                .enumerate()
                .filter_map(|(x, case)| Some((x as f64, at(case)?)))
                .collect(),
        }
    };
    let drawn = peers::ALL.iter().map(line);
    Panel {
        title: title.to_owned(),
        x: Axis::Named {
            title: along.to_owned(),
            names: cases.iter().map(|(place, _)| place.to_string()).collect(),
        },
        unit: "calls/s",
        lines: drawn.filter(|line| line.points.len() > 1).collect(),
    }
}

fn cost(compared: &Compared, place: &str) -> String {
    let panel = |title: &str, of: fn(&Row) -> f64| Bars {
        title: title.to_owned(),
        bars: compared
            .rows
            .iter()
            .map(|row| Bar {
                title: row.title.to_owned(),
                colour: colour(row.peer),
                bold: row.peer == OURS,
                value: row.void.is_none().then(|| of(row)),
            })
            .collect(),
    };
    let panels = [
        panel("client CPU a call, µs", |row| row.cpu_micros),
        panel("calls a second", |row| row.calls_per_second),
        panel("99th percentile, µs", |row| row.p99_micros),
        panel("allocations a call", |row| row.allocations),
    ];
    bars(&compared.case.title(), &panels, place)
}
