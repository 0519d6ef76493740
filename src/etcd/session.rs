//! A lease that is kept alive, and says when it no longer is.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ask::Granted, client::Etcd, stream::KeepAlive, term::Term};
use crate::{Backoff, Error, ErrorKind, Result};

/// A lease, kept alive by a task of its own until this is dropped.
///
/// Lost is lost: by the cluster's word, or by our own clock, which is never later than the cluster's. Dropping
/// it lets the lease run out; [`close`](Self::close) gives it back.
#[derive(Debug)]
pub(crate) struct Session {
    etcd: Etcd,
    granted: Granted,
    pulse: watch::Receiver<Pulse>,
    until: watch::Receiver<Instant>,
    nudge: Arc<Notify>,
    _task: DropGuard,
}

/// How a session stands.
#[derive(Clone, Debug)]
pub(crate) enum Pulse {
    /// It was renewed when it was to be.
    Alive,
    /// It was not, and still has time.
    Missed(Error),
    /// It is over. The last word.
    Lost(Error),
}

/// No lease is shorter: etcd's own clock ticks too coarsely, and a pause of a second would lose it.
pub(crate) const SHORTEST: Duration = Duration::from_secs(2);

/// How long giving a lease back may take.
const PARTING: Duration = Duration::from_secs(2);

/// An answer to one renewal that takes longer is one that never comes.
const RENEW_LIMIT: Duration = Duration::from_secs(2);

impl Session {
    /// A new lease. What is granted may be longer than what was asked for.
    pub(crate) async fn open(etcd: &Etcd, ttl: Duration) -> Result<Self> {
        Self::early(etcd, ttl, 0).await
    }

    /// The same, lost by our own clock a share of its time too soon, one part in so many: for those who must
    /// have stopped when somebody else begins. None for 0.
    pub(crate) async fn early(etcd: &Etcd, ttl: Duration, share: u32) -> Result<Self> {
        let asked = Instant::now();
        let granted = etcd.lease_grant(ttl.max(SHORTEST)).await?;
        let early = granted.ttl.checked_div(share).unwrap_or_default();
        let term = Term::granted(asked, granted.ttl.saturating_sub(early));
        Ok(Self::over(etcd, granted, term, early, None))
    }

    /// A lease that was lost by our own clock, and that the cluster still has: it may live longer there, as
    /// after a restart. Fails with `Lost` when it has not.
    pub(crate) async fn resume(etcd: &Etcd, granted: Granted) -> Result<Self> {
        let asked = Instant::now();
        let stream = etcd.keep_alive(granted.lease).await?;
        let term = Term::resumed(asked, granted.ttl);
        Ok(Self::over(
            etcd,
            granted,
            term,
            Duration::ZERO,
            Some(stream),
        ))
    }

    fn over(
        etcd: &Etcd,
        granted: Granted,
        term: Term,
        early: Duration,
        stream: Option<KeepAlive>,
    ) -> Self {
        let (tell, pulse) = watch::channel(Pulse::Alive);
        let (ends, until) = watch::channel(term.until());
        let nudge = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let keeping = Keeping {
            etcd: etcd.clone(),
            lease: granted.lease,
            term,
            early,
            stream,
            tell,
            ends,
            nudge: Arc::clone(&nudge),
        };
        etcd.spawn(stop.clone().run_until_cancelled_owned(keeping.run()));
        Self {
            etcd: etcd.clone(),
            granted,
            pulse,
            until,
            nudge,
            _task: stop.drop_guard(),
        }
    }

    /// The lease; never 0.
    pub(crate) fn lease(&self) -> i64 {
        self.granted.lease
    }

    /// The lease with the time that was granted.
    pub(crate) fn granted(&self) -> Granted {
        self.granted
    }

