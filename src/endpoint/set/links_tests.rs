use super::{
    super::tests::{Scene, instance, name},
    *,
};
use crate::{
    Instance,
    resolve::{Change, Update},
};

#[test]
fn a_connection_that_has_answered_is_made_again_at_once_however_young() {
    let mut scene = Scene::connected("ab");
    scene.goodbye('a', true);
    assert_eq!(scene.seen(), ["drain", "dial a"]);
    scene.up('a');

    scene.down_proven('a');

    assert_eq!(scene.seen(), ["a lost: connection refused", "dial a"]);
    scene.down('a');
    scene.wait(Duration::from_millis(99));
    assert_eq!(scene.seen(), ["a lost: connection refused"]);
}

#[test]
fn one_that_shakes_hands_and_breaks_is_made_again_after_growing_waits() {
    let mut scene = Scene::connected("ab");
    let mut dials = 0;

    let until = scene.now + Duration::from_secs(60);
    while scene.now < until {
        scene.down('a');
        scene.seen();
        while scene.seen().is_empty() {
            scene.wait(Duration::from_millis(10));
        }
        dials += 1;
        scene.up('a');
    }

    assert!(dials <= 15, "{dials} dials in a minute");
}

#[test]
fn a_long_life_without_calls_is_no_failure() {
    let mut scene = Scene::connected("ab");
    for _ in 0..10 {
        scene.down('a');
        scene.wait(Duration::from_secs(30));
        scene.up('a');
    }
    scene.wait(BRIEF);
    scene.seen();

    scene.down('a');

    scene.wait(Duration::from_millis(100));
    assert_eq!(scene.seen(), ["a lost: connection refused", "dial a"]);
}

#[test]
fn a_suspect_whose_proven_connection_breaks_is_gone() {
    let mut scene = Scene::connected("abc");
    scene.delta([Change::Vanish(name('a'))]);

    scene.down_proven('a');

    assert_eq!(scene.known(), "bc");
}

#[test]
fn a_crowd_gets_one_more_connection_at_a_time_up_to_the_limit() {
    let mut scene = Scene::connected("a");

    scene.crowd('a');
    scene.crowd('a');
    assert_eq!(scene.seen(), ["dial a"]);
    assert!(scene.dials["a"].spare);
    scene.up('a');
    scene.crowd('a');
    assert_eq!(scene.seen(), ["dial a"]);
    scene.up('a');
    scene.crowd('a');

    assert!(scene.seen().is_empty(), "three are all there may be");
    scene.goodbye('a', true);
    assert_eq!(
        scene.seen(),
        ["drain", "dial a"],
        "the crowd is still there"
    );
}

#[test]
fn no_crowd_no_connection_more() {
    let mut scene = Scene::connected("a");
    scene.crowd('a');
    scene.up('a');
    scene.seen();

    scene.goodbye('a', true);

    assert_eq!(scene.seen(), ["drain"]);
    assert_eq!(scene.ready(), "a");
}

#[test]
fn an_attempt_at_one_more_that_fails_leaves_the_endpoint_ready_and_waits_longer_each_time() {
    let mut scene = Scene::connected("a");
    scene.set.take_changed();
    scene.crowd('a');

    scene.down('a');
    assert_eq!(scene.ready(), "a");
    scene.crowd('a');
    assert_eq!(scene.seen(), ["dial a", "a lost: connection refused"]);
    scene.wait(Duration::from_millis(100));
    scene.down('a');
    scene.wait(Duration::from_millis(159));

    assert_eq!(scene.seen(), ["dial a", "a lost: connection refused"]);
    scene.wait(Duration::from_millis(1));
    assert_eq!(scene.seen(), ["dial a"]);
}

#[test]
fn the_last_one_that_ends_is_replaced_at_once_whatever_was_waited_for() {
    let mut scene = Scene::connected("a");
    let first = scene.attempt('a');
    scene.crowd('a');
    scene.down('a');
    scene.seen();

    scene.down_at('a', first, true);

    assert_eq!(scene.ready(), "");
    assert_eq!(scene.seen(), ["a lost: connection refused", "dial a"]);
    scene.wait(Duration::from_secs(60));
    assert!(scene.seen().is_empty(), "nothing else is due");
}

