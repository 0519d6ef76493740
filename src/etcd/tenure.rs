//! One lease after another, for as long as something is to stand in etcd.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    ask::Granted,
    client::Etcd,
    session::{Pulse, Session},
};
use crate::{Error, ErrorKind, Result};

/// A session, and the next one when that is lost.
#[derive(Debug)]
pub(crate) struct Tenure {
    etcd: Etcd,
    ttl: Duration,
    session: Option<Session>,
    pulse: Option<watch::Receiver<Pulse>>,
    /// Whether what stood on the lease is gone, or may be.
    lost: bool,
    /// The last lease, which may live on in etcd when it is over by our own clock.
    before: Option<Granted>,
}

/// What [`Tenure::lease_or_new`] answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lease {
    /// The lease that there was.
    Same(i64),
    /// A lease of a session that has just begun.
    New(i64),
}

impl Tenure {
    pub(crate) fn new(etcd: Etcd, ttl: Duration) -> Self {
        Self {
            etcd,
            ttl,
            session: None,
            pulse: None,
            lost: false,
            before: None,
        }
    }

    /// How long a lease is to be.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The session's lease, or 0.
    pub(crate) fn lease(&self) -> i64 {
        self.session.as_ref().map_or(0, Session::lease)
    }

    /// The session's lease; the one before it, if etcd still has it; or a new one.
    pub(crate) async fn lease_or_new(&mut self) -> Result<Lease> {
        if let Some(session) = &self.session {
            match session.is_lost() {
                None => return Ok(Lease::Same(session.lease())),
                Some(_) => self.lose(),
            }
        }
        let session = match self.before {
            Some(granted) => match Session::resume(&self.etcd, granted).await {
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.before = None;
                    Session::open(&self.etcd, self.ttl).await?
                }
                resumed => resumed?,
            },
            None => Session::open(&self.etcd, self.ttl).await?,
        };
        let lease = session.lease();
        self.pulse = Some(session.pulse());
        self.session = Some(session);
        Ok(Lease::New(lease))
    }

    /// The session is over; etcd may still have its lease.
    pub(crate) fn lose(&mut self) {
        if let Some(session) = self.session.take() {
            self.before = Some(session.granted());
            self.lost = true;
        }
    }

    /// etcd says that the lease is gone: there is no use in asking for it again.
    pub(crate) fn lose_for_good(&mut self) {
        self.lose();
        self.before = None;
    }

    /// What is to stand there does.
    pub(crate) fn settled(&mut self) {
        self.lost = false;
    }

    /// Why the session is over, if it is.
    pub(crate) fn is_lost(&self) -> Option<Error> {
        self.session.as_ref().and_then(Session::is_lost)
    }

    /// While etcd is out of reach, what was lost stays lost.
    pub(crate) fn or_lost(&self, error: Error) -> Error {
        let out_of_reach = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        if self.lost && out_of_reach {
            return Error::new(ErrorKind::Lost, "replace a lost lease").because(error);
        }
        error
    }

    /// The next change of the session, if there is a session.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn beat(&mut self) -> Pulse {
        let Some(pulse) = &mut self.pulse else {
            return std::future::pending().await;
        };
        match pulse.changed().await {
            Ok(()) => pulse.borrow_and_update().clone(),
            // Its last word was heard, or its runtime is gone.
            Err(_) => std::future::pending().await,
        }
    }

    /// The lease that something of ours may still hang on, if there is one.
    pub(crate) fn last_lease(&self) -> Option<i64> {
        let session = self.session.as_ref().map(Session::lease);
        session.or_else(|| self.before.map(|granted| granted.lease))
    }

    /// Gives back the lease. What hangs on it goes with it, and nothing else does.
    pub(crate) async fn end(&mut self) -> Result<()> {
        match (self.session.take(), self.before.take()) {
            (Some(session), _) => session.close().await,
            (None, Some(granted)) => self.etcd.lease_revoke(granted.lease).await.map(drop),
            (None, None) => Ok(()),
        }
    }
}
