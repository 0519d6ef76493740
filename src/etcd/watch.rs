//! How a span of keys is followed, for as long as anybody wants to know, through everything.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{EventType, WatchResponse};
use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    client::Etcd,
    cursor::Ask,
    failure::{Failure, Remedy},
    known::{Event, KeyChange, Known},
    kv::{Kv, Listing, Span},
    stream::PROBE_LIMIT,
};
use crate::{Backoff, Error, ErrorKind, Result};

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// All there is; the first word, and never again.
    Listed { all: Vec<Kv>, revision: i64 },
    /// What changed; with nothing in it, that the cluster is in reach again.
    Changed(Vec<KeyChange>),
    /// How it stands by now, where not each change from the one revision to the other was heard, nor ever will
    /// be: only to those who are told every change.
    #[cfg_attr(
        not(feature = "coord"),
        allow(dead_code, reason = "configuration tells from when to when")
    )]
    Skipped {
        from: i64,
        until: i64,
        changes: Vec<KeyChange>,
    },
    /// The cluster is out of reach; what was told stays. Once an outage.
    Stale(Error),
}

/// A span of keys, followed by a task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    verify: Verify,
    #[cfg_attr(
        not(feature = "coord"),
        allow(dead_code, reason = "synchronised entities show it")
    )]
    counts: Arc<Counts>,
    _task: DropGuard,
}

/// Asks a [`Watch`] to list anew; does not keep it alive.
#[derive(Clone, Debug)]
pub(crate) struct Verify {
    asks: mpsc::Sender<oneshot::Sender<Result<i64>>>,
    doing: String,
}

/// How often what was told was compared with a list, and how many keys were not as they had been told.
#[derive(Debug, Default)]
#[cfg_attr(
    not(feature = "coord"),
    allow(dead_code, reason = "synchronised entities show them")
)]
pub(crate) struct Counts {
    pub(crate) compared: AtomicU64,
    pub(crate) repaired: AtomicU64,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tell {
    /// How keys stand, as soon as it is known: a list may come ahead of the stream.
    Latest,
    /// Each change that etcd still knows of: a list is heard when the stream has told what is older.
    #[cfg_attr(
        not(feature = "coord"),
        allow(dead_code, reason = "configuration wants it")
    )]
    Every,
}

struct Task<T> {
    etcd: Etcd,
    span: Span,
    known: Known,
    mode: Tell,
    /// Waits for the stream to come as far.
    held: Option<Listing>,
    /// How many streams in a row broke soon and told nothing.
    broken: u32,
    counts: Arc<Counts>,
    tell: T,
    backoff: Backoff,
    /// For what only a person can put right.
    slow: Backoff,
    stale: bool,
    asks: mpsc::Receiver<oneshot::Sender<Result<i64>>>,
    /// Those who wait for a list that was not asked for when they came.
    waiting: Vec<oneshot::Sender<Result<i64>>>,
    relist_at: Instant,
}

type Listed = Pin<Box<dyn Future<Output = Result<Listing, Failure>> + Send>>;

impl Watch {
    /// Tells each word at once, from the task that reads the stream: `tell` must not wait.
    pub(crate) fn telling(etcd: Etcd, span: Span, tell: impl FnMut(Seen) + Send + 'static) -> Self {
        Self::knowing(etcd, span, Known::default(), Tell::Latest, tell)
    }

    /// The same, and every single change: only what etcd compacted before it was heard is not told, and that
    /// is said.
    #[cfg(feature = "coord")]
    pub(crate) fn every(etcd: Etcd, span: Span, tell: impl FnMut(Seen) + Send + 'static) -> Self {
        Self::knowing(etcd, span, Known::default(), Tell::Every, tell)
    }

    /// The same, behind a list that was answered already and is not told again.
    #[cfg(feature = "coord")]
    pub(crate) fn after(
        etcd: Etcd,
        span: Span,
        listing: Listing,
        tell: impl FnMut(Seen) + Send + 'static,
    ) -> Self {
        let mut known = Known::default();
        known.listed(listing);
        Self::knowing(etcd, span, known, Tell::Latest, tell)
    }

