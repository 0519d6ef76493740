//! Which instances a service has, by blocking queries.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    agent::{Agent, Question},
    cursor::Cursor,
    registry::Registry,
    roster::{Listing, Roster, Suspect, missing},
};
use crate::{
    Backoff, Error, ErrorKind, Result, ServiceName,
    resolve::{Publisher, Resolve, Update, Updates, publish},
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
    readers: Mutex<Readers>,
    /// Somebody vanished.
    vanished: Notify,
}

struct Readers {
    roster: Roster,
    publishers: Vec<Publisher>,
}

/// One reader's updates, which keep the watch on the service alive.
struct Subscription {
    updates: Updates,
    _service: Arc<Service>,
    // Found again by its URL, and with it the service, while there is a reader.
    _registry: Registry,
}

impl Resolve for Registry {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let service = self.service(service);
        let (publisher, updates) = publish();
        service.shared.add(publisher);
        Box::pin(Subscription {
            updates,
            _service: service,
            _registry: self.clone(),
        })
    }
}

impl Service {
    pub(super) fn follow(query: Query, service: ServiceName, grace: Duration) -> Self {
        let shared = Arc::new(Shared {
            service: service.clone(),
            query,
            readers: Mutex::new(Readers {
                roster: Roster::new(service, grace),
                publishers: Vec::new(),
            }),
            vanished: Notify::new(),
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
    fn add(&self, publisher: Publisher) {
        let mut readers = locked(&self.readers);
        for update in readers.roster.so_far() {
            publisher.update(update);
        }
        readers.publishers.retain(|one| !one.is_closed());
        readers.publishers.push(publisher);
    }

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

    fn listed(&self, listing: Listing) {
        let mut readers = locked(&self.readers);
        let updates = readers.roster.listed(listing, Instant::now());
        readers.tell(updates);
        if readers.roster.due().is_some() {
            self.vanished.notify_one();
        }
    }

    fn failed(&self, why: Error) {
        let mut readers = locked(&self.readers);
        let stale = readers.roster.failed(why);
        readers.tell(stale);
    }

    fn due(&self) -> Option<Instant> {
        locked(&self.readers).roster.due()
    }

    fn suspects(&self) -> Vec<Suspect> {
        locked(&self.readers).roster.suspects(Instant::now())
    }

    /// Whether any of them was still a suspect, and has gone.
    fn gone(&self, suspects: &[Suspect]) -> bool {
        let mut readers = locked(&self.readers);
        let gone = readers.roster.gone(suspects);
        let any = gone.is_some();
        readers.tell(gone);
        any
    }
}

impl Readers {
    fn tell(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.publishers.retain(|one| !one.is_closed());
            for publisher in &self.publishers {
                publisher.update(update.clone());
            }
        }
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
                shared.listed(listing);
                backoff.reset();
            }
            Err(error) => {
                cursor.failed();
                shared.failed(error);
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Looks into suspicions, for as long as anybody reads.
async fn confirm(shared: Arc<Shared>) {
    let mut backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));
    loop {
        match shared.due() {
            None => {
                shared.vanished.notified().await;
                backoff.reset();
            }
            Some(due) => sleep_until(due).await,
        }
        let suspects = shared.suspects();
        if suspects.is_empty() {
            continue;
        }
        match twice(&shared, suspects).await {
            Ok(missing) if shared.gone(&missing) => backoff.reset(),
            // They are well, by what the leader has; our own list is behind, and may stay so.
            Ok(_) => sleep(backoff.next()).await,
            Err(error) => {
                tracing::debug!(why = error.chain(), "suspects could not be looked into");
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Those that two lists, a moment apart, do not have.
async fn twice(shared: &Shared, suspects: Vec<Suspect>) -> Result<Vec<Suspect>> {
    let missed = missing(suspects, &shared.ask_everybody().await?);
    sleep(BETWEEN).await;
    Ok(missing(missed, &shared.ask_everybody().await?))
}

impl Stream for Subscription {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const BETWEEN: Duration = Duration::from_secs(1);
/// An answer that waits for nothing comes within this, even of ten thousand instances.
const PATIENCE: Duration = Duration::from_secs(5);
