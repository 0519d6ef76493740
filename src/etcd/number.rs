//! The smallest number that nobody has, for as long as a lease lives.

use std::{collections::BTreeSet, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tokio::time::Instant;

use super::{
    client::{Again, Etcd},
    kv::{Kv, Span},
};
use crate::{Error, ErrorKind, Result, ServiceName, balance::below};

/// Numbers from 0 under a prefix, each a key on the lease of whoever has it: no two have one at a time.
#[derive(Debug)]
pub(super) struct Numbers {
    etcd: Etcd,
    prefix: String,
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    number: u32,
    lease: i64,
    /// When it is to be seen whether there is a gap that it should fill.
    tidy_at: Instant,
}

/// Who has the numbers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose {
    Servers,
    Clients,
}

/// So often a number is tried for at once: each time that it fails, somebody else has got one.
const TRIES: u32 = 64;
/// Gaps are looked for this often, or less often in a large fleet: so long for each number.
const TIDY: Duration = Duration::from_secs(60);
const TIDY_EACH: Duration = Duration::from_millis(20);

impl Numbers {
    pub(super) fn of(etcd: &Etcd, whose: Whose, service: &ServiceName) -> Self {
        let whose = match whose {
            Whose::Servers => "servers",
            Whose::Clients => "clients",
        };
        Self {
            etcd: etcd.clone(),
            prefix: format!("/fleet/numbers/{whose}/{service}/-/"),
            held: None,
        }
    }

    /// The number that hangs on this lease, as far as is known.
    pub(super) fn on(&self, lease: i64) -> Option<u32> {
        let held = self.held.filter(|held| held.lease == lease);
        held.map(|held| held.number)
    }

    /// When to call [`hold`](Self::hold) again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.map(|held| held.tidy_at)
    }

    /// The number that hangs on this lease; it is taken if there is none.
    pub(super) async fn hold(&mut self, lease: i64) -> Result<u32> {
        match self.held.filter(|held| held.lease == lease) {
            Some(held) if Instant::now() < held.tidy_at => Ok(held.number),
            Some(held) => self.tidy(held).await,
            None => self.take(lease).await,
        }
    }

    async fn take(&mut self, lease: i64) -> Result<u32> {
        for attempt in 0..TRIES {
            let all = self.all().await?;
            // It may be ours, and the answer that said so was lost.
            if let Some(number) = all
                .iter()
                .find_map(|kv| self.number(kv).filter(|_| kv.lease == lease))
            {
                return Ok(self.has(number, lease, all.len()));
            }
            let taken: BTreeSet<u32> = all.iter().filter_map(|kv| self.number(kv)).collect();
            let before = self
                .held
                .map(|held| held.number)
                .filter(|number| !taken.contains(number));
            // Many may come at once: each time one of them gets what they all try for, the others look further.
            let further = below(1 << attempt.min(10));
            let mut free = (0..).filter(|number| !taken.contains(number));
            let Some(number) = before
                .filter(|_| attempt == 0)
                .or_else(|| free.nth(further))
            else {
                break;
            };
            let txn = Txn::new()
                .when([Compare::create_revision(
                    self.key(number),
                    CompareOp::Equal,
                    0,
                )])
                .and_then([self.put(number, lease)]);
            if self
                .etcd
                .txn(format!("take {}", self.key(number)), txn)
                .await?
                .succeeded()
            {
                return Ok(self.has(number, lease, all.len()));
            }
        }
        let doing = format!(
            "take a number under {}: others are always faster",
            self.prefix
        );
        Err(Error::new(ErrorKind::Unavailable, doing))
    }

    /// Moves down when there is a gap and this is one too many; takes it again, or another, when it was taken
    /// away.
    async fn tidy(&mut self, held: Held) -> Result<u32> {
        let own = self.list(Span::Key(self.key(held.number))).await?;
        if !own.iter().any(|kv| kv.lease == held.lease) {
            return self.take(held.lease).await;
        }
        let count = self.count().await?;
        if i64::from(held.number) < count {
            return Ok(self.has(held.number, held.lease, count.unsigned_abs() as usize));
        }
        let all = self.all().await?;
        let taken: BTreeSet<u32> = all.iter().filter_map(|kv| self.number(kv)).collect();
        let gap = (0..held.number).find(|number| !taken.contains(number));
        let Some(number) = gap else {
            return Ok(self.has(held.number, held.lease, all.len()));
        };
        let before = self.key(held.number);
        let txn = Txn::new()
            .when([
                Compare::create_revision(self.key(number), CompareOp::Equal, 0),
                Compare::lease(before.as_str(), CompareOp::Equal, held.lease),
            ])
            .and_then([
                self.put(number, held.lease),
                TxnOp::delete(before.as_str(), None),
            ]);
        let moved = self
            .etcd
            .txn(format!("move from {before} to {}", self.key(number)), txn);
        let number = if moved.await?.succeeded() {
            number
        } else {
            held.number
        };
        Ok(self.has(number, held.lease, all.len()))
    }

    fn has(&mut self, number: u32, lease: i64, of: usize) -> u32 {
        let each = TIDY_EACH.saturating_mul(u32::try_from(of).unwrap_or(u32::MAX));
        let every = TIDY.max(each);
        // Not all at the same moment.
        let tidy_at = Instant::now() + every / 2 + every.mul_f64(below(1000) as f64 / 1000.0);
        self.held = Some(Held {
            number,
            lease,
            tidy_at,
        });
        number
    }

    fn key(&self, number: u32) -> String {
        format!("{}{number}", self.prefix)
    }

    fn number(&self, kv: &Kv) -> Option<u32> {
        let key = std::str::from_utf8(&kv.key).ok()?;
        key.strip_prefix(&self.prefix)?.parse().ok()
    }

    fn put(&self, number: u32, lease: i64) -> TxnOp {
        let on_lease = PutOptions::new().with_lease(lease);
        TxnOp::put(self.key(number), "", Some(on_lease))
    }

    async fn all(&self) -> Result<Vec<Kv>> {
        self.list(Span::Prefix(self.prefix.clone())).await
    }

    async fn list(&self, span: Span) -> Result<Vec<Kv>> {
        let listed = self.etcd.list(&span).await;
        let listing = listed.map_err(|failure| failure.error(format_args!("list {span}")))?;
        Ok(listing.all)
    }

    async fn count(&self) -> Result<i64> {
        let span = Span::Prefix(self.prefix.clone());
        let options = GetOptions::new().with_prefix().with_count_only();
        let asked = self.etcd.call(
            self.etcd.read_limit(),
            Again::Read,
            (self.prefix.clone(), options),
            |mut clients, (prefix, options)| {
                Box::pin(async move { clients.kv.get(prefix, Some(options)).await })
            },
        );
        let counted = asked.await;
        let (counted, _) =
            counted.map_err(|failure| failure.error(format_args!("count {span}")))?;
        Ok(counted.count())
    }
}
