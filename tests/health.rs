//! What becomes of calls when servers fall ill: they fail, stall, flap, freeze, or have too much to do. In
//! memory, in paused time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;
#[path = "support/ward.rs"]
mod ward;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_fleet::{
    Channel, Error, ErrorKind, Event, State,
    balance::{self, RoundRobin, WeightedRandom},
    health::{Ejection, Ended, Outcome, Outliers, SlowStart},
    resolve::Fixed,
};
use ward::{Illness, Tally, Ward};

const POLICIES: [&str; 7] = [
    "round_robin",
    "random",
    "weighted",
    "weighted_random",
    "least_loaded",
    "adaptive",
    "orca",
];

/// Fifty seconds of calls; a debug build makes fewer of them.
const CALLS: usize = if cfg!(debug_assertions) {
    1_000
} else {
    50_000
};
const TIME: Duration = Duration::from_secs(50);
/// Two of a thousand. The trials of fifty seconds do not become fewer with the calls.
const FEW: usize = if cfg!(debug_assertions) { 60 } else { 100 };

/// One of five is ill for so many calls; then it is well again.
async fn one_of_five(policy: &str, illness: Illness) -> (Ward, Tally) {
    let ward = Ward::of(5, |builder| builder.policy(balance::named(policy).unwrap())).await;
    ward.call(CALLS / 50, TIME / 50).await;
    let began = ward.asked(0);

    ward.falls(0, illness);
    let tally = ward.call(CALLS, TIME).await;

    let view = ward.channel.view();
    let what = format!("{policy}, {illness:?}: {tally:?}\n{view}");
    assert!(tally.failed <= FEW, "{what}");
    assert!(ward.asked(0) - began <= FEW as u64, "{what}");
    (ward, tally)
}

