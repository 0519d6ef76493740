//! Many writes, in as few transactions as etcd takes.

use std::{collections::BTreeMap, fmt, sync::OnceLock};

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{OnConflict, Sync};
use crate::{Error, ErrorKind, Result, coord::config::MOST};

/// Many writes: divided into chunks as large as etcd takes, each of which happens as a whole or not at all.
///
/// A second write to the same entity replaces the first. With [`OnConflict::Refuse`], each is written only if it
/// has the version that the mirror showed when the write was added, and a chunk only if all in it have.
#[must_use = "nothing is written before it is committed"]
pub struct Batch<T> {
    sync: Sync<T>,
    /// By id.
    writes: BTreeMap<String, Write>,
}

/// What is to be done to an entity.
#[derive(Debug)]
struct Write {
    /// The JSON to put, or nothing to delete it.
    json: Result<Option<Vec<u8>>>,
    /// The version that it had when we were asked to; 0 if it was not there.
    version: i64,
}

/// What became of one chunk of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Chunk {
    /// The entities in it.
    pub ids: Vec<String>,
    /// The version that all of them have now; or why none of them was written, or, with `Timeout` and
    /// `Unavailable`, why nobody knows whether they were. What was not tried is `Connection`.
    pub outcome: Result<i64>,
}

/// So many chunks are on their way at once.
const AT_ONCE: usize = 8;
/// No chunk has more bytes of values than this; etcd takes half as much again.
const LARGEST: usize = 1 << 20;

impl<T> Batch<T> {
    pub(super) fn of(sync: Sync<T>) -> Self {
        Self {
            sync,
            writes: BTreeMap::new(),
        }
    }

    /// Deletes an entity, if it is there.
    pub fn delete(mut self, id: impl Into<String>) -> Self {
        self.add(id.into(), Ok(None));
        self
    }

    fn add(&mut self, id: String, json: Result<Option<Vec<u8>>>) {
        let version = self.sync.get(&id).map_or(0, |known| known.version);
        self.writes.insert(id, Write { json, version });
    }

    /// Writes all of it, a few chunks at once, and says what became of each, in the order of the ids.
    ///
    /// When etcd cannot be asked for some, the rest are not tried.
    pub async fn commit(self) -> Vec<Chunk> {
        let failed = OnceLock::new();
        let (sync, failed) = (&self.sync, &failed);
        let all = divided(self.writes).into_iter().map(|writes| async move {
            let ids = writes.iter().map(|(id, _)| id.clone()).collect();
            let outcome = match failed.get() {
                None => commit(sync, writes).await,
                Some(why) => Err(untried(why)),
            };
            if let Some(why) = outcome.as_ref().err().filter(|why| why.is_transient()) {
                failed.get_or_init(|| why.clone());
            }
            Chunk { ids, outcome }
        });
        stream::iter(all).buffered(AT_ONCE).collect().await
    }
}

fn untried(why: &Error) -> Error {
    Error::new(ErrorKind::Connection, "write the rest: not tried").because(why.clone())
}

impl<T: Serialize> Batch<T> {
    /// Writes an entity.
    pub fn put(mut self, id: impl Into<String>, value: &T) -> Self {
        let id = id.into();
        let json = serde_json::to_vec(value).map_err(|why| {
            let doing = format!("put {id}: it cannot be written as JSON");
            Error::new(ErrorKind::Validation, doing).because(why)
        });
        self.add(id, json.map(Some));
        self
    }
}

/// What goes together: as many as etcd takes.
fn divided(writes: BTreeMap<String, Write>) -> Vec<Vec<(String, Write)>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for (id, write) in writes {
        let size = match &write.json {
            Ok(Some(json)) => id.len() + json.len(),
            _ => id.len(),
        };
        bytes += size;
        match chunks.last_mut() {
            Some(last) if last.len() < MOST && bytes <= LARGEST => last.push((id, write)),
            _ => {
                bytes = size;
                chunks.push(vec![(id, write)]);
            }
        }
    }
    chunks
}

async fn commit<T>(sync: &Sync<T>, writes: Vec<(String, Write)>) -> Result<i64> {
    let _turn = sync.turn().await?;
    let mut all = sync.0.config.transaction();
    for (id, Write { json, version }) in writes {
        if sync.0.policy == OnConflict::Refuse {
            all = all.when(&id, version);
        }
        all = match json? {
            Some(json) => all.set_json(&id, json),
            None => all.delete(&id),
        };
    }
    all.commit().await
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("ids", &self.writes.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(writes: impl IntoIterator<Item = (String, usize)>) -> Vec<usize> {
        let writes = writes.into_iter();
        let writes = writes
            .map(|(id, size)| {
                let json = Ok(Some(vec![b'1'; size]));
                (id, Write { json, version: 0 })
            })
            .collect();
        divided(writes).iter().map(Vec::len).collect()
    }

    #[test]
    fn a_chunk_is_as_large_as_etcd_takes_and_no_larger() {
        let small = (0..1_000).map(|at| (format!("{at:04}"), 10));
        let large = (0..5).map(|at| (at.to_string(), LARGEST / 2 - 1));

        assert_eq!(lengths(small), [128, 128, 128, 128, 128, 128, 128, 104]);
        assert_eq!(lengths(large), [2, 2, 1]);
        assert_eq!(
            lengths([("one".into(), 3 * LARGEST), ("two".into(), 1)]),
            [1, 1]
        );
    }
}
