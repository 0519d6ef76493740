//! The simulator's claims on real tonic servers: `scripts/loopback --help`.

mod callers;
#[path = "../../../examples/echo/mod.rs"]
mod echo;
mod fleet;
mod rivals;
mod servers;

use std::{error::Error, fs, process::ExitCode};

use sim::{
    clock, contenders,
    figures::Figures,
    reality::{
        Lag, Rival,
        arguments::{self, Arguments, Asked},
        report::{self, Compared, Shown},
    },
    scenario::Scenario,
};
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == servers::SERVE) {
        return ended(servers::serve(&words[1..]));
    }
    match Arguments::read(&words) {
        Ok(Asked::Help) => {
            print!("{}", arguments::HELP);
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(arguments)) => ended(run(&arguments)),
        Err(wrong) => {
            eprintln!("loopback: {wrong}; `scripts/loopback --help` says what there is");
            ExitCode::from(2)
        }
    }
}

fn ended(how: Result<(), Box<dyn Error>>) -> ExitCode {
    match how {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loopback: {error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    println!("{}", arguments.heading());
    let mut all = Vec::new();
    for scenario in &arguments.scenarios {
        let mut shown: Vec<Shown> = Rival::ALL.map(Shown::by).into();
        for seed in arguments.seeds.clone() {
            for one in &mut shown {
                eprintln!("{}: {}, seed {seed}", scenario.name, one.rival.name());
                let (real, lag) = measured(one.rival, scenario, seed)?;
                // The simulator's servers take as much longer as these did.
                let as_slow = Scenario {
                    over: lag.works / 1000.0,
                    ..scenario.clone()
                };
                one.real.push(real);
                one.lags.push(lag);
                one.sim.push(simulated(one.rival, &as_slow, seed)?);
            }
        }
        let compared = Compared::new(scenario, shown);
        print!("{}", compared.table());
        all.push(compared);
    }
    print!("{}", report::claims(&all));
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
        println!("figures: {}", path.display());
    }
    Ok(())
}

/// On servers of their own, which end with the run.
fn measured(
    rival: Rival,
    scenario: &Scenario,
    seed: u64,
) -> Result<(Figures, Lag), Box<dyn Error>> {
    runtime()?.block_on(callers::run(rival, scenario, seed))
}

fn simulated(rival: Rival, scenario: &Scenario, seed: u64) -> std::io::Result<Figures> {
    clock::paused(|| contenders::run(rival.in_sim(), scenario, seed))
}
