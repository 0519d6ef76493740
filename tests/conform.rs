//! The resolvers and registrars that need no server, and their combinations, held to the suite for all.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tonic_fleet::{
    Instance, InstanceId, Memory, Register, ServiceName,
    resolve::{self, Fixed, Resolve, publish},
    testing::{Backend, Case, Done, Stop, Verdict, conform},
};

const HOUR: Duration = Duration::from_secs(3600);

/// A list that is given anew to each resolver, and stays as it is from then on.
#[derive(Default)]
struct List(Option<Vec<Instance>>);

fn stays() -> Stop {
    Stop::cannot("a list stays as it is")
}

fn no_sessions() -> Stop {
    Stop::cannot("nobody registers there")
}

impl Backend for List {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(Fixed::new(self.0.clone().unwrap_or_default()))
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Err(no_sessions())
    }

    async fn put(&mut self, _: &ServiceName, instances: &[Instance]) -> Done {
        match self.0.replace(instances.to_vec()) {
            None => Ok(()),
            Some(_) => Err(stays()),
        }
    }

    async fn remove(&mut self, _: &ServiceName, _: &[InstanceId]) -> Done {
        Err(stays())
    }

    async fn vanish(&mut self, _: &ServiceName, _: &[InstanceId]) -> Done {
        Err(stays())
    }

    async fn cut(&mut self) -> Done {
        Err(Stop::cannot("a list is always at hand"))
    }

    async fn heal(&mut self) -> Done {
        Ok(())
    }

    async fn expire(&mut self, _: &ServiceName, _: &InstanceId) -> Done {
        Err(no_sessions())
    }
}

/// A file, which is elsewhere in an outage.
struct File {
    home: TempDir,
    away: bool,
    service: Option<ServiceName>,
    set: BTreeMap<InstanceId, Instance>,
}

impl File {
    fn start() -> Self {
        let file = Self {
            home: tempfile::tempdir().unwrap(),
            away: false,
            service: None,
            set: BTreeMap::new(),
        };
        file.write();
        file
    }

    fn path(&self, away: bool) -> PathBuf {
        self.home
            .path()
            .join(if away { "away" } else { "list.json" })
    }

    fn write(&self) {
        let text = serde_json::to_string(&self.set.values().collect::<Vec<_>>()).unwrap();
        fs::write(self.home.path().join("new"), text).unwrap();
        fs::rename(self.home.path().join("new"), self.path(self.away)).unwrap();
    }
}

impl Backend for File {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(resolve::File::new(self.path(false)))
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Err(no_sessions())
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        if self.service.get_or_insert_with(|| service.clone()) != service {
            return Err(Stop::cannot("a file is of one service"));
        }
        let new = instances.iter().map(|i| (i.id.clone(), i.clone()));
        self.set.extend(new);
        self.write();
        Ok(())
    }

    async fn remove(&mut self, _: &ServiceName, ids: &[InstanceId]) -> Done {
        self.set.retain(|id, _| !ids.contains(id));
        self.write();
        Ok(())
    }

    async fn vanish(&mut self, _: &ServiceName, _: &[InstanceId]) -> Done {
        Err(Stop::cannot(
            "who is not in the file was taken out by somebody",
        ))
    }

    async fn cut(&mut self) -> Done {
        self.away = true;
        fs::rename(self.path(false), self.path(true)).unwrap();
        Ok(())
    }

    async fn heal(&mut self) -> Done {
        self.away = false;
        fs::rename(self.path(true), self.path(false)).unwrap();
        Ok(())
    }

    async fn expire(&mut self, _: &ServiceName, _: &InstanceId) -> Done {
        Err(no_sessions())
    }
}

/// The registry in this process, and what stands before it.
struct InMemory {
    registry: Memory,
    resolver: Arc<dyn Resolve>,
    _home: Option<TempDir>,
}

impl InMemory {
    fn seen<R: Resolve>(resolver: impl FnOnce(Memory) -> R) -> Self {
        let registry = Memory::default();
        Self {
            resolver: Arc::new(resolver(registry.clone())),
            registry,
            _home: None,
        }
    }

    fn with_snapshot() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_owned();
        Self {
            _home: Some(home),
            ..Self::seen(|memory| memory.snapshot(path, HOUR))
        }
    }
}

impl Backend for InMemory {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::clone(&self.resolver)
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Ok(Arc::new(self.registry.clone()))
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        for instance in instances {
            self.registry.put(service, instance.clone());
        }
        Ok(())
    }

    async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        ids.iter().for_each(|id| self.registry.remove(service, id));
        Ok(())
    }

    async fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        ids.iter().for_each(|id| self.registry.vanish(service, id));
        Ok(())
    }

    async fn cut(&mut self) -> Done {
        self.registry.outage(true);
        Ok(())
    }

    async fn heal(&mut self) -> Done {
        self.registry.outage(false);
        Ok(())
    }

    async fn expire(&mut self, service: &ServiceName, id: &InstanceId) -> Done {
        self.registry.vanish(service, id);
        Ok(())
    }
}

/// Never says anything.
struct Silence;

