//! One of many leads, and all know who.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse,
};
use futures_core::Stream;
use futures_util::stream;
use tokio::sync::watch;

use super::{
    leases::Leases,
    lock::Guard,
    queue::{Queue, kvs},
};
use crate::{
    Error, ErrorKind, Result,
    etcd::{
        known::KeyChange,
        kv::{Kv, Span},
        watch::{Seen, Watch},
    },
};

/// An election in etcd, by its name; clones are the same one.
///
/// It is a [lock](super::Lock) whose holder says something: who campaigns stands in line, and the first in line
/// leads. Programs in Go that use `concurrency.NewElection` with the same name take part.
///
/// ```no_run
/// # async fn serve() {}
/// # async fn example() -> tonic_fleet::Result<()> {
/// use tonic_fleet::coord::Coordinator;
///
/// let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
/// let election = coordinator.election("elections/scheduler")?;
///
/// let leadership = election.campaign("10.0.0.7:50051").await?;
/// // Dropped when somebody else may lead.
/// leadership.run(serve()).await?;
/// leadership.resign().await?;
/// # Ok(())
/// # }
/// ```
///
/// # What it guarantees
/// Etcd knows one leader at a time, the one who has campaigned longest, and a leader learns that it is over before
/// anybody else can lead. What is [proclaimed](Leadership::proclaim) is written only while it is true that we lead.
///
/// # And what not
/// Those who [observe](Self::observe) learn of a change a moment later, when the next may lead already; and a leader
/// that stood still for longer than its lease may act before it looks at its clock. Who must not be led by two
/// compares the [fences](Leader::fence) of those who claim to lead.
#[derive(Clone)]
pub struct Election {
    queue: Queue,
}

/// That we lead. Dropping it resigns without waiting, as a lock's [`Guard`] does; and what is said there of
/// what a guard can and cannot hold is true here.
#[must_use = "who drops it resigns"]
pub struct Leadership {
    guard: Guard,
    /// The revision of what we said last, held while we say more.
    said: tokio::sync::Mutex<i64>,
}

/// Who leads, and what they say.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Leader {
    /// The key that says that they lead.
    pub key: String,
    /// What they campaigned with or proclaimed last.
    pub value: Bytes,
    /// Greater for each leader than for all before.
    pub fence: i64,
}

/// Who leads, now and after each change: a stream that tells the latest, and nothing twice.
///
/// Who reads slowly misses those who led meanwhile. While etcd is out of reach it is silent; it ends when the
/// coordinator is closed.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Leaders(Pin<Box<dyn Stream<Item = Option<Leader>> + Send>>);

/// How often our own key may be other than we think before that is a failure.
const TRIES: u32 = 5;

impl Election {
    pub(super) fn new(leases: &Arc<Leases>, name: &str) -> Result<Self> {
        let queue = Queue::named(leases, name)?;
        Ok(Self { queue })
    }

    /// Waits in line until we lead, and says this of us from then on.
    ///
    /// # Errors
    /// When etcd cannot be asked, after as many tries as [`Retry`](super::Retry) says.
    ///
    /// # Cancel safety
    /// Dropping the future, at any point, gives up the place in line, or the leadership.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership> {
        let place = tokio::select! {
            place = self.queue.stand(value.as_ref()) => place?,
            why = self.queue.leases().closing() => return Err(why),
        };
        let said = tokio::sync::Mutex::new(place.born());
        let guard = Guard::new(place);
        Ok(Leadership { guard, said })
    }

    /// Who leads, if anybody does, as the cluster agrees on it.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let oldest = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let txn = Txn::new().and_then([TxnOp::get(self.queue.prefix(), Some(oldest))]);
        let doing = format!("ask who leads {}", self.name());
        let answer = self.queue.leases().asker.ask(doing, txn).await?;
        Ok(kvs(answer).into_iter().flatten().next().map(Leader::of))
    }

    /// Who leads, now and after each change; nobody is `None`.
    pub fn observe(&self) -> Leaders {
        let (tell, told) = watch::channel(None);
        let mut standing = HashMap::new();
        let etcd = self.queue.leases().asker.etcd.clone();
        let span = Span::Prefix(self.queue.prefix().to_owned());
        let watch = Watch::telling(etcd, span, move |seen| {
            if !take_in(&mut standing, seen) {
                return;
            }
            let leads = standing.values().min_by_key(|kv: &&Kv| kv.create_revision);
            let leads = leads.cloned().map(Leader::of);
            tell.send_if_modified(|last| {
                let news = last.as_ref() != Some(&leads);
                *last = Some(leads);
                news
            });
        });
        let leases = Arc::clone(self.queue.leases());
        let from = (told, watch, leases);
        Leaders(Box::pin(stream::unfold(from, next_leader)))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.queue.prefix().trim_end_matches('/')
    }
}

