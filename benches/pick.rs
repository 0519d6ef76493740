//! What a pick costs, with the look-up of the endpoint it chose, by policy, number of endpoints and number
//! of threads: `cargo bench --bench pick`, or `cargo bench --bench pick -- adaptive random` for these two. A figure is
//! the median of a few rounds, in nanoseconds of processor time; the time of a call is known when it is picked for, as
//! in a channel. Nothing is learnt between two picks: who watches its endpoints judges those anew that a call has told
//! something of, or that it has not looked at for sixteen milliseconds, and what that adds when it is all of them is told,
//! too.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::{hint::black_box, sync::Barrier, thread, time::Duration};

use http::HeaderMap;
use nix::time::ClockId;
use tokio::{runtime, time::Instant};
use tonic::Code;
use tonic_fleet::{
    Endpoint, Endpoints, Instance,
    balance::{self, Call, Pick, Policy, Rehearsal, Rehearsed},
};

const POLICIES: [&str; 9] = [
    "adaptive",
    "round_robin",
    "random",
    "weighted",
    "weighted_random",
    "least_loaded",
    "orca",
    "peak_ewma",
    "probing",
];
/// Those that go by what calls have shown.
const WATCHFUL: [&str; 3] = ["adaptive", "least_loaded", "peak_ewma"];
const SIZES: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];
const THREADS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 7;
/// So much later nothing holds that was made of an endpoint.
const LATER: Duration = Duration::from_millis(20);
/// Long enough for threads to run side by side, and not one after the other.
const PICKS: u32 = 2_000_000;

fn main() {
    let cores = thread::available_parallelism().unwrap();
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"));
    for word in words {
        if !POLICIES.contains(&&*word) {
            eprintln!("pick: there is no policy {word:?}: {}", POLICIES.join(", "));
            std::process::exit(2);
        }
    }
    println!("ns a pick of one thread, by the number of endpoints");
    heading(&SIZES);
    let sets: Vec<(Endpoints, Endpoints)> = SIZES.map(|n| (equal(n), weighed(n))).into();
    for policy in asked_for(&POLICIES) {
        print!("{policy:<18}");
        for set in &sets {
            print!("{:>10.1}", nanos(usual(policy, among(policy, set), 1)));
        }
        println!();
    }
    println!("\nthe same, where all have been called and one in eight is busy");
    let used = SIZES.map(used);
    for policy in asked_for(&WATCHFUL) {
        print!("{policy:<18}");
        for (endpoints, _calls) in &used {
            print!("{:>10.1}", nanos(usual(policy, endpoints, 1)));
        }
        println!();
    }
    println!("\nand where each pick has to judge anew whomever it looks at");
    for policy in asked_for(&["adaptive"]) {
        print!("{policy:<18}");
        for (endpoints, _calls) in &used {
            print!("{:>10.1}", nanos(time(policy, endpoints, 1, LATER)));
        }
        println!();
    }
    println!("\nns a pick of one thread, by the number of threads on {cores} cores; 100 endpoints");
    heading(&THREADS);
    for policy in asked_for(&POLICIES) {
        print!("{policy:<18}");
        for threads in THREADS {
            print!(
                "{:>10.1}",
                nanos(usual(policy, among(policy, &sets[1]), threads))
            );
        }
        println!();
    }
}

/// Those that the command line names, or all.
fn asked_for(policies: &[&'static str]) -> Vec<&'static str> {
    let named: Vec<_> = std::env::args()
        .filter(|word| POLICIES.contains(&&**word))
        .collect();
    let is_asked_for =
        |policy: &&&str| named.is_empty() || named.iter().any(|name| name == **policy);
    policies.iter().filter(is_asked_for).copied().collect()
}

fn heading(numbers: &[usize]) {
    print!("{:<18}", "");
    numbers.iter().for_each(|n| print!("{n:>10}"));
    println!();
}

/// Policies that know weights are given different ones.
fn among<'a>(policy: &str, (equal, weighed): &'a (Endpoints, Endpoints)) -> &'a Endpoints {
    if policy.starts_with("weighted") {
        weighed
    } else {
        equal
    }
}

