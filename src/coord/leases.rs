//! The leases that everything here hangs on, shared as far as keys allow it.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::retry::{Asker, Retry};
use crate::{
    Error, ErrorKind, Result,
    etcd::{
        Etcd,
        known::KeyChange,
        kv::{Kv, Span},
        session::Session,
        watch::{Seen, Watch},
    },
    lock::locked,
};

/// The leases of one coordinator.
///
/// A key in a queue is named after its lease, so that one lease can stand once in each queue, and in any
/// number of queues. Whoever asks for a queue gets the first lease that does not stand there yet.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) asker: Asker,
    ttl: Duration,
    shared: Mutex<Vec<Arc<Shared>>>,
    /// Held by who opens a lease: those who come meanwhile may share it.
    opening: tokio::sync::Mutex<()>,
    /// No more is to be had.
    closed: CancellationToken,
    /// What must be done before the leases go.
    tasks: TaskTracker,
    /// Whether somebody comes back to let go of what is idle.
    tidying: AtomicBool,
}

/// One lease, and in which queues it stands.
#[derive(Debug)]
struct Shared {
    session: Session,
    etcd: Etcd,
    state: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    queues: HashSet<Arc<str>>,
    idle_since: Instant,
    /// A write on it may be carried out yet: nobody new may rely on it.
    doubt: bool,
    /// Delete what is written late.
    watches: Vec<Watch>,
}

/// One lease's right to stand in one queue; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    leases: Arc<Leases>,
    shared: Arc<Shared>,
    queue: Arc<str>,
}

/// How much sooner than etcd we call a lease over: a fiftieth of it.
const EARLY: u32 = 50;
/// How long closing waits for what is under way.
pub(super) const PARTING: Duration = Duration::from_secs(5);

impl Leases {
    pub(super) fn new(etcd: Etcd, ttl: Duration, retry: Retry) -> Arc<Self> {
        Arc::new(Self {
            asker: Asker { etcd, retry },
            ttl,
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            tidying: AtomicBool::new(false),
        })
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A seat in this queue, on a lease that is there or on a new one.
    pub(super) async fn seat(self: &Arc<Self>, queue: &Arc<str>) -> Result<Seat> {
        if let Some(seat) = self.taken(queue)? {
            return Ok(seat);
        }
        let _opening = self.opening.lock().await;
        if let Some(seat) = self.taken(queue)? {
            return Ok(seat);
        }
        let session = self.asker.session(self.ttl, EARLY).await?;
        let shared = Arc::new(Shared {
            session,
            etcd: self.asker.etcd.clone(),
            state: Mutex::new(Held {
                queues: HashSet::new(),
                idle_since: Instant::now(),
                doubt: false,
                watches: Vec::new(),
            }),
        });
        let seat = self.sit(&shared, queue);
        let mut all = locked(&self.shared);
        // It may have been closed while we asked: then nobody else would give it back.
        if let Err(closed) = self.check() {
            drop(all);
            return Err(closed);
        }
        all.push(shared);
        drop(all);
        seat.ok_or_else(|| Error::new(ErrorKind::Lost, format!("open a lease for {queue}")))
    }

    fn taken(self: &Arc<Self>, queue: &Arc<str>) -> Result<Option<Seat>> {
        self.check()?;
        let mut all = locked(&self.shared);
        all.retain(|shared| !shared.is_lost());
        Ok(all.iter().find_map(|shared| self.sit(shared, queue)))
    }

    fn sit(self: &Arc<Self>, shared: &Arc<Shared>, queue: &Arc<str>) -> Option<Seat> {
        let mut held = locked(&shared.state);
        let free = !held.doubt && held.queues.insert(Arc::clone(queue));
        drop(held);
        free.then(|| Seat {
            leases: Arc::clone(self),
            shared: Arc::clone(shared),
            queue: Arc::clone(queue),
        })
    }

    /// Fails once it is closed.
    pub(super) fn check(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        Ok(())
    }

    /// Returns when it is closed.
    pub(super) async fn closing(&self) -> Error {
        self.closed.cancelled().await;
        closed()
    }

    /// Runs a task that closing waits for.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) {
        self.asker.etcd.spawn(self.tasks.track_future(task));
    }

    /// Ends all of it: first those who hold something learn it, then their keys and leases go.
    pub(super) async fn close(&self) -> Result<()> {
        self.closed.cancel();
        self.tasks.close();
        // What does not end in time ends with its lease.
        drop(timeout(PARTING, self.tasks.wait()).await);
        let all = std::mem::take(&mut *locked(&self.shared));
        let alive = all.iter().filter(|shared| !shared.is_lost());
        let etcd = &self.asker.etcd;
        let revoked = join_all(alive.map(|shared| etcd.lease_revoke(shared.session.lease())));
        match timeout(PARTING, revoked).await {
            Ok(revoked) => revoked.into_iter().try_for_each(|one| one.map(drop)),
            Err(late) => Err(Error::new(ErrorKind::Timeout, "give leases back").because(late)),
        }
    }

    /// A lease on which a write may be carried out late is nobody's from now on.
    fn retire(&self, shared: &Arc<Shared>) {
        locked(&shared.state).doubt = true;
        locked(&self.shared).retain(|other| !Arc::ptr_eq(other, shared));
    }

