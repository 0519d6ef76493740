use tokio::time::advance;

use super::{super::conform, *};
use crate::orca::Report;

const SECOND: Duration = Duration::from_secs(1);

fn reports(endpoint: &Endpoint, utilization: f64, calls: f64) {
    let report = Report {
        application_utilization: utilization,
        rps_fractional: calls,
        ..Report::default()
    };
    let now = Instant::now();
    let weight = endpoint.vitals().sense().weight(now);
    weight.heard_with_call(&report, now);
}

fn at_once() -> Orca {
    Orca::default().blackout(Duration::ZERO)
}

fn counts(pick: &dyn Pick, n: usize, picks: usize) -> Vec<usize> {
    let headers = http::HeaderMap::new();
    let mut counts = vec![0; n];
    (0..picks).for_each(|_| counts[pick.pick(&Call::new("/a.B/C", &headers))] += 1);
    counts
}

/// How often each is picked of those who bear so many calls a second at half of what they can do.
fn shares(calls: &[f64], weights: &[u32], picks: usize) -> Vec<usize> {
    let ready = conform::endpoints(weights);
    let policy = at_once();
    // Whose rule it is has to be known first.
    drop(policy.over(&ready));
    for (endpoint, calls) in ready.iter().zip(calls) {
        reports(endpoint, 0.5, *calls);
    }
    counts(&*policy.over(&ready), calls.len(), picks)
}

#[tokio::test(start_paused = true)]
async fn three_to_one_to_one_is_picked_120_000_to_40_000_to_40_000() {
    let counts = shares(&[300.0, 100.0, 100.0], &[1; 3], 200_000);

    assert_eq!(counts.iter().sum::<usize>(), 200_000);
    for (count, share) in counts.iter().zip([120_000_usize, 40_000, 40_000]) {
        // Wherever the turn begins.
        assert!(count.abs_diff(share) <= 3, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_towers_is_held_to_ten_times_the_mean_and_one_that_is_tiny_to_a_hundredth() {
    // The mean of the four is 250,000 and a bit: in grpc-go, without caps, the others get nothing.
    let mut twenty = [1.0; 20];
    twenty[0] = 1e6;

    let towering = scaled(&twenty.iter().map(|w| Some(*w)).collect::<Vec<_>>()).unwrap();
    let four = scaled(&[Some(1e6), Some(1.0), Some(1.0), Some(1.0)]).unwrap();

    let mean = 65_535.0_f64 / 10.0;
    assert_eq!(towering[0], 65_535);
    assert!(
        towering[1..]
            .iter()
            .all(|w| *w == (mean.round() * 0.01).round() as u64)
    );
    let mean = 65_535.0_f64 * 250_000.75 / 1e6;
    assert_eq!(four[1..], [(mean.round() * 0.01).round() as u64; 3]);
    let counts = shares(&[1e6, 1.0, 1.0, 1.0], &[1; 4], 200_000);
    assert!(
        counts[1..].iter().all(|n| (470..530).contains(n)),
        "{counts:?}"
    );
}

#[test]
fn who_has_no_weight_has_the_mean() {
    let weights = scaled(&[Some(300.0), None, Some(100.0)]).unwrap();

    assert_eq!(weights, [65_535, 43_690, 21_845]);
}

#[test]
fn with_fewer_than_two_weights_all_are_equal() {
    assert_eq!(scaled(&[None, None]), None);
    assert_eq!(scaled(&[Some(1e9), None, None]), None);
}

#[test]
fn weights_of_any_size_are_no_trouble() {
    let tiny = scaled(&[Some(f64::MIN_POSITIVE), Some(f64::MIN_POSITIVE * 3.0)]);
    let huge = scaled(&[Some(f64::MAX), Some(f64::MAX / 3.0)]);

    assert_eq!(tiny, Some(vec![21_845, 65_535]));
    assert_eq!(huge, Some(vec![65_535, 21_845]));
}

#[tokio::test(start_paused = true)]
async fn the_registrys_weights_multiply_and_nothing_is_nothing() {
    let counts = shares(&[300.0, 100.0, 100.0], &[1, 3, 0], 60_000);

    assert!(
        counts[0].abs_diff(30_000) <= 3 && counts[2] == 0,
        "{counts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_nobody_reports_the_registrys_weights_decide() {
    let counts = conform::counts(&Orca::default(), &[3, 1], 40_000);

    assert!(counts[0].abs_diff(30_000) <= 3, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_ramps_is_given_its_share() {
    let counts = conform::ramping(&Orca::default(), &[100, 10, 100], 21_000);

    assert!(counts[1].abs_diff(1_000) <= 3, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn weights_are_made_anew_once_a_second_and_count_after_the_blackout() {
    let ready = conform::endpoints(&[1, 1]);
    let pick = Orca::default().over(&ready);
    let mut seen = Vec::new();

    for _ in 0..24 {
        reports(&ready[0], 0.5, 300.0);
        reports(&ready[1], 0.5, 100.0);
        seen.push(counts(&*pick, 2, 400)[0]);
        advance(SECOND / 2).await;
    }

    // Ten seconds are twenty looks.
    assert!(seen[..20].iter().all(|n| n.abs_diff(200) <= 2), "{seen:?}");
    assert!(seen[20..].iter().all(|n| n.abs_diff(300) <= 2), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn between_two_updates_nothing_changes() {
    let ready = conform::endpoints(&[1, 1]);
    let pick = at_once().update_every(SECOND * 5).over(&ready);
    reports(&ready[0], 0.5, 300.0);
    reports(&ready[1], 0.5, 100.0);

    advance(SECOND * 4).await;
    let before = counts(&*pick, 2, 400);
    advance(SECOND).await;
    let after = counts(&*pick, 2, 400);

    assert!(before[0].abs_diff(200) <= 2 && after[0].abs_diff(300) <= 2);
}

#[test]
fn what_cannot_be_is_refused() {
    for penalty in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(Orca::default().error_penalty(penalty).is_err(), "{penalty}");
    }
    let error = Orca::default().metrics(["load"]).unwrap_err().to_string();
    assert!(
        error.contains("\"load\"") && error.contains("named_metrics.NAME"),
        "{error}"
    );
}
