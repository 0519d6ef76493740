//! A lock that many processes want and one has.

use std::{fmt, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{sync::watch, time::Instant, time::timeout};

use super::{
    leases::Leases,
    queue::{Place, Queue, is_gone},
    retry::{Asker, Twice},
};
use crate::{
    Error, ErrorKind, Result,
    backoff::countable,
    etcd::{
        kv::{Kv, Listing, Span},
        watch::Watch,
    },
};

/// A lock in etcd, by its name; clones are the same lock.
///
/// Those who want it get it in the order in which they asked, over all processes, and so do programs in Go
/// that use `concurrency.NewMutex` with the same name.
///
/// ```no_run
/// # async fn example() -> tonic_fleet::Result<()> {
/// use tonic_fleet::coord::Coordinator;
///
/// let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
/// let lock = coordinator.lock("locks/report")?;
///
/// let guard = lock.acquire().await?;
/// println!("mine, with fence {}", guard.fence());
/// guard.unlock().await?;
/// # Ok(())
/// # }
/// ```
///
/// # What it guarantees
/// Etcd gives it to one at a time, and to whoever asked first. Who has it learns that it is lost, by the clock of
/// his own process, before anybody else can have it. A cancelled wait leaves no key and holds nobody up, and what
/// a dead process held is free when its lease ends.
///
/// # And what not
/// A process that stands still for longer than its lease has lost the lock, and may write before it looks at any
/// clock: only what compares [fences](Guard::fence), or goes through [`guarded`](Guard::guarded), is safe from that.
/// An etcd that stands still for as long costs every holder the lock. All of it, case by case, is in the table
/// of [the module](super).
#[derive(Clone)]
pub struct Lock {
    queue: Queue,
}

/// A lock that is held. Dropping it unlocks without waiting: the key is deleted a moment later by a task, or,
/// when etcd is out of reach, ends with its lease. [`unlock`](Self::unlock) waits until it is certain.
///
/// To hold a guard is to have been given the lock, not to have it still: a process that stands still for
/// longer than the lease has lost it without noticing. [`lost`](Self::lost) and [`run`](Self::run) tell in
/// time by our own clock, and [`guarded`](Self::guarded) and [`fence`](Self::fence) hold without one.
#[must_use = "a lock is let go when its guard is dropped"]
pub struct Guard {
    place: Place,
    ward: Ward,
}

/// Our own key, watched from when somebody first wants to know.
#[derive(Default)]
struct Ward(tokio::sync::OnceCell<(Watch, watch::Receiver<bool>)>);

impl Lock {
    pub(super) fn new(leases: &Arc<Leases>, name: &str) -> Result<Self> {
        let queue = Queue::named(leases, name)?;
        Ok(Self { queue })
    }

    /// Waits for the lock, in line.
    ///
    /// A lease that is lost while waiting costs the place in line and nothing else: another is taken.
    ///
    /// # Errors
    /// When etcd cannot be asked, after as many tries as [`Retry`](super::Retry) says.
    ///
    /// # Cancel safety
    /// Dropping the future, at any point, gives up the place in line, or the lock.
    pub async fn acquire(&self) -> Result<Guard> {
        tokio::select! {
            place = self.queue.stand(b"") => Ok(Guard::new(place?)),
            why = self.queue.leases().closing() => Err(why),
        }
    }

    /// The same, for no longer than this.
    ///
    /// # Errors
    /// `Timeout` when others had the lock all the while; otherwise as for [`acquire`](Self::acquire).
    pub async fn acquire_within(&self, limit: Duration) -> Result<Guard> {
        let limit = countable(limit);
        let acquired = timeout(limit, self.acquire()).await;
        acquired.unwrap_or_else(|_| {
            let doing = format!("acquire {}", self.name());
            let why = format!("others have it, or etcd does not answer, for {limit:?}");
            Err(Error::new(ErrorKind::Timeout, doing).because(why))
        })
    }

    /// Takes the lock if nobody has it or waits for it. Never stands in line. When etcd's answer was lost, and somebody
    /// came meanwhile, it may say that somebody else has it.
    ///
    /// # Errors
    /// As for [`acquire`](Self::acquire). That somebody else has it is none.
    ///
    /// # Cancel safety
    /// As for [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Guard>> {
        Ok(self.queue.first(b"").await?.map(Guard::new))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.queue.prefix().trim_end_matches('/')
    }
}

