//! The agent's side: a handle that keeps it online.

use std::{fmt, time::Duration};

use futures_util::stream;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{sync::watch, time::timeout};

use super::{
    Agents,
    record::{self, Part},
    task::Task,
};
use crate::{
    Error, ErrorKind, InstanceId, Result,
    register::{State, States, keeper::Report, leave},
};

/// An agent: while this lives, it is online, whatever happens to etcd.
///
/// [`close`](Self::close) stops it in order and waits; dropping it stops it in order and unwaited, which a
/// process that exits next may not live to see: it then looks like a crash.
#[must_use = "an agent stops when its handle is dropped"]
pub struct Agent {
    id: InstanceId,
    key: String,
    wish: watch::Sender<Wish>,
    report: watch::Receiver<Report>,
}

/// What is to stand in etcd, as state of which the latest wins.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) own: Map<String, Value>,
    pub(super) gone: bool,
    pub(super) version: u64,
}

/// How long a change is waited for. The wish stays; only the waiting ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long stopping is waited for. The task gives up after two seconds.
const PARTING: Duration = Duration::from_secs(3);

impl Agent {
    pub(super) async fn begin(
        agents: Agents,
        id: InstanceId,
        own: Map<String, Value>,
    ) -> Result<Self> {
        let (wish, wished) = watch::channel(Wish {
            own,
            gone: false,
            version: 1,
        });
        let (report, reported) = watch::channel(Report::default());
        let key = record::key(&agents.prefix, &id, Part::Info);
        // As long as it takes to see whether another one beats.
        let patience = PATIENCE + agents.ttl / 2;
        tokio::spawn(Task::new(agents, &id, report).run(wished));
        let agent = Self {
            id,
            key,
            wish,
            report: reported,
        };
        agent.begun(patience).await
    }

    /// Returns after the first attempt, with an error if no retry would cure it.
    async fn begun(self, patience: Duration) -> Result<Self> {
        let mut reports = self.report.clone();
        let tried = timeout(patience, reports.wait_for(|report| report.tried > 0)).await;
        let error = match tried {
            Ok(Ok(report)) => report.error.clone(),
            Ok(Err(_ended)) => Some(self.ended()),
            Err(_late) => None,
        };
        match error {
            Some(error) if !error.is_transient() => Err(error),
            _ => Ok(self),
        }
    }

    /// What it is called.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The key of its record.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it stands now: [`Registered`](State::Registered) while it is online.
    pub fn state(&self) -> State {
        self.report.borrow().state
    }

    /// Why it is not online, if it is not.
    pub fn error(&self) -> Option<Error> {
        self.report.borrow().error.clone()
    }

    /// How it stands now, and then each change; changes that nobody waits for may be passed over.
    pub fn states(&self) -> States {
        let mut reports = self.report.clone();
        reports.mark_changed();
        Box::pin(stream::unfold(
            (reports, None),
            async |(mut reports, before)| {
                loop {
                    reports.changed().await.ok()?;
                    let state = reports.borrow_and_update().state;
                    if before != Some(state) {
                        return Some((state, (reports, Some(state))));
                    }
                }
            },
        ))
    }

    /// Returns when it stands in this state.
    ///
    /// # Errors
    /// When it no longer can, because it has stopped.
    pub async fn until(&self, state: State) -> Result<()> {
        let mut reports = self.report.clone();
        let reached = reports.wait_for(|report| report.state == state).await;
        reached.map_or_else(|_| Err(self.ended()), |_| Ok(()))
    }

    /// Says something else of itself from now on.
    ///
    /// # Errors
    /// `Config` when the fields cannot be written; nothing has changed then. Else etcd did not take it within
    /// five seconds, and it is tried on.
    pub async fn update<T: Serialize + ?Sized>(&self, own: &T) -> Result<()> {
        let own = record::fields(&self.id, own)?;
        self.wish(|wish| wish.own = own);
        self.reached("update", PATIENCE).await
    }

    /// Stops in order: says in its record that it is offline and since when, deletes the heartbeat, in one
    /// transaction, and gives back its lease.
    ///
    /// # Errors
    /// When etcd did not take it within about two seconds: it is then lost when its lease ends.
    ///
    /// # Cancel safety
    /// Dropping the future does not keep it from stopping; that is then unwaited.
    pub async fn close(self) -> Result<()> {
        self.leave();
        self.reached("stop", PARTING).await
    }

    /// Stops in order when the process is asked to end, by SIGINT or SIGTERM; see [`close`](Self::close).
    ///
    /// # Errors
    /// As for [`close`](Self::close).
    pub async fn until_signal(self) -> Result<()> {
        leave::signal().await;
        self.close().await
    }

    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        self.wish.send_modify(|wish| {
            change(wish);
            wish.version += 1;
        });
    }

    fn leave(&self) {
        if !self.wish.borrow().gone {
            self.wish(|wish| wish.gone = true);
        }
    }

    /// Returns when the latest wish is fulfilled, or refused, or the patience ends.
    async fn reached(&self, doing: &str, patience: Duration) -> Result<()> {
        let version = self.wish.borrow().version;
        let mut reports = self.report.clone();
        let told = reports.wait_for(|report| {
            let refused = report.error.as_ref().is_some_and(|e| !e.is_transient());
            report.reached >= version || (report.tried >= version && refused)
        });
        // Whether it came in time, failed or hangs: the report says it.
        drop(timeout(patience, told).await);
        let report = self.report.borrow().clone();
        if report.reached >= version {
            return Ok(());
        }
        let cause = report.error.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Timeout,
                format!("no answer from etcd in {patience:?}"),
            )
        });
        Err(Error::new(cause.kind(), format!("{doing} {}", self.key)).because(cause))
    }

    fn ended(&self) -> Error {
        Error::new(
            ErrorKind::Lost,
            format!("{}: the agent has stopped", self.key),
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("key", &self.key)
            .field("state", &self.state())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}
