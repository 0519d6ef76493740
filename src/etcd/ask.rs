//! The questions that are put to a cluster.

use std::{fmt, time::Duration};

use etcd_client::{GetOptions, GetResponse, Txn, TxnResponse, WatchOptions};

use super::{
    client::{Again, Etcd},
    failure::{Failure, Remedy},
    kv::{Kv, Listing, Span},
    stream::{KeepAlive, Watching},
};
use crate::{Error, ErrorKind, Result};

/// A lease, as it was granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Granted {
    pub(crate) lease: i64,
    /// What was granted, which may be longer than what was asked for.
    pub(crate) ttl: Duration,
}

impl Etcd {
    /// All of a span at one revision, as the cluster agrees on it.
    pub(crate) async fn list(&self, span: &Span) -> Result<Listing, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.list_once(span).await {
                // The revision of the first page went out of reach under our hands.
                Err(failure) if failure.remedy == Remedy::Relist && tries < 3 => {}
                answer => return answer,
            }
        }
    }

    async fn list_once(&self, span: &Span) -> Result<Listing, Failure> {
        let mut from = span.start().to_vec();
        let mut listing = Listing {
            all: Vec::new(),
            revision: 0,
        };
        loop {
            let mut page = self.page(span, from, listing.revision).await?;
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, |header| header.revision());
            }
            let more = page.more();
            listing
                .all
                .extend(page.take_kvs().into_iter().map(Kv::from));
            let Some(last) = listing.all.last().filter(|_| more) else {
                return Ok(listing);
            };
            from = [&last.key[..], b"\0"].concat();
        }
    }

    async fn page(&self, span: &Span, from: Vec<u8>, at: i64) -> Result<GetResponse, Failure> {
        let mut options = GetOptions::new().with_limit(PAGE).with_revision(at);
        if let Some(end) = span.end() {
            options = options.with_range(end);
        }
        let asked = self.call(
            self.read_limit(),
            Again::Read,
            (from, options),
            |mut clients, (from, options)| {
                Box::pin(async move { clients.kv.get(from, Some(options)).await })
            },
        );
        asked.await.map(|(page, _)| page)
    }

    /// Does all of it or nothing. `doing` says what it is about, as in `lock /locks/a`.
    ///
    /// When it fails with `Timeout` or `Unavailable` it may have happened.
    pub(crate) async fn txn(
        &self,
        doing: impl fmt::Display + Send,
        txn: Txn,
    ) -> Result<TxnResponse> {
        let answer = self.commit(txn).await;
        answer.map_err(|failure| failure.error(doing))
    }

    /// The same, for those who must know whether it may still happen.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        let asked = self.call(self.write_limit(), Again::Write, txn, |mut clients, txn| {
            Box::pin(async move { clients.kv.txn(txn).await })
        });
        asked.await.map(|(answer, _)| answer)
    }

    /// A new lease.
    pub(crate) async fn lease_grant(&self, ttl: Duration) -> Result<Granted> {
        let seconds = i64::try_from(ttl.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX);
        // A lease that was granted and never heard of ends by itself.
        let asked = self.call(
            self.write_limit(),
            Again::Read,
            seconds,
            |mut clients, seconds| {
                Box::pin(async move { clients.lease.grant(seconds, None).await })
            },
        );
        let answer = asked.await;
        let (answer, _) = answer.map_err(|failure| failure.error("grant a lease"))?;
        match (answer.id(), u64::try_from(answer.ttl())) {
            (lease, Ok(ttl @ 1..)) if lease != 0 => Ok(Granted {
                lease,
                ttl: Duration::from_secs(ttl),
            }),
            _ => {
                Err(Error::new(ErrorKind::Unavailable, "grant a lease").because("none was granted"))
            }
        }
    }

    /// Ends a lease and deletes its keys; says whether it was still there.
    pub(crate) async fn lease_revoke(&self, lease: i64) -> Result<bool> {
        let asked = self.call(
            self.write_limit(),
            Again::Read,
            lease,
            |mut clients, lease| Box::pin(async move { clients.lease.revoke(lease).await }),
        );
        match asked.await {
            Ok(_) => Ok(true),
            Err(failure) if failure.kind == ErrorKind::Lost => Ok(false),
            Err(failure) => Err(failure.error(format_args!("revoke lease {lease:x}"))),
        }
    }

    /// Opens the stream that renews a lease, and renews it once.
    ///
    /// Fails with `Lost` when the cluster no longer has the lease.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<KeepAlive> {
        let asked = self.call(
            self.read_limit(),
            Again::Read,
            lease,
            |mut clients, lease| Box::pin(async move { clients.lease.keep_alive(lease).await }),
        );
        let opened = asked.await;
        let ((keeper, stream), slot) =
            opened.map_err(|failure| failure.error(format_args!("keep lease {lease:x}")))?;
        Ok(KeepAlive::new(keeper, stream, self.clone(), slot))
    }

    /// Opens a watch on a span from a revision on.
    pub(super) async fn watch(&self, span: &Span, from: i64) -> Result<Watching, Failure> {
        let mut options = WatchOptions::new()
            .with_start_revision(from)
            .with_fragment()
            .with_progress_notify();
        if let Some(end) = span.end() {
            options = options.with_range(end);
        }
        let asked = self.call(
            self.read_limit(),
            Again::Read,
            (span.start().to_vec(), options),
            |mut clients, (start, options)| {
                Box::pin(async move { clients.watch.watch(start, Some(options)).await })
            },
        );
        let (stream, slot) = asked.await?;
        Ok(Watching::new(stream, self.clone(), slot))
    }
}

/// Small pages cost the server a count of all the rest each time.
const PAGE: i64 = 5_000;
