//! Policies against each other in simulated fleets: `scripts/sim --help`.

mod arguments;
mod balancer;
mod clock;
mod compare;
mod contenders;
mod dice;
mod figures;
mod ours;
mod picture;
mod rivals;
mod scenario;
mod server;
mod table;
mod world;

use std::{fs, io, io::IsTerminal, process::ExitCode};

use arguments::{Arguments, Asked};
use compare::Compared;

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
    println!("{}", table::heading(arguments));
    let all = clock::paused(|| {
        let scenarios = arguments.scenarios.iter().enumerate();
        let compared = scenarios.map(|(n, scenario)| {
            let of = arguments.scenarios.len();
            let progress = |policy: &str, seed: u64| {
                told(&format!(
                    "{} ({} of {of}), {policy}, seed {seed}",
                    scenario.name,
                    n + 1
                ));
            };
            let bend = arguments.bend;
            let seeds = &arguments.seeds;
            let compared = compare::compare(scenario, &arguments.policies, seeds, bend, progress);
            told("");
            print!("{}", table::of(&compared));
            compared
        });
        compared.collect::<Vec<Compared>>()
    })?;
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
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

/// On standard error, over the line before, where a person watches.
fn told(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}
