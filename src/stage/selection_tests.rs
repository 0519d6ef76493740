use proptest::prelude::*;

use super::*;

/// Instances whose version is their second letter.
fn instance(id: &str) -> Instance {
    let nth = id
        .bytes()
        .map(u64::from)
        .fold(0, |sum, byte| (sum * 31 + byte) % 60_000);
    let instance = Instance::at(format!("10.0.0.1:{}", nth + 1)).unwrap();
    instance.id(id).unwrap().version(&id[1..])
}

fn id(id: &str) -> InstanceId {
    id.parse().unwrap()
}

fn selection(filter: Option<Filter>, subset: Option<Subset>) -> Selection {
    let zones = None;
    Selection::new(
        &Stages {
            filter,
            zones,
            subset,
        },
        1,
    )
}

/// Who turned inside or outside, in words.
fn settled(selection: &mut Selection) -> String {
    let turned = selection.settle();
    assert!(selection.is_settled());
    let words = turned.iter().map(|(id, outside)| match outside {
        None => format!("+{id}"),
        Some(outside) => format!("-{id} {}", outside.code()),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Who is inside of a subset, in order of rank.
fn inside(selection: &Selection) -> Vec<&str> {
    let ranked = selection.pools[0].ranked.iter().map(|(_, id)| id);
    let chosen = ranked.filter(|id| selection.pools[0].chosen.contains(*id));
    chosen.map(InstanceId::as_str).collect()
}

fn fleet(size: usize, subset: usize) -> Selection {
    let mut selection = selection(None, Some(Subset::of(subset).seed(7)));
    for nth in 0..size {
        selection.put(&instance(&format!("i{nth:04}")), Fitness::Well);
    }
    selection.settle();
    selection
}

#[test]
fn who_does_not_fit_is_outside_and_comes_in_when_it_does() {
    let mut two = selection(Some(Filter::version("2")), None);

    two.put(&instance("a2"), Fitness::Well);
    two.put(&instance("b1"), Fitness::Well);
    assert_eq!(settled(&mut two), "+a2, -b1 filter");
    two.put(&instance("b1").version("2"), Fitness::Well);
    two.put(&instance("a2").version("1"), Fitness::Well);

    assert_eq!(settled(&mut two), "-a2 filter, +b1");
}

#[test]
fn nobody_is_inside_when_nobody_fits_and_there_is_no_fallback() {
    let mut two = selection(Some(Filter::version("2")), None);

    two.put(&instance("b1"), Fitness::Well);

    assert_eq!(settled(&mut two), "-b1 filter");
    assert!(two.is_strict(Outside::Filter) && !two.is_strict(Outside::Subset));
}

#[test]
fn a_fallback_holds_while_nobody_fits_who_stays() {
    let filter = Filter::version("2").or(Filter::version("1")).or_any();
    let mut two = selection(Some(filter), None);

    two.put(&instance("c0"), Fitness::Well);
    assert_eq!(settled(&mut two), "+c0");
    two.put(&instance("b1"), Fitness::Well);
    assert_eq!(settled(&mut two), "+b1, -c0 filter");
    two.put(&instance("a2"), Fitness::Well);
    assert_eq!(settled(&mut two), "+a2, -b1 filter");
    two.judge(&id("a2"), Fitness::Unwell);
    assert_eq!(settled(&mut two), "");
    two.judge(&id("a2"), Fitness::Leaving);
    assert_eq!(settled(&mut two), "-a2 filter, +b1");
    two.judge(&id("b1"), Fitness::Leaving);
    assert_eq!(settled(&mut two), "+a2, +c0");
    two.remove(&id("c0"));
    assert_eq!(settled(&mut two), "-b1 filter");
    two.remove(&id("a2"));

    assert_eq!(settled(&mut two), "+b1");
}

#[test]
fn a_newcomer_or_a_leaver_changes_one_place_at_most() {
    let mut fleet = fleet(100, 10);
    let before = inside(&fleet).join(" ");

    let (first, last) = (inside(&fleet)[0].to_owned(), inside(&fleet)[9].to_owned());
    fleet.remove(&id(&first));
    let turned = settled(&mut fleet);

    assert_eq!(turned.matches('+').count(), 1);
    assert_eq!(turned.matches('-').count(), 0);
    fleet.put(&instance(&first), Fitness::Well);
    assert_eq!(settled(&mut fleet).matches('-').count(), 1);
    assert_eq!(inside(&fleet).join(" "), before);
    assert_eq!(inside(&fleet)[9], last);
}

#[test]
fn more_are_taken_in_when_too_few_are_well_and_let_go_of_again() {
    let mut fleet = fleet(100, 10);
    let first = inside(&fleet).iter().map(|one| id(one)).collect::<Vec<_>>();

    // 8 x 1.4 is more than 10, 7 x 1.4 is less.
    first[..2]
        .iter()
        .for_each(|one| fleet.judge(one, Fitness::Unwell));
    assert_eq!(settled(&mut fleet), "");
    fleet.judge(&first[2], Fitness::Leaving);
    assert_eq!(settled(&mut fleet).matches('+').count(), 1);
    assert_eq!(inside(&fleet).len(), 11);
    first[..2]
        .iter()
        .for_each(|one| fleet.judge(one, Fitness::Well));

    assert_eq!(settled(&mut fleet).matches('-').count(), 1);
    assert_eq!(inside(&fleet).len(), 10);
}

#[test]
fn twice_the_size_is_the_most_unless_nobody_is_well() {
    let mut fleet = fleet(100, 10);
    let all: Vec<_> = fleet.pools[0]
        .ranked
        .iter()
        .map(|(_, id)| id.clone())
        .collect();

    all[..19]
        .iter()
        .for_each(|one| fleet.judge(one, Fitness::Unwell));
    all[20..]
        .iter()
        .for_each(|one| fleet.judge(one, Fitness::Unwell));
    fleet.settle();
    assert_eq!(inside(&fleet).len(), 20);
    fleet.judge(&all[19], Fitness::Unwell);
    fleet.judge(&all[70], Fitness::Well);
    fleet.settle();
    assert_eq!(inside(&fleet).len(), 71);
    fleet.judge(&all[70], Fitness::Unwell);
    fleet.settle();

    assert_eq!(inside(&fleet).len(), 100);
}

#[test]
fn a_small_fleet_is_inside_as_a_whole() {
    let mut fleet = fleet(3, 10);

    assert_eq!(inside(&fleet).len(), 3);
    fleet.remove(&id("i0001"));
    assert_eq!(settled(&mut fleet), "");
}

#[test]
fn other_zones_are_inside_when_they_are_needed() {
    let zones = Some(Zones::mine("a").then("b"));
    let stages = Stages {
        zones,
        ..Stages::default()
    };
    let mut zoned = Selection::new(&stages, 1);
    for name in ["a1", "a2", "b1", "b2", "b3", "c1"] {
        zoned.put(&instance(name).zone(&name[..1]), Fitness::Well);
    }
    assert_eq!(
        settled(&mut zoned),
        "+a1, +a2, -b1 zone, -b2 zone, -b3 zone, -c1 zone"
    );
    assert!(zoned.spread().is_none());

    zoned.judge(&id("a1"), Fitness::Unwell);
    assert_eq!(settled(&mut zoned), "+b1, +b2, +b3");
    assert_eq!(zoned.spread().unwrap().to_string(), "86 % a, 14 % b");
    // Not being well is no reason to be let go of, and tried anew.
    for name in ["a2", "b1", "b2", "b3"] {
        zoned.judge(&id(name), Fitness::Unwell);
    }
    assert_eq!(settled(&mut zoned), "+c1");
    assert_eq!(zoned.spread().unwrap().to_string(), "100 % elsewhere");
    zoned.judge(&id("a1"), Fitness::Well);
    zoned.judge(&id("a2"), Fitness::Well);

    assert_eq!(
        settled(&mut zoned),
        "-b1 zone, -b2 zone, -b3 zone, -c1 zone"
    );
    assert!(zoned.spread().is_none());
}

#[test]
fn clients_with_seats_share_out_servers_with_numbers() {
    let mut counts = BTreeMap::new();
    for client in 0..40 {
        let subset = Subset::of(10).seat(Seat::fixed(client));
        let mut fleet = selection(None, Some(subset));
        for nth in 0..40 {
            let one = instance(&format!("i{nth:04}"));
            fleet.put(&one.tag("ordinal", nth.to_string()), Fitness::Well);
        }
        fleet.settle();
        for one in inside(&fleet) {
            *counts.entry(one.to_owned()).or_insert(0) += 1;
        }
    }

    assert_eq!(counts.len(), 40);
    assert!(counts.values().all(|&count| count == 10), "{counts:?}");
}

#[test]
fn a_few_servers_with_numbers_do_not_get_all_the_clients() {
    let subset = Subset::of(4).seed(7).seat(Seat::fixed(0));
    let mut mixed = selection(None, Some(subset));
    let mut plain = selection(None, Some(Subset::of(4).seed(7)));
    for nth in 0..20 {
        let one = instance(&format!("i{nth:04}"));
        plain.put(&one, Fitness::Well);
        let numbered = nth >= 16;
        mixed.put(
            &if numbered {
                one.tag("ordinal", nth.to_string())
            } else {
                one
            },
            Fitness::Well,
        );
    }
    plain.settle();
    mixed.settle();

    assert_eq!(inside(&mixed), inside(&plain));
}

#[derive(Clone, Debug)]
enum Deed {
    Put(u8, bool),
    Remove(u8),
    Judge(u8, u8),
    Settle,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (any::<u8>(), any::<bool>()).prop_map(|(nth, two)| Deed::Put(nth % 24, two)),
        any::<u8>().prop_map(|nth| Deed::Remove(nth % 24)),
        (any::<u8>(), any::<u8>()).prop_map(|(nth, how)| Deed::Judge(nth % 24, how % 3)),
        Just(Deed::Settle),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the same are inside as if all had come at once.
    #[test]
    fn what_happened_makes_no_difference(deeds in prop::collection::vec(deed(), 0..120), size in 1_usize..6) {
        let stages = || {
            let filter = Filter::version("2").or(Filter::version("1"));
            let zones = Zones::mine("a").then("b");
            let (filter, zones) = (Some(filter), Some(zones));
            let subset = Some(Subset::of(size).seed(3));
            Selection::new(&Stages { filter, zones, subset }, 1)
        };
        let named = |nth: u8| format!("i{nth:02}");
        let fitness = |how: u8| [Fitness::Well, Fitness::Unwell, Fitness::Leaving][usize::from(how)];
        let mut told = BTreeMap::new();
        let mut there = BTreeMap::new();
        let mut one = stages();

        for deed in deeds.into_iter().chain([Deed::Settle]) {
            match deed {
                Deed::Put(nth, two) => {
                    let zone = ["a", "b", "c"][usize::from(nth % 3)];
                    let instance = instance(&named(nth)).version(if two { "2" } else { "1" }).zone(zone);
                    let (_, how) = there.get(&nth).cloned().unwrap_or_else(|| (instance.clone(), 0));
                    one.put(&instance, fitness(how));
                    there.insert(nth, (instance, how));
                }
                Deed::Remove(nth) => {
                    one.remove(&id(&named(nth)));
                    there.remove(&nth);
                    told.remove(&id(&named(nth)));
                }
                Deed::Judge(nth, how) => {
                    one.judge(&id(&named(nth)), fitness(how));
                    there.entry(nth).and_modify(|known| known.1 = how);
                }
                Deed::Settle => told.extend(one.settle()),
            }
        }
        let mut other = stages();
        there.values().for_each(|(instance, how)| other.put(instance, fitness(*how)));
        let at_once: BTreeMap<_, _> = other.settle().into_iter().collect();

        prop_assert_eq!(told, at_once);
        let spreads = [&one, &other].map(|one| one.spread().map(|spread| spread.to_string()));
        prop_assert_eq!(&spreads[0], &spreads[1]);
    }
}
