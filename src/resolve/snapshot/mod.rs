//! The last good set on disk, for a start while the registry is out of reach.

mod disk;
mod kept;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

use self::kept::Kept;
use super::{Publisher, Resolve, Updates, fallback::first_set, publish};
use crate::{Instance, ServiceName};

/// Keeps on disk what another resolver says; see [`Resolve::snapshot`].
#[derive(Clone, Debug)]
pub struct Snapshot<R> {
    inner: Arc<R>,
    directory: Arc<Path>,
    max_age: Duration,
}

impl<R: Resolve> Snapshot<R> {
    pub(super) fn over(inner: R, directory: PathBuf, max_age: Duration) -> Self {
        Self {
            inner: Arc::new(inner),
            directory: directory.into(),
            max_age,
        }
    }
}

impl<R: Resolve> Resolve for Snapshot<R> {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let inner = self.inner.resolve(service);
        let paper = Paper {
            path: disk::file(&self.directory, service).into(),
            service: service.clone(),
            max_age: self.max_age,
        };
        tokio::spawn(async move {
            let kept = Kept::new(paper.max_age, Instant::now());
            let desk = Desk {
                paper,
                kept,
                writing: None,
                trouble: false,
            };
            desk.work(inner, publisher).await;
        });
        updates
    }
}

/// Where a set is written.
#[derive(Clone)]
struct Paper {
    path: Arc<Path>,
    service: ServiceName,
    max_age: Duration,
}

/// Where one stream of updates is read, passed on and written down.
struct Desk {
    paper: Paper,
    kept: Kept,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Whether the last write failed, so that it is said once.
    trouble: bool,
}

impl Desk {
    async fn work(mut self, mut inner: Updates, publisher: Publisher) {
        let paper = self.paper.clone();
        let first = tokio::select! {
            () = publisher.closed() => return,
            first = first_set(&mut inner, &publisher, paper.load()) => first,
        };
        let Some(set) = first else { return };
        self.kept.reset(&set);
        publisher.reset(set);
        self.pass_on(inner, &publisher).await;
        // Readers learn now that nothing will change, whatever the disk does.
        drop(publisher);
        if let Some(writing) = self.writing.take() {
            self.wrote(writing.await);
        }
        if self.kept.is_ahead() {
            self.write();
        }
        if let Some(writing) = self.writing.take() {
            self.wrote(writing.await);
        }
    }

    /// Until either side ends.
    async fn pass_on(&mut self, mut inner: Updates, publisher: &Publisher) {
        loop {
            let due = self.kept.due().filter(|_| self.writing.is_none());
            let wake = due.unwrap_or_else(Instant::now);
            tokio::select! {
                () = publisher.closed() => return,
                update = inner.next() => {
                    let Some(update) = update else { return };
                    self.kept.apply(&update, Instant::now());
                    publisher.update(update);
                }
                written = wait(&mut self.writing), if self.writing.is_some() => {
                    self.writing = None;
                    self.wrote(written);
                }
                () = sleep_until(wake), if due.is_some() => self.write(),
            }
        }
    }

    fn write(&mut self) {
        let Some(set) = self.kept.take(Instant::now()) else {
            return;
        };
        let Paper { path, service, .. } = self.paper.clone();
        let save = move || disk::save(&path, &service, &set, SystemTime::now());
        self.writing = Some(spawn_blocking(save));
    }

    fn wrote(&mut self, written: Result<io::Result<()>, tokio::task::JoinError>) {
        let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) else {
            self.trouble = false;
            return;
        };
        self.kept.failed(Instant::now());
        if !self.trouble {
            let path = self.paper.path.display();
            tracing::warn!(%path, %error, "snapshot not written");
        }
        self.trouble = true;
    }
}

impl Paper {
    /// What was written last, unless it is too old or broken.
    async fn load(self) -> Option<Vec<Arc<Instance>>> {
        let path = Arc::clone(&self.path);
        let load = move || disk::load(&self.path, &self.service, self.max_age, SystemTime::now());
        let loaded = spawn_blocking(load).await;
        let loaded = loaded.unwrap_or_else(|error| Err(io::Error::other(error)));
        loaded.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "snapshot not used");
            None
        })
    }
}

