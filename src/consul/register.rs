//! How an instance stands with an agent for as long as its registration lives.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    agent::{Agent, Question},
    claim::Claim,
    definition::{self, Rules, Status, check_id},
    registry::Registry,
};
use crate::{
    Backoff, Error, ErrorKind, Instance, InstanceId, Result, ServiceName,
    register::{Keeper, Register, Registering, Wish, keep},
};

impl Register for Registry {
    /// Registers the instance with the agent, and keeps it there: its TTL check is told how it is, and an
    /// agent that has lost it is given it again.
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        let rules = self.rules();
        let checked = rules.checks.iter().try_for_each(super::Check::verify);
        let key = definition::id(service, &instance);
        let kept = checked.and_then(|()| keep(service, instance, key));
        Box::pin(async move {
            let (registration, keeper) = kept?;
            tokio::spawn(Task::new(self.agent().clone(), rules.clone()).run(keeper));
            registration.begun().await
        })
    }

    fn toward(&self) -> Option<String> {
        let address = &self.agent().address;
        address.port().map(|_| address.to_string())
    }
}

/// Makes the wishes of one registration come true.
struct Task {
    agent: Agent,
    rules: Rules,
    claim: Claim,
    /// Tells what this registration wrote from what others did.
    owner: String,
    /// What may stand there, by its id.
    held: BTreeMap<String, Held>,
    /// When the agent last heard that we live.
    heard: Option<Instant>,
}

/// A service as it was registered, as far as that is known.
#[derive(Debug, Default)]
struct Held {
    definition: Vec<u8>,
    marked: bool,
}

/// No agent on the same machine takes longer.
const LIMIT: Duration = Duration::from_secs(2);
/// Leaving takes no longer than this; what then stands becomes critical, and is forgotten.
const PARTING: Duration = Duration::from_secs(2);
/// The mark may take so much of it,
const MARKING: Duration = Duration::from_millis(800);
/// and is left to be seen for so long. Readers are shown what is, and not what was: a mark that is gone
/// before they look is none.
const LINGER: Duration = Duration::from_millis(500);
/// An agent that was started again knows nothing of us for no longer than this.
const SLOWEST: Duration = Duration::from_secs(3);

/// How often an agent is told that we live.
fn beat(ttl: Duration) -> Duration {
    (ttl / 3).min(SLOWEST)
}

impl Task {
    fn new(agent: Agent, rules: Rules) -> Self {
        Self {
            claim: Claim::new(agent.clone()),
            agent,
            rules,
            owner: InstanceId::random().to_string(),
            held: BTreeMap::new(),
            heard: None,
        }
    }

    async fn run(mut self, mut keeper: Keeper) {
        let beat = beat(self.rules.ttl);
        let mut pace = Pace::within(beat);
        loop {
            let wish = keeper.wish();
            if wish.gone {
                return self.leave(&keeper, &wish).await;
            }
            let began = Instant::now();
            let done = tokio::select! {
                biased;
                () = keeper.leaving() => continue,
                done = self.converge(&wish) => done,
            };
            let again = match done {
                Ok(()) => {
                    pace.reset();
                    self.heard = Some(began);
                    keeper.reached();
                    began + beat
                }
                Err(error) => {
                    let wait = pace.next(error.kind());
                    keeper.failed(self.or_lost(error, began));
                    Instant::now() + wait
                }
            };
            tokio::select! {
                () = keeper.changed() => {}
                () = sleep_until(again) => {}
            }
        }
    }

    /// An agent that is out of reach for longer than the time to live says that we are critical.
    fn or_lost(&self, error: Error, now: Instant) -> Error {
        let out_of_reach = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        let lost = |heard: Instant| heard + self.rules.ttl < now;
        if out_of_reach && self.heard.is_some_and(lost) {
            return Error::new(ErrorKind::Lost, "keep the TTL check alive").because(error);
        }
        error
    }

    /// Makes what stands with the agent what is wished, and says that we live.
    async fn converge(&mut self, wish: &Wish) -> Result<()> {
        let wanted = self.wanted(wish, &wish.instance)?;
        let mut failed = None;
        for (id, (service, definition)) in &wanted {
            // The others are none the worse for it.
            if let Err(error) = self.keep_up(id, service, definition, wish).await {
                failed = failed.or(Some(error));
            }
        }
        let unwanted = self.held.keys().filter(|id| !wanted.contains_key(*id));
        for id in unwanted.cloned().collect::<Vec<_>>() {
            self.withdraw(&id).await?;
        }
        failed.map_or(Ok(()), Err)
    }

    fn wanted(
        &self,
        wish: &Wish,
        instance: &Instance,
    ) -> Result<BTreeMap<String, (ServiceName, Vec<u8>)>> {
        let entry = |service: &ServiceName| {
            let definition = definition::write(service, instance, &self.owner, &self.rules)?;
            let id = definition::id(service, instance);
            Ok((id, (service.clone(), definition)))
        };
        wish.services.iter().map(entry).collect()
    }

