use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Endpoint, ErrorKind, endpoint::tiers::Tier, health::Verdict, stage::Stages};

pub(super) const GRACE: Duration = Duration::from_secs(10);
const HOLD: Duration = Duration::from_secs(60);

/// A set, the time, and what happened, in short words.
pub(super) struct Scene {
    pub(super) set: Set,
    pub(super) now: Instant,
    pub(super) dials: BTreeMap<String, Dial>,
    seen: Vec<String>,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::with_dials(100)
    }

    /// One whose set has these stages.
    pub(super) fn with(stages: Stages) -> Self {
        Self::over(100, stages)
    }

    pub(super) fn with_dials(dials: usize) -> Self {
        Self::over(dials, Stages::default())
    }

    fn over(dials: usize, stages: Stages) -> Self {
        let redial =
            Backoff::between(Duration::from_millis(100), Duration::from_secs(30)).jitter(0.0);
        let limits = Limits {
            grace: GRACE,
            hold: HOLD,
            redial,
            dials,
            asked: false,
            connections: 3,
            health: Health::default(),
            stages,
        };
        Self {
            set: Set::new(limits),
            now: Instant::now(),
            dials: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    /// A set in which all of these are connected.
    pub(super) fn connected(ids: &str) -> Self {
        let mut scene = Self::new();
        scene.apply(Update::Reset(ids.chars().map(instance).collect()));
        ids.chars().for_each(|id| scene.up(id));
        scene.seen.clear();
        scene
    }

    pub(super) fn apply(&mut self, update: Update) {
        let steps = self.set.apply(update, self.now);
        self.note(steps);
    }

    pub(super) fn delta(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.apply(Update::Delta(changes.into_iter().collect()));
    }

    pub(super) fn up(&mut self, id: char) {
        let attempt = self.attempt(id);
        let (_, steps) = self.set.up(&name(id), attempt, self.now);
        self.note(steps);
    }

    /// The connection made last ends, or the attempt fails.
    pub(super) fn down(&mut self, id: char) {
        self.down_at(id, self.attempt(id), false);
    }

    /// The same, and it had answered calls.
    pub(super) fn down_proven(&mut self, id: char) {
        self.down_at(id, self.attempt(id), true);
    }

    pub(super) fn down_at(&mut self, id: char, attempt: u64, answered: bool) {
        let steps = self
            .set
            .down(&name(id), attempt, refused(), answered, self.now);
        self.note(steps);
    }

    pub(super) fn goodbye(&mut self, id: char, answered: bool) {
        let attempt = self.attempt(id);
        let steps = self
            .set
            .going_away(&name(id), attempt, refused(), answered, self.now);
        self.note(steps);
    }

    pub(super) fn attempt(&self, id: char) -> u64 {
        self.dials[&id.to_string()].attempt
    }

    /// A call finds no room.
    pub(super) fn crowd(&mut self, id: char) {
        let vitals = Arc::clone(self.set.vitals(&name(id)).unwrap());
        if vitals.links().crowd() {
            let steps = self.set.crowded(&name(id), self.now);
            self.note(steps);
        }
    }

    pub(super) fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.set.next_due().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            let steps = self.set.tick(self.now);
            self.note(steps);
        }
        self.now = until;
    }

    pub(super) fn note(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.seen.push(match step {
                Step::Dial(dial) => {
                    let id = dial.instance.id.to_string();
                    self.dials.insert(id.clone(), dial);
                    format!("dial {id}")
                }
                Step::Drain(..) => "drain".into(),
                Step::Abandon(_) => "abandon".into(),
                Step::Tell(event) => event.to_string(),
            });
        }
    }

    pub(super) fn seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen)
    }

    pub(super) fn ready(&self) -> String {
        self.set
            .ready()
            .iter()
            .map(|endpoint| endpoint.id().as_str())
            .collect()
    }

    pub(super) fn known(&self) -> String {
        self.set
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.id().to_string())
            .collect()
    }
}