    /// How it stands, and each change.
    pub(crate) fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.clone()
    }

    /// Why it is over, if it is.
    pub(crate) fn is_lost(&self) -> Option<Error> {
        match &*self.pulse.borrow() {
            Pulse::Lost(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// When it is over by our own clock, unless it is renewed before.
    pub(crate) fn until(&self) -> Instant {
        *self.until.borrow()
    }

    /// Renews it now rather than when it is due, and returns when that was answered.
    pub(crate) async fn renew(&self) -> Result<()> {
        let (mut until, mut pulse) = (self.until.clone(), self.pulse.clone());
        until.mark_unchanged();
        pulse.mark_unchanged();
        if let Some(why) = self.is_lost() {
            return Err(why);
        }
        self.nudge.notify_one();
        loop {
            tokio::select! {
                renewed = until.changed() => return match renewed {
                    Ok(()) => Ok(()),
                    Err(_) => Err(self.lost().await),
                },
                changed = pulse.changed() => match (changed, &*pulse.borrow_and_update()) {
                    (Ok(()), Pulse::Alive) => {}
                    (_, Pulse::Missed(why) | Pulse::Lost(why)) => return Err(why.clone()),
                    (Err(_), _) => return Err(Error::new(ErrorKind::Lost, self.doing())),
                },
            }
        }
    }

    /// Returns when it is over, with the reason: no later than its time after the last renewal that was
    /// answered was asked for.
    pub(crate) async fn lost(&self) -> Error {
        let mut pulse = self.pulse.clone();
        let lost = pulse
            .wait_for(|pulse| matches!(pulse, Pulse::Lost(_)))
            .await;
        match lost.as_deref() {
            Ok(Pulse::Lost(why)) => why.clone(),
            _ => Error::new(ErrorKind::Lost, self.doing()).because("its runtime is gone"),
        }
    }

    /// Gives the lease back; what hangs on it is deleted.
    pub(crate) async fn close(self) -> Result<()> {
        let revoked = timeout(PARTING, self.etcd.lease_revoke(self.granted.lease)).await;
        match revoked {
            Ok(revoked) => revoked.map(drop),
            Err(late) => Err(Error::new(ErrorKind::Timeout, self.doing()).because(late)),
        }
    }

    fn doing(&self) -> String {
        format!("keep lease {:x}", self.granted.lease)
    }
}

/// What the task works with.
struct Keeping {
    etcd: Etcd,
    lease: i64,
    term: Term,
    /// How much sooner than the cluster we call it over.
    early: Duration,
    stream: Option<KeepAlive>,
    tell: watch::Sender<Pulse>,
    ends: watch::Sender<Instant>,
    nudge: Arc<Notify>,
}

impl Keeping {
    async fn run(mut self) {
        let why = self.keep().await;
        tracing::debug!(lease = %format_args!("{:x}", self.lease), why = why.chain(), "lease lost");
        self.tell.send_replace(Pulse::Lost(why));
    }

    /// Renews until it is over, and says why it is.
    async fn keep(&mut self) -> Error {
        let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            tokio::select! {
                () = sleep_until(self.term.ask_at()) => {}
                () = self.nudge.notified() => {}
            }
            let asked = Instant::now();
            if self.term.is_over(asked) {
                return self.over(None);
            }
            let until = self.term.until();
            let answer = timeout_at(until, self.renew(until - asked)).await;
            // We may have been frozen for any time: whatever was answered, our own clock comes first.
            if self.term.is_over(Instant::now()) {
                return self.over(answer.ok().and_then(Result::err));
            }
            match answer {
                Ok(Ok(left)) => {
                    self.term.renewed(asked, left.saturating_sub(self.early));
                    self.ends.send_replace(self.term.until());
                    backoff.reset();
                    self.say(Pulse::Alive);
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Lost => return error,
                Ok(Err(error)) => {
                    self.stream = None;
                    self.term.missed(Instant::now(), backoff.next());
                    self.say(Pulse::Missed(error));
                }
                Err(_) => return self.over(None),
            }
        }
    }

    /// Asks once; over the open stream, or another for the same lease.
    async fn renew(&mut self, left: Duration) -> Result<Duration> {
        let limit = (left / 2).min(RENEW_LIMIT);
        if let Some(stream) = &mut self.stream {
            return stream.renew(limit).await;
        }
        // Opening it renews the lease, and takes no longer than the handle's own limits.
        let mut stream = self.etcd.keep_alive(self.lease).await?;
        let left = stream.renew(limit).await?;
        self.stream = Some(stream);
        Ok(left)
    }

    fn over(&self, cause: Option<Error>) -> Error {
        let doing = format!("keep lease {:x}: its time is over", self.lease);
        let error = Error::new(ErrorKind::Lost, doing);
        let missed = match (cause, &*self.tell.borrow()) {
            (None, Pulse::Missed(error)) => Some(error.clone()),
            (cause, _) => cause,
        };
        match missed {
            Some(cause) => error.because(cause),
            None => error,
        }
    }

    fn say(&self, pulse: Pulse) {
        self.tell.send_if_modified(|last| {
            let news = !matches!((&*last, &pulse), (Pulse::Alive, Pulse::Alive));
            *last = pulse;
            news
        });
    }
}
