//! What an endpoint costs in memory, unconnected, connected and used, beside tonic's channels:
//! `cargo bench --bench memory`. Servers run in a process of their own. Heap is what the allocator has handed
//! out and not got back; resident is what the kernel says of the process.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

mod servers;

use std::time::Duration;

use servers::{
    Servers,
    echo::{EchoClient, EchoRequest},
    runtime,
};
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    body::Body,
    client::GrpcService,
    transport::{Endpoint, channel::Change},
};
use tonic_fleet::{
    Address, Channel, Instance,
    balance::RoundRobin,
    resolve::Fixed,
    transport::{Connect, Connecting},
};

/// Each needs a file in either process.
const CONNECTED: usize = 400;
const HELD: usize = 10_000;

fn main() {
    if servers::serve_if_told() {
        return;
    }
    println!("bytes an endpoint, {HELD} held or {CONNECTED} connected");
    println!("{:<40} {:>10} {:>10}", "", "heap", "resident");
    let server = Servers::start(1);
    let address = server.addresses[0].as_str();
    held(address);
    connected(address);
    lazy(address);
    balanced(address);
}

fn held(address: &str) {
    let mut scene = Scene::new(HELD);
    let channel = scene.adds(async || fleet(address, HELD).connect_with(Never).build().unwrap());
    scene.adds(async || {
        while channel.view().known().len() < HELD {
            channel.changed(channel.view().number()).await;
        }
    });
    scene.tell("tonic-fleet, not connected");
}

fn connected(address: &str) {
    let mut scene = Scene::new(CONNECTED);
    let channel = scene.adds(async || fleet(address, CONNECTED).build().unwrap());
    scene.adds(async || drop(channel.ready(CONNECTED).await));
    scene.tell("tonic-fleet, connected");
    scene.adds(async || call(&channel, CONNECTED * 4).await);
    scene.tell("tonic-fleet, used");
}

fn lazy(address: &str) {
    let mut scene = Scene::new(CONNECTED);
    let lazy = || endpoint(address).connect_lazy();
    let channels: Vec<_> = scene.adds(async || (0..CONNECTED).map(|_| lazy()).collect());
    scene.tell("tonic lazy Channel, not connected");
    scene.adds(async || {
        for channel in &channels {
            call(channel, 4).await;
        }
    });
    scene.tell("tonic lazy Channel, used");
}

fn balanced(address: &str) {
    let mut scene = Scene::new(CONNECTED);
    let (channel, _changes) = scene.adds(async || {
        let (channel, changes) = tonic::transport::Channel::balance_channel(CONNECTED);
        for n in 0..CONNECTED {
            changes
                .try_send(Change::Insert(n, endpoint(address)))
                .unwrap();
        }
        (channel, changes)
    });
    scene.adds(async || call(&channel, CONNECTED * 16).await);
    scene.tell("tonic balance_channel, used");
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

/// So many endpoints, all of them at one address.
fn fleet(address: &str, n: usize) -> tonic_fleet::Builder {
    let instance = |n| Instance::at(address)?.id(format!("echo-7d9f8c6b5-{n:05}"));
    let instances = (0..n).map(instance).collect::<Result<Vec<_>, _>>().unwrap();
    Channel::over("echo".parse().unwrap(), Fixed::new(instances)).policy(RoundRobin::default())
}

/// So many calls, a few at a time.
async fn call<C>(channel: &C, calls: usize)
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
    C::Future: Send,
{
    let mut calls_left: JoinSet<()> = JoinSet::new();
    for _ in 0..calls {
        if calls_left.len() == 16 {
            calls_left.join_next().await.unwrap().unwrap();
        }
        let mut client = EchoClient::new(channel.clone());
        calls_left.spawn(async move {
            let message = "sixteen bytes, 16".into();
            client.unary_echo(EchoRequest { message }).await.unwrap();
        });
    }
    calls_left.join_all().await;
}

#[derive(Debug)]
struct Never;

impl Connect for Never {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

/// What is added to the memory, on a runtime of its own that ends with it.
struct Scene {
    runtime: Runtime,
    endpoints: usize,
    heap: i64,
    resident: usize,
}

impl Scene {
    fn new(endpoints: usize) -> Self {
        Self {
            runtime: runtime(),
            endpoints,
            heap: 0,
            resident: resident(),
        }
    }

    /// What this leaves behind counts.
    fn adds<T>(&mut self, what: impl AsyncFnOnce() -> T) -> T {
        let mut made = None;
        let counted = allocation_counter::measure(|| {
            made = Some(self.runtime.block_on(async {
                let made = what().await;
                // What ended calls leave is let go of by tasks that have yet to run.
                tokio::time::sleep(Duration::from_millis(300)).await;
                made
            }));
        });
        self.heap += counted.bytes_current;
        made.unwrap()
    }

    fn tell(&self, what: &str) {
        let heap = self.heap / self.endpoints as i64;
        let resident = resident().saturating_sub(self.resident) / self.endpoints;
        println!("{what:<40} {heap:>10} {resident:>10}");
    }
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4_096
}
