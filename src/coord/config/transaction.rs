//! Several values at once.

use std::fmt;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde::Serialize;

use super::Config;
use crate::{Error, ErrorKind, Result, coord::retry::Twice};

/// What is to be done to several values: all of it, or nothing.
///
/// ```no_run
/// # async fn example(config: tonic_fleet::coord::Config) -> tonic_fleet::Result<()> {
/// let hosts = config.get::<Vec<String>>("hosts").await?;
/// let version = hosts.map_or(0, |hosts| hosts.version);
/// config
///     .transaction()
///     .when("hosts", version)                 // not if somebody has changed them meanwhile
///     .set("hosts", &["a", "b"])
///     .set("changed-by", &"me")
///     .delete("draft")
///     .commit()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is done before it is committed"]
pub struct Transaction {
    config: Config,
    when: Vec<Compare>,
    /// The keys of the conditions, and the versions that they must have.
    versions: Vec<(String, i64)>,
    then: Vec<TxnOp>,
    keys: Vec<String>,
    /// Of those, the ones that are deleted.
    deleted: Vec<String>,
    /// The first thing that was wrong with what was given.
    wrong: Option<Error>,
}

/// As many operations as etcd takes at once, unless it is told otherwise.
pub(in crate::coord) const MOST: usize = 128;

impl Transaction {
    pub(super) fn of(config: Config) -> Self {
        Self {
            config,
            when: Vec::new(),
            versions: Vec::new(),
            then: Vec::new(),
            keys: Vec::new(),
            deleted: Vec::new(),
            wrong: None,
        }
    }

    /// Only if the value has this version; 0 if it must not be there.
    pub fn when(mut self, name: impl AsRef<str>, version: i64) -> Self {
        if let Some(key) = self.key(name.as_ref()) {
            self.when
                .push(Compare::mod_revision(&*key, CompareOp::Equal, version));
            self.versions.push((key, version));
        }
        self
    }

    /// Sets a value.
    pub fn set<T: Serialize + ?Sized>(mut self, name: impl AsRef<str>, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => self.set_json(name.as_ref(), json),
            Err(why) => {
                let doing = format!("set {}: it cannot be written as JSON", name.as_ref());
                self.is_wrong(Error::new(ErrorKind::Validation, doing).because(why));
                self
            }
        }
    }

    /// Sets a value that is JSON already.
    pub(in crate::coord) fn set_json(mut self, name: &str, json: Vec<u8>) -> Self {
        if let Some(key) = self.key(name) {
            self.then.push(TxnOp::put(&*key, json, None));
            self.keys.push(key);
        }
        self
    }

    /// Sets several values.
    pub fn set_all<N, T>(self, values: impl IntoIterator<Item = (N, T)>) -> Self
    where
        N: AsRef<str>,
        T: Serialize,
    {
        let set = |all: Self, (name, value): (N, T)| all.set(name, &value);
        values.into_iter().fold(self, set)
    }

    /// Deletes a value, if it is there.
    pub fn delete(mut self, name: impl AsRef<str>) -> Self {
        if let Some(key) = self.key(name.as_ref()) {
            self.then.push(TxnOp::delete(&*key, None));
            self.deleted.push(key.clone());
            self.keys.push(key);
        }
        self
    }

    /// Does it; answers with the version that all of these values have now.
    ///
    /// With a condition on a value that it changes, it is tried again whenever etcd cannot be asked, as no second
    /// time does what the first did; otherwise only when it certainly did not happen.
    ///
    /// # Errors
    /// `Conflict` when a condition does not hold: nothing was done. `Validation` when something that was given
    /// cannot be written, stands twice, or is too much for etcd: nothing was done. `Timeout` and `Unavailable`
    /// when nobody knows whether it was done.
    pub async fn commit(self) -> Result<i64> {
        let doing = self.doing();
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let (ops, conditions) = (self.then.len(), self.when.len());
        if ops > MOST || conditions > MOST {
            let why = format!("{ops} writes, and etcd takes {MOST} at once: use several");
            return Err(Error::new(ErrorKind::Validation, doing).because(why));
        }
        let twice = self.twice();
        let txn = Txn::new().when(self.when).and_then(self.then);
        let written = self.config.asker().write(&doing, txn, twice).await;
        let answer = written.answer?;
        if answer.succeeded() {
            return Ok(answer.header().map_or(0, |header| header.revision()));
        }
        if written.doubt {
            let why = "etcd did not answer at first, and now it is otherwise: by us or by others";
            return Err(Error::new(ErrorKind::Timeout, doing).because(why));
        }
        let why = "it has another version";
        Err(Error::new(ErrorKind::Conflict, doing).because(why))
    }

    /// What is done once keeps it from being done again where it ends a condition of its own.
    fn twice(&self) -> Twice {
        let ends = |(key, version): &(String, i64)| {
            self.keys.contains(key) && (*version != 0 || !self.deleted.contains(key))
        };
        if self.versions.iter().any(ends) {
            Twice::Harmless
        } else {
            Twice::Never
        }
    }

    fn doing(&self) -> String {
        match &*self.keys {
            [one] => format!("set {one}"),
            [one, rest @ ..] => format!("set {one} and {} more", rest.len()),
            [] => format!("change {}", self.config.prefix),
        }
    }

    fn key(&mut self, name: &str) -> Option<String> {
        match self.config.key(name) {
            Ok(key) => Some(key),
            Err(wrong) => {
                self.is_wrong(wrong);
                None
            }
        }
    }

    fn is_wrong(&mut self, wrong: Error) {
        self.wrong.get_or_insert(wrong);
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        f.debug_struct("Transaction")
            .field("keys", &self.keys)
            .field("conditions", &self.when.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{coord::leases::Leases, etcd::Etcd};

    #[tokio::test]
    async fn only_what_ends_its_own_condition_may_be_tried_twice() {
        let etcd = Etcd::open(&["127.0.0.1:1"], Default::default()).unwrap();
        let leases = Leases::new(etcd, Duration::from_secs(10), Default::default());
        let config = Config::new(&leases, &Arc::default(), "a").unwrap();
        let begin = || config.transaction();

        for safe in [
            begin().when("x", 0).set("x", &1),
            begin().when("x", 7).delete("x"),
            begin().when("other", 7).when("x", 7).set("x", &1),
        ] {
            assert_eq!(safe.twice(), Twice::Harmless, "{safe:?}");
        }
        for unsafe_ in [
            begin().set("x", &1),
            begin().when("other", 7).set("x", &1),
            begin().when("x", 0).delete("x"),
        ] {
            assert_eq!(unsafe_.twice(), Twice::Never, "{unsafe_:?}");
        }
    }
}
