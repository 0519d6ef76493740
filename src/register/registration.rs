//! The handle on an instance in a registry.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_core::Stream;
use tokio::{sync::watch, time::timeout};

use super::keeper::{Report, Wish};
use crate::{Error, ErrorKind, Instance, Result, ServiceName};

/// An instance in a registry: while this lives, it stands there, whatever happens to the registry.
///
/// What it says is a wish, as state of which the latest wins: an [`update`](Self::update) during an outage
/// takes effect when the outage ends. [`close`](Self::close) withdraws in order and waits; dropping it
/// withdraws at once and unwaited, which a process that exits next may not live to see.
#[must_use = "an instance is withdrawn when its registration is dropped"]
pub struct Registration {
    pub(super) ends: Arc<Ends>,
    /// How long clients have to notice that it left.
    pub(super) notice: Duration,
}

/// How a registration stands.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// It stands in the registry, as wished.
    Registered,
    /// The registry does not answer. What was written before may still stand there.
    #[default]
    Retrying,
    /// Its lease ran out, so it no longer stands in the registry; it is being registered anew.
    Lost,
    /// The registry has no room. What was written before still stands there.
    NoSpace,
    /// The registry refuses the credentials, or does not permit this.
    Denied,
    /// Somebody else stands there who is alive, or who will not stop overwriting it.
    Conflict,
    /// It stands in the registry, marked: no new calls. A layout that has no mark for it has no record.
    Draining,
    /// It is gone, on purpose.
    Withdrawn,
}

/// What [`Registration::states`] gives.
pub type States = Pin<Box<dyn Stream<Item = State> + Send>>;

/// How long a change is waited for. The wish stays; only the waiting ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long leaving is waited for. Keepers give up after two seconds; this is for those that hang.
const PARTING: Duration = Duration::from_secs(3);

/// A watch tells clients within milliseconds; a slow one, or one far away, within this.
const NOTICE: Duration = Duration::from_millis(500);

/// A registration's ends of the two channels to its keeper.
pub(super) struct Ends {
    pub(super) wish: watch::Sender<Wish>,
    pub(super) report: watch::Receiver<Report>,
    pub(super) key: Arc<str>,
    /// Whose turn it is to change the wish.
    pub(super) turn: Mutex<()>,
}

impl Registration {
    pub(super) fn new(ends: Ends) -> Self {
        Self {
            ends: Arc::new(ends),
            notice: NOTICE,
        }
    }

    /// Returns after the keeper's first attempt, or five seconds: with an error if no retry would cure it,
    /// and nothing of it stands.
    ///
    /// For backends, which end [`register`](super::Register::register) with it.
    pub async fn begun(self) -> Result<Self> {
        let mut reports = self.ends.report.clone();
        let first = reports.wait_for(|report| report.tried > 0);
        let error = match timeout(PATIENCE, first).await {
            Ok(Ok(report)) if report.partly => None,
            Ok(Ok(report)) => report.error.clone(),
            Ok(Err(_ended)) => Some(self.ends.ended()),
            Err(_late) => None,
        };
        match error {
            Some(error) if !error.is_transient() => Err(error),
            _ => Ok(self),
        }
    }

    /// The service; the first, when there are several.
    pub fn service(&self) -> ServiceName {
        self.ends.wish.borrow().services[0].clone()
    }

    /// What should stand in the registry.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.ends.wish.borrow().instance)
    }

    /// Where it stands, in words that a person finds it by: for etcd, the key.
    pub fn key(&self) -> &str {
        &self.ends.key
    }

    /// How it stands now.
    pub fn state(&self) -> State {
        self.ends.report.borrow().state
    }

    /// Why it does not stand as wished, if it does not.
    pub fn error(&self) -> Option<Error> {
        self.ends.report.borrow().error.clone()
    }

    /// How it stands now, and then each change; changes that nobody waits for may be passed over.
    ///
    /// Ends when it is withdrawn, or its runtime is gone.
    pub fn states(&self) -> States {
        let mut reports = self.ends.report.clone();
        reports.mark_changed();
        let unseen = futures_util::stream::unfold(
            (reports, None),
            |(mut reports, before): (watch::Receiver<Report>, Option<State>)| async move {
                loop {
                    reports.changed().await.ok()?;
                    let state = reports.borrow_and_update().state;
                    if before != Some(state) {
                        return Some((state, (reports, Some(state))));
                    }
                }
            },
        );
        Box::pin(unseen)
    }

    /// Returns when it stands in this state.
    ///
    /// # Errors
    /// When it no longer can, because it is withdrawn.
    pub async fn until(&self, state: State) -> Result<()> {
        let mut reports = self.ends.report.clone();
        let reached = reports.wait_for(|report| report.state == state).await;
        reached.map_or_else(|_| Err(self.ends.ended()), |_| Ok(()))
    }

    /// Returns when it stands in this state, or in part and no retry would do more.
    pub(super) async fn settled(&self, state: State) -> Result<()> {
        let mut reports = self.ends.report.clone();
        let refused = |report: &Report| report.error.as_ref().is_some_and(|e| !e.is_transient());
        let settled = |report: &Report| report.state == state || (report.partly && refused(report));
        let reached = reports.wait_for(settled).await;
        reached.map_or_else(|_| Err(self.ends.ended()), |_| Ok(()))
    }

    /// Changes what it says, in one write on the same lease: `update(|i| i.weight(3))`.
    ///
    /// # Errors
    /// `Config` when no client could use the result, or its id is another; nothing has changed then. Else
    /// the registry did not take it within five seconds, and it is tried on: the wish stays.
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance) -> Result<()> {
        let version = self.ends.wish_for(|wish| {
            let changed = change((*wish.own).clone());
            changed.check()?;
            if changed.id != wish.instance.id {
                return Err(Error::config(format!(
                    "update of instance {}: its id would be {}; register that one anew",
                    wish.instance.id, changed.id
                )));
            }
            wish.own = Arc::new(changed);
            Ok(())
        })?;
        self.ends.reached(version, "update", PATIENCE).await
    }

    /// Registers it under one more service, on the same lease.
    ///
    /// # Errors
    /// As for [`update`](Self::update).
    pub async fn also(&self, service: &ServiceName) -> Result<()> {
        let version = self.ends.wish_for(|wish| {
            if !wish.services.contains(service) {
                wish.services.push(service.clone());
            }
            Ok(())
        })?;
        self.ends.reached(version, "register", PATIENCE).await
    }

    /// Marks it as draining: it stays in the registry, and gets no new calls.
    ///
    /// # Errors
    /// As for [`update`](Self::update).
    pub async fn drain(&self) -> Result<()> {
        self.update(|instance| instance.serving(false)).await
    }

    /// Withdraws it: marks it as draining, deletes it, and gives back its lease.
    ///
    /// # Errors
    /// When the registry did not take it within about two seconds: it is gone when its lease runs out.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the withdrawal; it is then unwaited.
    pub async fn close(self) -> Result<()> {
        self.ends.close().await
    }
}