pub(super) fn name(id: char) -> InstanceId {
    id.to_string().parse().unwrap()
}

pub(super) fn instance(id: char) -> Arc<Instance> {
    Arc::new(
        Instance::at("10.0.0.1:1")
            .and_then(|i| i.id(id.to_string()))
            .unwrap(),
    )
}

fn changed(id: char, change: impl FnOnce(Instance) -> Instance) -> Change {
    Change::Put(Arc::new(change((*instance(id)).clone())))
}

pub(super) fn refused() -> Error {
    Error::new(ErrorKind::Unavailable, "connection refused")
}

#[test]
fn ready_means_connected() {
    let mut scene = Scene::new();
    scene.apply(Update::Reset(vec![instance('a'), instance('b')]));
    assert_eq!(scene.seen(), ["a added", "b added", "dial a", "dial b"]);
    assert_eq!(scene.ready(), "");

    scene.up('b');

    assert_eq!(scene.ready(), "b");
    assert_eq!(scene.known(), "ab");
}

#[test]
fn a_new_weight_keeps_the_connection() {
    let mut scene = Scene::connected("ab");

    scene.delta([changed('a', |a| a.weight(7))]);

    assert_eq!(scene.seen(), ["a updated"]);
    assert_eq!(scene.set.ready()[0].instance().weight, 7);
}

#[test]
fn a_new_address_costs_the_connection() {
    let mut scene = Scene::connected("ab");

    let moved = Instance::at("10.0.0.9:1").and_then(|a| a.id("a")).unwrap();
    scene.delta([Change::Put(Arc::new(moved))]);

    assert_eq!(scene.seen(), ["a updated", "drain", "dial a"]);
    assert_eq!(scene.ready(), "b");
}

#[test]
fn an_attempt_that_ends_after_its_endpoint_moved_or_left_is_of_no_use() {
    let mut scene = Scene::new();
    scene.apply(Update::Reset(vec![instance('a'), instance('b')]));
    let (a, b) = (scene.dials["a"].attempt, scene.dials["b"].attempt);
    let moved = Instance::at("10.0.0.9:1").and_then(|a| a.id("a")).unwrap();
    scene.delta([Change::Put(Arc::new(moved)), Change::Remove(name('b'))]);

    assert!(!scene.set.up(&name('a'), a, scene.now).0);
    assert!(!scene.set.up(&name('b'), b, scene.now).0);

    assert_eq!(scene.ready(), "");
    scene.up('a');
    assert_eq!(scene.ready(), "a");
}

#[test]
fn a_marked_one_takes_no_calls_while_others_do_and_leaves_at_once() {
    let mut scene = Scene::connected("ab");

    scene.delta([changed('a', |a| a.serving(false))]);
    assert_eq!(scene.ready(), "b");
    assert_eq!(scene.seen(), ["a drains"]);
    scene.delta([Change::Vanish(name('a'))]);

    assert_eq!(scene.known(), "b");
    assert_eq!(scene.seen(), ["drain", "a removed"]);
}

#[test]
fn the_last_ones_serve_even_while_they_drain() {
    let mut scene = Scene::connected("a");

    scene.delta([changed('a', |a| a.weight(0))]);

    assert_eq!(scene.ready(), "a");
}

#[test]
fn a_vanished_one_serves_on_until_the_grace_is_over_but_others_are_preferred() {
    let mut scene = Scene::connected("abc");

    scene.delta([Change::Vanish(name('a'))]);
    assert_eq!(scene.ready(), "bc");
    scene.down('b');
    scene.down('c');
    assert_eq!(scene.ready(), "a");
    scene.wait(GRACE);

    assert_eq!(scene.known(), "bc");
}

#[test]
fn a_vanished_one_leaves_at_once_when_its_connection_fails() {
    let mut scene = Scene::connected("abc");
    scene.delta([Change::Vanish(name('a'))]);

    scene.down('a');
    assert_eq!(scene.known(), "bc");

    scene.down('b');
    scene.delta([Change::Vanish(name('b'))]);
    assert_eq!(scene.known(), "c", "one of two is not most of the set");
}

