//! How a key becomes ours, and whose it may be.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::time::Instant;

use super::{client::Etcd, kv::Kv, layout::Layout};
use crate::{
    Error, ErrorKind, Instance, Result, ServiceName,
    register::{Life, look},
};

/// Writes one instance's keys, and asks before it takes one over.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) etcd: Etcd,
    /// The leases that were ours; what hangs on them is.
    pub(super) leases: Vec<i64>,
    /// The strangers who neither answer nor leave, and since when, by the keys that they have.
    silent: BTreeMap<String, (i64, Instant)>,
}

/// A key to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) layout: &'a dyn Layout,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
    pub(super) instance: &'a Instance,
}

/// How often a key may change under our hands before that is a failure.
const TRIES: u32 = 5;

/// A key that its owner no longer renews is deleted within this, unless its lease is unusually long.
const SILENCE: Duration = Duration::from_secs(30);

/// How many of our own leases are remembered.
const LEASES: usize = 4;

impl Claim {
    pub(super) fn new(etcd: Etcd) -> Self {
        Self {
            etcd,
            leases: Vec::new(),
            silent: BTreeMap::new(),
        }
    }

    /// A lease is ours from now on.
    pub(super) fn own(&mut self, lease: i64) {
        if !self.leases.contains(&lease) {
            self.leases.push(lease);
        }
        if self.leases.len() > LEASES {
            self.leases.remove(0);
        }
    }

    /// Writes a key on a lease, if it stands as it did at the expected revision, or may be taken over;
    /// answers with the revision.
    ///
    /// Fails with `Lost` when the lease is gone, and with `Conflict` when a living stranger has the key.
    pub(super) async fn put(&mut self, entry: Entry<'_>, lease: i64, expect: i64) -> Result<i64> {
        let mut expect = expect;
        for _ in 0..TRIES {
            let on_lease = PutOptions::new().with_lease(lease);
            let txn = Txn::new()
                .when([Compare::mod_revision(entry.key, CompareOp::Equal, expect)])
                .and_then([TxnOp::put(entry.key, entry.value, Some(on_lease))])
                .or_else([TxnOp::get(entry.key, None)]);
            let answer = self.etcd.txn(format!("register {}", entry.key), txn);
            let answer = answer.await?;
            if answer.succeeded() {
                self.silent.remove(entry.key);
                return Ok(answer.header().map_or(0, |header| header.revision()));
            }
            let found = answer.op_responses().into_iter().find_map(|op| match op {
                TxnOpResponse::Get(mut got) => got.take_kvs().pop().map(Kv::from),
                _ => None,
            });
            expect = match found {
                None => 0,
                Some(kv) => {
                    self.may_take(entry, &kv).await?;
                    kv.mod_revision
                }
            };
        }
        let doing = format!("register {}: others keep writing it", entry.key);
        Err(Error::new(ErrorKind::Conflict, doing))
    }

    /// Whether a key that stands there may be written over: it is ours, or nobody's, or a dead one's.
    async fn may_take(&mut self, entry: Entry<'_>, kv: &Kv) -> Result<()> {
        let (key, own) = (entry.key, entry.instance);
        if self.leases.contains(&kv.lease) {
            return Ok(());
        }
        let Ok(other) = entry.layout.decode(entry.service, key, &kv.value) else {
            tracing::warn!(key, "writing over what no client can read");
            return Ok(());
        };
        // We listen there, so it was us; and who leaves makes room.
        if other.addresses == own.addresses || other.is_draining() {
            return Ok(());
        }
        let stranger = |how: &str| {
            let doing = format!(
                "register {key}: {} has this id, and {how}",
                other.addresses[0]
            );
            Error::new(ErrorKind::Conflict, doing).because("give one of the two another id")
        };
        match look(&other).await {
            Life::Answers => Err(stranger("answers")),
            Life::Refuses => Ok(()),
            Life::Silent => {
                let now = Instant::now();
                let since = match self.silent.get(key) {
                    Some(&(lease, since)) if lease == kv.lease => since,
                    _ => now,
                };
                self.silent.insert(key.to_owned(), (kv.lease, since));
                if now >= since + SILENCE {
                    return Err(stranger("keeps it, though it does not answer us"));
                }
                let doing =
                    format!("register {key}: waiting for the lease of one who is silent to end");
                Err(Error::new(ErrorKind::Unavailable, doing).because(stranger("is silent")))
            }
        }
    }

    /// Marks a key as draining, if it hangs on this lease.
    pub(super) async fn mark(&self, key: &str, value: &[u8], lease: i64) -> Result<()> {
        let on_lease = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::lease(key, CompareOp::Equal, lease)])
            .and_then([TxnOp::put(key, value, Some(on_lease))]);
        let answer = self.etcd.txn(format!("mark {key} as draining"), txn);
        answer.await.map(drop)
    }

    /// Deletes a key, if it hangs on this lease.
    pub(super) async fn delete(&self, key: &str, lease: i64) -> Result<()> {
        let txn = Txn::new()
            .when([Compare::lease(key, CompareOp::Equal, lease)])
            .and_then([TxnOp::delete(key, None)]);
        let answer = self.etcd.txn(format!("withdraw {key}"), txn);
        answer.await.map(drop)
    }
}
