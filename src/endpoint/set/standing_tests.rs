use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::prelude::*;
use tonic::Code;

use super::*;
use crate::{
    Instance, State,
    endpoint::set::tests::{Scene, instance, name},
    health::EndedBy,
    moment::Moment,
    resolve::{Change, Update},
};

const SECOND: Duration = Duration::from_secs(1);

impl Scene {
    /// Calls of this endpoint end like this, and the set hears of it.
    fn calls(&mut self, id: char, calls: usize, code: Code) {
        let Some(vitals) = self.set.vitals(&name(id)).cloned() else {
            return;
        };
        for _ in 0..calls {
            let trial = vitals.begin_trial();
            if let Some(mut call) = trial.or_else(|| vitals.begin_within(9, Moment::now())) {
                call.ended_by(EndedBy::Status, code);
            }
        }
        let notices = self.set.limits.health.alarm.take();
        let steps = self.set.heard(notices, self.now);
        self.note(steps);
    }

    fn fail(&mut self, ids: &str) {
        ids.chars().for_each(|id| self.calls(id, 5, Code::Internal));
    }

    fn succeed(&mut self, ids: &str) {
        ids.chars().for_each(|id| self.calls(id, 5, Code::Ok));
    }

    fn trials(&self) -> String {
        let ids = self.set.on_trial().iter().map(|e| e.id().to_string());
        ids.collect()
    }

    fn shares(&self) -> Vec<u8> {
        self.set.ready().iter().map(|e| e.share()).collect()
    }
}

#[test]
fn one_that_fails_is_out_then_tried_then_back() {
    let mut scene = Scene::connected("abc");

    scene.fail("b");
    assert_eq!((&*scene.ready(), &*scene.trials()), ("ac", ""));
    scene.wait(SECOND);
    assert_eq!((&*scene.ready(), &*scene.trials()), ("ac", "b"));
    scene.succeed("b");

    assert_eq!((&*scene.ready(), &*scene.trials()), ("abc", ""));
    let told = scene.seen();
    assert!(
        told[0].starts_with("b ejected: 5 calls failed in a row"),
        "{told:?}"
    );
    assert_eq!(told[1], "b is tried again");
    assert!(told[2].starts_with("b is well again after"), "{told:?}");
}

#[test]
fn one_that_moves_is_not_blamed_for_what_was_done_at_its_old_address() {
    let mut scene = Scene::connected("abc");
    scene.fail("b");
    assert_eq!(scene.ready(), "ac");

    let moved = Instance::at("10.0.0.9:1").and_then(|b| b.id("b")).unwrap();
    scene.delta([Change::Put(Arc::new(moved))]);
    scene.up('b');

    assert_eq!((&*scene.ready(), &*scene.trials()), ("abc", ""));
}

#[test]
fn four_failures_or_the_callers_own_mistakes_change_nothing() {
    let mut scene = Scene::connected("abc");

    scene.calls('a', 4, Code::Internal);
    scene.calls('b', 50, Code::InvalidArgument);

    assert_eq!(scene.ready(), "abc");
    assert!(scene.seen().is_empty());
}

#[test]
fn the_only_one_is_never_out() {
    let mut scene = Scene::connected("a");

    scene.fail("a");

    assert_eq!(scene.ready(), "a");
    assert_eq!(scene.set.panic(), Some(Wellness { well: 0, of: 1 }));
    assert!(scene.set.endpoints()[0].conduct().is_open());
    scene.succeed("a");
    assert_eq!(scene.set.panic(), None);
}

#[test]
fn when_most_fail_all_take_calls_until_enough_are_well() {
    let mut scene = Scene::connected("abcde");

    scene.fail("ab");
    assert_eq!((&*scene.ready(), scene.set.panic()), ("cde", None));
    scene.fail("c");
    assert_eq!(scene.ready(), "abcde");
    assert_eq!(scene.set.panic(), Some(Wellness { well: 2, of: 5 }));
    scene.succeed("c");

    assert_eq!((&*scene.ready(), scene.set.panic()), ("cde", None));
    let told = scene.seen();
    assert!(
        told.contains(&"2 of 5 are well; calls go to all".into()),
        "{told:?}"
    );
    assert!(
        told.contains(&"3 of 5 are well; that is enough".into()),
        "{told:?}"
    );
}

#[test]
fn one_that_is_out_and_gone_takes_up_nobodys_room() {
    let mut scene = Scene::connected("abc");
    scene.fail("a");
    scene.down('a');

    scene.fail("b");

    assert_eq!(scene.ready(), "c");
}

#[test]
fn a_suspect_takes_calls_while_they_go_to_all_and_is_doubted_again_after() {
    let mut scene = Scene::connected("abcde");
    scene.delta([Change::Vanish(name('e'))]);
    assert_eq!(scene.ready(), "abcd");

    scene.fail("abc");
    assert_eq!(scene.ready(), "abcde");
    scene.succeed("c");

    assert_eq!(scene.ready(), "cd");
}

#[test]
fn an_ejection_outlasts_a_new_connection_and_a_new_weight() {
    let mut scene = Scene::connected("abc");
    scene.fail("b");

    scene.down_proven('b');
    scene.up('b');
    let heavier = (*instance('b')).clone().weight(9);
    scene.delta([Change::Put(Arc::new(heavier))]);

    assert_eq!(scene.ready(), "ac");
    let ejected = scene.set.endpoints().find(&name('b')).unwrap();
    assert_eq!(ejected.state(), State::Ejected);
}

