//! Runs every contender through the same work, in turns, and says what it has cost: see `scripts/bench-peers`.

mod arguments;
mod cases;
mod compare;
mod contender;
mod instructions;
mod machine;
mod peers;
mod plot;
mod report;
mod scenario;

use std::process::ExitCode;

use arguments::Arguments;
use load::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("bench-peers: {wrong}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.help {
        println!("{}", arguments::HELP);
        return Ok(());
    }
    if arguments.check {
        peers::known(arguments.peers.as_deref())?;
        return Ok(());
    }
    let machine = machine::Machine::look();
    println!("{machine}");
    let peers = peers::chosen(arguments.peers.as_deref())?;
    for (peer, why) in &peers.left_out {
        println!("left out: {peer}: {why}");
    }
    if arguments.scenario {
        return scenario::run(arguments, &machine, peers);
    }
    if arguments.instructions {
        return instructions::run(arguments, &machine, &peers.here);
    }
    let results = compare::all(arguments, &peers.here)?;
    report::write(arguments, machine, peers, results)
}