#[test]
fn an_idle_connection_is_let_go_of_if_there_is_another() {
    let mut scene = Scene::connected("a");
    let first = scene.attempt('a');
    scene.crowd('a');
    scene.up('a');
    scene.seen();

    let steps = scene.set.idle(&name('a'), scene.attempt('a'), scene.now);
    scene.note(steps);
    let steps = scene.set.idle(&name('a'), first, scene.now);
    scene.note(steps);

    assert_eq!(scene.seen(), ["drain"]);
    assert_eq!(scene.ready(), "a");
}

#[test]
fn a_new_address_costs_all_connections() {
    let mut scene = Scene::connected("a");
    scene.crowd('a');
    scene.up('a');
    scene.crowd('a');
    scene.seen();

    let moved = Instance::at("10.0.0.9:1").and_then(|a| a.id("a")).unwrap();
    scene.delta([Change::Put(Arc::new(moved))]);

    assert_eq!(
        scene.seen(),
        ["a updated", "drain", "drain", "abandon", "dial a"]
    );
    assert!(!scene.dials["a"].spare);
}

#[test]
fn a_goodbye_drains_the_connection_and_makes_another_at_once() {
    let mut scene = Scene::connected("ab");
    let attempt = scene.dials["a"].attempt;
    scene.wait(BRIEF);

    scene.goodbye('a', false);

    assert_eq!(scene.seen(), ["drain", "dial a"]);
    assert_eq!(scene.ready(), "b");
    scene.down_at('a', attempt, false);
    assert!(
        scene.seen().is_empty(),
        "the end of the old connection says nothing about the new one"
    );
}

#[test]
fn a_goodbye_in_place_of_a_greeting_is_a_reason_to_wait() {
    let mut scene = Scene::connected("ab");

    scene.goodbye('a', false);

    assert_eq!(scene.seen(), ["drain"]);
    scene.wait(Duration::from_millis(99));
    assert!(scene.seen().is_empty());
    scene.wait(Duration::from_millis(1));
    assert_eq!(scene.seen(), ["dial a"]);
}

#[test]
fn a_lost_connection_is_made_again_after_growing_waits() {
    let mut scene = Scene::connected("ab");
    scene.down('a');
    assert_eq!(scene.ready(), "b");
    assert_eq!(scene.seen(), ["a lost: connection refused"]);

    scene.wait(Duration::from_millis(99));
    assert!(scene.seen().is_empty());
    scene.wait(Duration::from_millis(1));
    assert_eq!(scene.seen(), ["dial a"]);
    scene.down('a');
    scene.wait(Duration::from_millis(159));
    assert_eq!(scene.seen(), ["a lost: connection refused"]);
    scene.wait(Duration::from_millis(1));

    assert_eq!(scene.seen(), ["dial a"]);
}

#[test]
fn only_so_many_connect_at_a_time() {
    let mut scene = Scene::with_dials(2);
    scene.apply(Update::Reset("abcd".chars().map(instance).collect()));
    assert_eq!(scene.dials.len(), 2);

    scene.up('a');
    assert_eq!(scene.dials.len(), 3);
    scene.delta([Change::Remove(name('b'))]);

    assert_eq!(scene.dials.len(), 4);
}

#[test]
fn a_set_that_sleeps_has_no_connections_and_makes_none_until_it_wakes() {
    let mut scene = Scene::connected("ab");
    scene.down('b');
    scene.seen();

    let steps = scene.set.sleep(scene.now);
    scene.note(steps);
    scene.delta([Change::Put(instance('c'))]);
    scene.wait(Duration::from_secs(600));

    assert_eq!(scene.seen(), ["drain", "c added"]);
    assert_eq!((scene.ready(), scene.known()), ("".into(), "abc".into()));
    let steps = scene.set.wake(scene.now);
    scene.note(steps);
    let mut dials = scene.seen();
    dials.sort();
    assert_eq!(dials, ["dial a", "dial b", "dial c"]);
    scene.up('a');
    assert_eq!(scene.ready(), "a");
}

#[test]
fn a_set_that_sleeps_does_not_grow_with_what_the_registry_says() {
    let mut scene = Scene::connected("a");
    scene.set.sleep(scene.now);

    for _ in 0..10 {
        scene.delta([Change::Remove(name('a')), Change::Put(instance('a'))]);
    }
    assert_eq!(scene.set.queue.len(), 0);
    scene.seen();
    let steps = scene.set.wake(scene.now);
    scene.note(steps);

    assert_eq!(scene.seen(), ["dial a"]);
}