#[test]
fn a_vanished_one_that_comes_back_was_never_away() {
    let mut scene = Scene::connected("abc");
    scene.delta([Change::Vanish(name('a'))]);
    scene.seen();

    scene.delta([Change::Put(instance('a'))]);
    scene.wait(HOLD);

    assert_eq!(scene.ready(), "abc");
    assert_eq!(scene.seen(), ["a is in the registry again"]);
}

#[test]
fn a_collapsed_set_is_held_and_everybody_serves() {
    let mut scene = Scene::connected("abcd");

    scene.delta("abc".chars().map(|id| Change::Vanish(name(id))));
    assert_eq!(scene.ready(), "abcd");
    scene.down('a');
    scene.wait(GRACE);
    assert_eq!(scene.known(), "abcd");
    scene.wait(HOLD);

    assert_eq!(scene.known(), "d");
}

#[test]
fn a_collapse_is_held_once_however_short_the_hold() {
    for hold in [Duration::ZERO, Duration::from_secs(1)] {
        let mut scene = Scene::connected("abcd");
        scene.set.limits.hold = hold;

        scene.delta("abc".chars().map(|id| Change::Vanish(name(id))));
        scene.wait(GRACE / 2);

        assert_eq!(scene.set.held(), None, "{hold:?}");
        assert_eq!((scene.ready(), scene.known()), ("d".into(), "abcd".into()));
        let held = scene.seen().into_iter().filter(|s| s.contains("held"));
        assert_eq!(held.count(), 2, "{hold:?}: once, and no longer");
        scene.wait(GRACE);
        assert_eq!(scene.known(), "d");
    }
}

#[test]
fn a_held_set_is_released_when_most_are_back() {
    let mut scene = Scene::connected("abcd");
    scene.delta("abcd".chars().map(|id| Change::Vanish(name(id))));
    assert_eq!(scene.set.held(), Some(4));
    scene.seen();

    scene.delta("abc".chars().map(|id| Change::Put(instance(id))));

    assert_eq!(scene.set.held(), None);
    assert_eq!(scene.ready(), "abc");
    scene.wait(GRACE);
    assert_eq!(scene.known(), "abc");
}

#[test]
fn a_held_one_that_the_registry_knows_to_be_gone_leaves() {
    let mut scene = Scene::connected("ab");
    scene.delta("ab".chars().map(|id| Change::Vanish(name(id))));

    scene.delta([Change::Remove(name('a'))]);

    assert_eq!(scene.known(), "b");
}

#[test]
fn an_empty_list_is_news_too() {
    let mut scene = Scene::new();

    scene.apply(Update::Reset(Vec::new()));

    assert!(scene.set.take_changed() && scene.set.listed());
}

#[test]
fn an_outage_changes_nothing_but_the_age() {
    let mut scene = Scene::connected("ab");

    scene.apply(Update::Stale(refused()));
    let since = scene.set.stale().unwrap().1;
    scene.wait(Duration::from_secs(5));
    scene.apply(Update::Stale(refused()));
    assert_eq!(scene.set.stale().unwrap().1, since);
    scene.delta([]);

    assert_eq!(scene.ready(), "ab");
    assert!(scene.set.stale().is_none());
    assert_eq!(
        scene.seen(),
        [
            "registry out of reach: connection refused",
            "registry in reach again"
        ]
    );
}

