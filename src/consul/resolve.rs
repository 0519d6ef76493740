//! Which instances a service has, by blocking queries.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    agent::{Agent, Question},
    cursor::Cursor,
    registry::Registry,
    roster::{Listing, Roster, missing},
};
use crate::{
    Backoff, Error, ErrorKind, Result, ServiceName,
    resolve::{Readers, Resolve, Suspect, Updates},
};

/// What is asked of an agent.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) agent: Agent,
    pub(super) datacenter: Option<Box<str>>,
    pub(super) near: Option<Box<str>>,
    pub(super) tags: Vec<Box<str>>,
    pub(super) passing: bool,
    pub(super) wait: Duration,
}

/// One service that somebody reads about; its tasks end with it.
pub(super) struct Service {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// What the tasks share, and what does not keep them alive.
struct Shared {
    service: ServiceName,
    query: Query,
    readers: Readers<Roster>,
}

impl Resolve for Registry {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let service = self.service(service);
        // The registry is found again by its URL, and with it the service, while there is a reader.
        let keep = (Arc::clone(&service), self.clone());
        service.shared.readers.subscribe(keep)
    }
}

impl Service {
    pub(super) fn follow(query: Query, service: ServiceName, grace: Duration) -> Self {
        let shared = Arc::new(Shared {
            service: service.clone(),
            query,
            readers: Readers::of(Roster::new(service, grace)),
        });
        let stop = CancellationToken::new();
        let watching = watch(Arc::clone(&shared));
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        let confirming = confirm(Arc::clone(&shared));
        tokio::spawn(stop.clone().run_until_cancelled_owned(confirming));
        Self {
            shared,
            _stop: stop.drop_guard(),
        }
    }
}

impl Query {
    /// Everybody, whatever their checks say: one who is ill is not one who left.
    fn question(&self, service: &ServiceName) -> Question {
        let mut question = Question::get("/v1/health/service/", service.as_str());
        let given = [("dc", &self.datacenter), ("near", &self.near)];
        for (name, value) in given {
            if let Some(value) = value {
                question = question.with(name, value);
            }
        }
        self.tags
            .iter()
            .fold(question, |question, tag| question.with("tag", tag))
    }
}

impl Shared {
    /// The next list after what was read, and its index.
    async fn ask(&self, after: Option<u64>) -> Result<(Listing, Option<u64>)> {
        let question = self.query.question(&self.service);
        let (question, limit) = match after {
            None => (question, PATIENCE),
            Some(index) => {
                let wait = self.query.wait;
                let question = question.with("index", index);
                // An agent adds up to a sixteenth, so that not all ask at the same time.
                (
                    question.with("wait", format!("{}ms", wait.as_millis())),
                    wait + wait / 16 + PATIENCE,
                )
            }
        };
        self.list(question, limit).await
    }

    /// A list that the leader has asked the others about.
    async fn ask_everybody(&self) -> Result<Listing> {
        let question = self.query.question(&self.service);
        let question = question.with("consistent", 1);
        self.list(question, PATIENCE)
            .await
            .map(|(listing, _)| listing)
    }

    async fn list(&self, question: Question, limit: Duration) -> Result<(Listing, Option<u64>)> {
        let answer = self.query.agent.demand(question, limit).await?;
        if let Some(why) = answer.doubt() {
            let doing = format!("list {} at {}", self.service, self.query.agent.address);
            return Err(Error::new(ErrorKind::Unavailable, doing).because(why));
        }
        let listing = Listing::read(&self.service, &answer.body, self.query.passing)?;
        Ok((listing, answer.index()))
    }
}

/// Asks again and again, for as long as anybody reads.
async fn watch(shared: Arc<Shared>) {
    let mut cursor = Cursor::new();
    let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        sleep_until(cursor.turn(Instant::now())).await;
        match shared.ask(cursor.after()).await {
            Ok((listing, index)) => {
                cursor.answered(index, Instant::now());
                shared
                    .readers
                    .learn(|roster| roster.listed(listing, Instant::now()));
                backoff.reset();
            }
            Err(error) => {
                cursor.failed();
                shared.readers.learn(|roster| roster.failed(error));
                sleep(backoff.next()).await;
            }
        }
    }
}

async fn confirm(shared: Arc<Shared>) {
    let missing = |suspects| twice(&shared, suspects);
    shared.readers.confirm(missing).await;
}

/// Those that two lists, a moment apart, do not have.
async fn twice(shared: &Shared, suspects: Vec<Suspect>) -> Result<Vec<Suspect>> {
    let missed = missing(suspects, &shared.ask_everybody().await?);
    sleep(BETWEEN).await;
    Ok(missing(missed, &shared.ask_everybody().await?))
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

const BETWEEN: Duration = Duration::from_secs(1);
/// An answer that waits for nothing comes within this, even of ten thousand instances.
const PATIENCE: Duration = Duration::from_secs(5);