    /// One service: registered if it is not as it should be, and alive.
    async fn keep_up(
        &mut self,
        id: &str,
        service: &ServiceName,
        definition: &[u8],
        wish: &Wish,
    ) -> Result<()> {
        let ours = self
            .claim
            .is_ours(id, &self.owner, service, &wish.instance)
            .await;
        let ours = match ours {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                // A stranger's is not ours to take away.
                self.held.remove(id);
                return Err(error);
            }
            ours => ours?,
        };
        let held = self.held.get(id);
        let as_wished = held.is_some_and(|held| held.definition == definition);
        if ours && as_wished && self.tell(id, wish).await? {
            return Ok(());
        }
        if !ours && as_wished {
            tracing::info!(id, "the agent lost a service; registering it again");
        }
        self.put(id, definition, &wish.instance).await?;
        if self.tell(id, wish).await? {
            return Ok(());
        }
        let doing = format!("register {id}: the agent forgot it at once");
        Err(Error::new(ErrorKind::Unavailable, doing))
    }

    async fn put(&mut self, id: &str, definition: &[u8], instance: &Instance) -> Result<()> {
        // It may stand there even if no answer comes.
        self.held.entry(id.to_owned()).or_default();
        let question = Question::put("/v1/agent/service/register", "", definition.to_vec());
        let question = question.with("replace-existing-checks", true);
        self.agent.demand(question, LIMIT).await?;
        let held = Held {
            definition: definition.to_vec(),
            marked: instance.is_draining(),
        };
        self.held.insert(id.to_owned(), held);
        Ok(())
    }

    /// Tells the TTL check how we are; whether there is such a check.
    async fn tell(&self, id: &str, wish: &Wish) -> Result<bool> {
        let status = Status::of(&wish.instance);
        let output = match (&wish.unwell, status) {
            (Some(why), _) => why.chain(),
            (None, Status::Passing) => "serving".into(),
            (None, Status::Warning | Status::Critical) => "draining".into(),
        };
        self.update(id, status, &output).await
    }

    async fn update(&self, id: &str, status: Status, output: &str) -> Result<bool> {
        let body = serde_json::json!({ "Status": status, "Output": output }).to_string();
        let question = Question::put("/v1/agent/check/update/", &check_id(id), body);
        let answer = self.agent.ask(question, LIMIT).await?;
        let Some((kind, why)) = answer.refusal() else {
            return Ok(true);
        };
        // An unknown check is a 404, and was a 500 before Consul 1.11.
        let unknown = answer.status() == http::StatusCode::NOT_FOUND
            || (answer.status() == http::StatusCode::INTERNAL_SERVER_ERROR
                && answer.words().contains("TTL"));
        if unknown {
            return Ok(false);
        }
        Err(Error::new(kind, format!("keep {id} alive")).because(why))
    }

    async fn withdraw(&mut self, id: &str) -> Result<()> {
        if self.claim.is_written_by(id, &self.owner).await? {
            let question = Question::put("/v1/agent/service/deregister/", id, "");
            self.agent.demand(question, LIMIT).await?;
        }
        self.held.remove(id);
        Ok(())
    }

    /// Marks, withdraws, and says how it went; within a time limit.
    async fn leave(mut self, keeper: &Keeper, wish: &Wish) {
        let left = match timeout(PARTING, self.part(wish)).await {
            Ok(left) => left,
            Err(late) => {
                let doing = format!("withdraw {} of {}", wish.instance.id, wish.services[0]);
                Err(Error::new(ErrorKind::Timeout, doing).because(late))
            }
        };
        match left {
            Ok(()) => keeper.reached(),
            Err(error) => keeper.failed(error),
        }
    }

    async fn part(&mut self, wish: &Wish) -> Result<()> {
        // Without the mark, leaving looks like a failure until clients have confirmed it; it is no reason
        // to stay.
        if let Ok(Ok(true)) = timeout(MARKING, self.mark(wish)).await {
            sleep(LINGER).await;
        }
        let mut failed = None;
        for id in self.held.keys().cloned().collect::<Vec<_>>() {
            let withdrawn = self.withdraw(&id).await;
            failed = failed.or_else(|| withdrawn.err());
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether there was anything to mark.
    async fn mark(&mut self, wish: &Wish) -> Result<bool> {
        let draining = (*wish.instance).clone().serving(false);
        let mut marked = false;
        for (id, (_, definition)) in self.wanted(wish, &draining)? {
            let held = self.held.get(&id);
            let stands = held.is_some_and(|held| !held.marked && !held.definition.is_empty());
            if stands && self.claim.is_written_by(&id, &self.owner).await? {
                self.put(&id, &definition, &draining).await?;
                marked |= self.update(&id, Status::Critical, "leaving").await?;
            }
        }
        Ok(marked)
    }
}

/// How long to wait before trying again.
#[derive(Debug)]
struct Pace {
    quick: Backoff,
    /// For what only a person can put right.
    slow: Backoff,
}

impl Pace {
    /// At least as often as this: an agent that is back must hear of us before anybody is doubted.
    fn within(most: Duration) -> Self {
        let quick = Backoff::between(Duration::from_millis(50), most.min(Duration::from_secs(2)));
        let slow = Backoff::between(Duration::from_secs(1), Duration::from_secs(30));
        Self {
            quick: quick.factor(2.0).jitter(0.5),
            slow: slow.factor(2.0),
        }
    }

    fn next(&mut self, kind: ErrorKind) -> Duration {
        match kind {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Lost => self.quick.next(),
            ErrorKind::Conflict => self.slow.next().min(Duration::from_secs(5)),
            _ => self.slow.next(),
        }
    }

    fn reset(&mut self) {
        self.quick.reset();
        self.slow.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_a_third_of_the_time_to_live_and_three_seconds_at_most() {
        for (ttl, expected) in [(1_500, 500), (9_000, 3_000), (600_000, 3_000)] {
            let ttl = Duration::from_millis(ttl);
            assert_eq!(beat(ttl), Duration::from_millis(expected));
        }
    }
}