#[test]
fn one_change_among_ten_thousand_leaves_the_others_alone() {
    let mut scene = many(10_000);
    let view = [scene.set.endpoints().clone(), scene.set.ready().clone()];
    assert_eq!(view.each_ref().map(Endpoints::len), [10_000; 2]);
    let counts = |set: &Set| -> Vec<usize> {
        let entries = set.each();
        entries.map(|e| Arc::strong_count(&e.vitals)).collect()
    };
    let before = counts(&scene.set);

    scene.delta([weighs(5_000, 7)]);

    let after = counts(&scene.set);
    let touched = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!((1..=300).contains(&touched), "{touched}");
    let weights = |all: &Endpoints| all[5_000].instance().weight;
    assert_eq!(
        view.each_ref().map(weights),
        [1; 2],
        "a view stays as it was"
    );
    let [known, ready] = [scene.set.endpoints(), scene.set.ready()];
    assert_eq!([known, ready].map(weights), [7; 2]);
    assert!(
        ready.is_clone_of(known),
        "all serve, and none is kept twice"
    );
}

#[test]
fn of_what_no_view_shows_yet_nothing_is_copied() {
    let mut scene = many(1_000);
    let view = scene.set.endpoints().clone();
    let place = |all: &Endpoints| std::ptr::from_ref(&all[500]);
    scene.delta([weighs(500, 7)]);
    let copied = place(scene.set.endpoints());
    assert_ne!(copied, place(&view));

    scene.delta([weighs(500, 8), weighs(501, 8)]);

    assert_eq!(place(scene.set.endpoints()), copied);
    assert_eq!(scene.set.ready()[501].instance().weight, 8);
}

/// So many that are connected.
fn many(n: usize) -> Scene {
    let mut scene = Scene::with_dials(n);
    scene.delta((0..n).map(|n| weighs(n, 1)));
    for (id, dial) in scene.dials.clone() {
        scene.set.up(&id.parse().unwrap(), dial.attempt, scene.now);
    }
    scene
}

fn weighs(n: usize, weight: u32) -> Change {
    let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(format!("i{n:05}")));
    Change::Put(Arc::new(instance.unwrap().weight(weight)))
}

fn updates() -> impl Strategy<Value = Vec<(u8, Update)>> {
    let id = || (0_u8..6).prop_map(|n| char::from(b'a' + n));
    let put = (id(), 0_u32..3, any::<bool>())
        .prop_map(|(id, weight, serving)| changed(id, |i| i.weight(weight).serving(serving)));
    let change = prop_oneof![
        put,
        id().prop_map(|id| Change::Remove(name(id))),
        id().prop_map(|id| Change::Vanish(name(id)))
    ];
    let update = prop_oneof![
        4 => proptest::collection::vec(change, 0..4).prop_map(Update::Delta),
        1 => proptest::collection::vec(id(), 0..6).prop_map(|ids| {
            let ids: BTreeSet<char> = ids.into_iter().collect();
            Update::Reset(ids.into_iter().map(instance).collect())
        }),
        1 => Just(Update::Stale(refused())),
    ];
    proptest::collection::vec((0_u8..10, update), 0..40)
}

