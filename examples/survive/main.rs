//! What retries, hedging and the budget do for calls: the figures in the README, and a plot.
//!
//! `cargo run --example survive -- [failing | hedging | storm [FILE.svg]]`; all three, unless one is named. The
//! last two run while time stands still: their figures are the same on every machine.
#![allow(clippy::unwrap_used, reason = "a program that measures should stop")]

#[path = "../echo/mod.rs"]
mod echo;
#[path = "../../tests/support/net.rs"]
mod net;
#[path = "../../tests/support/office.rs"]
mod office;
mod picture;

use std::{
    collections::HashSet,
    env, fs,
    future::ready,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use office::{Act, Office, Visit};
use picture::{Line, Panel};
use tokio::{
    runtime::Builder as Runtime,
    sync::Semaphore,
    time::{Instant, interval},
};
use tonic::{Code, Status};
use tonic_fleet::{
    Builder,
    balance::RoundRobin,
    method::{Budget, Hedge, Method, Retry},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What there is to measure.
const PARTS: [&str; 3] = ["failing", "hedging", "storm"];

fn main() -> ExitCode {
    let mut asked = env::args().skip(1);
    let what = asked.next();
    if let Some(what) = what.as_deref().filter(|what| !PARTS.contains(what)) {
        eprintln!(
            "survive: {what:?} is none of its parts: name one of {}, or none",
            PARTS.join(", ")
        );
        return ExitCode::from(2);
    }
    let is_asked = |name: &str| what.as_deref().is_none_or(|what| what == name);
    if is_asked("failing") {
        let runtime = Runtime::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(failing());
    }
    if is_asked("hedging") {
        standing_still(hedging);
    }
    if is_asked("storm") {
        let file = asked.next().unwrap_or_else(|| "target/storm.svg".into());
        let mut panels = [
            Panel::new("answered, of 100 calls"),
            Panel::new("attempts for each call"),
        ];
        for (name, budget) in [
            ("no retries", Some(Budget::share(0.0).floor(0))),
            ("retries without a budget", None),
            (
                "retries within a budget of 20 %",
                Some(Budget::share(0.2).floor(0)),
            ),
        ] {
            let seconds = standing_still(|| storm(name, budget));
            panels[0]
                .lines
                .push(Line::new(name, seconds.iter().map(Bucket::answered)));
            panels[1].lines.push(Line::new(
                name,
                seconds.iter().map(Bucket::attempts_per_call),
            ));
        }
        let (from, until) = (SLOW.0.as_secs_f64(), SLOW.1.as_secs_f64());
        fs::write(
            &file,
            picture::svg(
                "Servers ten times as slow for five seconds",
                &panels,
                from..until,
            ),
        )
        .unwrap();
        println!("  plotted in {file}");
    }
    ExitCode::SUCCESS
}

fn standing_still<T, F: Future<Output = T>>(run: impl Fn() -> F) -> T {
    let mut runtime = Runtime::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run())
}

/// Ten servers over sockets, two of which fail every second call.
async fn failing() {
    const CALLS: usize = 50_000;
    let coins = [const { AtomicUsize::new(0) }; 2];
    let retry = Retry::attempts(3).backoff(MS, 10 * MS);
    let with = |builder: Builder| builder.method("", Method::new().retry(retry));
    let office = Office::on_sockets(10, with, move |visit: &Visit| match visit.server {
        ill @ 0..2 if coins[ill].fetch_add(1, SeqCst).is_multiple_of(2) => {
            Act::Fails(Status::unavailable("down"))
        }
        _ => Act::Answers(Duration::ZERO),
    })
    .await;

    let names: Vec<_> = (0..CALLS).map(|n| n.to_string()).collect();
    let calls = stream::iter(&names).map(|name| office.call(name));
    let failed = calls
        .buffer_unordered(64)
        .filter(|answer| ready(answer.is_err()));
    let failed = failed.count().await;

    let calls = office.record.calls();
    let twice =
        |servers: &&Vec<usize>| servers.iter().collect::<HashSet<_>>().len() < servers.len();
    println!(
        "two of ten servers fail half of their calls, three attempts, {CALLS} calls over sockets:"
    );
    println!("  failed {failed}");
    println!("  attempts {}", office.record.attempts());
    println!(
        "  calls that went to a server twice {}",
        calls.values().filter(twice).count()
    );
}

/// Eight servers, one of which stalls one call in a hundred for a second.
async fn hedging() {
    const CALLS: usize = 20_000;
    println!("one of eight servers stalls 1 % of its calls for a second, {CALLS} calls:");
    let mut baseline = None;
    for (name, method) in [
        ("not hedged", Method::new()),
        (
            "hedged at p95",
            Method::new().hedge(Hedge::at_percentile(95.0)),
        ),
    ] {
        let count = AtomicUsize::new(0);
        let stalls = AtomicUsize::new(0);
        // The usual policy would soon give the one that stalls less to do.
        let even = RoundRobin::default();
        let with = |builder: Builder| builder.method("", method).policy(even);
        let office = Office::of(8, with, move |visit: &Visit| {
            if visit.server == 0 && stalls.fetch_add(1, SeqCst).is_multiple_of(100) {
                return Act::Answers(SECOND);
            }
            // From 2 to 21 ms, in no order.
            let n = count.fetch_add(1, SeqCst);
            Act::Answers(MS * (2 + (n * 7919 % 20) as u32))
        })
        .await;
        let mut took = paced(&office, CALLS, 500).await;
        took.sort_unstable();
        let p999 = took[CALLS * 999 / 1000];
        let attempts = office.record.attempts() as f64 / CALLS as f64;
        let before = *baseline.get_or_insert(p999);
        println!(
            "  {name}: p50 {:?}, p99.9 {p999:?} ({:.3} of the one without), {attempts:.4} attempts a call",
            took[CALLS / 2],
            p999.as_secs_f64() / before.as_secs_f64(),
        );
    }
}

/// How long each of so many calls took, so many a second.
async fn paced(office: &Office, calls: usize, rate: u32) -> Vec<Duration> {
    let ticks = stream::unfold(interval(SECOND / rate), |mut clock| async {
        clock.tick().await;
        Some(((), clock))
    });
    let asked = ticks.take(calls).enumerate().map(|(n, ())| async move {
        let began = Instant::now();
        office.call(&n.to_string()).await.unwrap();
        Instant::now() - began
    });
    asked.buffer_unordered(10_000).collect().await
}

/// When the servers are slow.
const SLOW: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));