    fn knowing(
        etcd: Etcd,
        span: Span,
        known: Known,
        mode: Tell,
        tell: impl FnMut(Seen) + Send + 'static,
    ) -> Self {
        let (asks, asked) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let doing = format!("list {span}");
        let counts = Arc::new(Counts::default());
        let task = Task {
            etcd,
            span,
            relist_at: relist_after(&known),
            known,
            mode,
            held: None,
            broken: 0,
            counts: Arc::clone(&counts),
            tell,
            backoff: Backoff::between(Duration::from_millis(20), Duration::from_secs(5))
                .factor(2.0)
                .jitter(1.0),
            slow: Backoff::between(Duration::from_secs(1), Duration::from_secs(30)).factor(2.0),
            stale: false,
            asks: asked,
            waiting: Vec::new(),
        };
        let runtime = task.etcd.clone();
        runtime.spawn(stop.clone().run_until_cancelled_owned(task.run()));
        Self {
            verify: Verify { asks, doing },
            counts,
            _task: stop.drop_guard(),
        }
    }

    /// What comparing showed; counted where every change is told.
    #[cfg(feature = "coord")]
    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Asks for a list without keeping the watch alive.
    pub(crate) fn verify(&self) -> Verify {
        self.verify.clone()
    }
}

impl Verify {
    /// Lists anew; returns, with the list's revision, when all that it changes was told.
    ///
    /// Fails when the list fails, and is not tried again.
    pub(crate) async fn now(&self) -> Result<i64> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(ErrorKind::Unavailable, self.doing.clone()).because("it ended");
        self.asks.send(reply).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl<T: FnMut(Seen) + Send + 'static> Task<T> {
    async fn run(mut self) {
        loop {
            // A stream that breaks as soon as it opens must not keep the list from being asked for.
            let overdue = match self.mode {
                Tell::Latest => Instant::now() > self.relist_at + OVERDUE,
                Tell::Every => self.broken >= BROKEN,
            };
            match self.known.next() {
                Ask::Watch(from) if !overdue => {
                    let began = Instant::now();
                    let mut opened = false;
                    let failure = self.follow(from, &mut opened).await;
                    self.known.not_asking();
                    if self.held.take().is_some() {
                        self.relist_at = Instant::now();
                    }
                    if opened && Instant::now() - began > STEADY {
                        self.backoff.reset();
                        self.slow.reset();
                        self.broken = 0;
                    } else if opened {
                        self.broken += 1;
                    }
                    self.failed(failure, !opened).await;
                }
                Ask::Watch(_) | Ask::List => match self.ask().await {
                    // The stream goes on from where it was, and is compared with this when it has come as far.
                    Ok(listing) if self.mode == Tell::Every && self.known.resumes(&listing) => {
                        self.held = Some(listing);
                    }
                    Ok(listing) => self.listed(Ok(listing)),
                    Err(failure) => {
                        self.listed(Err(failure.clone()));
                        self.failed(failure, true).await;
                    }
                },
            }
        }
    }

    /// Asks for a list, for all who wait for one.
    fn ask(&mut self) -> Listed {
        while let Ok(reply) = self.asks.try_recv() {
            self.waiting.push(reply);
        }
        self.known.asking();
        let (etcd, span) = (self.etcd.clone(), self.span.clone());
        Box::pin(async move { etcd.list(&span).await })
    }

    /// Takes in a list, or the lack of one.
    fn listed(&mut self, answer: Result<Listing, Failure>) {
        let answer = match answer {
            Ok(listing) if self.known.is_listed() => Ok(self.relisted(listing)),
            Ok(listing) => {
                let revision = listing.revision;
                let changes = self.known.listed(listing);
                let kv = |change| match change {
                    KeyChange::Put(kv) => Some(kv),
                    KeyChange::Delete { .. } => None,
                };
                let all = changes.into_iter().filter_map(kv).collect();
                self.stale = false;
                (self.tell)(Seen::Listed { all, revision });
                Ok(revision)
            }
            Err(failure) => {
                self.known.not_asking();
                Err(failure.error(format_args!("list {}", self.span)))
            }
        };
        self.broken = 0;
        self.reply(&answer);
    }