async fn wait<T>(running: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, ErrorKind,
        resolve::{
            Change, Fixed,
            testing::{Scripted, words},
        },
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn service() -> ServiceName {
        "greeter".parse().unwrap()
    }

    fn set(addresses: &[&str]) -> Vec<Arc<Instance>> {
        Fixed::at(addresses.iter().copied())
            .unwrap()
            .instances()
            .to_vec()
    }

    fn refused() -> Error {
        Error::new(ErrorKind::Unavailable, "refused")
    }

    /// Returns when the file holds that many instances.
    async fn written(directory: &Path, count: usize) {
        let path = disk::file(directory, &service());
        loop {
            let set = disk::load(&path, &service(), HOUR, SystemTime::now()).unwrap();
            if set.is_some_and(|set| set.len() == count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_set_serves_a_start_without_a_registry() {
        let home = tempfile::tempdir().unwrap();
        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(home.path(), HOUR).resolve(&service());
        tell.reset(set(&["a:1", "b:1"]));
        assert_eq!(words(&mut updates).await, "reset a:1 b:1");
        written(home.path(), 2).await;
        tell.delta([Change::Put(set(&["c:1"]).remove(0))]);
        assert_eq!(words(&mut updates).await, "delta +c:1");
        written(home.path(), 3).await;

        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(home.path(), HOUR).resolve(&service());
        tell.stale(refused());

        assert_eq!(words(&mut updates).await, "reset a:1 b:1 c:1");
        assert_eq!(words(&mut updates).await, "stale refused");
        tell.reset(set(&["d:1"]));
        assert_eq!(words(&mut updates).await, "reset d:1");
        written(home.path(), 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_change_is_written_though_the_reader_leaves() {
        let home = tempfile::tempdir().unwrap();
        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(home.path(), HOUR).resolve(&service());
        tell.reset(set(&["a:1"]));
        assert_eq!(words(&mut updates).await, "reset a:1");
        written(home.path(), 1).await;
        tell.delta([Change::Put(set(&["b:1"]).remove(0))]);
        assert_eq!(words(&mut updates).await, "delta +b:1");

        drop(updates);

        written(home.path(), 2).await;
        tell.closed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_snapshot_is_none_until_it_is_written_anew() {
        let home = tempfile::tempdir().unwrap();
        let path = disk::file(home.path(), &service());
        std::fs::write(&path, "tonic-fleet snapshot 1 garbage").unwrap();
        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(home.path(), HOUR).resolve(&service());

        tell.stale(refused());
        assert_eq!(words(&mut updates).await, "stale refused");
        tell.reset(set(&["a:1"]));

        assert_eq!(words(&mut updates).await, "reset a:1");
        while disk::load(&path, &service(), HOUR, SystemTime::now()).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        written(home.path(), 1).await;
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn where_nothing_can_be_written_all_is_told_nevertheless() {
        let nowhere = Path::new("/proc/self/snapshots");
        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(nowhere, HOUR).resolve(&service());
        tell.reset(set(&["a:1"]));
        assert_eq!(words(&mut updates).await, "reset a:1");

        // Long enough for it to be tried in vain, more than once.
        tokio::time::sleep(Duration::from_secs(100)).await;
        tell.delta([Change::Put(set(&["b:1"]).remove(0))]);

        assert_eq!(words(&mut updates).await, "delta +b:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_cannot_be_written_disturbs_nobody() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (registry, tell) = Scripted::new();
        let mut updates = registry.snapshot(&file, HOUR).resolve(&service());
        tell.reset(set(&["a:1"]));
        assert_eq!(words(&mut updates).await, "reset a:1");

        std::fs::remove_file(&file).unwrap();

        written(&file, 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_by_can_be_stacked() {
        let home = tempfile::tempdir().unwrap();
        let (registry, tell) = Scripted::new();
        let both = registry.snapshot(home.path(), HOUR).fallback(set(&["z:1"]));
        let mut updates = both.resolve(&service());

        tell.stale(refused());

        assert_eq!(words(&mut updates).await, "reset z:1");
        assert_eq!(words(&mut updates).await, "stale refused");
    }
}