    /// Lets go of leases that nobody needed for one lease's time, but for one; comes back when others may have
    /// become such.
    fn tidy(self: &Arc<Self>) {
        if !self.let_go() || self.tidying.swap(true, SeqCst) {
            return;
        }
        let (leases, ttl) = (Arc::downgrade(self), self.ttl);
        let later = async move {
            sleep(ttl).await;
            if let Some(leases) = leases.upgrade() {
                leases.tidying.store(false, SeqCst);
                leases.tidy();
            }
        };
        let closed = self.closed.clone();
        self.asker
            .etcd
            .spawn(closed.run_until_cancelled_owned(later));
    }

    /// Lets go of what was idle for long enough; says whether there are others that are idle.
    fn let_go(&self) -> bool {
        let now = Instant::now();
        let (mut first, mut idle) = (true, false);
        locked(&self.shared).retain(|shared| {
            let held = locked(&shared.state);
            if std::mem::take(&mut first) || !held.queues.is_empty() {
                return true;
            }
            let over = now >= held.idle_since + self.ttl;
            idle |= !over;
            !over
        });
        idle
    }
}

impl Shared {
    fn is_lost(&self) -> bool {
        Instant::now() >= self.session.until() || self.session.is_lost().is_some()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_lost() {
            return;
        }
        // Whatever is written late on it finds it gone.
        let (etcd, lease) = (self.etcd.clone(), self.session.lease());
        self.etcd.spawn(async move {
            if let Err(error) = etcd.lease_revoke(lease).await {
                tracing::debug!(why = error.chain(), "a lease runs out by itself");
            }
        });
    }
}

impl Seat {
    pub(super) fn session(&self) -> &Session {
        &self.shared.session
    }

    pub(super) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// The key of this lease in this queue, as Go's `concurrency` names it.
    pub(super) fn key(&self) -> String {
        format!("{}{:x}", self.queue, self.session().lease())
    }

    /// Whether the lease lives, by our own clock, and nobody has ended it.
    pub(super) fn is_held(&self) -> bool {
        !self.leases.closed.is_cancelled() && !self.shared.is_lost()
    }

    /// Returns when it is not.
    pub(super) async fn lost(&self) -> Error {
        tokio::select! {
            why = self.session().lost() => why,
            why = self.leases.closing() => why,
        }
    }

    /// A write on this lease may be carried out yet.
    pub(super) fn doubt(&self) {
        self.leases.retire(&self.shared);
    }

    /// Deletes the key, and whatever of it is written late; until then the seat stays taken.
    ///
    /// Where it cannot be deleted it ends with the lease.
    pub(super) async fn leave(self, key: String, born: Option<i64>) -> Result<()> {
        if self.shared.is_lost() {
            return Ok(());
        }
        let doubt = locked(&self.shared.state).doubt;
        let guard = match born {
            // Another of this name, when this comes late, is not ours to delete.
            Some(born) => Compare::create_revision(&*key, CompareOp::Equal, born),
            // On a lease in doubt there is never another.
            None => Compare::create_revision(&*key, CompareOp::Greater, 0),
        };
        let txn = Txn::new()
            .when([guard])
            .and_then([TxnOp::delete(&*key, None)]);
        let asker = self.leases.asker.clone();
        let deleted = tokio::select! {
            deleted = asker.ask(format!("leave {key}"), txn) => deleted,
            _ = self.shared.session.lost() => return Ok(()),
        };
        if deleted.is_err() {
            self.doubt();
        }
        if doubt || deleted.is_err() {
            self.shared.delete_late(&asker, key);
        }
        deleted.map(drop)
    }
}

impl Shared {
    /// Deletes the key as often as a write that was given up brings it back, as long as others use the lease.
    fn delete_late(&self, asker: &Asker, key: String) {
        let (etcd, asker, span) = (self.etcd.clone(), asker.clone(), Span::Key(key.clone()));
        let watch = Watch::telling(etcd, span, move |seen| {
            let stands = match seen {
                Seen::Listed { all, .. } => all,
                Seen::Changed(changes) | Seen::Skipped { changes, .. } => {
                    changes.into_iter().filter_map(put).collect()
                }
                Seen::Stale(_) => return,
            };
            for kv in stands {
                let late = Compare::create_revision(&*key, CompareOp::Equal, kv.create_revision);
                let delete = TxnOp::delete(&*key, None);
                let txn = Txn::new().when([late]).and_then([delete]);
                let (asker, doing) = (asker.clone(), format!("delete {key}, which came late"));
                let etcd = asker.etcd.clone();
                // Ends by itself, after as many tries as any call has.
                etcd.spawn(async move { asker.ask(doing, txn).await });
            }
        });
        locked(&self.state).watches.push(watch);
    }
}

fn put(change: KeyChange) -> Option<Kv> {
    match change {
        KeyChange::Put(kv) => Some(kv),
        KeyChange::Delete { .. } => None,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut held = locked(&self.shared.state);
        held.queues.remove(&self.queue);
        held.idle_since = Instant::now();
        drop(held);
        self.leases.tidy();
    }
}

pub(super) fn closed() -> Error {
    Error::config("the coordinator was closed: open another")
}