type Observed = (watch::Receiver<Option<Option<Leader>>>, Watch, Arc<Leases>);

async fn next_leader(from: Observed) -> Option<(Option<Leader>, Observed)> {
    let (mut told, watch, leases) = from;
    loop {
        tokio::select! {
            changed = told.changed() => changed.ok()?,
            _ = leases.closing() => return None,
        }
        let leader = told.borrow_and_update().clone();
        if let Some(leader) = leader {
            return Some((leader, (told, watch, leases)));
        }
    }
}

/// Keeps what stands; says whether anything was told of it.
fn take_in(standing: &mut HashMap<Bytes, Kv>, seen: Seen) -> bool {
    match seen {
        Seen::Listed { all, .. } => {
            *standing = all.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        }
        Seen::Changed(changes) | Seen::Skipped { changes, .. } => {
            for change in changes {
                match change {
                    KeyChange::Put(kv) => standing.insert(kv.key.clone(), kv),
                    KeyChange::Delete { key, .. } => standing.remove(&key),
                };
            }
        }
        Seen::Stale(_) => return false,
    }
    true
}

impl Leadership {
    /// The key that says that we lead.
    pub fn key(&self) -> &str {
        self.guard.key()
    }

    /// A number that is greater for each leader than for all before; see [`Guard::fence`].
    pub fn fence(&self) -> i64 {
        self.guard.fence()
    }

    /// For how long we lead without another renewal; see [`Guard::ttl`].
    pub fn ttl(&self) -> Duration {
        self.guard.ttl()
    }

    /// Whether we lead yet; see [`Guard::is_held`].
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Returns when we lead no more, before anybody else does; see [`Guard::lost`].
    pub async fn lost(&self) -> Error {
        self.guard.lost().await
    }

    /// Does the work for as long as we lead, and drops it then; see [`Guard::run`].
    ///
    /// # Errors
    /// `Lost` when the work did not end before.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.guard.run(work).await
    }

    /// Runs a transaction in etcd that does nothing unless we lead; see [`Guard::guarded`].
    ///
    /// # Errors
    /// As there.
    pub async fn guarded(&self, txn: Txn) -> Result<TxnResponse> {
        self.guard.guarded(txn).await
    }

    /// Says something else of us, for all who observe.
    ///
    /// # Errors
    /// `Lost` when we lead no more. When etcd cannot be asked, it may have been said.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        let value = value.as_ref();
        let mut said = self.said.lock().await;
        for _ in 0..TRIES {
            let on_lease = PutOptions::new().with_lease(self.guard.lease());
            // What we said before and nobody heard of must not come behind what we say now.
            let as_said = Compare::mod_revision(self.key(), CompareOp::Equal, *said);
            let ours = Compare::create_revision(self.key(), CompareOp::Equal, self.fence());
            let txn = Txn::new()
                .when([ours, as_said])
                .and_then([TxnOp::put(self.key(), value, Some(on_lease))])
                .or_else([TxnOp::get(self.key(), None)]);
            let doing = format!("proclaim {}", self.key());
            let answer = self.guard.asker().ask(&doing, txn).await?;
            if answer.succeeded() {
                *said = answer.header().map_or(0, |header| header.revision());
                return Ok(());
            }
            let stands = kvs(answer).into_iter().flatten().next();
            let Some(stands) = stands.filter(|kv| kv.create_revision == self.fence()) else {
                return Err(Error::new(ErrorKind::Lost, doing).because("we lead no more"));
            };
            *said = stands.mod_revision;
            if stands.value == value {
                return Ok(());
            }
        }
        let doing = format!("proclaim {}: others keep writing it", self.key());
        Err(Error::new(ErrorKind::Conflict, doing))
    }

    /// Leads no more, and returns when etcd has confirmed it: the next in line leads, or may.
    ///
    /// # Errors
    /// When etcd cannot be asked: the next leads when the lease ends, if not before.
    ///
    /// # Cancel safety
    /// We resign all the same.
    pub async fn resign(self) -> Result<()> {
        self.guard.unlock().await
    }
}

impl Leader {
    fn of(kv: Kv) -> Self {
        Self {
            key: kv.name().into_owned(),
            value: kv.value,
            fence: kv.create_revision,
        }
    }

    /// What they say, where it is text.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }
}

impl Stream for Leaders {
    type Item = Option<Leader>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Election").field(&self.name()).finish()
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leadership").field(&self.guard).finish()
    }
}

impl fmt::Debug for Leaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaders").finish_non_exhaustive()
    }
}
