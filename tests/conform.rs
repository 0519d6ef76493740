//! The resolvers that need no server, held to what every resolver owes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "conform/cases.rs"]
#[macro_use]
mod cases;
#[path = "support/reader.rs"]
mod reader;

use std::{fs, sync::Arc, time::Duration};

use cases::{Backend, service};
use tempfile::TempDir;
use tonic_fleet::{
    Instance, Memory,
    resolve::{self, Fixed, Resolve},
};

const HOUR: Duration = Duration::from_secs(3600);

/// A list that is given anew to each reader.
#[derive(Default)]
struct List(Vec<Instance>);

impl Backend for List {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(Fixed::new(self.0.clone()))
    }

    async fn set(&mut self, instances: &[Instance]) {
        self.0 = instances.to_vec();
    }

    async fn fail(&mut self) {}

    async fn mend(&mut self) {}
}

struct File(TempDir);

impl File {
    async fn start() -> Self {
        let mut file = Self(tempfile::tempdir().unwrap());
        file.set(&[]).await;
        file
    }
}

impl Backend for File {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(resolve::File::new(self.0.path().join("list.json")))
    }

    async fn set(&mut self, instances: &[Instance]) {
        let text = serde_json::to_string(instances).unwrap();
        fs::write(self.0.path().join("new"), text).unwrap();
        fs::rename(self.0.path().join("new"), self.0.path().join("list.json")).unwrap();
    }

    async fn fail(&mut self) {
        fs::rename(self.0.path().join("list.json"), self.0.path().join("away")).unwrap();
    }

    async fn mend(&mut self) {
        fs::rename(self.0.path().join("away"), self.0.path().join("list.json")).unwrap();
    }
}

/// The registry in this process, and what may stand before it.
struct InMemory {
    registry: Memory,
    resolver: Arc<dyn Resolve>,
    _home: Option<TempDir>,
}

impl InMemory {
    async fn plain() -> Self {
        let registry = Memory::default();
        let resolver = Arc::new(registry.clone());
        Self {
            registry,
            resolver,
            _home: None,
        }
    }

    async fn with_fallback() -> Self {
        let registry = Memory::default();
        let resolver = Arc::new(registry.clone().fallback([cases::instance("fallback")]));
        Self {
            registry,
            resolver,
            _home: None,
        }
    }

    async fn with_snapshot() -> Self {
        let registry = Memory::default();
        let home = tempfile::tempdir().unwrap();
        let resolver = Arc::new(registry.clone().snapshot(home.path(), HOUR));
        Self {
            registry,
            resolver,
            _home: Some(home),
        }
    }
}

impl InMemory {
    fn seen(resolver: impl FnOnce(Memory) -> Arc<dyn Resolve>) -> Self {
        let registry = Memory::default();
        Self {
            resolver: resolver(registry.clone()),
            registry,
            _home: None,
        }
    }

    async fn merged() -> Self {
        // The same registry twice is that registry.
        Self::seen(|memory| Arc::new(resolve::merge([memory.clone(), memory])))
    }

    async fn before_another() -> Self {
        let never = Duration::from_secs(365 * 24 * 3600);
        Self::seen(|memory| Arc::new(memory.or(Memory::default(), never)))
    }

    async fn behind_another() -> Self {
        let empty = Memory::default();
        Self::seen(|memory| Arc::new(empty.or(memory, Duration::ZERO)))
    }

    async fn shaped() -> Self {
        let same = |memory: Memory| memory.map(|instance| instance);
        Self::seen(|memory| Arc::new(same(memory).filter(|_| true)))
    }
}

impl Backend for InMemory {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::clone(&self.resolver)
    }

    async fn set(&mut self, instances: &[Instance]) {
        for before in self.registry.instances(&service()) {
            if instances.iter().all(|i| i.id != before.id) {
                self.registry.remove(&service(), &before.id);
            }
        }
        for instance in instances {
            self.registry.put(&service(), instance.clone());
        }
    }

    async fn fail(&mut self) {
        self.registry.outage(true);
    }

    async fn mend(&mut self) {
        self.registry.outage(false);
    }
}

conform!(
    fixed,
    async { List::default() },
    #[tokio::test(start_paused = true)],
    the_first_word_is_the_whole_set,
    nobody_is_an_empty_set_and_no_silence,
    odd_names_and_values_arrive_as_they_are,
    nothing_runs_when_nobody_reads,
);

/// All of them, for those that can change and fail.
macro_rules! conform_in_all {
    ($($name:ident, $make:expr;)+) => {
        $(
            conform!(
                $name,
                $make,
                #[tokio::test(start_paused = true)],
                the_first_word_is_the_whole_set,
                nobody_is_an_empty_set_and_no_silence,
                what_comes_changes_and_leaves_is_told,
                any_series_of_sets_ends_where_the_registry_is,
                every_reader_learns_the_same,
                an_outage_keeps_the_set_and_its_end_is_told,
                a_start_in_an_outage_is_stale_until_it_ends,
                a_thousand_instances_are_one_set,
                odd_names_and_values_arrive_as_they_are,
                nothing_runs_when_nobody_reads,
            );
        )+
    };
}

conform!(
    second,
    InMemory::behind_another(),
    #[tokio::test(start_paused = true)],
    what_comes_changes_and_leaves_is_told,
    any_series_of_sets_ends_where_the_registry_is,
    an_outage_keeps_the_set_and_its_end_is_told,
    odd_names_and_values_arrive_as_they_are,
    nothing_runs_when_nobody_reads,
);

conform_in_all!(
    file, File::start();
    memory, InMemory::plain();
    fallback, InMemory::with_fallback();
    snapshot, InMemory::with_snapshot();
    merge, InMemory::merged();
    first, InMemory::before_another();
    shaped, InMemory::shaped();
);