/// Fifteen seconds after it is well again, it has its full share.
async fn is_back(ward: &mut Ward, policy: &str) {
    ward.falls(0, Illness::None);

    ward.call(CALLS * 15 / 50, Duration::from_secs(15)).await;
    let tally = ward.call(CALLS, TIME).await;

    let share = tally.by["s0"] * 5;
    let view = ward.channel.view();
    assert!(
        share.abs_diff(CALLS) <= CALLS * 3 / 10 && tally.failed == 0,
        "{policy}: {tally:?}\n{view}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_at_once_gets_next_to_no_calls_whatever_the_policy() {
    for policy in POLICIES {
        let (mut ward, tally) = one_of_five(policy, Illness::Fails).await;

        // Five in a row, and a trial every few seconds.
        assert!(tally.failed <= 10 + 20, "{policy}: {tally:?}");
        is_back(&mut ward, policy).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_answers_too_late_gets_next_to_no_calls_whatever_the_policy() {
    for policy in POLICIES {
        let late = Illness::Slow(Duration::from_secs(2));
        let (mut ward, _) = one_of_five(policy, late).await;

        is_back(&mut ward, policy).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_flaps_gets_next_to_no_calls_whatever_the_policy() {
    // A hundred a second at least: fewer would not be five in a row before it is well.
    let calls = CALLS.max(5_000);
    let policies = if cfg!(debug_assertions) {
        &POLICIES[3..]
    } else {
        &POLICIES[..]
    };
    for &policy in policies {
        let mut ward = Ward::of(5, |builder| builder.policy(balance::named(policy).unwrap())).await;

        ward.falls(0, Illness::Flaps(Duration::from_secs(1)));
        let tally = ward.call(calls, TIME).await;

        let view = ward.channel.view();
        assert!(tally.failed <= FEW, "{policy}: {tally:?}\n{view}");
        is_back(&mut ward, policy).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_resets_every_stream_gets_next_to_no_calls_whatever_the_policy() {
    for policy in POLICIES {
        let (mut ward, _) = one_of_five(policy, Illness::Resets).await;

        is_back(&mut ward, policy).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_are_ill_calls_go_to_all_and_the_first_to_recover_has_some_at_once() {
    let ward = Ward::of(5, |builder| builder.policy(RoundRobin::default())).await;
    let mut events = ward.channel.events();
    (0..5).for_each(|n| ward.falls(n, Illness::Fails));
    ward.call(200, Duration::from_secs(1)).await;
    let before: Vec<u64> = (0..5).map(|n| ward.asked(n)).collect();

    ward.call(500, Duration::from_secs(5)).await;

    let view = ward.channel.view();
    assert_eq!(view.panic(), Some((0, 5)), "{view}");
    assert!(view.to_string().contains("panic: 0 of 5"), "{view}");
    for (n, before) in before.into_iter().enumerate() {
        assert!(ward.asked(n) - before >= 90, "s{n}\n{view}");
    }
    ward.falls(3, Illness::None);
    let tally = ward.call(100, Duration::from_secs(1)).await;
    assert!(tally.by["s3"] >= 18, "{tally:?}");
    (0..5).for_each(|n| ward.falls(n, Illness::None));
    ward.call(500, Duration::from_secs(5)).await;
    let view = ward.channel.view();
    assert_eq!((view.panic(), view.ready().len()), (None, 5), "{view}");
    let mut codes = BTreeMap::<_, usize>::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        *codes.entry(event.code()).or_default() += 1;
    }
    assert_eq!((codes["panicked"], codes["calmed"]), (1, 1), "{codes:?}");
    // Half of five are two; the others are left out when there is room.
    assert_eq!(codes["spared"], 3, "{codes:?}");
    assert!((2..=5).contains(&codes["ejected"]), "{codes:?}");
    assert_eq!(codes["restored"], 5, "{codes:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_freezes_costs_its_share_of_a_second_and_a_few_trials() {
    for policy in ["round_robin", "least_loaded"] {
        let mut ward = Ward::of(5, |builder| builder.policy(balance::named(policy).unwrap())).await;
        ward.deadline = Duration::from_secs(1);
        ward.call(200, Duration::from_secs(1)).await;

        ward.freeze(2);
        let until_noticed = ward.call(200 * 30, Duration::from_secs(30)).await;
        let after = ward.call(200 * 5, Duration::from_secs(5)).await;

        // The keep-alive takes 25 s to notice.
        let view = ward.channel.view();
        let fair_share = 200 / 5;
        assert!(
            until_noticed.failed <= 2 * fair_share,
            "{policy}: {until_noticed:?}\n{view}"
        );
        assert_eq!(after.failed, 0, "{policy}: {after:?}\n{view}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_bad_requests_ejects_nobody() {
    let ward = Ward::of(5, |builder| builder).await;
    let mut events = ward.channel.events();
    (0..5).for_each(|n| ward.falls(n, Illness::Says(Code::InvalidArgument)));

    let tally = ward.call(2_000, Duration::from_secs(10)).await;

    assert_eq!(tally.failed, 2_000);
    assert!(events.next().now_or_never().is_none(), "nothing happened");
    let view = ward.channel.view();
    assert!(view.known().iter().all(|e| e.failures() == 0), "{view}");
    assert_eq!(view.ready().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_a_hurry_ejects_nobody() {
    let mut ward = Ward::of(3, |builder| builder).await;
    (0..3).for_each(|n| ward.falls(n, Illness::Slow(Duration::from_millis(50))));
    ward.call(100, Duration::from_secs(1)).await;
    let mut events = ward.channel.events();

    ward.deadline = Duration::from_millis(20);
    let tally = ward.call(500, Duration::from_secs(5)).await;

    assert_eq!(tally.failed, 500);
    assert!(
        events.next().now_or_never().is_none(),
        "{}",
        ward.channel.view()
    );
}

#[tokio::test(start_paused = true)]
async fn what_counts_as_failure_is_for_the_user_to_say() {
    let lost = |ended: &Ended<'_>| match ended.code() {
        Code::Aborted => Outcome::Failure,
        _ => ended.usual(),
    };
    let in_turn = RoundRobin::default();
    let ward = Ward::of(3, |builder| builder.policy(in_turn).classify(lost)).await;
    ward.falls(1, Illness::Says(Code::Aborted));

    let tally = ward.call(500, Duration::from_secs(1)).await;

    let view = ward.channel.view();
    assert!((5..15).contains(&tally.failed), "{tally:?}");
    let sick = view
        .known()
        .iter()
        .find(|e| e.id().as_str() == "s1")
        .unwrap();
    assert_eq!(sick.state(), State::Ejected, "{view}");
    let why = sick.last_error().unwrap().chain();
    assert!(why.contains("Aborted"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn outliers_are_ejected_where_failures_never_come_in_a_row() {
    let outliers = Outliers::default()
        .failure_percentage(tonic_fleet::health::FailurePercentage::default().threshold(40));
    let ejection = Ejection::default().consecutive(50).outliers(outliers);
    let policy = RoundRobin::default();
    let ward = Ward::of(5, |builder| builder.policy(policy).ejection(ejection)).await;

    ward.falls(4, Illness::Flaps(Duration::from_millis(100)));
    ward.call(3_000, Duration::from_secs(12)).await;
    let tally = ward.call(1_000, Duration::from_secs(5)).await;

    let view = ward.channel.view();
    assert_eq!(tally.failed, 0, "{view}");
    assert_eq!(view.ready().len(), 4, "{view}");
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_one_is_given_less_and_is_not_ejected() {
    for policy in POLICIES {
        let ward = Ward::of(5, |builder| builder.policy(balance::named(policy).unwrap())).await;
        ward.call(100, Duration::from_secs(1)).await;
        ward.falls(1, Illness::Overloaded);

        let tally = ward.call(1_000, Duration::from_secs(10)).await;

        // Half, a quarter, an eighth, a tenth of two hundred, in turn; all of it again when it is over.
        let view = ward.channel.view();
        assert!(
            (10..100).contains(&tally.failed),
            "{policy}: {tally:?}\n{view}"
        );
        assert_eq!(view.ready().len(), 5, "{view}");
        ward.falls(1, Illness::None);
        ward.call(200, Duration::from_secs(2)).await;
        let tally = ward.call(1_000, Duration::from_secs(10)).await;
        assert!(tally.by["s1"] >= 140, "{policy}: {tally:?}");
    }
}

/// The 99th percentiles of the old and of the new in ten seconds after four are joined by four cold ones.
async fn scale_out(slow_start: SlowStart) -> (Duration, Duration) {
    let mut ward = Ward::of(4, |builder| {
        builder.policy(WeightedRandom).slow_start(slow_start)
    })
    .await;
    ward.deadline = Duration::from_secs(60);
    let work = Duration::from_millis(4);
    (0..4).for_each(|n| ward.works(n, work));
    ward.call(800 * 4, Duration::from_secs(4)).await;

    for n in 4..8 {
        ward.joins(n);
        ward.works(n, 2 * work);
    }
    ward.channel.ready(8).await;
    let mut first = ward.call(800 * 5, Duration::from_secs(5)).await;
    (4..8).for_each(|n| ward.works(n, work));
    let second = ward.call(800 * 5, Duration::from_secs(5)).await;

    first.took.extend(second.took);
    let of = |old: bool| {
        let took = first
            .took
            .iter()
            .filter(|(id, _)| (id.as_str() < "s4") == old);
        let mut took: Vec<Duration> = took.map(|(_, took)| *took).collect();
        took.sort();
        took[took.len() * 99 / 100]
    };
    (of(true), of(false))
}

#[tokio::test(start_paused = true)]
async fn newcomers_are_spared_while_they_are_cold() {
    // Calls come by chance, and a percentile of one run is at its mercy.
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(scale_out(SlowStart::default()).await);
    }
    runs.sort_by(|(old, new), (other, newer)| {
        let [one, two] = [(new, old), (newer, other)].map(|(a, b)| a.div_duration_f64(*b));
        one.total_cmp(&two)
    });
    let (old, new) = runs[1];
    let (old_without, new_without) = scale_out(SlowStart::off()).await;

    println!("with slow start {old:?} and {new:?}, without {old_without:?} and {new_without:?}");
    assert!(new * 2 <= old * 3, "the new take {new:?}, the old {old:?}");
    assert!(
        new_without > old_without * 2,
        "the new take {new_without:?}, the old {old_without:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_ramps_when_all_are_new() {
    let ward = Ward::of(5, |builder| builder).await;

    let view = ward.channel.view();
    assert!(view.ready().iter().all(|e| e.share() == 100), "{view}");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_bounds_the_calls_of_each_and_a_cap_those_of_all() {
    let stall = Illness::Slow(Duration::from_secs(1));
    let ward = Ward::of(2, |builder| builder.breaker(3)).await;
    (0..2).for_each(|n| ward.falls(n, stall));
    let calls: Vec<_> = (0..7).map(|_| tokio::spawn(ward.one())).collect();
    let mut failed = Vec::new();
    for call in calls {
        failed.extend(call.await.unwrap().err());
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].code(), Code::Unavailable);
    assert_eq!(kind(&failed[0]), Some(ErrorKind::Overloaded));
    let view = ward.channel.view();
    assert!(view.ready().iter().all(|e| e.connections() == 1), "{view}");

    let ward = Ward::of(2, |builder| builder.max_calls(4)).await;
    (0..2).for_each(|n| ward.falls(n, stall));
    let calls: Vec<_> = (0..6).map(|_| tokio::spawn(ward.one())).collect();
    let mut failed = Vec::new();
    for call in calls {
        failed.extend(call.await.unwrap().err());
    }
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert_eq!(failed[0].code(), Code::ResourceExhausted);
    assert_eq!(kind(&failed[0]), Some(ErrorKind::Overloaded));
    ward.one().await.expect("there is room again");
}

/// What kind of error of ours a status comes from.
fn kind(status: &Status) -> Option<ErrorKind> {
    let source = std::error::Error::source(status)?;
    Some(source.downcast_ref::<Error>()?.kind())
}

#[tokio::test(start_paused = true)]
async fn each_transition_is_told_once_with_its_reason() {
    let ward = Ward::of(3, |builder| builder.policy(RoundRobin::default())).await;
    let mut events = ward.channel.events();
    ward.falls(0, Illness::Fails);
    ward.call(200, Duration::from_secs(1)).await;
    ward.falls(0, Illness::None);

    ward.call(1_000, Duration::from_secs(10)).await;

    let mut told = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        told.push(event);
    }
    let [Event::Ejected(id, why), Event::Tried(_), rest @ ..] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(id.as_str(), "s0");
    let why = why.chain();
    assert!(
        why.starts_with("5 calls failed in a row: Unavailable: "),
        "{why}"
    );
    assert!(matches!(rest.last(), Some(Event::Restored(..))), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_weight_of_zero_takes_no_new_calls_while_others_do() {
    for policy in POLICIES {
        let ward = Ward::of(3, |builder| builder.policy(balance::named(policy).unwrap())).await;

        ward.weighs(1, 0);
        ward.call(10, Duration::from_secs(1)).await;
        let tally = ward.call(300, Duration::from_secs(3)).await;

        assert_eq!(tally.by.get("s1"), None, "{policy}: {tally:?}");
        assert_eq!(tally.failed, 0);
    }
}

#[tokio::test]
async fn what_is_out_of_range_is_refused_when_built_with_its_name_and_limits() {
    let builder = || {
        let servers = Fixed::at(["10.0.0.1:1"]).unwrap();
        Channel::over("greeter".parse().unwrap(), servers)
    };
    let tiny = Duration::from_millis(1);
    for (builder, said) in [
        (
            builder().ejection(Ejection::default().at_most(51)),
            "ejection: at_most is 51: it is from 1 to 50",
        ),
        (
            builder().ejection(Ejection::default().time(tiny, tiny)),
            "ejection: time: first is 1ms: it is from 10ms to 3600s",
        ),
        (
            builder().ejection(Ejection::default().outliers(Outliers::default().interval(tiny))),
            "outliers: interval is 1ms: it is from 100ms to 3600s",
        ),
        (
            builder().slow_start(SlowStart::over(tiny)),
            "slow_start: window is 1ms: it is from 100 ms to an hour",
        ),
        (
            builder().panic_threshold(101),
            "panic_threshold is 101: it is from 0 to 100",
        ),
        (
            builder().breaker(0),
            "breaker is 0: it is from 1 to 1000000",
        ),
        (
            builder().max_calls(0),
            "max_calls is 0: it is from 1 to 100000000",
        ),
    ] {
        let refused = builder.build().unwrap_err();

        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains(said), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn ejection_survives_what_the_registry_says_and_a_new_connection() {
    let mut ward = Ward::of(3, |builder| {
        let long = Duration::from_secs(600);
        builder
            .policy(RoundRobin::default())
            .ejection(Ejection::default().time(long, long))
    })
    .await;
    ward.falls(2, Illness::Fails);
    ward.call(200, Duration::from_secs(1)).await;
    let before = ward.asked(2);

    ward.weighs(2, 7);
    ward.call(100, Duration::from_secs(1)).await;
    ward.restarts(2);
    sleep(Duration::from_secs(5)).await;
    let counted = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        ward.one().await.unwrap();
        counted.fetch_add(1, SeqCst);
    }

    assert_eq!(ward.asked(2), before, "{}", ward.channel.view());
    let view = ward.channel.view();
    let ejected = view
        .known()
        .iter()
        .find(|e| e.id().as_str() == "s2")
        .unwrap();
    assert_eq!(ejected.state(), State::Ejected, "{view}");
    assert!(
        ejected.since(Instant::now()) < Duration::from_secs(6),
        "it was connected anew"
    );
}
