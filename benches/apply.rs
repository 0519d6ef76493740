//! What a change in the registry costs, from the resolver's word to the view that calls pick from, by the
//! size of the set: `cargo bench --bench apply`. The endpoints never connect, so only the bookkeeping counts.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;
use tonic_fleet::{
    Address, Channel, Instance, ServiceName,
    resolve::{Change, Publisher, Resolve, Updates, publish},
    transport::{Connect, Connecting},
};

#[derive(Debug)]
struct Never;

impl Connect for Never {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

struct Told(Mutex<Option<Updates>>);

impl Resolve for Told {
    fn resolve(&self, _: &ServiceName) -> Updates {
        self.0.lock().unwrap().take().unwrap()
    }
}

fn instance(n: usize) -> Instance {
    Instance::at(format!("10.{}.{}.{}:1", n / 62_500, n / 250 % 250, n % 250))
        .and_then(|instance| instance.id(format!("i{n:06}")))
        .unwrap()
}

async fn seen(channel: &Channel, publisher: &Publisher, tell: impl FnOnce(&Publisher)) -> Duration {
    let number = channel.view().number();
    let began = Instant::now();
    tell(publisher);
    channel.changed(number).await;
    Instant::now() - began
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!(
        "{:>10} {:>14} {:>14} {:>16} {:>8}",
        "instances", "first load", "one change", "10,000 changes", "views"
    );
    for n in [100, 1_000, 5_000, 10_000, 100_000] {
        let (publisher, updates) = publish();
        let told = Told(Mutex::new(Some(updates)));
        let channel = Channel::over("greeter".parse().unwrap(), told)
            .connect_with(Never)
            .build()
            .unwrap();
        let all: Vec<Instance> = (0..n).map(instance).collect();
        let first = seen(&channel, &publisher, |publisher| publisher.reset(all)).await;
        let mut ones = Vec::new();
        for weight in 2..52 {
            // A rest, so that the view is not held back for company.
            tokio::time::sleep(Duration::from_millis(410)).await;
            let change = Change::Put(instance(n / 2).weight(weight).into());
            ones.push(seen(&channel, &publisher, |publisher| publisher.delta([change])).await);
            if n > 10_000 && ones.len() == 10 {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(410)).await;
        let before = channel.view().number();
        let burst =
            (0..10_000).map(|k| Change::Put(instance(k % n).weight(100 + (k / n) as u32).into()));
        let changes: Vec<Change> = burst.collect();
        let many = seen(&channel, &publisher, |publisher| {
            changes.into_iter().for_each(|c| publisher.delta([c]))
        })
        .await;
        let views = channel.view().number() - before;
        println!(
            "{n:>10} {first:>14.1?} {:>14.1?} {many:>16.1?} {views:>8}",
            median(ones)
        );
    }
}
