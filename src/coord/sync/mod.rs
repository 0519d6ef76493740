//! Typed entities that every node has in memory.

mod batch;
mod mirror;

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use batch::{Batch, Chunk};
pub use mirror::Snapshot;

use super::{
    config::{Changes, Config, Entry},
    hub::{Hub, Reader},
};
use crate::{Error, ErrorKind, Result};
use mirror::Mirror;

/// Entities under a prefix in etcd, mirrored into memory on every node that has one of these; clones are the
/// same one.
///
/// Reading takes no lock and waits for nobody. Writing goes to etcd, and comes back to every mirror, our own
/// included, a moment later: who must read what it has just written waits for [`changes`](Self::changes), or
/// keeps it.
///
/// ```no_run
/// # async fn example() -> tonic_fleet::Result<()> {
/// use serde::{Deserialize, Serialize};
/// use tonic_fleet::coord::Coordinator;
///
/// #[derive(Clone, Debug, Deserialize, Serialize)]
/// struct Room { seats: u32 }
///
/// let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
/// let rooms = coordinator.sync::<Room>("rooms").await?;
///
/// rooms.put("blue", &Room { seats: 4 }).await?;
/// if let Some(blue) = rooms.get("blue") {
///     println!("{} seats, version {}", blue.value.seats, blue.version);
/// }
/// println!("{} rooms", rooms.snapshot().len());
/// # Ok(())
/// # }
/// ```
///
/// # What it guarantees
/// Every mirror has what etcd had a moment ago, and all are equal once they have heard the same. Every two minutes or so that is compared with etcd, and what differs is repaired and
/// [counted](Self::repaired): none is expected. A chunk of a [`Batch`] is written as a whole or not at all.
///
/// # And what not
/// A mirror is behind etcd by a moment, and for as long as etcd is out of reach, which [`stale`](Self::stale)
/// says. What several chunks write, or several entities are read as, is not of one moment; a [`Snapshot`] is what
/// the mirror had. With [`OnConflict::LastWriter`] the last of two who write at once wins, and neither learns of it.
pub struct Sync<T>(Arc<Inner<T>>);

struct Inner<T> {
    config: Config,
    hub: Arc<Hub>,
    mirror: Arc<Mirror<T>>,
    policy: OnConflict,
    /// Writes under way: more than these wait.
    writing: Arc<Semaphore>,
    task: Arc<DropGuard>,
}

/// What a write does when another node has written the same entity.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnConflict {
    /// Writes over it. The default.
    #[default]
    LastWriter,
    /// Fails with `Conflict`, unless the entity has the version that the mirror shows when the write is asked for.
    Refuse,
}

/// As many writes are under way at once; when etcd is slow, more wait for their turn rather than in memory.
const WRITING: usize = 32;
/// How long a list may take.
const BEGINNING: Duration = Duration::from_secs(30);
/// How often it is looked at whether etcd is in reach, until there was a list.
const LOOK: Duration = Duration::from_millis(100);

impl<T: DeserializeOwned + Send + std::marker::Sync + 'static> Sync<T> {
    /// Follows the prefix, and returns when the mirror is whole.
    pub(super) async fn open(config: Config) -> Result<Self> {
        let hub = config.hub();
        let mut reader = hub.read(config.leases(), None);
        begin(&mut reader, &hub, &config).await?;
        let mirror = Arc::new(Mirror::default());
        while let Some(change) = reader.ready() {
            mirror.take(&config, change);
        }
        let stop = CancellationToken::new();
        let following = follow(reader, config.clone(), Arc::clone(&mirror));
        let etcd = config.leases().asker.etcd.clone();
        etcd.spawn(stop.clone().run_until_cancelled_owned(following));
        Ok(Self(Arc::new(Inner {
            config,
            hub,
            mirror,
            policy: OnConflict::default(),
            writing: Arc::new(Semaphore::new(WRITING)),
            task: Arc::new(stop.drop_guard()),
        })))
    }

    /// How all entities stand, and then each change, as [`Config::watch_all`] tells it.
    pub fn changes(&self) -> Changes<T> {
        self.0.config.watch_all()
    }
}

async fn begin(reader: &mut Reader, hub: &Hub, config: &Config) -> Result<()> {
    let doing = || format!("list {}", config.prefix());
    let begun = timeout(BEGINNING, async {
        let stale = async {
            loop {
                sleep(LOOK).await;
                if let Some(why) = hub.stale().filter(|why| !why.is_transient()) {
                    return why;
                }
            }
        };
        tokio::select! {
            begun = reader.begin() => begun,
            why = stale => Err(why),
        }
    });
    match begun.await {
        Ok(begun) => begun,
        Err(late) => {
            let error = Error::new(ErrorKind::Timeout, doing());
            Err(match hub.stale() {
                Some(why) => error.because(why),
                None => error.because(late),
            })
        }
    }
}