    /// Takes in a list that goes ahead of the stream; answers with its revision.
    fn relisted(&mut self, listing: Listing) -> i64 {
        let (from, epoch) = (self.known.from(), self.known.epoch());
        let until = listing.revision;
        let mut changes = self.known.listed(listing);
        // Of data that was replaced, nothing was heard.
        let from = if self.known.epoch() == epoch { from } else { 0 };
        let skipped = from < until || (from == until && !changes.is_empty());
        if self.mode == Tell::Every && skipped {
            tracing::warn!(span = %self.span, from, until, "not each change was heard: history is gone");
            changes.sort_by_key(KeyChange::at);
            (self.tell)(Seen::Skipped {
                from,
                until,
                changes,
            });
        } else if !changes.is_empty() {
            (self.tell)(Seen::Changed(changes));
        }
        until
    }

    /// Tells those who wait for a list, and when the next is due.
    fn reply(&mut self, answer: &Result<i64>) {
        for reply in self.waiting.drain(..) {
            // Who no longer waits needs no answer.
            let _ = reply.send(answer.clone());
        }
        let again = if answer.is_ok() {
            RELIST_EVERY
        } else {
            RELIST_AGAIN
        };
        let spread = rand::rng().random_range(0.75..1.25);
        self.relist_at = Instant::now() + again.mul_f64(spread);
    }

    /// Watches until it fails.
    async fn follow(&mut self, from: i64, opened: &mut bool) -> Failure {
        let mut link = match self.etcd.watch(&self.span, from).await {
            Ok(link) => link,
            Err(failure) => return failure,
        };
        let epoch = self.known.epoch();
        let mut listing: Option<Listed> = None;
        let mut probing = false;
        let mut quiet_until = Instant::now() + PROBE_LIMIT;
        loop {
            tokio::select! {
                message = link.message() => match message {
                    Ok(message) => {
                        let settled = settled_at(&message).filter(|_| probing);
                        (probing, quiet_until) = (false, Instant::now() + PROBE_EVERY);
                        if message.created() && !self.opened(&message, opened) {
                            return link.behind();
                        }
                        self.heard(&message);
                        self.compare(settled);
                        if self.known.epoch() != epoch {
                            return link.behind();
                        }
                    }
                    Err(failure) => return failure,
                },
                answer = async { listing.as_mut()?.await.into() }, if listing.is_some() => {
                    listing = None;
                    if let Some(answer) = answer {
                        self.answered(answer);
                    }
                    if self.known.epoch() != epoch {
                        return link.behind();
                    }
                }
                Some(reply) = self.asks.recv(), if listing.is_none() && self.held.is_none() => {
                    self.waiting.push(reply);
                    listing = Some(self.ask());
                }
                () = sleep_until(self.relist_at), if listing.is_none() && self.held.is_none() => {
                    listing = Some(self.ask());
                }
                () = sleep_until(quiet_until) => {
                    if probing || !*opened {
                        return link.silent(PROBE_LIMIT);
                    }
                    if let Err(failure) = link.probe().await {
                        return failure;
                    }
                    (probing, quiet_until) = (true, Instant::now() + PROBE_LIMIT);
                }
            }
        }
    }

    /// The stream is open; says whether it goes on from what we know.
    fn opened(&mut self, message: &WatchResponse, opened: &mut bool) -> bool {
        let revision = message.header().map_or(0, |header| header.revision());
        if !self.known.opened(revision) {
            return false;
        }
        *opened = true;
        if std::mem::take(&mut self.stale) {
            (self.tell)(Seen::Changed(Vec::new()));
        }
        true
    }

    fn heard(&mut self, message: &WatchResponse) {
        let events = message.events().iter().filter_map(event);
        let changes: Vec<_> = events.filter_map(|event| self.known.heard(event)).collect();
        if !changes.is_empty() {
            self.broken = 0;
            (self.tell)(Seen::Changed(changes));
        }
    }

    /// A list was answered while the stream goes on.
    fn answered(&mut self, answer: Result<Listing, Failure>) {
        match answer {
            Ok(listing) if self.mode == Tell::Every && !self.known.is_older(&listing) => {
                self.held = Some(listing);
                self.compare(None);
            }
            answer => self.listed(answer),
        }
    }

