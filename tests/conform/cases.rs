//! What every resolver owes its readers, whatever it reads from.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each backend takes what it needs"
)]

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{sleep, timeout};
use tonic_fleet::{Instance, ServiceName, resolve::Resolve};

use crate::reader::Reader;

/// A registry that a case can change and break.
pub trait Backend {
    fn resolver(&self) -> Arc<dyn Resolve>;

    /// Makes this the whole set; whoever is not in it leaves on purpose.
    fn set(&mut self, instances: &[Instance]) -> impl Future<Output = ()>;

    /// Puts it out of reach.
    fn fail(&mut self) -> impl Future<Output = ()>;

    /// Puts it back in reach, as it was.
    fn mend(&mut self) -> impl Future<Output = ()>;
}

/// One test for each case, in a module of this name.
#[macro_export]
macro_rules! conform {
    ($name:ident, $make:expr, #[$test:meta], $($case:ident),+ $(,)?) => {
        mod $name {
            use super::*;

            $(
                #[$test]
                async fn $case() {
                    cases::$case(&mut $make.await).await;
                }
            )+
        }
    };
}

pub fn service() -> ServiceName {
    "shop/greeter".parse().unwrap()
}

pub fn instance(id: &str) -> Instance {
    let instance = Instance::at("10.0.0.1:50051").unwrap();
    instance.id(id).unwrap()
}

fn read(backend: &impl Backend) -> Reader {
    Reader::of(backend.resolver().resolve(&service()))
}

/// Reads until the reader knows exactly these, and has nothing to fear.
async fn knows(reader: &mut Reader, set: &[Instance]) {
    let set: BTreeMap<_, _> = set.iter().map(|i| (i.id.to_string(), i)).collect();
    let is = |reader: &Reader| {
        let known = reader.known.iter().map(|(id, i)| (id, &**i));
        reader.begun
            && reader.stale.is_none()
            && reader.suspects.is_empty()
            && known.eq(set.iter().map(|(id, i)| (id, *i)))
    };
    reader.until("the set that the registry has", is).await;
}

pub async fn the_first_word_is_the_whole_set(backend: &mut impl Backend) {
    let set = [instance("a"), instance("b").weight(3).zone("z")];
    backend.set(&set).await;
    let mut reader = read(backend);

    knows(&mut reader, &set).await;

    assert_eq!(reader.told(), ["reset 2"]);
}

pub async fn nobody_is_an_empty_set_and_no_silence(backend: &mut impl Backend) {
    backend.set(&[]).await;
    let mut reader = read(backend);

    knows(&mut reader, &[]).await;

    assert_eq!(reader.told(), ["reset 0"]);
}

pub async fn what_comes_changes_and_leaves_is_told(backend: &mut impl Backend) {
    backend.set(&[instance("a"), instance("b")]).await;
    let mut reader = read(backend);
    knows(&mut reader, &[instance("a"), instance("b")]).await;

    for set in [
        vec![instance("a"), instance("b"), instance("c")],
        vec![
            instance("a").weight(7),
            instance("b").serving(false),
            instance("c"),
        ],
        vec![instance("c").also_at("10.0.0.2:1").unwrap()],
        vec![],
        vec![instance("a")],
    ] {
        backend.set(&set).await;
        knows(&mut reader, &set).await;
    }
}

pub async fn any_series_of_sets_ends_where_the_registry_is(backend: &mut impl Backend) {
    let mut rng = StdRng::seed_from_u64(7);
    let mut reader = read(backend);
    for round in 0..40 {
        let ids = ["a", "b", "c", "d", "e"];
        let count = rng.random_range(0..=ids.len());
        let set: Vec<_> = ids
            .sample(&mut rng, count)
            .map(|id| instance(id).weight(1 + round % 3))
            .collect();
        backend.set(&set).await;
        // Sometimes it looks only after several changes.
        if rng.random_ratio(1, 3) {
            knows(&mut reader, &set).await;
        }
    }
    backend.set(&[instance("z")]).await;

    knows(&mut reader, &[instance("z")]).await;
}

pub async fn every_reader_learns_the_same(backend: &mut impl Backend) {
    backend.set(&[instance("a")]).await;
    let (mut first, mut second) = (read(backend), read(backend));
    knows(&mut first, &[instance("a")]).await;
    knows(&mut second, &[instance("a")]).await;
    drop(first);

    let set = [instance("a"), instance("b")];
    backend.set(&set).await;
    let mut late = read(backend);

    knows(&mut second, &set).await;
    knows(&mut late, &set).await;
}

pub async fn an_outage_keeps_the_set_and_its_end_is_told(backend: &mut impl Backend) {
    let set = [instance("a"), instance("b")];
    backend.set(&set).await;
    let mut reader = read(backend);
    knows(&mut reader, &set).await;

    backend.fail().await;
    reader.until("stale", |reader| reader.stale.is_some()).await;
    assert_eq!((reader.ids(), reader.suspects.len()), (vec!["a", "b"], 0));
    assert!(!reader.stale.clone().unwrap().is_empty());
    backend.mend().await;

    knows(&mut reader, &set).await;
    backend.set(&[instance("c")]).await;
    knows(&mut reader, &[instance("c")]).await;
}

pub async fn a_start_in_an_outage_is_stale_until_it_ends(backend: &mut impl Backend) {
    let set = [instance("a")];
    backend.set(&set).await;
    backend.fail().await;
    let mut reader = read(backend);
    reader.until("stale", |reader| reader.stale.is_some()).await;

    backend.mend().await;

    knows(&mut reader, &set).await;
}

pub async fn a_thousand_instances_are_one_set(backend: &mut impl Backend) {
    let mut set: Vec<_> = (0..1000).map(|n| instance(&format!("i{n:04}"))).collect();
    backend.set(&set).await;
    let mut reader = read(backend);
    knows(&mut reader, &set).await;
    assert_eq!(reader.told(), ["reset 1000"]);

    set.remove(500);
    backend.set(&set).await;

    knows(&mut reader, &set).await;
}

pub async fn odd_names_and_values_arrive_as_they_are(backend: &mut impl Backend) {
    let odd = |id: &str| {
        instance(id)
            .tag("k\"ey", "välue,=&")
            .zone("zürich/1")
            .version("<1>")
    };
    let set = [
        odd("127.0.0.1:50051"),
        odd("[::1]:1"),
        odd("ünï©ode-\u{1f980}"),
        odd("a%2Fb"),
        odd("$&'()*+,;=@!~"),
        odd("x")
            .also_at("[fe80::1]:1")
            .unwrap()
            .also_at("unix:/run/a b.sock")
            .unwrap(),
    ];
    backend.set(&set).await;

    knows(&mut read(backend), &set).await;
}

pub async fn nothing_runs_when_nobody_reads(backend: &mut impl Backend) {
    backend.set(&[instance("a")]).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let mut reader = read(backend);
    knows(&mut reader, &[instance("a")]).await;

    drop(reader);

    let ended = async {
        while tasks() > before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), ended).await.unwrap();
}
