//! Many writes, in as few transactions as etcd takes.

use std::{collections::BTreeMap, fmt};

use futures_util::future::join_all;
use serde::Serialize;

use super::{OnConflict, Sync};
use crate::{Error, ErrorKind, Result, coord::config::MOST};

/// Many writes: divided into chunks as large as etcd takes, each of which happens as a whole or not at all.
///
/// A second write to the same entity replaces the first.
#[must_use = "nothing is written before it is committed"]
pub struct Batch<T> {
    sync: Sync<T>,
    /// By id: the JSON to put, or nothing to delete it.
    writes: BTreeMap<String, Result<Option<Vec<u8>>>>,
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
const AT_ONCE: usize = 4;
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
        self.writes.insert(id.into(), Ok(None));
        self
    }

    /// Writes all of it, a few chunks at once, and says what became of each.
    ///
    /// When etcd cannot be asked for some, the rest are not tried. With [`OnConflict::Refuse`], a chunk is
    /// written only if every entity in it has the version that the mirror showed.
    pub async fn commit(self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut failed: Option<Error> = None;
        let all = divided(self.writes);
        for some in all.chunks(AT_ONCE) {
            let outcomes = match &failed {
                None => join_all(some.iter().map(|writes| commit(&self.sync, writes))).await,
                Some(why) => {
                    let error = Error::new(ErrorKind::Connection, "write the rest: not tried");
                    vec![Err(error.because(why.clone())); some.len()]
                }
            };
            let mut transient = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            failed = failed.or_else(|| transient.find(|why| why.is_transient()).cloned());
            let done = some.iter().zip(outcomes).map(|(writes, outcome)| Chunk {
                ids: writes.iter().map(|(id, _)| id.clone()).collect(),
                outcome,
            });
            chunks.extend(done);
        }
        chunks
    }
}

impl<T: Serialize> Batch<T> {
    /// Writes an entity.
    pub fn put(mut self, id: impl Into<String>, value: &T) -> Self {
        let id = id.into();
        let json = serde_json::to_vec(value).map_err(|why| {
            let doing = format!("put {id}: it cannot be written as JSON");
            Error::new(ErrorKind::Validation, doing).because(why)
        });
        self.writes.insert(id, json.map(Some));
        self
    }
}

type Write = (String, Result<Option<Vec<u8>>>);

/// What goes together: as many as etcd takes.
fn divided(writes: BTreeMap<String, Result<Option<Vec<u8>>>>) -> Vec<Vec<Write>> {
    let mut chunks: Vec<Vec<Write>> = Vec::new();
    let mut bytes = 0;
    for (id, write) in writes {
        let size = match &write {
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

async fn commit<T>(sync: &Sync<T>, writes: &[Write]) -> Result<i64> {
    let _turn = sync.turn().await?;
    let mut all = sync.0.config.transaction();
    for (id, write) in writes {
        if sync.0.policy == OnConflict::Refuse {
            all = all.when(id, sync.get(id).map_or(0, |known| known.version));
        }
        all = match write.clone()? {
            Some(json) => all.set_json(id, json),
            None => all.delete(id),
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
            .map(|(id, size)| (id, Ok(Some(vec![b'1'; size]))))
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
