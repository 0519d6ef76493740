//! The clients: calls as the simulator makes them, in real time.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use sim::{
    balancer::End,
    dice::Dice,
    figures::{Figures, Notes},
    reality::{
        Lag, Rival,
        timeline::{Change, Timeline},
    },
    scenario::Scenario,
    server::{Time, seconds},
    world::OF_CLIENTS,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tonic::metadata::MetadataMap;

use crate::{
    echo::{BACKEND, EchoClient, EchoRequest},
    fleet::Fleet,
    rivals::{self, Caller, Client},
    servers::OVER,
};

/// One run of one contender, on servers of its own, and what the machine did to it.
pub async fn run(
    rival: Rival,
    scenario: &Scenario,
    seed: u64,
) -> Result<(Figures, Lag), Box<dyn Error>> {
    let mut fleet = Fleet::start(scenario.servers, scenario.cores).await?;
    let mut timeline = Timeline::of(scenario, seed);
    fleet.begin(&timeline).await?;
    let mut clients = Vec::new();
    for _ in 0..scenario.clients {
        let client = rivals::client(rival)?;
        for server in 0..scenario.at_first() {
            client.hear(server, fleet.addresses[server])?;
        }
        clients.push(client);
    }
    for client in &clients {
        timeout(READY, client.ready(scenario.at_first())).await?;
    }
    let seen = Arc::new(Mutex::new(Seen::of(scenario)));
    let run = Run {
        began: Instant::now(),
        scenario: scenario.clone(),
        seen: Arc::clone(&seen),
    };
    let mut calling = JoinSet::new();
    for (n, client) in clients.iter().enumerate() {
        let dice = Dice::new(seed, OF_CLIENTS + n as u64);
        calling.spawn(run.clone().client(client.caller.clone(), dice));
    }
    run.play(&mut timeline, &mut fleet, &clients).await?;
    calling.join_all().await;
    let seen = std::mem::replace(&mut *locked(&seen), Seen::of(scenario));
    let lag = seen.lag();
    Ok((seen.notes.figures(), lag))
}

/// How long connections may take.
const READY: Duration = Duration::from_secs(30);

/// A run, and what is noted of it.
#[derive(Clone)]
struct Run {
    began: Instant,
    scenario: Scenario,
    seen: Arc<Mutex<Seen>>,
}

/// What is noted, and milliseconds that things took too long, with how many there were.
struct Seen {
    notes: Notes,
    begins: (f64, u32),
    works: (f64, u32),
}

impl Seen {
    fn of(scenario: &Scenario) -> Self {
        Self {
            notes: Notes::new(scenario),
            begins: (0.0, 0),
            works: (0.0, 0),
        }
    }

    fn lag(&self) -> Lag {
        let mean = |(sum, n): (f64, u32)| sum / f64::from(n.max(1));
        Lag {
            begins: mean(self.begins),
            works: mean(self.works),
        }
    }
}

impl Run {
    fn at(&self, at: Time) -> Instant {
        self.began + Duration::from_nanos(at)
    }

    /// Does to the servers what happens to them, until the end.
    async fn play(
        &self,
        timeline: &mut Timeline,
        fleet: &mut Fleet,
        clients: &[Client],
    ) -> Result<(), Box<dyn Error>> {
        while let Some((at, server, change)) = timeline.next() {
            if at >= self.scenario.ends() {
                break;
            }
            sleep_until(self.at(at)).await;
            if change == Change::Joins {
                for client in clients {
                    client.hear(server, fleet.addresses[server])?;
                }
            } else {
                fleet.change(timeline, server, change).await?;
            }
        }
        Ok(())
    }

    /// One client's calls, and all of their ends.
    async fn client(self, caller: Caller, mut dice: Dice) {
        let mean = 1.0 / self.scenario.rate();
        let mut calls = JoinSet::new();
        let mut at = seconds(dice.gap(mean));
        while at < self.scenario.ends() {
            sleep_until(self.at(at)).await;
            let next = at + seconds(dice.gap(mean));
            let work = self.scenario.size(&mut dice);
            // The simulator's net draws two more.
            let _net = [dice.unit(), dice.unit()];
            calls.spawn(self.clone().call(EchoClient::new(caller.clone()), at, work));
            at = next;
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
    }

    /// One call. What it took counts from when it should have begun: a client that lags makes it no faster.
    async fn call(self, mut client: EchoClient<Caller>, at: Time, work: f64) {
        let message = format!("{:.0}", work * 1e6);
        let patience = Duration::from_secs_f64(self.scenario.patience);
        let late = (Instant::now() - self.at(at)).as_secs_f64() * 1000.0;
        let ended = timeout(patience, client.unary_echo(EchoRequest { message })).await;
        let (end, server) = match &ended {
            Ok(Ok(answer)) => (End::Answered, number(answer.metadata(), BACKEND)),
            Ok(Err(status)) => (End::Failed, number(status.metadata(), BACKEND)),
            Err(_) => (End::Late, None),
        };
        let took = (Instant::now() - self.at(at)).as_nanos() as Time;
        let over = ended
            .as_ref()
            .ok()
            .and_then(|it| number(it.as_ref().ok()?.metadata(), OVER));
        let mut seen = locked(&self.seen);
        add(&mut seen.begins, late);
        if let Some(micros) = over {
            add(&mut seen.works, micros as f64 / 1000.0);
        }
        if let Some(server) = server {
            seen.notes.picked(server, at);
        }
        seen.notes
            .ended(at, took.min(self.scenario.patience()), end, 1);
    }
}

/// What is said by this name: who answered, for example.
fn number(metadata: &MetadataMap, name: &str) -> Option<usize> {
    metadata.get(name)?.to_str().ok()?.parse().ok()
}

fn add((sum, n): &mut (f64, u32), this: f64) {
    *sum += this;
    *n += 1;
}

fn locked(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().expect("no code here panics with the lock held")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_is_said_by_a_header() {
        let mut metadata = MetadataMap::new();
        assert_eq!(number(&metadata, BACKEND), None);

        metadata.insert(BACKEND, 17_usize.into());

        assert_eq!(number(&metadata, BACKEND), Some(17));
    }
}