async fn follow<T: DeserializeOwned>(mut reader: Reader, config: Config, mirror: Arc<Mirror<T>>) {
    while let Some(change) = reader.next().await {
        mirror.take(&config, change);
    }
}

impl<T> Sync<T> {
    /// The same entities and the same mirror, written to by another rule. The last writer wins, unless set.
    #[must_use]
    pub fn on_conflict(&self, policy: OnConflict) -> Self {
        Self(Arc::new(Inner {
            config: self.0.config.clone(),
            hub: Arc::clone(&self.0.hub),
            mirror: Arc::clone(&self.0.mirror),
            policy,
            writing: Arc::clone(&self.0.writing),
            task: Arc::clone(&self.0.task),
        }))
    }

    /// An entity, as the mirror has it. Takes no lock.
    pub fn get(&self, id: impl AsRef<str>) -> Option<Arc<Entry<T>>> {
        self.0.mirror.get(id.as_ref())
    }

    /// All entities, in no order. What changes while they are gone through may or may not be seen; for all
    /// of them at one moment there is [`Config::list`]. Takes no lock.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Entry<T>>> {
        self.snapshot().into_iter()
    }

    /// What the mirror has now, which then stays as it is. Takes no lock, and costs the same however many
    /// entities there are.
    pub fn snapshot(&self) -> Snapshot<T> {
        self.0.mirror.snapshot()
    }

    /// Several writes: see [`Batch`].
    pub fn batch(&self) -> Batch<T> {
        Batch::of(self.clone())
    }

    /// Deletes an entity; says whether it was there.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, id: impl AsRef<str>) -> Result<bool> {
        let id = id.as_ref();
        let known = self.get(id);
        let _turn = self.turn().await?;
        if self.0.policy == OnConflict::LastWriter {
            return self.0.config.delete(id).await;
        }
        let version = known.as_ref().map_or(0, |known| known.version);
        let one = self.0.config.transaction().when(id, version).delete(id);
        one.commit().await.map(|_| known.is_some())
    }

    /// Compares all of it with etcd now, rather than when it is due, which is every two minutes or so; repairs
    /// what differs, and counts it in [`repaired`](Self::repaired).
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub async fn resync(&self) -> Result<()> {
        let compared = timeout(BEGINNING, self.0.hub.verify().now()).await;
        compared.map_or_else(
            |late| {
                let doing = format!("list {}", self.0.config.prefix());
                Err(Error::new(ErrorKind::Timeout, doing).because(late))
            },
            |compared| compared.map(drop),
        )
    }

    /// How often all of it was compared with etcd while it was followed.
    pub fn compared(&self) -> u64 {
        self.0.hub.compared()
    }

    /// How many entities were then not as they had been told. None are expected.
    pub fn repaired(&self) -> u64 {
        self.0.hub.repaired()
    }

    /// How many keys under the prefix are not a `T`; of those, the mirror has the last good value, if any.
    pub fn unreadable(&self) -> usize {
        self.0.mirror.unreadable()
    }

    /// Why etcd is out of reach, while it is: the mirror is then as it was.
    pub fn stale(&self) -> Option<Error> {
        self.0.hub.stale()
    }

    /// Waits for a turn to write.
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let turn = self.0.writing.acquire().await;
        turn.map_err(|never| Error::new(ErrorKind::Unavailable, "wait to write").because(never))
    }
}

impl<T: Serialize> Sync<T> {
    /// Writes an entity; answers with its version.
    ///
    /// No more than 32 writes are under way at once: when etcd is slow, more wait here.
    ///
    /// # Errors
    /// `Conflict` when another node was faster and [`OnConflict::Refuse`] is set; otherwise as for
    /// [`Config::set`].
    pub async fn put(&self, id: impl AsRef<str>, value: &T) -> Result<i64> {
        let id = id.as_ref();
        let version = self.get(id).map_or(0, |known| known.version);
        match self.0.policy {
            OnConflict::Refuse => self.put_if(id, value, version).await,
            OnConflict::LastWriter => {
                let _turn = self.turn().await?;
                self.0.config.set(id, value).await
            }
        }
    }

    /// Writes an entity if it has this version; 0 if it must not be there.
    ///
    /// # Errors
    /// As for [`Config::set_if`].
    pub async fn put_if(&self, id: impl AsRef<str>, value: &T, version: i64) -> Result<i64> {
        let _turn = self.turn().await?;
        self.0.config.set_if(id, value, version).await
    }
}

impl<T> Clone for Sync<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Sync<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sync")
            .field("prefix", &self.0.config.prefix())
            .field("entities", &self.snapshot().len())
            .finish_non_exhaustive()
    }
}
