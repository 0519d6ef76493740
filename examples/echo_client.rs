//! Calls an echo service many times, and says in one JSON object what became of the calls.

mod echo;
mod flags;
mod tally;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use echo::{EchoClient, EchoRequest};
use flags::{Flags, Stop};
use futures_util::StreamExt;
use serde_json::json;
use tally::{Gap, Tally};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic_fleet::{Channel, Endpoint, State, Target, balance};

const USAGE: &str = "\
Calls a service that speaks grpc.examples.echo.Echo, and ends with one JSON object: how many calls were
sent, ok and failed, by server and status, how long they took, and the longest time without a success.
Exits 0 only if no call failed.

  --target URL         whom to call: etcd://127.0.0.1:2379/services-echo, static://10.0.0.1:50051, ...
  --policy NAME        adaptive, round_robin, random, weighted, weighted_random, least_loaded, ...; as the library
                       has it, adaptive, unless given
  --requests N         how many calls; 100, unless this or --seconds is given
  --seconds S          for how long to call, instead
  --concurrency C      how many callers, each with one call at a time; 1 unless given
  --rate R             calls a second, all callers together; as fast as they can, unless given
  --deadline-ms D      the deadline of each call; none unless given
  --layout NAME        how instances stand in etcd, instead of the target's own ?layout=
  --events             prints what happens to the endpoints meanwhile, one JSON object a line
  --help               prints this

RUST_LOG=tonic_fleet=debug shows on standard error what the channel does.";

/// How long to wait, before the first call, for endpoints that are still being connected.
const SETTLE: Duration = Duration::from_secs(5);

/// What to do, as the flags say it.
struct Plan {
    calls: u64,
    until: Option<Duration>,
    callers: u64,
    rate: Option<u64>,
    deadline: Option<Duration>,
}

/// What all callers share.
struct Work {
    plan: Plan,
    began: Instant,
    taken: AtomicU64,
    gap: Gap,
    stop: CancellationToken,
}

#[tokio::main]
async fn main() -> ExitCode {
    flags::trace();
    match run().await {
        Ok(code) => code,
        Err(stop) => stop.end("echo_client"),
    }
}

async fn run() -> Result<ExitCode, Stop> {
    let flags = Flags::read(USAGE)?;
    let plan = Plan::of(&flags)?;
    let channel = channel(&flags)?;
    if flags.has("--events") {
        // Ends with the program, whose last line is the summary.
        tokio::spawn(events(channel.clone()));
    }

    let stop = CancellationToken::new();
    // Shares are exact only among those who were there from the first call on.
    let _ = timeout(SETTLE, settled(&channel)).await;
    let began = Instant::now();
    let work = Arc::new(Work {
        plan,
        began,
        taken: AtomicU64::new(0),
        gap: Gap::new(began),
        stop: stop.clone(),
    });
    let mut callers = JoinSet::new();
    for _ in 0..work.plan.callers {
        callers.spawn(call(EchoClient::new(channel.clone()), Arc::clone(&work)));
    }
    let total = total(callers, &stop).await;
    let now = Instant::now();

    flags::print(&total.to_json(now - began, work.gap.longest(now)));
    Ok(ExitCode::from(u8::from(total.failed > 0 || total.ok == 0)))
}

/// Returns when the registry has spoken, and each endpoint is connected or has failed to be.
async fn settled(channel: &Channel) {
    let mut view = channel.view();
    let waits = |e: &Endpoint| matches!(e.state(), State::Idle | State::Connecting);
    while !view.is_listed() || view.known().iter().any(waits) {
        view = channel.changed(view.number()).await;
    }
}

/// Adds up what the callers did, and stops them at Ctrl-C.
async fn total(mut callers: JoinSet<Tally>, stop: &CancellationToken) -> Tally {
    let mut total = Tally::default();
    loop {
        tokio::select! {
            tally = callers.join_next() => match tally {
                Some(Ok(tally)) => total.add(tally),
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => return total,
            },
            _ = tokio::signal::ctrl_c(), if !stop.is_cancelled() => stop.cancel(),
        }
    }
}

fn channel(flags: &Flags) -> Result<Channel, Stop> {
    let target = flags.needed("--target", "etcd://127.0.0.1:2379/services-echo")?;
    let target = flags::with_parameter(target, "layout", flags.text("--layout"));
    let target: Target = target.parse().map_err(Stop::refused("--target"))?;
    let mut builder = Channel::builder(target);
    if let Some(name) = flags.text("--policy") {
        builder = builder.policy(balance::named(name).map_err(Stop::refused("--policy"))?);
    }
    builder.build().map_err(Stop::refused("--target"))
}

impl Plan {
    fn of(flags: &Flags) -> Result<Self, Stop> {
        let calls = flags.number("--requests", 1..=1_000_000_000_000)?;
        let seconds = flags.number("--seconds", 1..=10_000_000)?;
        let deadline = flags.number("--deadline-ms", 1..=3_600_000)?;
        if calls.is_some() && seconds.is_some() {
            return Err(Stop::Wrong(
                "--requests and --seconds exclude each other: give one".into(),
            ));
        }
        let unless = if seconds.is_some() { u64::MAX } else { 100 };
        Ok(Self {
            calls: calls.unwrap_or(unless),
            until: seconds.map(Duration::from_secs),
            callers: flags.number("--concurrency", 1..=100_000)?.unwrap_or(1),
            rate: flags.number("--rate", 1..=10_000_000)?,
            deadline: deadline.map(Duration::from_millis),
        })
    }
}

/// One caller, until there is nothing left to do.
async fn call(mut client: EchoClient<Channel>, work: Arc<Work>) -> Tally {
    let mut tally = Tally::default();
    while let Some(number) = work.next().await {
        let mut request = Request::new(EchoRequest {
            message: number.to_string(),
        });
        if let Some(deadline) = work.plan.deadline {
            request.set_timeout(deadline);
        }
        let sent = Instant::now();
        let outcome = client.unary_echo(request).await;
        let now = Instant::now();
        if outcome.is_ok() {
            work.gap.success(now);
        }
        tally.count(&outcome, now - sent);
    }
    tally
}

impl Work {
    /// The number of the next call, once its time has come.
    async fn next(&self) -> Option<u64> {
        if self.stop.is_cancelled() {
            return None;
        }
        let number = self.taken.fetch_add(1, Relaxed);
        if number >= self.plan.calls {
            return None;
        }
        let end = self.plan.until.map(|time| self.began + time);
        if let Some(rate) = self.plan.rate {
            let due = self.began + Duration::from_secs_f64(number as f64 / rate as f64);
            if end.is_some_and(|end| due >= end) {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.stop.cancelled() => return None,
            }
        }
        end.is_none_or(|end| Instant::now() < end).then_some(number)
    }
}

async fn events(channel: Channel) {
    let began = Instant::now();
    let mut events = channel.events();
    while let Some(event) = events.next().await {
        let at = (Instant::now() - began).as_millis() as u64;
        flags::print(&json!({"event": event.code(), "what": event.to_string(), "at_ms": at}));
    }
}
