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
    scenario::Scenario,
    server::{SECOND, Time},
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
    rivals::{Caller, Client, Rival},
    timeline::{Change, Timeline},
};

/// One run of one contender, on servers of its own.
pub async fn run(rival: Rival, scenario: &Scenario, seed: u64) -> Result<Figures, Box<dyn Error>> {
    let mut fleet = Fleet::start(scenario.servers, scenario.cores).await?;
    let mut timeline = Timeline::of(scenario, seed);
    fleet.begin(&timeline).await?;
    let mut clients = Vec::new();
    for _ in 0..scenario.clients {
        let client = rival.client()?;
        for server in 0..scenario.at_first() {
            client.hear(server, fleet.addresses[server])?;
        }
        clients.push(client);
    }
    for client in &clients {
        timeout(READY, client.ready(scenario.at_first())).await?;
    }
    let notes = Arc::new(Mutex::new(Notes::new(scenario)));
    let run = Run {
        began: Instant::now(),
        scenario: scenario.clone(),
        notes: Arc::clone(&notes),
    };
    let mut calling = JoinSet::new();
    for (n, client) in clients.iter().enumerate() {
        let dice = Dice::new(seed, OF_CLIENTS + n as u64);
        calling.spawn(run.clone().client(client.caller.clone(), dice));
    }
    run.play(&mut timeline, &mut fleet, &clients).await?;
    calling.join_all().await;
    let notes = std::mem::replace(&mut *locked(&notes), Notes::new(scenario));
    Ok(notes.figures())
}

/// How long connections may take.
const READY: Duration = Duration::from_secs(30);

/// A run, and what is noted of it.
#[derive(Clone)]
struct Run {
    began: Instant,
    scenario: Scenario,
    notes: Arc<Mutex<Notes>>,
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
        let ended = timeout(patience, client.unary_echo(EchoRequest { message })).await;
        let (end, server) = match &ended {
            Ok(Ok(answer)) => (End::Answered, server(answer.metadata())),
            Ok(Err(status)) => (End::Failed, server(status.metadata())),
            Err(_) => (End::Late, None),
        };
        let took = (Instant::now() - self.at(at)).as_nanos() as Time;
        let mut notes = locked(&self.notes);
        if let Some(server) = server {
            notes.picked(server, at);
        }
        notes.ended(at, took.min(self.scenario.patience()), end, 1);
    }
}

/// Who answered.
fn server(metadata: &MetadataMap) -> Option<usize> {
    metadata.get(BACKEND)?.to_str().ok()?.parse().ok()
}

fn locked(notes: &Mutex<Notes>) -> std::sync::MutexGuard<'_, Notes> {
    notes
        .lock()
        .expect("no code here panics with the lock held")
}

fn seconds(seconds: f64) -> Time {
    (seconds * SECOND as f64) as Time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_is_said_by_a_header() {
        let mut metadata = MetadataMap::new();
        assert_eq!(server(&metadata), None);

        metadata.insert(BACKEND, 17_usize.into());

        assert_eq!(server(&metadata), Some(17));
    }
}