#[test]
fn weight_zero_is_out_of_new_calls_while_others_are_not() {
    let mut scene = Scene::connected("ab");
    let zero = |id| (*instance(id)).clone().weight(0);

    scene.delta([Change::Put(Arc::new(zero('a')))]);
    assert_eq!(scene.ready(), "b");
    scene.delta([Change::Put(Arc::new(zero('b')))]);

    assert_eq!(scene.ready(), "ab");
}

#[test]
fn newcomers_ramp_and_a_whole_set_that_starts_does_not() {
    let mut scene = Scene::connected("ab");
    assert_eq!(scene.shares(), [100, 100]);
    scene.wait(10 * SECOND);
    let third = instance('c');
    scene.delta([Change::Put(third)]);
    scene.up('c');

    let mut shares = Vec::new();
    for _ in 0..=10 {
        shares.push(scene.shares()[2]);
        scene.wait(SECOND);
    }

    assert_eq!(shares, [10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    assert_eq!(scene.shares(), [100; 3]);
    assert_eq!(scene.set.next_due(), None, "nothing is left to do");
}

#[test]
fn one_that_was_away_for_a_moment_does_not_ramp() {
    let mut scene = Scene::connected("ab");
    scene.wait(10 * SECOND);

    scene.down_proven('b');
    scene.up('b');
    assert_eq!(scene.shares(), [100, 100]);
    scene.down_proven('b');
    scene.wait(3 * SECOND);
    scene.up('b');

    assert_eq!(scene.shares(), [100, 10]);
    scene.wait(3 * SECOND);
    assert_eq!(scene.shares(), [100, 100]);
}

#[test]
fn the_overloaded_are_given_less_for_as_long_as_they_ask() {
    let mut scene = Scene::connected("ab");

    scene.calls('b', 3, Code::ResourceExhausted);
    assert_eq!(scene.shares(), [100, 50]);
    scene.wait(SECOND);

    assert_eq!(scene.shares(), [100, 100]);
    assert_eq!(scene.ready(), "ab");
}

#[test]
fn one_that_asks_for_a_minute_and_goes_on_asking_has_the_least_within_seconds() {
    let mut scene = Scene::connected("ab");

    for share in [50, 25, 12, 10] {
        let minute = 60 * SECOND;
        scene.set.overloaded(&name('b'), minute, scene.now);
        scene.wait(SECOND);

        assert_eq!(scene.shares(), [100, share]);
    }
}

#[test]
fn calls_to_one_that_has_left_say_nothing_about_the_next_of_its_name() {
    let mut scene = Scene::connected("abc");
    let left = Arc::clone(scene.set.vitals(&name('b')).unwrap());
    let fail = |calls| {
        for _ in 0..calls {
            let mut call = left.begin_within(9, Moment::now()).unwrap();
            call.ended_by(EndedBy::Status, Code::Internal);
            call = left.begin_within(9, Moment::now()).unwrap();
            call.ended_by(EndedBy::Status, Code::ResourceExhausted);
        }
    };

    fail(5);
    scene.delta([Change::Remove(name('b')), Change::Put(instance('b'))]);
    left.conduct().treat(Mode::Free, 5);
    fail(5);
    scene.calls('b', 0, Code::Ok);
    scene.up('b');

    assert_eq!((&*scene.ready(), scene.shares()), ("abc", vec![100; 3]));
}

/// What may happen to one of six.
fn happens(scene: &mut Scene, what: u8, id: char) {
    let known = scene.set.vitals(&name(id)).is_some();
    match what {
        0..=3 => scene.fail(&id.to_string()),
        4 | 5 => scene.succeed(&id.to_string()),
        6 if known => scene.down_proven(id),
        7 | 8 if known => scene.up(id),
        9 => scene.delta([Change::Remove(name(id))]),
        10 => scene.delta([Change::Put(instance(id))]),
        11 => scene.calls(id, 3, Code::ResourceExhausted),
        _ => scene.wait(Duration::from_millis(700)),
    }
}

proptest! {
    #[test]
    fn whatever_calls_show_the_set_is_never_left_empty(
        history in proptest::collection::vec((0_u8..14, 0_usize..6), 1..150),
    ) {
        let mut scene = Scene::new();
        let ids = ['a', 'b', 'c', 'd', 'e', 'f'];
        let all = ids.map(instance);
        scene.apply(Update::Reset(all.into()));
        ids.into_iter().for_each(|id| scene.up(id));

        for (what, which) in history {
            happens(&mut scene, what, ids[which]);

            let set = &scene.set;
            let connected = set.entries.values().filter(|entry| !entry.up.is_empty());
            let well = connected.clone().filter(|entry| entry.standing == Standing::Good);
            let wellness = Wellness { well: well.count(), of: connected.clone().count() };
            prop_assert_eq!(set.wellness, wellness);
            prop_assert_eq!(set.panics, wellness.well * 2 < wellness.of);
            let out = connected.clone().filter(|entry| entry.standing.is_out()).count();
            prop_assert!(out * 2 <= wellness.of, "{} of {} are out", out, wellness.of);
            // Those that the view has take calls, and whoever is not in it does not.
            let ready: BTreeSet<_> = set.ready().iter().map(|e| e.id().clone()).collect();
            prop_assert!(!ready.is_empty() || wellness.of == 0);
            for entry in connected {
                let takes = ready.contains(&entry.instance.id);
                prop_assert_eq!(takes, set.panics || !entry.standing.is_out());
                prop_assert_eq!(takes, entry.vitals.conduct().is_open());
            }
        }
        scene.wait(Duration::from_secs(3600));
        prop_assert!(scene.shares().iter().all(|share| *share == 100));
    }
}
