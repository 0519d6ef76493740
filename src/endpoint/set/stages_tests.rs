use super::*;
use crate::{
    endpoint::{
        State,
        set::tests::{GRACE, Scene, instance, name, refused},
    },
    health::Verdict,
    resolve::{Change, Update},
    stage::{Filter, Stages, Subset, Zones},
};

fn scene(stages: Stages, ids: &str) -> Scene {
    let mut scene = Scene::with(stages);
    scene.apply(Update::Reset(ids.chars().map(instance).collect()));
    scene
}

fn subset(size: usize) -> Stages {
    Stages {
        subset: Some(Subset::of(size).seed(1)),
        ..Stages::default()
    }
}

fn version(version: &str, id: char) -> Change {
    let instance = (*instance(id)).clone().version(version);
    Change::Put(instance.into())
}

fn outside(scene: &Scene, id: char) -> Option<&'static str> {
    let endpoint = scene.set.endpoints().find(&name(id))?;
    endpoint.outside().map(Outside::code)
}

fn dialled(scene: &mut Scene) -> String {
    let seen = scene.seen();
    let dialled = seen.iter().filter_map(|word| word.strip_prefix("dial "));
    dialled.collect()
}

#[test]
fn only_those_inside_are_connected_and_the_view_says_why() {
    let mut scene = scene(subset(2), "abcdef");

    let inside = dialled(&mut scene);

    assert_eq!(inside.len(), 2);
    assert_eq!(scene.known(), "abcdef");
    for id in "abcdef".chars() {
        let is_inside = inside.contains(id);
        assert_eq!(outside(&scene, id), (!is_inside).then_some("subset"));
        let state = scene.set.endpoints().find(&name(id)).unwrap().state();
        assert_eq!(state == State::Outside, !is_inside, "{id}");
    }
}

#[test]
fn another_is_connected_when_one_of_the_subset_is_lost_and_let_go_of_later() {
    let mut scene = scene(subset(2), "abcdef");
    let inside = dialled(&mut scene);
    let (one, two) = (
        inside.chars().next().unwrap(),
        inside.chars().nth(1).unwrap(),
    );
    scene.up(one);
    scene.up(two);

    scene.down_proven(one);
    let seen = dialled(&mut scene);
    let third = seen.chars().find(|id| !inside.contains(*id)).unwrap();
    assert_eq!(seen.len(), 2, "{seen}: the lost one anew, and another");
    scene.up(third);
    scene.up(one);

    assert_eq!(outside(&scene, third), Some("subset"));
    assert_eq!(scene.ready().len(), 2);
    assert!(!scene.ready().contains(third));
    scene.seen();
    scene.wait(LINGER);
    assert_eq!(scene.seen(), ["drain"]);
}

#[test]
fn a_dead_fleet_is_tried_as_a_whole() {
    let mut scene = scene(subset(2), "abcdef");

    for _ in 0..6 {
        for id in dialled(&mut scene).chars() {
            scene.down(id);
        }
    }

    assert!("abcdef".chars().all(|id| outside(&scene, id).is_none()));
}

#[test]
fn one_left_out_serves_until_there_is_another() {
    let filter = Filter::version("2").or_any();
    let mut scene = Scene::with(Stages {
        filter: Some(filter),
        ..Stages::default()
    });
    scene.delta([version("1", 'a')]);
    scene.up('a');

    scene.delta([version("2", 'b')]);
    assert_eq!(outside(&scene, 'a'), Some("filter"));
    assert_eq!(scene.ready(), "a");
    scene.wait(LINGER * 3);
    assert_eq!(scene.ready(), "a");
    scene.up('b');
    assert_eq!(scene.ready(), "b");
    scene.seen();
    scene.wait(LINGER);

    assert_eq!(scene.seen(), ["drain"]);
    assert_eq!(scene.ready(), "b");
}

#[test]
fn a_suspicion_ends_though_what_was_to_end_with_it_is_called_off() {
    let mut scene = Scene::with(Stages {
        filter: Some(Filter::version("2").or_any()),
        ..Stages::default()
    });
    scene.delta([version("1", 'a'), version("1", 'c')]);
    scene.up('a');
    scene.up('c');
    scene.delta([Change::Vanish(name('a'))]);

    scene.wait(GRACE - LINGER);
    scene.delta([version("2", 'b')]);
    assert_eq!(outside(&scene, 'a'), Some("filter"));
    scene.delta([Change::Remove(name('b'))]);
    assert_eq!(outside(&scene, 'a'), None);
    scene.wait(LINGER);

    assert_eq!(scene.known(), "c");
}

