//! Values that all servers share, as JSON under a prefix.

mod bound;
mod changes;
mod transaction;

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

pub use bound::Bound;
pub use changes::{Changed, Changes};
pub(super) use transaction::MOST;
pub use transaction::Transaction;

use super::{
    hub::{Hub, Hubs},
    leases::Leases,
    queue::kvs,
    retry::{Asker, Twice},
};
use crate::{
    Backoff, Error, ErrorKind, Result,
    etcd::kv::{Kv, Span},
};

/// Configuration in etcd: JSON values under a prefix, each with a version; clones are the same one.
///
/// ```no_run
/// # async fn example() -> tonic_fleet::Result<()> {
/// use serde::{Deserialize, Serialize};
/// use tonic_fleet::coord::Coordinator;
///
/// #[derive(Clone, Debug, Default, Deserialize, Serialize)]
/// struct Limits { requests: u32 }
///
/// let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
/// let config = coordinator.config("config/shop")?;
///
/// config.set("limits", &Limits { requests: 10 }).await?;
/// config.update("limits", |old: Option<Limits>| Limits { requests: old.unwrap_or_default().requests * 2 }).await?;
///
/// let limits = config.bind_or("limits", Limits::default()).await?;   // follows etcd
/// println!("{:?}", limits.load());                                     // no lock, no wait
/// # Ok(())
/// # }
/// ```
///
/// A version is the revision at which a value was written: it grows with each write to the cluster, and 0
/// stands for a value that is not there. What was written before is kept by etcd until it is compacted.
///
/// # What it guarantees
/// Reading sees every write that was acknowledged before. A write on a condition, an [`update`](Self::update) and a
/// [`Transaction`] happen as a whole or not at all, and at most once. Who watches is told each change once, in
/// order, or [that some cannot be told](Changed::Skipped), and ends up with what stands in etcd.
///
/// # And what not
/// A change reaches those who watch a moment later, and no bound on that moment is promised. After `Timeout` and
/// `Unavailable` nobody knows whether a write without a condition happened. Etcd takes 128 writes and 1.5 MB at
/// once, unless it is told otherwise.
#[derive(Clone)]
pub struct Config {
    leases: Arc<Leases>,
    hubs: Arc<Hubs>,
    /// Ends in `/`.
    prefix: Arc<str>,
}

/// A value as it stands in etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Entry<T> {
    /// What it is called, without the prefix.
    pub name: String,
    /// The value.
    pub value: T,
    /// When it was written.
    pub version: i64,
}

/// How often a value may change under our hands before an update fails.
const ROUNDS: u32 = 100;

impl Config {
    pub(super) fn new(leases: &Arc<Leases>, hubs: &Arc<Hubs>, prefix: &str) -> Result<Self> {
        super::check_name(prefix)?;
        Ok(Self {
            leases: Arc::clone(leases),
            hubs: Arc::clone(hubs),
            prefix: format!("{prefix}/").into(),
        })
    }

    /// A value, if it is there, as the cluster agrees on it.
    ///
    /// # Errors
    /// `Decode` when it is not a `T`, with its key; otherwise when etcd cannot be asked.
    pub async fn get<T: DeserializeOwned>(
        &self,
        name: impl AsRef<str>,
    ) -> Result<Option<Entry<T>>> {
        let kv = self.get_raw(name.as_ref()).await?;
        kv.map(|kv| self.entry(&kv)).transpose()
    }

    async fn get_raw(&self, name: &str) -> Result<Option<Kv>> {
        let key = self.key(name)?;
        let txn = Txn::new().and_then([TxnOp::get(&*key, None)]);
        let answer = self.asker().ask(format!("get {key}"), txn).await?;
        Ok(kvs(answer).into_iter().flatten().next())
    }

