//! What a change in the registry costs, from the resolver's word to the view that calls pick from, by the
//! size of the set and by how many of it are connected: `cargo bench --bench apply`, or `cargo bench --bench apply --
//! adaptive 10000` for this policy and this size. A new weight is a change after which weights differ. Of 10,000
//! changes at once it is told when the first view of them is seen, and when the last of them is.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::{sync::Mutex, time::Duration};

use nix::time::ClockId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tonic_fleet::{
    Address, Channel, Instance, ServiceName, balance,
    resolve::{Change, Publisher, Resolve, Updates, publish},
    transport::{Connect, Connecting, Io},
};

/// Connects to port 1, in memory, and to no other.
#[derive(Debug)]
struct PortOne;

impl Connect for PortOne {
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
        Box::pin(async move {
            if !matches!(address, Address::Ip(ip) if ip.port() == 1) {
                std::future::pending::<()>().await;
            }
            let (ours, theirs) = duplex(256);
            tokio::spawn(greet(theirs));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// As much of a server as makes a connection: its settings, which are empty.
async fn greet(mut io: DuplexStream) {
    let greeted = io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    let mut heard = [0; 64];
    while greeted.is_ok() && io.read(&mut heard).await.is_ok_and(|n| n > 0) {}
}

struct Told(Mutex<Option<Updates>>);

impl Resolve for Told {
    fn resolve(&self, _: &ServiceName) -> Updates {
        self.0.lock().unwrap().take().unwrap()
    }
}

fn instance(n: usize, connected: usize) -> Instance {
    let port = if n < connected { 1 } else { 2 };
    let address = format!("10.{}.{}.{}:{port}", n / 62_500, n / 250 % 250, n % 250);
    let instance = Instance::at(address).and_then(|instance| instance.id(format!("i{n:06}")));
    instance.unwrap()
}

/// Whether the command line has this word.
fn is_said(what: &str) -> bool {
    std::env::args().any(|word| word == what)
}

/// The processor's time until the next view; all there is runs in this one thread.
async fn seen(channel: &Channel, publisher: &Publisher, tell: impl FnOnce(&Publisher)) -> Duration {
    let number = channel.view().number();
    let began = cpu();
    tell(publisher);
    channel.changed(number).await;
    cpu() - began
}

fn cpu() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!(
        "{:>10} {:>10} {:>14} {:>14} {:>14} {:>16} {:>14} {:>8}",
        "instances",
        "connected",
        "first load",
        "a new version",
        "a new weight",
        "10,000 changes",
        "all seen",
        "views"
    );
    let sizes = [100, 1_000, 10_000, 100_000];
    let is_named = |n: &usize| is_said(&n.to_string());
    let any_named = sizes.iter().any(is_named);
    for n in sizes.into_iter().filter(|n| is_named(n) || !any_named) {
        measure(n, 0).await;
        measure(n, n.min(10_000)).await;
    }
}

async fn measure(n: usize, connected: usize) {
    let (publisher, updates) = publish();
    let told = Told(Mutex::new(Some(updates)));
    let policy = std::env::args().find_map(|word| balance::named(&word).ok());
    let channel = Channel::over("greeter".parse().unwrap(), told).connect_with(PortOne);
    let channel = match policy {
        Some(policy) => channel.policy(policy),
        None => channel,
    };
    let channel = channel.build().unwrap();
    let all: Vec<Instance> = (0..n).map(|n| instance(n, connected)).collect();
    let first = seen(&channel, &publisher, |publisher| publisher.reset(all)).await;
    channel.ready(connected).await;
    let one = || instance(connected / 2, connected);
    let versions = (1..).map(|version: u32| one().version(version.to_string()));
    let version = changes(&channel, &publisher, versions).await;
    let each = changes(
        &channel,
        &publisher,
        (2..).map(|weight| one().weight(weight)),
    )
    .await;
    tokio::time::sleep(REST).await;
    let before = channel.view().number();
    let burst = (0..10_000).map(|k| (instance(k % n, connected), 100 + (k / n) as u32));
    let changes: Vec<Change> = burst
        .map(|(i, weight)| Change::Put(i.weight(weight).into()))
        .collect();
    let began = cpu();
    changes.into_iter().for_each(|c| publisher.delta([c]));
    channel.changed(before).await;
    let first_of_many = cpu() - began;
    let last = instance(9_999 % n, connected);
    let weight = 100 + (9_999 / n) as u32;
    let mut view = channel.view();
    while view.known().find(&last.id).map(|e| e.instance().weight) != Some(weight) {
        channel.changed(view.number()).await;
        view = channel.view();
    }
    let many = cpu() - began;
    let views = channel.view().number() - before;
    println!(
        "{n:>10} {connected:>10} {first:>14.1?} {version:>14.1?} {each:>14.1?} {first_of_many:>16.1?} {many:>14.1?} {views:>8}",
    );
    // What is left of this is not to be the next one's to pay for.
    drop((view, channel));
    tokio::time::sleep(REST).await;
}

/// So that a view is not held back for company.
const REST: Duration = Duration::from_millis(510);

/// What each of these costs, one after the other.
async fn changes(
    channel: &Channel,
    publisher: &Publisher,
    changes: impl Iterator<Item = Instance>,
) -> Duration {
    let rounds = if is_said("--quick") { 5 } else { 20 };
    let mut times = Vec::new();
    for one in changes.take(rounds) {
        tokio::time::sleep(REST).await;
        let change = Change::Put(one.into());
        times.push(seen(channel, publisher, |publisher| publisher.delta([change])).await);
    }
    times.sort_unstable();
    times[times.len() / 2]
}
