//! Policies against each other in simulated fleets: `scripts/sim --help`.

use std::{fs, io, io::IsTerminal, process::ExitCode};

use serde::Serialize;
use sim::{
    arguments::{self, Arguments, Asked, Part},
    claims::{self, Claim},
    clock,
    compare::{self, Compared},
    herd, picture, subsets, table,
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match Arguments::read(&words) {
        Ok(Asked::Help) => {
            print!("{}", arguments::help());
            Ok(())
        }
        Ok(Asked::Run(arguments)) => run(&arguments),
        Err(wrong) => {
            eprintln!("sim: {wrong}; `scripts/sim --help` says what there is");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let mut claimed = Vec::new();
    let mut all = Vec::new();
    for part in &arguments.parts {
        println!("{}", table::heading(part));
        let compared = compared(part)?;
        for one in &compared {
            claimed.extend(claims::of(one));
            claimed.extend(herd::claims(one));
        }
        all.extend(compared);
    }
    let subsets = match arguments.subsets {
        Some(seed) => clock::paused(|| subsets::all(seed))?,
        None => Vec::new(),
    };
    if !subsets.is_empty() {
        print!("{}", subsets::table(&subsets));
        claimed.extend(subsets::claims(&subsets));
    }
    print!("{}", herd::verdicts(&all));
    if arguments.claims {
        print!("{}", claims::table(&claimed));
    }
    if let Some(path) = &arguments.json {
        let whole = Whole {
            compared: &all,
            claims: &claimed,
            subsets: &subsets,
        };
        fs::write(path, serde_json::to_string_pretty(&whole)?)?;
        println!("figures: {}", path.display());
    }
    if let Some(folder) = &arguments.pictures {
        fs::create_dir_all(folder)?;
        for (name, picture) in picture::all(&all) {
            let path = folder.join(name);
            fs::write(&path, picture)?;
            println!("picture: {}", path.display());
        }
    }
    Ok(())
}

/// All there is to say, for programs.
#[derive(Serialize)]
struct Whole<'a> {
    compared: &'a [Compared],
    claims: &'a [Claim],
    subsets: &'a [subsets::Spread],
}

fn compared(part: &Part) -> io::Result<Vec<Compared>> {
    let of = part.scenarios.len();
    let scenarios = part.scenarios.iter().enumerate();
    let compared = scenarios.map(|(n, scenario)| {
        let progress = |policy: &str, seed: u64| {
            told(&format!(
                "{} ({} of {of}), {policy}, seed {seed}",
                scenario.name,
                n + 1
            ));
        };
        let compared = compare::compare(scenario, part, progress)?;
        told("");
        print!("{}", table::of(&compared));
        Ok(compared)
    });
    compared.collect()
}

/// On standard error, over the line before, where a person watches.
fn told(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}
