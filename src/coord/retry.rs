//! How often a question is asked again.

use std::{fmt, time::Duration};

use etcd_client::{Txn, TxnOp, TxnResponse};
use tokio::time::sleep;

use crate::{
    Backoff, Error, ErrorKind, Result,
    etcd::{
        Etcd,
        failure::{Failure, Remedy},
        kv::{Listing, Span},
        session::Session,
    },
};

/// How often a call is tried, and how long it waits in between: the same for all calls of a
/// [`Coordinator`](super::Coordinator).
///
/// Only what may get better by itself is tried again, and a write only when it certainly did not happen, or
/// when a comparison in it keeps it from happening twice. Each try has the time limits of the cluster's
/// [`Options`](crate::etcd::Options), and goes to the next member when one does not answer.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::coord::Retry;
///
/// let patient = Retry::default().attempts(20).most(Duration::from_secs(5));
/// let none = Retry::default().attempts(1);
/// # let _ = (patient, none);
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    attempts: u32,
    initial: Duration,
    most: Duration,
    multiplier: f64,
    jitter: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 8,
            initial: Duration::from_millis(50),
            most: Duration::from_secs(2),
            multiplier: 2.0,
            jitter: 0.2,
        }
    }
}

impl Retry {
    /// Sets how often a call is tried in all. Eight times, unless set, which outlasts a restart of etcd; at
    /// least once.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the first wait. 50 ms, unless set.
    #[must_use]
    pub fn initial(mut self, initial: Duration) -> Self {
        self.initial = initial;
        self
    }

    /// Sets the longest wait. Two seconds, unless set.
    #[must_use]
    pub fn most(mut self, most: Duration) -> Self {
        self.most = most;
        self
    }

    /// Sets how much each wait grows. Two, unless set.
    #[must_use]
    pub fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets the share by which a wait may be shorter or longer. A fifth, unless set.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    fn begin(&self) -> Tries {
        Tries {
            left: self.attempts - 1,
            waits: Backoff::between(self.initial, self.most)
                .factor(self.multiplier)
                .jitter(self.jitter),
        }
    }
}

/// The tries of one call.
#[derive(Debug)]
struct Tries {
    left: u32,
    waits: Backoff,
}

impl Tries {
    /// Waits before the next try; says whether there is one.
    async fn again(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        sleep(self.waits.next()).await;
        true
    }
}

/// What makes it safe to try a write again that may have happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Twice {
    /// A comparison in it, or that it does the same each time.
    Harmless,
    /// Nothing.
    Never,
}

/// How a write went.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) answer: Result<TxnResponse>,
    /// Whether one of the tries may be carried out yet, however the last one ended.
    pub(super) doubt: bool,
}

/// The cluster, asked as often as is to be.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) etcd: Etcd,
    pub(super) retry: Retry,
}

impl Asker {
    /// Does all of it or nothing.
    pub(super) async fn write(&self, doing: impl fmt::Display, txn: Txn, twice: Twice) -> Written {
        let mut tries = self.retry.begin();
        let mut doubt = false;
        loop {
            let failure = match self.etcd.commit(txn.clone()).await {
                Ok(answer) => {
                    return Written {
                        answer: Ok(answer),
                        doubt,
                    };
                }
                Err(failure) => failure,
            };
            let unsure = !failure.unsent && passes(&failure);
            doubt |= unsure;
            let may = passes(&failure) && (!unsure || twice == Twice::Harmless);
            if !may || !tries.again().await {
                return Written {
                    answer: Err(told(failure, doing)),
                    doubt,
                };
            }
        }
    }

    /// Asks for what changes nothing, or what may happen any number of times.
    pub(super) async fn ask(&self, doing: impl fmt::Display, txn: Txn) -> Result<TxnResponse> {
        self.write(doing, txn, Twice::Harmless).await.answer
    }

    /// Returns when the cluster has answered, whatever it lets us read.
    pub(super) async fn look(&self, doing: impl fmt::Display) -> Result<()> {
        let mut tries = self.retry.begin();
        let question = Txn::new().and_then([TxnOp::get("/", None)]);
        loop {
            match self.etcd.commit(question.clone()).await {
                Ok(_) => return Ok(()),
                // Who may not read this may read what they came for; wrong credentials want others.
                Err(failure)
                    if failure.kind == ErrorKind::Denied && failure.remedy == Remedy::None =>
                {
                    return Ok(());
                }
                Err(failure) if passes(&failure) && tries.again().await => {}
                Err(failure) => return Err(told(failure, doing)),
            }
        }
    }

    /// All of a span, as the cluster agrees on it.
    pub(super) async fn list(&self, span: &Span) -> Result<Listing> {
        let mut tries = self.retry.begin();
        loop {
            match self.etcd.list(span).await {
                Ok(listing) => return Ok(listing),
                Err(failure) if passes(&failure) && tries.again().await => {}
                Err(failure) => return Err(told(failure, format!("list {span}"))),
            }
        }
    }

    /// A new lease, over by our own clock one part in so many sooner.
    pub(super) async fn session(&self, ttl: Duration, early: u32) -> Result<Session> {
        let mut tries = self.retry.begin();
        loop {
            match Session::early(&self.etcd, ttl, early).await {
                Err(error) if error.is_transient() && tries.again().await => {}
                answer => return answer,
            }
        }
    }
}

/// Whether it may get better by itself.
fn passes(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NoSpace | ErrorKind::Overloaded
    )
}

/// As an error, where it counts whether anything was sent.
fn told(mut failure: Failure, doing: impl fmt::Display) -> Error {
    let never = failure.unsent && failure.remedy == Remedy::Rotate;
    failure.kind = match failure.kind {
        ErrorKind::Unavailable if never => ErrorKind::Connection,
        // etcd says that what was asked for cannot be.
        ErrorKind::Config if !never => ErrorKind::Validation,
        kind => kind,
    };
    failure.error(doing)
}
