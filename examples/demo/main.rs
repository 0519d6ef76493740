//! A living picture: servers come, die and leave while a client calls them, and no call fails.

#[path = "../echo/mod.rs"]
mod echo;
#[path = "../flags/mod.rs"]
mod flags;
mod picture;
mod play;
mod server;
#[path = "../tally/mod.rs"]
mod tally;

use std::{process::ExitCode, time::Duration};

use flags::{Flags, Stop};
use tonic_fleet::{Registrar, RegistryUrl, Scheme};

const USAGE: &str = "\
Shows a client that calls four echo servers while one of them is killed, one is added and one drains: who
is known, in which state, and how many calls each has had. Exits 0 if no call failed.

  --seconds N          how long; 20 unless given
  --forever            until Ctrl-C, killing, adding and draining in turn
  --registry URL       another registry than the one in this process: etcd://127.0.0.1:2379
  --server ID          is one of the servers, until standard input ends; the demo starts these by itself
  --help               prints this";

/// After so long the registry forgets a server that was killed.
const TTL: Duration = Duration::from_secs(2);

/// What to show, as the flags say it.
struct Plan {
    registry: RegistryUrl,
    /// The registry as it was given, for the servers: printed, it would lack its password.
    url: String,
    title: String,
    /// How long one round of killing, adding and draining takes.
    round: Duration,
    forever: bool,
}

fn main() -> ExitCode {
    flags::trace();
    match run() {
        Ok(code) => code,
        Err(stop) => stop.end("demo"),
    }
}

fn run() -> Result<ExitCode, Stop> {
    let flags = Flags::read(USAGE)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Stop::Failed(format!("cannot start a runtime: {error}")))?;
    let plan = {
        let _within = runtime.enter();
        Plan::of(&flags)?
    };
    let ended = match flags.text("--server") {
        Some(id) => runtime.block_on(server::child(&plan.registry, id)),
        None => runtime.block_on(play::play(plan)),
    };
    // A server's reading of standard input cannot be cancelled.
    runtime.shutdown_background();
    ended
}

impl Plan {
    fn of(flags: &Flags) -> Result<Self, Stop> {
        let url = flags.text("--registry").unwrap_or("memory://");
        let mut registry: RegistryUrl = url.parse().map_err(Stop::refused("--registry"))?;
        let title = format!("tonic-fleet demo on {registry}");
        let mut url = url.to_owned();
        if registry.scheme() == Scheme::Etcd && registry.ttl().is_none() {
            let ttl = TTL.as_secs().to_string();
            url = flags::with_parameter(&url, "ttl", Some(&ttl));
            registry = url.parse().map_err(Stop::refused("--registry"))?;
        }
        let forever = flags.has("--forever");
        let seconds = flags.number("--seconds", 4..=86_400)?;
        if forever && seconds.is_some() {
            return Err(Stop::Wrong(
                "--forever and --seconds exclude each other: give one".into(),
            ));
        }
        // Said here, once, and not by each server.
        Registrar::new(registry.clone()).map_err(Stop::refused("--registry"))?;
        Ok(Self {
            registry,
            url,
            title,
            round: Duration::from_secs(seconds.unwrap_or(20)),
            forever,
        })
    }

    /// Whether the registry is in this process.
    fn is_local(&self) -> bool {
        self.registry.scheme() == Scheme::Memory
    }
}