    /// All values, in the order of their names, at one moment; those that are not a `T` as errors with their
    /// keys.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub async fn list<T: DeserializeOwned>(&self) -> Result<Vec<Result<Entry<T>>>> {
        let span = Span::Prefix(self.prefix.to_string());
        let listing = self.asker().list(&span).await?;
        Ok(listing.all.iter().map(|kv| self.entry(kv)).collect())
    }

    /// Sets a value, whatever is there; answers with its version.
    ///
    /// It is tried again only when it certainly did not happen.
    ///
    /// # Errors
    /// `Validation` when it is no JSON or larger than etcd takes (1.5 MB, unless etcd is told otherwise).
    /// `Timeout` and `Unavailable` when nobody knows whether it was set.
    pub async fn set<T: Serialize>(&self, name: impl AsRef<str>, value: &T) -> Result<i64> {
        self.transaction().set(name, value).commit().await
    }

    /// Sets a value if the one that is there has this version; 0 if none is. Answers with the new version.
    ///
    /// # Errors
    /// `Conflict` when it has another version. `Timeout` when etcd could not be asked for a while, and the
    /// value has another version now, so that nobody knows whose it is. Otherwise as for [`set`](Self::set).
    pub async fn set_if<T: Serialize>(
        &self,
        name: impl AsRef<str>,
        value: &T,
        version: i64,
    ) -> Result<i64> {
        let name = name.as_ref();
        let one = self.transaction().when(name, version).set(name, value);
        one.commit().await
    }

    /// Makes a new value of the one that is there, if one is, as often as others come before; answers with
    /// what was set.
    ///
    /// # Errors
    /// `Decode` when what is there is not a `T`, and `Conflict` when others came before a hundred times;
    /// otherwise as for [`set_if`](Self::set_if).
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        name: impl AsRef<str>,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<Entry<T>> {
        let name = name.as_ref();
        let mut waits = Backoff::between(Duration::from_millis(1), Duration::from_millis(50))
            .factor(2.0)
            .jitter(1.0);
        let mut left = ROUNDS;
        loop {
            let stands = self.get::<T>(name).await?;
            let version = stands.as_ref().map_or(0, |entry| entry.version);
            let value = change(stands.map(|entry| entry.value));
            match self.set_if(name, &value, version).await {
                Ok(version) => {
                    let name = name.to_owned();
                    return Ok(Entry {
                        name,
                        value,
                        version,
                    });
                }
                Err(error) if error.kind() == ErrorKind::Conflict && left > 0 => left -= 1,
                Err(error) => return Err(error),
            }
            sleep(waits.next()).await;
        }
    }

    /// Deletes a value; says whether it was there.
    ///
    /// It is tried again only when it certainly did not happen.
    ///
    /// # Errors
    /// `Timeout` and `Unavailable` when nobody knows whether it was deleted.
    pub async fn delete(&self, name: impl AsRef<str>) -> Result<bool> {
        let key = self.key(name.as_ref())?;
        let txn = Txn::new().and_then([TxnOp::delete(&*key, None)]);
        let doing = format!("delete {key}");
        let written = self.asker().write(doing, txn, Twice::Never).await;
        let deleted =
            |op: &TxnOpResponse| matches!(op, TxnOpResponse::Delete(d) if d.deleted() > 0);
        Ok(written.answer?.op_responses().iter().any(deleted))
    }

    /// Several values at once: all or nothing.
    pub fn transaction(&self) -> Transaction {
        Transaction::of(self.clone())
    }

    /// How a value stands, and each change from then on.
    ///
    /// However many watch values under this prefix, one watch is open.
    ///
    /// # Errors
    /// `Validation` when the name cannot be one.
    pub fn watch<T: DeserializeOwned>(&self, name: impl AsRef<str>) -> Result<Changes<T>> {
        let key = self.key(name.as_ref())?;
        Ok(Changes::of(self, Some(key)))
    }

    /// How all values stand, and each change from then on. See [`watch`](Self::watch).
    pub fn watch_all<T: DeserializeOwned>(&self) -> Changes<T> {
        Changes::of(self, None)
    }

    /// A value that follows etcd and is read without waiting, once it is there.
    ///
    /// # Errors
    /// `NotFound` when it is not there, `Decode` when it is not a `T`. Fails after as long as any call when
    /// etcd cannot be asked.
    pub async fn bind<T>(&self, name: impl AsRef<str>) -> Result<Bound<T>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let name = name.as_ref();
        let Some(entry) = self.get::<T>(name).await? else {
            let doing = format!("bind {}", self.key(name)?);
            return Err(Error::new(ErrorKind::NotFound, doing).because("it is not there"));
        };
        Bound::follow(self, name, entry.value, entry.version)
    }

    /// The same, beginning with this value where none is there, where it is not a `T`, and while etcd cannot
    /// be asked.
    ///
    /// # Errors
    /// `Validation` when the name cannot be one.
    pub async fn bind_or<T>(&self, name: impl AsRef<str>, first: T) -> Result<Bound<T>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let name = name.as_ref();
        self.key(name)?;
        match self.get::<T>(name).await {
            Ok(Some(entry)) => Bound::follow(self, name, entry.value, entry.version),
            Ok(None) => Bound::follow(self, name, first, 0),
            Err(why) => {
                tracing::warn!(name, why = why.chain(), "beginning with the value at hand");
                Bound::follow(self, name, first, 0)
            }
        }
    }

    /// What stands before all names here; ends in `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The one watch on all values.
    pub(super) fn hub(&self) -> Arc<Hub> {
        self.hubs.hub(&self.asker().etcd, &self.prefix)
    }

    pub(super) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    fn asker(&self) -> &Asker {
        &self.leases.asker
    }

    fn key(&self, name: &str) -> Result<String> {
        super::check_name(name)?;
        Ok(format!("{}{name}", self.prefix))
    }

    pub(super) fn name<'a>(&self, key: &'a str) -> &'a str {
        key.strip_prefix(&*self.prefix).unwrap_or(key)
    }

    pub(super) fn entry<T: DeserializeOwned>(&self, kv: &Kv) -> Result<Entry<T>> {
        let key = kv.name();
        let value = serde_json::from_slice(&kv.value)
            .map_err(|why| Error::new(ErrorKind::Decode, format!("read {key}")).because(why))?;
        Ok(Entry {
            name: self.name(&key).to_owned(),
            value,
            version: kv.mod_revision,
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Config").field(&self.prefix).finish()
    }
}
