//! What a unary call costs through this crate's channel, which takes turns here, and through tonic's `balance_channel`, in one run:
//! `cargo bench --bench call`. Servers run in a process of their own; the contenders take turns, and the
//! medians of their rounds are compared. Absolute figures are this machine's; the ratios travel.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

mod servers;

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use servers::{
    Servers,
    echo::{EchoClient, EchoRequest},
    runtime,
};
use tokio::time::Instant;
use tonic::{
    body::Body,
    client::GrpcService,
    transport::{Endpoint, channel::Change},
};
use tonic_fleet::{Channel, balance::RoundRobin, resolve::Fixed};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(700);

fn main() {
    if servers::serve_if_told() {
        return;
    }
    println!("unary echo, 16 B, one client thread; medians of {ROUNDS} interleaved rounds");
    println!(
        "{:<24} {:>12} {:>12} {:>12} {:>10}",
        "", "contender", "calls/s", "CPU µs/call", "p99 µs"
    );
    for (endpoints, callers) in [(1, 64), (4, 1), (4, 64), (16, 64)] {
        compare(endpoints, callers);
    }
}

fn compare(endpoints: usize, callers: usize) {
    let servers = Servers::start(endpoints);
    let runtime = runtime();
    let (fleet, tonic) =
        runtime.block_on(async { (fleet(&servers.addresses), balanced(&servers.addresses)) });
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let one = runtime.block_on(measure(&fleet, callers));
        let other = runtime.block_on(measure(&tonic, callers));
        if round > 0 {
            ours.push(one);
            theirs.push(other);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let case = format!("{endpoints} servers, {callers} callers");
    println!(
        "{case:<24} {:>12} {:>12.0} {:>12.2} {:>10.0}",
        "tonic-fleet", ours[0], ours[1], ours[2]
    );
    println!(
        "{:<24} {:>12} {:>12.0} {:>12.2} {:>10.0}",
        "", "tonic", theirs[0], theirs[1], theirs[2]
    );
    let [rate, cpu, p99] = [0, 1, 2].map(|n| ours[n] / theirs[n]);
    println!(
        "{:<24} {:>12} {rate:>12.2} {cpu:>12.2} {p99:>10.2}",
        "", "ratio"
    );
}

fn fleet(addresses: &[String]) -> Channel {
    let servers = Fixed::at(addresses.iter().map(String::as_str)).unwrap();
    let builder = Channel::over("echo".parse().unwrap(), servers);
    builder.policy(RoundRobin::default()).build().unwrap()
}

fn balanced(addresses: &[String]) -> tonic::transport::Channel {
    let (channel, changes) = tonic::transport::Channel::balance_channel(64);
    for address in addresses {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .tcp_nodelay(true);
        changes
            .try_send(Change::Insert(address.clone(), endpoint))
            .unwrap();
    }
    channel
}

/// Calls a second, CPU microseconds a call, and the 99th percentile of the latency.
async fn measure<C>(channel: &C, callers: usize) -> [f64; 3]
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
    C::Future: Send,
{
    let began = (Instant::now(), cpu());
    let callers = (0..callers).map(|_| {
        let mut client = EchoClient::new(channel.clone());
        let until = began.0 + ROUND;
        tokio::spawn(async move {
            let mut took = Vec::new();
            let mut now = Instant::now();
            while now < until {
                let message = "sixteen bytes, 16".into();
                client.unary_echo(EchoRequest { message }).await.unwrap();
                let ended = Instant::now();
                took.push(ended - now);
                now = ended;
            }
            took
        })
    });
    let mut took: Vec<Duration> = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        took.extend(caller.await.unwrap());
    }
    let (time, cpu) = (Instant::now() - began.0, cpu() - began.1);
    took.sort_unstable();
    let calls = took.len() as f64;
    let p99 = took[took.len() * 99 / 100].as_secs_f64() * 1e6;
    [
        calls / time.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / calls,
        p99,
    ]
}

fn median(rounds: Vec<[f64; 3]>) -> [f64; 3] {
    [0, 1, 2].map(|n| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| round[n]).collect();
        figures.sort_unstable_by(f64::total_cmp);
        figures[figures.len() / 2]
    })
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |t: nix::sys::time::TimeVal| {
        Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()) as u64)
    };
    time(usage.user_time()) + time(usage.system_time())
}