impl State {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Retrying => "retrying",
            Self::Lost => "lost",
            Self::NoSpace => "no_space",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Draining => "draining",
            Self::Withdrawn => "withdrawn",
        }
    }

    pub(super) fn after(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Lost => Self::Lost,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::Denied => Self::Denied,
            ErrorKind::Conflict => Self::Conflict,
            _ => Self::Retrying,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Ends {
    /// Changes the wish, unless the change refuses itself, and gives its version.
    fn wish_for(&self, change: impl FnOnce(&mut Wish) -> Result<()>) -> Result<u64> {
        // Held instead of the wish itself, which a user's change may want to look at.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.wish.borrow().clone();
        if next.gone {
            return Err(self.ended());
        }
        change(&mut next)?;
        next.settle();
        next.version += 1;
        let version = next.version;
        let changed = self.wish.send_if_modified(|wish| {
            let stays = !wish.gone;
            if stays {
                *wish = next;
            }
            stays
        });
        if changed {
            Ok(version)
        } else {
            Err(self.ended())
        }
    }

    /// Changes the wish, unless it is to be gone.
    pub(super) fn wish_quietly(&self, change: impl FnOnce(&mut Wish)) {
        let changed = self.wish_for(|wish| {
            change(wish);
            Ok(())
        });
        // Who is gone needs nothing any more.
        drop(changed);
    }

    pub(super) fn unwell(&self) -> Option<Error> {
        self.wish.borrow().unwell.clone()
    }

    /// Wishes to be gone.
    pub(super) fn leave(&self) {
        self.wish.send_if_modified(|wish| {
            let first = !wish.gone;
            wish.gone = true;
            wish.version += u64::from(first);
            first
        });
    }

    /// Wishes to be gone, and waits for it.
    pub(super) async fn close(&self) -> Result<()> {
        self.leave();
        let version = self.wish.borrow().version;
        self.reached(version, "withdraw", PARTING).await
    }

    /// Returns when this version of the wish is fulfilled, or refused, or the patience ends.
    async fn reached(&self, version: u64, doing: &str, patience: Duration) -> Result<()> {
        let mut reports = self.report.clone();
        let told = reports.wait_for(|report| {
            let refused = report.error.as_ref().is_some_and(|e| !e.is_transient());
            report.reached >= version || (report.tried >= version && refused)
        });
        let report = match timeout(patience, told).await {
            Ok(Ok(report)) => report.clone(),
            Ok(Err(_ended)) => self.report.borrow().clone(),
            Err(_late) => Report {
                error: self.error().or_else(|| Some(self.silent(patience))),
                ..self.report.borrow().clone()
            },
        };
        if report.reached >= version {
            return Ok(());
        }
        let cause = report.error.unwrap_or_else(|| self.ended());
        Err(Error::new(cause.kind(), format!("{doing} {}", self.key)).because(cause))
    }

    fn error(&self) -> Option<Error> {
        self.report.borrow().error.clone()
    }

    fn silent(&self, patience: Duration) -> Error {
        let doing = format!("no answer from the registry in {patience:?}");
        Error::new(ErrorKind::Timeout, doing)
    }

    fn ended(&self) -> Error {
        let doing = format!("{}: the registration has ended", self.key);
        Error::new(ErrorKind::Lost, doing)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.ends.leave();
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("key", &self.ends.key)
            .field("state", &self.state())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}