/// A second of the storm.
#[derive(Clone, Default)]
struct Bucket {
    calls: usize,
    answered: usize,
    attempts: usize,
}

impl Bucket {
    fn answered(&self) -> f64 {
        100.0 * self.answered as f64 / self.calls as f64
    }

    fn attempts_per_call(&self) -> f64 {
        self.attempts as f64 / self.calls as f64
    }
}

/// Five servers that work on one call at a time, and are ten times as slow for a while: the load is 60 % of what
/// they can do, and then six times that.
async fn storm(name: &str, budget: Option<Budget>) -> Vec<Bucket> {
    const SECONDS: usize = 25;
    const RATE: u32 = 300;
    let began = Instant::now();
    let retry = Retry::attempts(4)
        .on([Code::Unavailable, Code::DeadlineExceeded])
        .backoff(5 * MS, 20 * MS)
        .per_attempt(100 * MS);
    let with = |builder: Builder| {
        let method = Method::new().retry(retry).timeout(500 * MS);
        builder.method("", method).budget(budget)
    };
    let desks: Vec<_> = (0..5).map(|_| Arc::new(Semaphore::new(1))).collect();
    let office = Office::of(5, with, move |visit: &Visit| {
        let time = move || {
            let is_slow = (SLOW.0..SLOW.1).contains(&(Instant::now() - began));
            if is_slow { 100 * MS } else { 10 * MS }
        };
        Act::Works(Arc::clone(&desks[visit.server]), Box::new(time))
    })
    .await;
    let began = Instant::now();
    let ticks = stream::unfold(interval(SECOND / RATE), |mut clock| async {
        clock.tick().await;
        Some(((), clock))
    });
    let mut seconds = vec![Bucket::default(); SECONDS];
    let calls = ticks
        .take(SECONDS * RATE as usize)
        .enumerate()
        .map(|(n, ())| {
            let second = (Instant::now() - began).as_secs() as usize;
            let call = office.call(&n.to_string());
            async move { (second, call.await.is_ok()) }
        });
    let mut calls = Box::pin(calls.buffer_unordered(10_000));
    let mut seen = 0;
    let mut last = 0;
    while let Some((second, is_answered)) = calls.next().await {
        let bucket = &mut seconds[second.min(SECONDS - 1)];
        bucket.calls += 1;
        bucket.answered += usize::from(is_answered);
        let now = ((Instant::now() - began).as_secs() as usize).min(SECONDS - 1);
        if now > last {
            let sent = office.record.attempts();
            seconds[last].attempts = sent - seen;
            (seen, last) = (sent, now);
        }
    }
    seconds[last].attempts += office.record.attempts() - seen;
    tell(name, &seconds);
    seconds
}

fn tell(name: &str, seconds: &[Bucket]) {
    let slow = SLOW.0.as_secs() as usize..SLOW.1.as_secs() as usize;
    let share = |some: &[Bucket]| {
        let calls: usize = some.iter().map(|second| second.calls).sum();
        let attempts: usize = some.iter().map(|second| second.attempts).sum();
        let answered: usize = some.iter().map(|second| second.answered).sum();
        (
            100.0 * answered as f64 / calls as f64,
            attempts as f64 / calls as f64,
        )
    };
    let whole = share(seconds);
    let outage = share(&seconds[slow.clone()]);
    let after = share(&seconds[slow.end + 2..]);
    println!("servers ten times as slow for five seconds, {name}:");
    println!(
        "  all in all: {:.1} % answered, {:.3} attempts a call",
        whole.0, whole.1
    );
    println!(
        "  while slow: {:.1} % answered, {:.3} attempts a call",
        outage.0, outage.1
    );
    println!(
        "  from 2 s after: {:.2} % answered, {:.3} attempts a call",
        after.0, after.1
    );
}