impl Guard {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            ward: Ward::default(),
        }
    }

    pub(super) fn lease(&self) -> i64 {
        self.place.seat().session().lease()
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.place.seat().leases().asker
    }

    /// The key that says that it is ours: the lock's name and our lease in hexadecimal.
    pub fn key(&self) -> &str {
        self.place.key()
    }

    /// A number that is greater for each holder than for all before: give it to whatever is written to, and
    /// let that refuse what comes with a smaller one than it has seen. It is the revision at which our key
    /// came into being; only a cluster whose data was replaced starts again.
    pub fn fence(&self) -> i64 {
        self.place.born()
    }

    /// For how long it is ours without another renewal, by our own clock; zero once it is lost.
    pub fn ttl(&self) -> Duration {
        if !self.is_held() {
            return Duration::ZERO;
        }
        let until = self.place.seat().session().until();
        until.saturating_duration_since(Instant::now())
    }

    /// Whether it is ours yet: by our own clock and, once [`lost`](Self::lost) or [`run`](Self::run) was
    /// called, by what etcd told of our key. Asks nobody.
    pub fn is_held(&self) -> bool {
        self.place.seat().is_held() && !self.ward.is_gone()
    }

    /// Renews the lease now rather than when it is due, which is at a third of it; answers with
    /// [`ttl`](Self::ttl).
    ///
    /// # Errors
    /// `Lost` when it is lost; otherwise it was not renewed, and is ours for what is left.
    pub async fn renew(&self) -> Result<Duration> {
        if !self.is_held() {
            return Err(self.lost_error());
        }
        self.place.seat().session().renew().await?;
        Ok(self.ttl())
    }

    /// Returns when the lock is lost, with the reason: the lease ran out by our own clock, which is no later
    /// than its time after the last renewal that etcd answered was *asked* for, and so before anybody else
    /// can have the lock; or etcd says that the lease or our key is gone, because somebody deleted it.
    pub async fn lost(&self) -> Error {
        tokio::select! {
            why = self.place.seat().lost() => why,
            () = self.ward.gone(&self.place) => {
                let why = "somebody deleted it, or the lease ended before its time";
                Error::new(ErrorKind::Lost, format!("hold {}", self.key())).because(why)
            }
        }
    }

    /// Does the work for as long as the lock is ours, and drops it when it is lost.
    ///
    /// # Errors
    /// `Lost` when the work did not end before.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        if !self.is_held() {
            return Err(self.lost_error());
        }
        tokio::select! {
            biased;
            why = self.lost() => Err(why),
            // After a standstill the work may be woken before the word that the time is over.
            why = poll_fn(|_| self.is_over()) => Err(why),
            done = work => Ok(done),
        }
    }

    /// Runs a transaction in etcd that does nothing at all unless the lock is ours when etcd carries it out,
    /// whatever clocks say. The answer is that to `txn`.
    ///
    /// It is tried again only when it certainly did not happen.
    ///
    /// # Errors
    /// `Lost` when the lock is not ours any more: then nothing was done. `Timeout` and `Unavailable` when
    /// nobody knows whether it was done.
    pub async fn guarded(&self, txn: Txn) -> Result<TxnResponse> {
        let ours = Compare::create_revision(self.key(), CompareOp::Equal, self.fence());
        let whole = Txn::new().when([ours]).and_then([TxnOp::txn(txn)]);
        let asker = self.asker();
        let doing = format!("write while holding {}", self.key());
        let written = asker.write(&doing, whole, Twice::Never).await;
        let inner = written
            .answer?
            .op_responses()
            .into_iter()
            .find_map(|op| match op {
                TxnOpResponse::Txn(inner) => Some(inner),
                _ => None,
            });
        inner.ok_or_else(|| Error::new(ErrorKind::Lost, doing).because("it is not ours any more"))
    }

    /// Lets go of the lock, and returns when etcd has confirmed it: the next in line has it, or may. One that is lost
    /// already is given up at once; its key stands until its lease ends.
    ///
    /// # Errors
    /// When etcd cannot be asked: the lock is free when the lease ends, if not before.
    ///
    /// # Cancel safety
    /// The lock is let go of all the same.
    pub async fn unlock(self) -> Result<()> {
        self.place.leave().await
    }

    /// Whether the lock is lost at this moment; wakes nobody.
    fn is_over(&self) -> Poll<Error> {
        if self.is_held() {
            return Poll::Pending;
        }
        Poll::Ready(self.lost_error())
    }

    fn lost_error(&self) -> Error {
        let doing = format!("hold {}", self.key());
        Error::new(ErrorKind::Lost, doing).because("it was lost")
    }
}

impl Ward {
    fn is_gone(&self) -> bool {
        self.0.get().is_some_and(|(_, gone)| *gone.borrow())
    }

    async fn gone(&self, place: &Place) {
        let watched = self.0.get_or_init(|| async { ward(place) }).await;
        let mut gone = watched.1.clone();
        if gone.wait_for(|gone| *gone).await.is_err() {
            // Its runtime is gone; the clock counts alone.
            std::future::pending::<()>().await;
        }
    }
}

fn ward(place: &Place) -> (Watch, watch::Receiver<bool>) {
    let (tell, told) = watch::channel(false);
    let (key, born) = (place.key().to_owned(), place.born());
    // As it stood when it came into being.
    let own = Kv {
        key: key.clone().into(),
        value: bytes::Bytes::new(),
        create_revision: born,
        mod_revision: born,
        lease: place.seat().session().lease(),
    };
    let listing = Listing {
        all: vec![own],
        revision: born,
    };
    let etcd = place.seat().leases().asker.etcd.clone();
    let watch = Watch::after(etcd, Span::Key(key), listing, move |seen| {
        if is_gone(&seen, born) {
            tell.send_replace(true);
        }
    });
    (watch, told)
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lock").field(&self.name()).finish()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("key", &self.key())
            .field("fence", &self.fence())
            .field("ttl", &self.ttl())
            .finish()
    }
}
