use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;

use super::{super::conform, *};
use crate::{Endpoint, Instance, balance::Rehearsal};

const MILLI: Duration = Duration::from_millis(1);

fn among(n: usize) -> Rehearsal {
    seeded(n, 7)
}

fn seeded(n: usize, seed: u64) -> Rehearsal {
    super::super::seed(seed);
    let mut rehearsal = Rehearsal::of(Adaptive::default());
    for nth in 0..n {
        join(&mut rehearsal, nth);
    }
    rehearsal
}

fn join(rehearsal: &mut Rehearsal, nth: usize) {
    let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(format!("i{nth:03}")));
    rehearsal.put(instance.unwrap());
}

/// So many calls, one after another, that take so long and end so at this endpoint; how many each was given.
async fn calls(
    rehearsal: &mut Rehearsal,
    n: usize,
    how: impl Fn(usize, usize) -> (Duration, Code),
) -> Vec<usize> {
    let mut given = vec![0; 64];
    for nth in 0..n {
        let mut call = rehearsal.call().unwrap();
        let at = number(call.endpoint());
        let (time, code) = how(at, nth);
        tokio::time::advance(time).await;
        if code == Code::Ok {
            call.answered();
        }
        call.ended(code);
        given[at] += 1;
    }
    given
}

fn number(endpoint: &Endpoint) -> usize {
    endpoint.id().as_str()[1..].parse().unwrap()
}

