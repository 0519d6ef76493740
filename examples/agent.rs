//! A regional agent and its control plane, in one program: it starts agents, and shows what the control plane sees
//! when one stops, one crashes, and two have one id.
//!
//! ```console
//! $ export $(scripts/setup); $ETCD_BIN --data-dir /tmp/etcd &
//! $ cargo run --example agent
//! ```
//!
//! The two sides may be programs of their own: `-- run eu-1` is an agent until Ctrl-C, which may also be killed;
//! `-- watch` is the control plane. A URL behind that, or `FLEET_REGISTRY`, names another etcd.

use std::{env, io, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    runtime,
    signal::unix::{self, SignalKind},
    time::interval,
};
use tonic_fleet::{
    Error, ErrorKind, Result,
    register::heartbeat::{Agents, Event, Following, Seen},
};

/// What an agent says of itself; the heartbeat adds status and times.
#[derive(Debug, Deserialize, Serialize)]
struct Region {
    city: String,
}

fn region(city: &str) -> Region {
    Region { city: city.into() }
}

/// How long an agent that crashed still seems to be there; thirty seconds, unless set.
const TTL: Duration = Duration::from_secs(3);

/// Records of agents that have been gone for this long are cleaned away.
const FORGET: Duration = Duration::from_secs(3600);

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let url = words.pop_if(|last| last.contains("://"));
    let done = match (agents(url), &words[..]) {
        (Err(error), _) => Err(error),
        (Ok(agents), []) => story(&agents).await,
        (Ok(agents), ["run", id]) => run(&agents, id).await,
        (Ok(agents), ["watch"]) => watch(&agents).await,
        _ => {
            eprintln!("agent: give it nothing, `run ID` or `watch`, and maybe the URL of an etcd");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Where the agents stand: in etcd on this machine, unless something else is said.
fn agents(url: Option<&str>) -> Result<Agents> {
    let other = env::var("FLEET_REGISTRY").ok();
    let url = url.or(other.as_deref()).unwrap_or("etcd://127.0.0.1:2379");
    Ok(Agents::open(&url.parse()?)?.prefix("/os/region/").ttl(TTL))
}

/// An agent, until the process is asked to end.
async fn run(agents: &Agents, id: &str) -> Result<()> {
    // Heard from the start, so that it stops in order however early it is asked to.
    let mut terminate = unix::signal(SignalKind::terminate()).map_err(failed("hear signals"))?;
    let agent = agents.start(id, &region("Lyon")).await?;
    println!(
        "{id} is {}, at {}; Ctrl-C stops it in order",
        agent.state(),
        agent.key()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    agent.close().await
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::new(ErrorKind::Unavailable, doing).because(error)
}

/// A control plane, until it is killed: tells who comes and goes, and cleans up.
async fn watch(agents: &Agents) -> Result<()> {
    let mut seen = agents.follow().await;
    let mut minutes = interval(Duration::from_secs(60));
    loop {
        tokio::select! {
            event = seen.next() => tell(&event),
            _ = minutes.tick() => {
                match seen.clean(FORGET).await {
                    Ok(gone) if gone.is_empty() => {}
                    Ok(gone) => println!("  gone for an hour, and forgotten: {gone:?}"),
                    Err(error) => println!("  not cleaned: {}", error.chain()),
                }
            }
        }
    }
}

fn tell(event: &Event) {
    match event {
        Event::Online(one) => println!("  {} is there, in {}", one.id(), city(one)),
        Event::Offline(one) | Event::Lost(one) => println!("  {} is {}", one.id(), one.presence()),
        Event::Changed(one) => println!("  {} is in {} now", one.id(), city(one)),
        Event::Removed(id) => println!("  {id} is forgotten"),
        Event::Stale(why) => println!(
            "  etcd is out of reach, what was seen last counts: {}",
            why.chain()
        ),
        Event::Fresh => println!("  etcd is back"),
        _ => {}
    }
}

fn city(one: &Seen) -> String {
    one.own::<Region>()
        .map_or_else(|error| error.chain(), |region| region.city)
}

/// Tells what happens, until that is about this agent, and says this of it.
async fn until(seen: &mut Following, id: &str, is: impl Fn(&Event) -> Option<&Seen>) {
    loop {
        let event = seen.next().await;
        tell(&event);
        if is(&event).is_some_and(|one| one.id().as_str() == id) {
            return;
        }
    }
}

fn is_online(event: &Event) -> Option<&Seen> {
    match event {
        Event::Online(one) => Some(one),
        _ => None,
    }
}

fn is_gone(event: &Event) -> Option<&Seen> {
    match event {
        Event::Offline(one) | Event::Lost(one) => Some(one),
        _ => None,
    }
}

async fn story(agents: &Agents) -> Result<()> {
    let mut seen = agents.follow().await;
    if let Some(why) = seen.stale() {
        return Err(why);
    }

    println!("eu-1 starts:");
    let agent = agents.start("eu-1", &region("Lyon")).await?;
    until(&mut seen, "eu-1", is_online).await;

    println!("another with the same id is refused, and the first is left alone:");
    match agents.start("eu-1", &region("Oslo")).await {
        Ok(other) => println!("  nobody minds {other:?}"),
        Err(error) => println!("  {}", error.chain()),
    }

    println!("it says that it moved, and stops in order:");
    agent.update(&region("Nice")).await?;
    agent.close().await?;
    until(&mut seen, "eu-1", is_gone).await;

    println!("us-1 starts, and crashes:");
    let elsewhere = runtime::Builder::new_multi_thread().enable_all().build();
    let elsewhere = elsewhere.map_err(failed("start a runtime"))?;
    let members = agents.clone();
    let started = elsewhere.spawn(async move { members.start("us-1", &region("Reno")).await });
    until(&mut seen, "us-1", is_online).await;
    // All that keeps it alive ends at once, as when a process is killed.
    elsewhere.shutdown_background();
    until(&mut seen, "us-1", is_gone).await;
    drop(started);

    println!("both are cleaned away:");
    for id in seen.clean(Duration::ZERO).await? {
        println!("  {id} is forgotten");
    }
    Ok(())
}