/// Whatever happens, the books agree with each other; and once the registry has said its last word and all
/// time has passed, what is known is what a fresh listing would give.
fn check(history: Vec<(u8, Update)>) -> Result<(), TestCaseError> {
    let mut scene = Scene::with_dials(3);
    scene.set.limits.asked = history.len().is_multiple_of(2);
    let mut registry = BTreeSet::new();
    for (what, update) in history {
        record(&mut registry, &update);
        scene.apply(update);
        for (id, dial) in scene.dials.clone() {
            let (id, now) = (id.parse().unwrap(), scene.now);
            let steps = match what {
                0 | 1 => scene.set.up(&id, dial.attempt, now).1,
                2 => scene.set.down(&id, dial.attempt, refused(), false, now),
                3 => scene
                    .set
                    .going_away(&id, dial.attempt, refused(), true, now),
                4 if scene.set.vitals(&id).is_some_and(|v| v.links().crowd()) => {
                    scene.set.crowded(&id, now)
                }
                5 => scene.set.idle(&id, dial.attempt, now),
                6 if scene.set.is_asleep() => scene.set.wake(now),
                6 => scene.set.sleep(now),
                7 => scene.set.judged(&id, Verdict::Healthy, now),
                8 => scene.set.judged(&id, Verdict::Unhealthy(refused()), now),
                _ => scene.set.tick(now),
            };
            scene.note(steps);
        }
        scene.wait(Duration::from_secs(u64::from(what)));
        let books = &scene.set;
        let count = |which: fn(&Entry) -> bool| books.entries.values().filter(|e| which(e)).count();
        prop_assert_eq!(
            count(|e| matches!(e.next, Next::Dialling(_))),
            books.dialling
        );
        prop_assert_eq!(count(|e| e.suspect.is_some()), books.suspects.len());
        prop_assert!(books.dialling <= 3);
        prop_assert_eq!(books.entries.len(), books.known.len());
        prop_assert_eq!(
            told(books.known.iter().cloned()),
            told(books.each().map(Entry::endpoint))
        );
        prop_assert_eq!(told(books.ready().iter().cloned()), told(best(books)));
        prop_assert_eq!(count(|e| e.up.len() > 3), 0);
        let silent = |e: &Endpoint| e.state() == State::Connecting;
        prop_assert!(
            !books.ready().iter().any(silent),
            "it has not said that it is well"
        );
        let rests = |e: &Entry| e.up.is_empty() && e.next == Next::Rest;
        prop_assert!(books.is_asleep() || count(rests) == 0, "one is forgotten");
    }
    scene.wait(HOLD * 3);

    let known: BTreeSet<InstanceId> = scene
        .set
        .endpoints()
        .iter()
        .map(|e| e.id().clone())
        .collect();

    prop_assert_eq!(known, registry);
    Ok(())
}

/// Those that should take calls, found by looking at each.
fn best(books: &Set) -> Vec<Endpoint> {
    let tier =
        |entry: &Entry, tier| entry.tier(books.held_until.is_some(), books.panics) == Some(tier);
    let those = |one| {
        let those = books.each().filter(|entry| tier(entry, one));
        those.map(Entry::endpoint).collect::<Vec<_>>()
    };
    let [serving, doubted] = [Tier::Serving, Tier::Doubted];
    let order = [serving, doubted, Tier::Draining, Tier::Unwell, Tier::Trial];
    let best = order.into_iter().map(those).find(|those| !those.is_empty());
    best.unwrap_or_default()
}

/// Whose they are, and what was last said of them.
fn told(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<(String, u32, u8)> {
    let tell = |e: Endpoint| (e.id().to_string(), e.instance().weight, e.share());
    endpoints.into_iter().map(tell).collect()
}

/// What the registry has after this.
fn record(registry: &mut BTreeSet<InstanceId>, update: &Update) {
    match update {
        Update::Reset(all) => *registry = all.iter().map(|i| i.id.clone()).collect(),
        Update::Delta(changes) => {
            for change in changes {
                match change {
                    Change::Put(i) => drop(registry.insert(i.id.clone())),
                    Change::Remove(id) | Change::Vanish(id) => drop(registry.remove(id)),
                }
            }
        }
        Update::Stale(_) | Update::Skipped(_) => {}
    }
}

proptest! {
    #[test]
    fn any_history_ends_where_a_fresh_listing_would(history in updates()) {
        check(history)?;
    }
}

/// The same for as long as `FLEET_FUZZ_SECONDS` says; two seconds, unless it does.
#[test]
fn fuzz_histories() {
    use proptest::test_runner::{Config, TestRunner};
    let seconds = std::env::var("FLEET_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = std::time::SystemTime::now() + Duration::from_secs(seconds.unwrap_or(2));

    while std::time::SystemTime::now() < until {
        TestRunner::new(Config::with_cases(256))
            .run(&updates(), check)
            .unwrap();
    }
}

#[test]
fn room_for_many_is_given_back_when_few_are_left() {
    let mut scene = Scene::new();
    let some = |n: usize| ('一'..).take(n).map(instance).collect();
    scene.apply(Update::Reset(some(5_000)));

    scene.apply(Update::Reset(some(10)));

    assert!(scene.set.entries.capacity() < 500);
}
