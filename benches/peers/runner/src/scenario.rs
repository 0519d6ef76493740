//! Eight servers of which one is slow, one dies, and one more comes: what callers notice, contender by contender.

use std::{fs, net::SocketAddr, time::Duration};

use load::{Ask, Burden, Failure, Sample, Work};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    contender::{Contender, Servers},
    machine::Machine,
    peers::{OURS, Peer, Peers},
    plot::{self, Axis, Line, Mark, Panel},
};

const CALLERS: usize = 64;
const BYTES: usize = 16;
const SLOW: Duration = Duration::from_millis(50);
const EVERY: Duration = Duration::from_millis(250);

/// What happens, in seconds from the start.
const STEPS: [(u64, Step, &str); 4] = [
    (5, Step::Die, "one is killed"),
    (10, Step::Forget, "the registry forgets it"),
    (15, Step::Join, "one joins"),
    (20, Step::End, ""),
];

#[derive(Clone, Copy)]
enum Step {
    Die,
    Forget,
    Join,
    End,
}

/// What one contender's callers have seen.
#[derive(Serialize)]
struct Run {
    #[serde(flatten)]
    peer: Peer,
    void: Option<String>,
    samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Report<'a> {
    command: String,
    machine: &'a Machine,
    left_out: &'a [(&'static str, String)],
    runs: &'a [Run],
}

pub fn run(arguments: &Arguments, machine: &Machine, mut peers: Peers) -> Result<(), Failure> {
    let (here, unable): (Vec<Peer>, Vec<Peer>) = peers.here.iter().partition(|peer| peer.follows());
    for peer in unable {
        let why =
            "balances between no servers that come and go, or as another here does".to_owned();
        println!("left out: {}: {why}", peer.name);
        peers.left_out.push((peer.name, why));
    }
    println!(
        "\neight lean servers, one of them {} ms slow; {CALLERS} callers of {BYTES} B, each contender by itself",
        SLOW.as_millis()
    );
    for (at, _, what) in STEPS.iter().filter(|(.., what)| !what.is_empty()) {
        println!("  after {at} s: {what}");
    }
    println!(
        "\n{:<24}{:>10}{:>9}{:>13}{:>13}",
        "", "calls", "failed", "p99 ms worst", "median p99"
    );
    let mut runs = Vec::new();
    for peer in here {
        let (samples, void) = match one(&peer) {
            Ok(samples) => (samples, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let run = Run {
            peer,
            void,
            samples,
        };
        run.print();
        runs.push(run);
    }
    fs::create_dir_all(&arguments.out)?;
    let report = Report {
        command: format!("scripts/bench-peers {}", arguments.said),
        machine,
        left_out: &peers.left_out,
        runs: &runs,
    };
    let path = arguments.out.join("scenario.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    let picture = picture(&runs, machine);
    for directory in [Some(&arguments.out), arguments.plots.as_ref()]
        .into_iter()
        .flatten()
    {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("scenario.svg"), &picture)?;
    }
    println!("\n{} and scenario.svg beside it", path.display());
    Ok(())
}

fn one(peer: &Peer) -> Result<Vec<Sample>, Failure> {
    let steady = Servers::start("lean", 6)?;
    let slow = Servers::slow("lean", 1, SLOW)?;
    let mut dying = Some(Servers::start("lean", 1)?);
    let mut joined = None;
    let mut listed: Vec<SocketAddr> = steady.addresses.clone();
    listed.extend(&slow.addresses);
    let without = listed.clone();
    listed.extend(dying.iter().flat_map(|servers| &servers.addresses));
    let mut contender = Contender::start(peer, &listed)?;
    let end = STEPS.iter().map(|(at, ..)| *at).max().unwrap_or(0);
    let every = u64::try_from(EVERY.as_millis())?;
    let burden = Burden {
        work: Work::Unary,
        callers: CALLERS,
        size: BYTES,
        rate: None,
    };
    contender.tell(&Ask::Watch {
        burden,
        millis: end * 1000,
        every,
    })?;
    let mut steps = STEPS.iter().peekable();
    let mut samples = Vec::new();
    loop {
        let sample: Sample = contender.hear(Duration::from_secs(10))?;
        while let Some((_, step, _)) =
            steps.next_if(|(at, ..)| at * 1000 <= sample.at_millis + every / 2)
        {
            match step {
                Step::Die => dying = None,
                Step::Forget => contender.tell(&Ask::Change(without.clone()))?,
                Step::Join => {
                    let new = joined.insert(Servers::start("lean", 1)?);
                    let all = without.iter().chain(&new.addresses).copied().collect();
                    contender.tell(&Ask::Change(all))?;
                }
                Step::End => {}
            }
        }
        let last = sample.last;
        samples.push(sample);
        if last {
            drop(dying);
            return Ok(samples);
        }
    }
}

impl Run {
    fn print(&self) {
        if let Some(why) = &self.void {
            println!("{:<24} void: {why}", self.peer.title);
            return;
        }
        let calls: u64 = self.samples.iter().map(|sample| sample.calls).sum();
        let failed: u64 = self.samples.iter().map(|sample| sample.failed).sum();
        let mut p99: Vec<f64> = self.samples.iter().map(|sample| sample.p99 / 1e3).collect();
        p99.sort_unstable_by(f64::total_cmp);
        let worst = p99.last().copied().unwrap_or(0.0);
        let middle = p99.get(p99.len() / 2).copied().unwrap_or(0.0);
        println!(
            "{:<24}{calls:>10}{failed:>9}{worst:>13.1}{middle:>13.1}",
            self.peer.title
        );
        if let Some(error) = self.samples.iter().find_map(|sample| sample.error.as_ref()) {
            println!("{:<24}  first error: {error}", "");
        }
    }

    fn line(&self, of: impl Fn(&Sample) -> f64) -> Line {
        let point = |sample: &Sample| (sample.at_millis as f64 / 1e3, of(sample));
        Line {
            title: self.peer.title.to_owned(),
            colour: plot::colour(self.peer.name),
            bold: self.peer.name == OURS,
            points: self.samples.iter().map(point).collect(),
        }
    }
}

fn picture(runs: &[Run], machine: &Machine) -> String {
    let seconds = STEPS.iter().map(|(at, ..)| *at as f64).fold(0.0, f64::max);
    let panel = |title: &str, unit, of: fn(&Sample) -> f64| Panel {
        title: title.to_owned(),
        x: Axis::Seconds(seconds),
        unit,
        lines: runs.iter().map(|run| run.line(of)).collect(),
    };
    let panels = [
        panel("calls a second", "", |sample| {
            sample.calls as f64 / EVERY.as_secs_f64()
        }),
        panel("99th percentile of the latency", "ms", |sample| {
            sample.p99 / 1e3
        }),
        panel("failed calls", "in each quarter of a second", |sample| {
            sample.failed as f64
        }),
    ];
    let mark = |(at, _, what): &(u64, Step, &str)| Mark {
        at: *at as f64,
        what: (*what).to_owned(),
    };
    let marks: Vec<Mark> = STEPS
        .iter()
        .filter(|(.., what)| !what.is_empty())
        .map(mark)
        .collect();
    let title = "Eight servers: one 50 ms slow, one dies, one joins; 64 callers";
    plot::lines(title, &panels, &marks, &machine.line(), 1)
}