impl Resolve for Silence {
    fn resolve(&self, _: &ServiceName) -> resolve::Updates {
        let (publisher, updates) = publish();
        tokio::spawn(async move { publisher.closed().await });
        updates
    }
}

/// What nobody can be held to who registers nobody.
const REGISTERING: [Case; 10] = [
    Case::Registered,
    Case::Dropped,
    Case::RegistrationUpdate,
    Case::DrainingMark,
    Case::SeveralServices,
    Case::OddRegistrations,
    Case::LostSession,
    Case::Conflict,
    Case::UpdateInACut,
    Case::BegunInACut,
];

#[tokio::test(start_paused = true)]
async fn a_fixed_list_keeps_its_word_as_far_as_it_goes() {
    let held = [
        Case::WholeSetFirst,
        Case::EmptySet,
        Case::OddIds,
        Case::OddTexts,
        Case::ManyAddresses,
        Case::NothingLeftRunning,
    ];
    let all = Case::ALL.iter().copied();
    let skipped: Vec<_> = all.filter(|case| !held.contains(case)).collect();

    let report = conform(async || List::default()).await;

    report.assert_held_but(&skipped);
}

#[tokio::test(start_paused = true)]
async fn a_file_keeps_its_word() {
    let cannot = [
        Case::ServicesApart,
        Case::OddServices,
        Case::Vanishing,
        Case::Collapse,
    ];

    let report = conform(async || File::start()).await;

    report.assert_held_but(&[&cannot[..], &REGISTERING].concat());
}

#[tokio::test(start_paused = true)]
async fn the_registry_in_this_process_keeps_its_word() {
    let report = conform(async || InMemory::seen(|memory| memory)).await;

    report.assert_held_but(&[]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_stands_by_changes_nothing_of_what_comes_after_it() {
    let fallback = || [Instance::at("10.0.0.9:1").unwrap().id("fallback").unwrap()];

    let report = conform(async || InMemory::seen(|memory| memory.fallback(fallback()))).await;

    report.assert_held_but(&[]);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_on_disk_changes_nothing_of_what_comes_after_it() {
    let report = conform(async || InMemory::with_snapshot()).await;

    report.assert_held_but(&[]);
}

#[tokio::test(start_paused = true)]
async fn two_that_are_merged_keep_the_word_of_one() {
    // The same registry twice is that registry.
    let twice = |memory: Memory| resolve::merge([memory.clone(), memory]);
    let beside = |memory: Memory| resolve::merge([memory, Memory::default()]);

    let same = conform(async || InMemory::seen(twice)).await;
    let with_an_empty_one = conform(async || InMemory::seen(beside)).await;

    same.assert_held_but(&[]);
    // The other is in reach, and says that nobody is there: that is not stale.
    let stale = [
        Case::Outage,
        Case::QuietCut,
        Case::ChangesInACut,
        Case::StartInAnOutage,
        Case::BegunInACut,
    ];
    let failed: Vec<_> = with_an_empty_one.failed().map(|(case, _)| case).collect();
    assert_eq!(failed, stale, "{with_an_empty_one}");
}

#[tokio::test(start_paused = true)]
async fn the_first_and_the_second_of_two_keep_their_word() {
    let never = Duration::from_secs(365 * 24 * 3600);
    let first = |memory: Memory| memory.or(Memory::default(), never);
    let second = |memory: Memory| Silence.or(memory, Duration::ZERO);

    for report in [
        conform(async || InMemory::seen(first)).await,
        conform(async || InMemory::seen(second)).await,
    ] {
        report.assert_held_but(&[]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_keeps_its_word_when_the_first_is_empty() {
    let second = |memory: Memory| Memory::default().or(memory, Duration::ZERO);
    // The first is heard before it: of nobody.
    let both_speak = [Case::WholeSetFirst, Case::EmptySet, Case::Thousand];

    for &case in Case::ALL {
        if !both_speak.contains(&case) {
            let verdict = case.hold(&mut InMemory::seen(second)).await;
            assert_eq!(verdict, Verdict::Held, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_mapped_and_filtered_keeps_its_word() {
    let mapped = |memory: Memory| memory.map(|instance| instance);
    let filtered = |memory: Memory| memory.filter(|_| true);
    // By other names, and back.
    let renamed = |memory: Memory| {
        let there = |i: Instance| i.clone().id(format!("{}-", i.id)).unwrap();
        let back = |i: Instance| i.clone().id(i.id.as_str().trim_end_matches('-')).unwrap();
        memory.map(there).map(back)
    };

    for report in [
        conform(async || InMemory::seen(mapped)).await,
        conform(async || InMemory::seen(filtered)).await,
        conform(async || InMemory::seen(renamed)).await,
    ] {
        report.assert_held_but(&[]);
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_them_stacked_keep_their_word() {
    let home = tempfile::tempdir().unwrap();
    let all = |memory: Memory| {
        let seen = memory.map(|instance| instance).filter(|_| true);
        let both = resolve::merge([seen.clone(), seen]);
        let first = both.or(Memory::default(), HOUR);
        first.snapshot(tempfile::tempdir_in(home.path()).unwrap().keep(), HOUR)
    };

    let report = conform(async || InMemory::seen(all)).await;

    report.assert_held_but(&[]);
}
