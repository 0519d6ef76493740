//! The two kinds of streams that an etcd keeps open for us.

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::{
    LeaseKeepAliveStream, LeaseKeeper, WatchRequestSender, WatchResponse, WatchResponseStream,
    WatchStream,
};
use tokio::time::timeout;

use super::{
    client::{Etcd, Slot},
    failure::Failure,
};
use crate::{Error, ErrorKind, Result};

/// The stream that renews one lease. After an error it must be dropped, and another opened.
pub(crate) struct KeepAlive {
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
    etcd: Etcd,
    slot: Arc<Slot>,
}

/// The stream of one watch. After an error it must be dropped, and another opened.
pub(super) struct Watching {
    sender: WatchRequestSender,
    stream: WatchResponseStream,
    etcd: Etcd,
    slot: Arc<Slot>,
}

impl KeepAlive {
    pub(super) fn new(
        keeper: LeaseKeeper,
        stream: LeaseKeepAliveStream,
        etcd: Etcd,
        slot: Arc<Slot>,
    ) -> Self {
        Self {
            keeper,
            stream,
            etcd,
            slot,
        }
    }

    /// Renews the lease, within `limit`; answers with what is left from when this was called.
    ///
    /// Fails with `Lost` when the cluster no longer has the lease.
    pub(crate) async fn renew(&mut self, limit: Duration) -> Result<Duration> {
        let doing = format!("keep lease {:x}", self.keeper.id());
        let answer = timeout(limit, async {
            self.keeper.keep_alive().await?;
            self.stream.message().await
        });
        let failure = match answer.await {
            Ok(Ok(Some(answer))) => match u64::try_from(answer.ttl()) {
                Ok(ttl @ 1..) => return Ok(Duration::from_secs(ttl)),
                _ => return Err(Error::new(ErrorKind::Lost, doing).because("the lease is gone")),
            },
            Ok(Ok(None)) => Failure::ended(),
            Ok(Err(error)) => error.into(),
            Err(_) => Failure::timeout(limit),
        };
        let failure = failure.of(self.slot.member());
        self.etcd.went_wrong(&self.slot, &failure);
        Err(failure.error(doing))
    }
}

impl Watching {
    pub(super) fn new(stream: WatchStream, etcd: Etcd, slot: Arc<Slot>) -> Self {
        let (sender, stream) = stream.split();
        Self {
            sender,
            stream,
            etcd,
            slot,
        }
    }

    /// The next message, whatever it is.
    pub(super) async fn message(&mut self) -> Result<WatchResponse, Failure> {
        let failure = match self.stream.message().await {
            Ok(Some(message)) if !message.canceled() => return Ok(message),
            Ok(Some(message)) => {
                Failure::canceled(message.cancel_reason(), message.compact_revision())
            }
            Ok(None) => Failure::ended(),
            Err(error) => error.into(),
        };
        Err(self.blame(failure))
    }

    /// Asks for a sign of life, which comes as a message.
    pub(super) async fn probe(&mut self) -> Result<(), Failure> {
        match timeout(PROBE_LIMIT, self.sender.request_progress()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.blame(error.into())),
            Err(_) => Err(self.silent(PROBE_LIMIT)),
        }
    }

    /// Gives up on a stream that said nothing for too long.
    pub(super) fn silent(&self, limit: Duration) -> Failure {
        self.blame(Failure::timeout(limit))
    }

    /// A member whose history may end before what we know: the cluster must say which is right.
    pub(super) fn behind(&self) -> Failure {
        self.blame(Failure::behind())
    }

    fn blame(&self, failure: Failure) -> Failure {
        let failure = failure.of(self.slot.member());
        self.etcd.went_wrong(&self.slot, &failure);
        failure
    }
}

impl fmt::Debug for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlive")
            .field("lease", &self.keeper.id())
            .finish_non_exhaustive()
    }
}

pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(2);