#[test]
fn who_no_longer_fits_a_strict_filter_is_let_go_of_at_once() {
    let mut scene = Scene::with(Stages {
        filter: Some(Filter::version("2")),
        ..Stages::default()
    });
    scene.delta([version("2", 'a')]);
    scene.up('a');
    assert_eq!(scene.ready(), "a");
    scene.seen();

    scene.delta([version("1", 'a')]);

    assert_eq!(scene.ready(), "");
    assert_eq!(scene.seen(), ["a updated", "drain"]);
    scene.delta([version("2", 'a')]);
    assert_eq!(dialled(&mut scene), "a");
}

#[test]
fn nobody_outside_is_connected_when_the_set_wakes_or_moves() {
    let mut scene = scene(subset(1), "abc");
    let inside = dialled(&mut scene);
    scene.up(inside.chars().next().unwrap());

    let now = scene.now;
    let steps = scene.set.sleep(now);
    scene.note(steps);
    let steps = scene.set.wake(now);
    scene.note(steps);
    assert_eq!(dialled(&mut scene), inside);
    let out = "abc".chars().find(|id| !inside.contains(*id)).unwrap();
    scene.set.crowded(&name(out), now);

    assert_eq!(dialled(&mut scene), "");
}

#[test]
fn who_is_left_out_does_not_count_in_a_panic() {
    let mut scene = scene(subset(2), "abcdef");
    for id in dialled(&mut scene).chars() {
        scene.up(id);
    }

    assert_eq!(scene.set.wellness.of, 2);
    assert!(scene.set.panic().is_none());
}

/// Instances whose zone is `near` for capitals.
fn zoned(ids: &str) -> Scene {
    let mut scene = Scene::with(Stages {
        zones: Some(Zones::mine("near")),
        ..Stages::default()
    });
    let zoned = |id: char| {
        let zone = if id.is_uppercase() { "near" } else { "far" };
        (*instance(id)).clone().zone(zone).into()
    };
    scene.apply(Update::Reset(ids.chars().map(zoned).collect()));
    scene
}

#[test]
fn another_zone_stands_by_for_a_minute_when_it_is_needed_no_more() {
    let mut scene = zoned("ABcd");
    assert_eq!(dialled(&mut scene), "AB");
    scene.up('A');
    scene.up('B');
    assert!(scene.set.spread().is_none());

    scene.down('A');
    assert_eq!(dialled(&mut scene), "cd");
    scene.up('c');
    scene.up('d');
    assert_eq!(scene.ready(), "Bcd");
    assert_eq!(
        scene.set.spread().unwrap().to_string(),
        "91 % near, 9 % elsewhere"
    );
    scene.wait(Duration::from_secs(1));
    scene.up('A');
    assert_eq!(
        (scene.ready().as_str(), outside(&scene, 'c')),
        ("AB", Some("zone"))
    );
    scene.seen();
    scene.wait(STANDBY - LINGER);
    assert_eq!(scene.seen(), [""; 0]);
    scene.wait(LINGER);

    assert_eq!(scene.seen(), ["drain", "drain"]);
    assert!(scene.set.spread().is_none());
}

#[test]
fn another_zone_that_is_down_is_tried_with_patience() {
    let mut scene = zoned("ABcd");
    for id in dialled(&mut scene).chars() {
        scene.up(id);
    }
    scene.down('A');

    let mut tries = 0;
    for _ in 0..60 {
        for id in dialled(&mut scene).chars() {
            tries += 1;
            scene.down(id);
        }
        scene.wait(Duration::from_secs(1));
    }

    // Three that are down, each of them tried again after 0.1 s, then 1.6 times that, up to 30 s.
    assert!((3 * 8..=3 * 14).contains(&tries), "{tries}");
    assert_eq!(scene.ready(), "B");
}

#[test]
fn zones_make_no_difference_in_a_panic() {
    let mut scene = zoned("ABCdef");
    for id in dialled(&mut scene).chars() {
        scene.up(id);
    }

    for id in "AB".chars() {
        scene
            .set
            .judged(&name(id), Verdict::Unhealthy(refused()), scene.now);
    }
    assert!(scene.set.panic().is_some());
    assert!(scene.set.spread().is_none());
    assert_eq!(scene.ready(), "ABC");
    for id in "def".chars() {
        let attempt = scene.set.entries[&name(id)].next;
        let Next::Dialling(attempt) = attempt else {
            panic!("{id} is not being connected: {attempt:?}");
        };
        scene.set.up(&name(id), attempt, scene.now);
    }

    assert!(scene.set.panic().is_none());
    assert_eq!(scene.ready(), "Cdef");
    assert!(scene.set.spread().is_some());
}