/// Around this, as long as chance says: an even number between half and half as much again.
fn about(mean: Duration, nth: usize) -> Duration {
    let part = (nth as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    mean / 2 + mean * part as u32 / 256
}

#[test]
fn whoever_is_barred_is_never_the_least_however_busy() {
    for barred in 0..LANES {
        let costs = std::array::from_fn(|nth| match nth == barred {
            true => BARRED * (BUSIEST + 1.0 + CROWD),
            false => 1e20 + 1e16 * nth as f32,
        });

        let (least, second) = two_least(&costs);

        assert_eq!(least, usize::from(barred == 0));
        assert_eq!(second, if barred > 1 { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn equals_share_and_one_ten_times_slower_is_only_tried() {
    let mut fleet = among(6);

    let given = calls(&mut fleet, 6_000, |at, nth| {
        let mean = if at == 0 { MILLI * 100 } else { MILLI * 10 };
        (about(mean, nth), Code::Ok)
    });
    let given = given.await;

    assert!((1..60).contains(&given[0]), "{given:?}");
    assert!(given[1..6].iter().all(|n| *n > 300), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_at_once_is_given_next_to_nothing_and_its_share_when_it_is_well() {
    let (mut failures, mut well) = (Vec::new(), Vec::new());
    for seed in 0..20 {
        let mut fleet = seeded(20, seed);
        let usual = |nth| (about(MILLI * 5, nth + seed as usize * 7_919), Code::Ok);
        calls(&mut fleet, 400, |_, nth| usual(nth)).await;

        let failing = calls(&mut fleet, 4_000, |at, nth| match at {
            0 => (Duration::ZERO, Code::Unavailable),
            _ => usual(nth),
        });
        failures.push(failing.await[0]);
        // Ten seconds, and ten more.
        calls(&mut fleet, 2_000, |_, nth| usual(nth)).await;
        well.push(calls(&mut fleet, 2_000, |_, nth| usual(nth)).await[0]);
    }
    well.sort_unstable();

    assert!(failures.iter().all(|n| (1..=4).contains(n)), "{failures:?}");
    assert!(well[0] > 30 && well[19] < 200, "{well:?}");
    assert!((75..125).contains(&well[10]), "{well:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_slow_is_tried_now_and_then_and_soon_believed_to_be_fast() {
    for seed in 0..10 {
        let mut fleet = seeded(20, seed);
        let usual = |nth| (about(MILLI * 5, nth + seed as usize * 7_919), Code::Ok);
        calls(&mut fleet, 400, |_, nth| usual(nth)).await;

        let slow = calls(&mut fleet, 4_000, |at, nth| match at {
            0 => (about(MILLI * 100, nth), Code::Ok),
            _ => usual(nth),
        });
        let slow = slow.await;
        // Eight seconds, and five more.
        calls(&mut fleet, 1_600, |_, nth| usual(nth)).await;
        let well = calls(&mut fleet, 1_000, |_, nth| usual(nth)).await;

        assert!((1..=8).contains(&slow[0]), "{slow:?}");
        assert!((20..100).contains(&well[0]), "{well:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn equals_share_evenly_where_calls_come_one_by_one() {
    for seed in 0..20 {
        let mut fleet = seeded(3, seed);

        let given = calls(&mut fleet, 3_000, |at, nth| {
            let mean = [95, 100, 105][at] * MILLI / 20;
            (about(mean, nth + seed as usize * 7_919), Code::Ok)
        });
        let given = given.await;

        assert!(given[..3].iter().all(|n| *n > 500), "{given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_late_the_first_time_is_no_worse_than_others() {
    for seed in 0..20 {
        let mut fleet = seeded(5, seed);
        let met: [_; 5] = std::array::from_fn(|_| std::cell::Cell::new(false));

        let given = calls(&mut fleet, 1_000, |at, nth| {
            let is_late = !met[at].replace(true) && at > 0;
            let time = if is_late { 30 * MILLI } else { MILLI * 7 / 10 };
            (about(time, nth), Code::Ok)
        });
        let given = given.await;

        assert!(given[..5].iter().all(|n| *n > 120), "{given:?}");
    }
}

/// As exponentials are: many short, few long.
fn exponential(mean: Duration, nth: usize) -> Duration {
    let bits = (nth as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let unit = (mixed >> 40) as f64 / (1_u64 << 24) as f64;
    mean.mul_f64(-(1.0 - unit).ln())
}

#[tokio::test(start_paused = true)]
async fn equals_that_answer_now_soon_now_late_share_evenly_where_calls_come_one_by_one() {
    for seed in 0..10 {
        let mut fleet = seeded(10, seed);

        let given = calls(&mut fleet, 10_000, |_, nth| {
            let time = exponential(MILLI * 10, nth + seed as usize * 100_003);
            (time, Code::Ok)
        });
        let given = given.await;

        let even = given[..10].iter().all(|n| (400..2_000).contains(n));
        assert!(even, "{given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_keeps_calls_away_before_any_has_ended_and_an_open_stream_does_not() {
    for answers in [false, true] {
        let mut fleet = among(8);
        calls(&mut fleet, 400, |_, nth| (about(MILLI * 10, nth), Code::Ok)).await;
        let mut streams = Vec::new();
        while fleet
            .ready()
            .iter()
            .any(|endpoint| endpoint.in_flight() == 0)
        {
            let mut stream = fleet.call().unwrap();
            if answers || number(stream.endpoint()) != 3 {
                stream.answered();
            }
            streams.push(stream);
        }
        tokio::time::advance(MILLI * 500).await;

        let given = calls(&mut fleet, 400, |_, nth| (about(MILLI * 10, nth), Code::Ok)).await;

        assert_eq!(given[3] > 0, answers, "{given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_answered_too_late_has_its_share_again_when_it_has_proved_itself() {
    let mut fleet = among(5);
    let usual = |nth| (about(MILLI * 5, nth), Code::Ok);
    calls(&mut fleet, 200, |_, nth| usual(nth)).await;
    let mut late = 0;
    while late < 5 {
        let call = fleet.call().unwrap();
        let at = number(call.endpoint());
        tokio::time::advance(MILLI * if at == 0 { 1_000 } else { 5 }).await;
        if at == 0 {
            late += 1;
            call.late();
        } else {
            call.ended(Code::Ok);
        }
    }
    assert_eq!(fleet.ready().len(), 4);

    // Ten seconds for its trials, and as long again to come to its full weight.
    calls(&mut fleet, 4_000, |_, nth| usual(nth)).await;
    let given = calls(&mut fleet, 4_000, |_, nth| usual(nth)).await;

    assert!(given[0] > 200, "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_outlives_a_change_of_the_set() {
    let slow = |at, nth| {
        let mean = if at < 3 { MILLI * 200 } else { MILLI * 5 };
        (about(mean, nth), Code::Ok)
    };
    let mut fleet = among(7);
    calls(&mut fleet, 1_000, slow).await;

    join(&mut fleet, 7);
    let given = calls(&mut fleet, 500, slow).await;

    assert!(given[..3].iter().sum::<usize>() < 10, "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_are_levelled() {
    let mut fleet = among(20);

    let held: Vec<_> = (0..200).filter_map(|_| fleet.call()).collect();

    let most = held.iter().map(|call| call.endpoint().in_flight()).max();
    assert!(most <= Some(14), "{most:?}");
}

#[test]
fn idle_ones_share_by_weight() {
    let counts = conform::counts(&Adaptive::default(), &[3, 1], 40_000);

    assert!(counts[0].abs_diff(30_000) < 800, "{counts:?}");
}

#[test]
fn one_that_ramps_is_given_its_share() {
    let counts = conform::ramping(&Adaptive::default(), &[100, 10, 100], 21_000);

    assert!(counts[1].abs_diff(1_000) < 150, "{counts:?}");
}

#[test]
fn all_places_are_drawn_first_alike() {
    for n in [2, 5, 7, 9] {
        let counts = conform::counts(&Adaptive::default(), &vec![1; n], 9_000 * n);

        assert!(
            counts.iter().all(|count| count.abs_diff(9_000) < 600),
            "{counts:?}"
        );
    }
}

#[test]
fn one_that_is_barred_is_not_picked_while_others_are_open() {
    let ready = conform::endpoints(&[1; 3]);
    ready[1].conduct().treat(crate::health::Mode::Barred, 5);
    let pick = Adaptive::default().over(&ready);
    let headers = http::HeaderMap::new();

    let picks = (0..1_000).map(|_| pick.pick(&Call::new("/a.B/C", &headers)));

    assert!(picks.into_iter().all(|place| place != 1));
}

#[tokio::test(start_paused = true)]
async fn who_has_a_call_of_a_method_that_takes_long_is_no_worse_for_it() {
    const LASTS: usize = 400;
    let mut fleet = among(5);
    let headers = http::HeaderMap::new();
    let [get, watch] = ["/a.B/Get", "/a.B/Watch"].map(|path| Call::new(path, &headers));
    let mut in_flight = VecDeque::new();
    let (mut beside, mut after) = (0, 0);

    for round in 0..50 {
        let mut watched = fleet.call_with(&watch);
        let at = watched.as_ref().map(|call| number(call.endpoint()));
        for n in 0..2 * LASTS {
            if n == LASTS
                && let Some(mut call) = watched.take()
            {
                call.answered();
                call.ended(Code::Ok);
            }
            let call = fleet.call_with(&get).unwrap();
            if at == Some(number(call.endpoint())) {
                *(if n < LASTS { &mut beside } else { &mut after }) += 1;
            }
            in_flight.push_back(call);
            tokio::time::advance(about(MILLI, round * LASTS + n)).await;
            if in_flight.len() == 15
                && let Some(mut call) = in_flight.pop_front()
            {
                call.answered();
                call.ended(Code::Ok);
            }
        }
    }

    let fair = 50 * LASTS / 5;
    assert!(
        beside > fair / 2 && after > fair / 2,
        "{beside} and {after}, of {fair}"
    );
}

/// What nine of ten calls take at most that keep so many servers busy for four fifths of the time, each one at a time,
/// where each so-manieth call waits for half a minute and keeps nobody busy.
async fn nine_of_ten(n: usize, each: usize, are_answered: bool) -> Duration {
    let mut fleet = among(n);
    let (mut ends, mut times) = (BTreeMap::new(), Vec::new());
    let mut free = vec![Instant::now(); n];
    for nth in 1..12_000 {
        let now = Instant::now();
        let call = fleet.call().unwrap();
        let at = number(call.endpoint());
        let waits = nth % each == 0;
        let end = if waits {
            now + MILLI * 30_000
        } else {
            free[at] = free[at].max(now) + about(MILLI * 4 * n as u32, nth);
            times.push(free[at] - now);
            free[at]
        };
        ends.insert((end, nth), (call, waits));
        let next = now + MILLI * 5;
        while let Some(end) = ends.first_entry().filter(|end| end.key().0 <= next) {
            tokio::time::advance(end.key().0 - Instant::now()).await;
            let (mut call, waited) = end.remove();
            if !waited || are_answered {
                call.answered();
                call.ended(Code::Ok);
            }
        }
        tokio::time::advance(next - Instant::now()).await;
    }
    times.sort_unstable();
    times[times.len() * 9 / 10]
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_long_where_others_do_not_keep_their_servers_from_little() {
    for n in [2, 5] {
        let usual = nine_of_ten(n, usize::MAX, true).await;
        for are_answered in [true, false] {
            let time = nine_of_ten(n, 997, are_answered).await;

            assert!(
                time < usual * 5,
                "{time:?}, where {usual:?} is usual, of {n}, {are_answered}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_one_that_answers_thrice_as_late_has_its_part_of_many_streams() {
    let mut fleet = among(2);
    let mut streams = Vec::new();

    for nth in 0..1_000 {
        let mut call = fleet.call().unwrap();
        let late = number(call.endpoint()) == 1;
        tokio::time::advance(about(MILLI * if late { 12 } else { 4 }, nth)).await;
        call.answered();
        streams.push((late, call));
    }

    let late = streams.iter().filter(|(late, _)| *late).count();
    assert!((150..400).contains(&late), "{late}");
}