    /// Hears the list that waits, once the stream has told all that is older: something newer, or that there
    /// is nothing up to where it has `settled`.
    fn compare(&mut self, settled: Option<i64>) {
        let seen = self.known.seen();
        let is_told = |held: &mut Listing| has_told(held.revision, seen, settled);
        if let Some(listing) = self.held.take_if(is_told) {
            let revision = listing.revision;
            let changes = self.known.listed(listing);
            self.counts.compared.fetch_add(1, Relaxed);
            if !changes.is_empty() {
                self.counts
                    .repaired
                    .fetch_add(changes.len() as u64, Relaxed);
                tracing::warn!(span = %self.span, keys = changes.len(), revision, "changes were not told");
                (self.tell)(Seen::Changed(changes));
            }
            self.reply(&Ok(revision));
        }
    }

    /// Says so, once an outage, and waits.
    async fn failed(&mut self, failure: Failure, in_vain: bool) {
        tracing::debug!(span = %self.span, why = failure.words(), "watch failed");
        // Events may have been lost, and a list is the only proof that they were not. Not all
        // clients should ask for it at the same moment.
        let spread = RELIST_SPREAD.mul_f64((self.known.len() as f64 / 1_000.0).clamp(1.0, 25.0));
        let relist = Instant::now() + spread.mul_f64(rand::rng().random());
        self.relist_at = self.relist_at.min(relist);

        let patient = matches!(failure.kind, ErrorKind::Denied | ErrorKind::Config);
        // A token that ran out is a formality, once.
        let formality = failure.remedy == Remedy::Renew && self.backoff.failures() == 0;
        let in_vain = (in_vain && !formality) || failure.kind == ErrorKind::Timeout;
        match failure.remedy {
            Remedy::Relist => self.known.compacted(),
            Remedy::Check => self.known.doubted(),
            _ if (in_vain || patient) && !self.stale => {
                self.stale = true;
                let error = failure.error(format_args!("watch {}", self.span));
                (self.tell)(Seen::Stale(error));
            }
            _ => {}
        }
        let wait = if patient {
            self.slow.next()
        } else {
            self.backoff.next()
        };
        sleep(wait).await;
    }
}

/// When the first list behind what is known is due.
fn relist_after(known: &Known) -> Instant {
    let spread = rand::rng().random_range(0.75..1.25);
    let wait = if known.is_listed() {
        RELIST_EVERY.mul_f64(spread)
    } else {
        Duration::ZERO
    };
    Instant::now() + wait
}

/// Whether a stream has told all up to this revision: something newer was seen, or it has settled as far.
fn has_told(revision: i64, seen: i64, settled: Option<i64>) -> bool {
    // It may have been asked before the list was, and its member may be behind.
    seen > revision || settled.is_some_and(|at| at >= revision)
}

/// Up to which revision a member has nothing more to tell, if it says so.
fn settled_at(message: &WatchResponse) -> Option<i64> {
    let header = message.header().filter(|_| message.events().is_empty());
    header.map(|header| header.revision())
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => Event::Put(Kv::from(kv.clone())),
        EventType::Delete => Event::Delete {
            key: bytes::Bytes::copy_from_slice(kv.key()),
            mod_revision: kv.mod_revision(),
        },
    })
}

/// How long a stream may say nothing before it is asked for a sign of life.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a stream must have lived for the next failure to count as the first.
const STEADY: Duration = Duration::from_secs(5);
/// How many streams may break as soon as they open before a list goes ahead of the next.
const BROKEN: u32 = 10;
/// How often everything is compared, whatever was told: servers before 3.4.36 and 3.5.18 lose deletions.
const RELIST_EVERY: Duration = Duration::from_secs(120);
/// How soon a list that failed is asked for again, while the watch goes on.
const RELIST_AGAIN: Duration = Duration::from_secs(5);
/// How late a list may be before it goes ahead of the stream.
const OVERDUE: Duration = Duration::from_secs(2);
/// Over how long the lists of many clients are spread after a failure, for each thousand keys.
const RELIST_SPREAD: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_waits_for_a_stream_that_settled_before_it() {
        assert!(!has_told(7, 7, None), "the rest of the revision may come");
        assert!(!has_told(7, 5, Some(6)), "its member is behind");
        assert!(has_told(7, 5, Some(7)));
        assert!(has_told(7, 8, None));
    }
}