/// The time of a pick, while so many threads pick at once.
fn usual(policy: &str, endpoints: &Endpoints, threads: usize) -> Duration {
    time(policy, endpoints, threads, Duration::ZERO)
}

/// The same, where each call is made so much later than the one before.
fn time(policy: &str, endpoints: &Endpoints, threads: usize, later: Duration) -> Duration {
    let pick = balance::named(policy).unwrap().over(endpoints);
    let quick = std::env::args().any(|word| word == "--quick");
    let rounds = (0..if quick { 3 } else { ROUNDS }).map(|_| {
        let start = Barrier::new(threads);
        thread::scope(|scope| {
            let run = || scope.spawn(|| round(&*pick, endpoints, &start, later));
            let running: Vec<_> = (0..threads).map(|_| run()).collect();
            running
                .into_iter()
                .map(|t| t.join().unwrap())
                .max()
                .unwrap()
        })
    });
    let mut rounds: Vec<_> = rounds.collect();
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}

fn round(pick: &dyn Pick, endpoints: &Endpoints, start: &Barrier, later: Duration) -> Duration {
    let headers = HeaderMap::new();
    let mut now = Instant::now();
    let made_at = |now| Call::new("/grpc.examples.echo.Echo/UnaryEcho", &headers).made_at(now);
    let mut call = made_at(now);
    start.wait();
    let began = cpu();
    for _ in 0..PICKS {
        if !later.is_zero() {
            now += later;
            call = made_at(now);
        }
        black_box(endpoints.get(pick.pick(black_box(&call))));
    }
    cpu() - began
}

/// The time that this thread had a processor: a busy machine does not blur it.
fn cpu() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

fn nanos(round: Duration) -> f64 {
    round.as_secs_f64() * 1e9 / f64::from(PICKS)
}

fn equal(n: usize) -> Endpoints {
    (0..n).map(|n| endpoint(n, 1)).collect()
}

fn weighed(n: usize) -> Endpoints {
    (0..n).map(|n| endpoint(n, 1 + n as u32 % 3)).collect()
}

fn endpoint(n: usize, weight: u32) -> Endpoint {
    Endpoint::idle(instance(n, weight))
}

fn instance(n: usize, weight: u32) -> Instance {
    let instance = Instance::at(format!("10.{}.{}.{}:1", n / 62_500, n / 250 % 250, n % 250));
    let instance = instance.and_then(|instance| instance.id(format!("i{n:06}")));
    instance.unwrap().weight(weight)
}

/// So many that have answered a few calls each, in different times, and calls that are in flight.
fn used(n: usize) -> (Endpoints, Vec<Rehearsed>) {
    let mut paused = runtime::Builder::new_current_thread();
    let paused = paused.enable_time().start_paused(true).build().unwrap();
    paused.block_on(async {
        balance::seed(7);
        let mut rehearsal = Rehearsal::of(Anybody);
        (0..n).for_each(|n| rehearsal.put(instance(n, 1)));
        for round in 1..=4 {
            let mut calls: Vec<_> = (0..n).filter_map(|_| rehearsal.call()).collect();
            for part in calls.chunks_mut(n.div_ceil(16)) {
                tokio::time::advance(Duration::from_millis(round)).await;
                part.iter_mut().for_each(Rehearsed::answered);
            }
            calls.into_iter().for_each(|call| call.ended(Code::Ok));
        }
        let busy = (0..n / 8).filter_map(|_| rehearsal.call()).collect();
        (rehearsal.ready().clone(), busy)
    })
}

/// Chosen by chance, without a table.
#[derive(Debug)]
struct Anybody;

#[derive(Debug)]
struct Among(usize);

impl Policy for Anybody {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        Box::new(Among(ready.len()))
    }
}

impl Pick for Among {
    fn pick(&self, _: &Call<'_>) -> usize {
        rand::random_range(..self.0)
    }
}
