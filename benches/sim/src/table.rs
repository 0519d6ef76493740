//! What has been compared, for people.

use std::fmt::Write;

use crate::{
    arguments::Part,
    compare::{Compared, Ratio},
};

/// What is about to be run.
pub fn heading(part: &Part) -> String {
    let seeds = &part.seeds;
    format!(
        "{} scenarios, {} policies, seeds {} to {}{}; ratios are against {}",
        part.scenarios.len(),
        part.policies.len(),
        seeds[0],
        seeds[seeds.len() - 1],
        if part.bend {
            ", each bends the scenario"
        } else {
            ""
        },
        part.policies[0],
    )
}

/// A scenario's rows.
pub fn of(compared: &Compared) -> String {
    let Compared {
        scenario,
        asks,
        servers,
        clients,
        ..
    } = compared;
    let mut text = format!("\n{scenario}: {asks} ({servers} servers, {clients} clients)\n");
    let _ = writeln!(
        text,
        "  {:<18}{:>8}{:>9}{:>9}{:>9}{:>8}{:>8}{:>7}{:>7}{:>7}  {:<20}  p99.9 ratio",
        "",
        "p50",
        "p99",
        "p99.9",
        "errors %",
        "share",
        "fail",
        "back",
        "tries",
        "good %",
        "p99 ratio",
    );
    for row in &compared.rows {
        let figures = &row.mean;
        let some = |it: Option<f64>| it.map_or_else(String::new, |it| format!("{it:.1}"));
        let _ = writeln!(
            text,
            "  {:<18}{:>8.1}{:>9.1}{:>9.1}{:>9.3}{:>8.3}{:>8.1}{:>7}{:>7.2}{:>7}  {:<20}  {}",
            row.policy,
            figures.p50,
            figures.p99,
            figures.p999,
            figures.errors,
            figures.share,
            figures.failures,
            some(figures.back),
            figures.tries,
            some(figures.goodput),
            ratio(row.p99),
            ratio(row.p999),
        );
    }
    text
}

fn ratio(Ratio { mean, low, high }: Ratio) -> String {
    format!("{mean:.3} [{low:.3}, {high:.3}]")
}
