use proptest::prelude::*;

use super::*;
use crate::health::{FailurePercentage, SuccessRate};

const SECOND: Duration = Duration::from_secs(1);

fn id(n: usize) -> InstanceId {
    format!("i{n}").parse().unwrap()
}

fn why() -> Error {
    Error::new(ErrorKind::Unavailable, "5 calls failed in a row")
}

fn ejector() -> Ejector {
    Ejector::new(Ejection::default(), 7)
}

/// Trips it among five; returns for how long it is out.
fn trip(ejector: &mut Ejector, id: &InstanceId, now: Instant) -> Duration {
    ejector.tripped(id, why(), now);
    ejector.settle(5, now);
    assert_eq!(ejector.standing(id), Standing::Out);
    ejector.next_due().unwrap() - now
}

#[test]
fn one_that_trips_is_out_then_tried_then_good() {
    let (mut ejector, a, mut now) = (ejector(), id(0), Instant::now());

    now += trip(&mut ejector, &a, now);
    ejector.tick(now);
    assert_eq!(ejector.standing(&a), Standing::Trial);
    ejector.proved(&a, now);

    assert_eq!(ejector.standing(&a), Standing::Good);
    assert!(ejector.why(&a).is_none());
    assert!(ejector.out_since(&a).is_some(), "for its slow start");
}

#[test]
fn ejections_grow_to_the_longest_and_shrink_with_good_behaviour() {
    let (mut ejector, a, mut now) = (ejector(), id(0), Instant::now());
    let mut times = Vec::new();
    for _ in 0..5 {
        let time = trip(&mut ejector, &a, now);
        times.push(time);
        now += time;
        ejector.tick(now);
    }

    let longest = [1, 2, 4, 4, 4].map(|seconds| SECOND * seconds);
    for (time, longest) in times.into_iter().zip(longest) {
        assert!(time <= longest && time >= longest.mul_f64(0.8), "{time:?}");
    }
    ejector.proved(&a, now);
    assert_eq!(ejector.limit(&a), 3, "it was ejected lately");
    for _ in 0..4 {
        now += FORGIVEN;
        ejector.tick(now);
    }
    let time = trip(&mut ejector, &a, now);
    assert!((SECOND..=2 * SECOND).contains(&time), "{time:?}");
}

#[test]
fn one_that_has_lived_it_down_is_like_any_other() {
    let (mut ejector, a, mut now) = (ejector(), id(0), Instant::now());
    now += trip(&mut ejector, &a, now);
    ejector.tick(now);
    ejector.proved(&a, now);

    now += FORGIVEN;
    ejector.tick(now);

    assert_eq!(ejector.limit(&a), 5);
    assert!(ejector.records.is_empty() && ejector.due.is_empty());
}

#[test]
fn no_more_than_half_are_out_and_the_next_follows_when_there_is_room() {
    let (mut ejector, now) = (ejector(), Instant::now());

    for n in 0..5 {
        ejector.tripped(&id(n), why(), now);
        ejector.settle(5, now);
    }
    let standings: Vec<_> = (0..5).map(|n| ejector.standing(&id(n))).collect();

    use Standing::{Out, Spared};
    assert_eq!(standings, [Out, Out, Spared, Spared, Spared]);
    ejector.proved(&id(0), now);
    ejector.settle(5, now);
    assert_eq!(ejector.standing(&id(2)), Out);
}

#[test]
fn when_others_leave_those_out_longest_are_spared() {
    let (mut ejector, now) = (ejector(), Instant::now());
    for n in 0..2 {
        ejector.tripped(&id(n), why(), now + SECOND * n as u32);
        ejector.settle(5, now + SECOND * n as u32);
    }

    ejector.settle(2, now + 2 * SECOND);

    let standings = [0, 1].map(|n| ejector.standing(&id(n)));
    assert_eq!(standings, [Standing::Spared, Standing::Out]);
    ejector.settle(1, now + 2 * SECOND);
    assert_eq!(ejector.standing(&id(1)), Standing::Spared, "the last");
}

#[test]
fn one_of_two_may_be_out_and_the_only_one_never() {
    for (among, room) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (100, 50)] {
        assert_eq!(ejector().room(among), room, "{among}");
    }
    let tenth = Ejector::new(Ejection::default().at_most(10), 7);
    assert_eq!(
        [2, 9, 20, 100].map(|among| tenth.room(among)),
        [1, 1, 2, 10]
    );
}

#[test]
fn one_that_left_takes_its_place_with_it() {
    let (mut ejector, now) = (ejector(), Instant::now());
    trip(&mut ejector, &id(0), now);

    ejector.left(&id(0));

    assert_eq!((ejector.out, ejector.next_due()), (0, None));
}

#[test]
fn what_is_out_of_range_is_refused_by_name() {
    let by_rate = |by| Ejection::default().outliers(Outliers::default().success_rate(by));
    let by_percentage =
        |by| Ejection::default().outliers(Outliers::default().failure_percentage(by));
    let outliers = |outliers| Ejection::default().outliers(outliers);
    let (rate, percentage) = (SuccessRate::default(), FailurePercentage::default());
    for (ejection, name) in [
        (Ejection::default().consecutive(1001), "consecutive"),
        (Ejection::default().time(Duration::ZERO, SECOND), "first"),
        (Ejection::default().time(2 * SECOND, SECOND), "longest"),
        (Ejection::default().at_most(0), "at_most"),
        (Ejection::default().at_most(51), "at_most"),
        (
            outliers(Outliers::default().interval(Duration::ZERO)),
            "interval",
        ),
        (
            outliers(Outliers::default().base_ejection_time(Duration::ZERO)),
            "base_ejection_time",
        ),
        (
            outliers(Outliers::default().max_ejection_time(Duration::MAX)),
            "max_ejection_time",
        ),
        (
            outliers(Outliers::default().max_ejection_percent(51)),
            "max_ejection_percent",
        ),
        (by_rate(rate.clone().stdev_factor(100_001)), "stdev_factor"),
        (
            by_rate(rate.enforcement_percentage(101)),
            "enforcement_percentage",
        ),
        (
            by_percentage(percentage.clone().threshold(101)),
            "threshold",
        ),
        (
            by_percentage(percentage.clone().minimum_hosts(2_000_000)),
            "minimum_hosts",
        ),
        (
            by_percentage(percentage.request_volume(u32::MAX)),
            "request_volume",
        ),
    ] {
        let refused = ejection.check().unwrap_err().to_string();
        assert!(
            refused.contains(name) && refused.contains("it is from"),
            "{refused}"
        );
    }
    Ejection::off().check().unwrap();
    outliers(Outliers::default()).check().unwrap();
}

/// What gRFC A50 says, word by word and with no thought of speed.
struct Model {
    multiplier: Vec<u32>,
    ejected: Vec<Option<Instant>>,
}

impl Model {
    fn share(&self) -> f64 {
        let ejected = self.ejected.iter().filter(|e| e.is_some()).count();
        100.0 * ejected as f64 / self.ejected.len() as f64
    }

    fn eject(&mut self, n: usize, now: Instant) {
        self.ejected[n] = Some(now);
        self.multiplier[n] += 1;
    }

    fn sweep(&mut self, counts: &[(u64, u64)], most: f64, now: Instant) {
        let enough = |volume: u64| {
            let all = 0..counts.len();
            all.filter(|&n| counts[n].0 + counts[n].1 >= volume)
                .collect::<Vec<_>>()
        };
        let full = |model: &Self| model.share() >= most;
        let rate = |n: usize| counts[n].0 as f64 / (counts[n].0 + counts[n].1) as f64;
        let was: Vec<bool> = self.ejected.iter().map(Option::is_some).collect();
        let judged = enough(100);
        if judged.len() >= 5 {
            let mean = judged.iter().map(|&n| rate(n)).sum::<f64>() / judged.len() as f64;
            let squares = judged.iter().map(|&n| (rate(n) - mean).powi(2));
            let stdev = (squares.sum::<f64>() / judged.len() as f64).sqrt();
            for &n in &judged {
                if !full(self) && !was[n] && rate(n) < mean - stdev * 1.9 {
                    self.eject(n, now);
                }
            }
        }
        let judged = enough(50);
        if judged.len() >= 5 {
            for &n in &judged {
                if !full(self) && self.ejected[n].is_none() && (1.0 - rate(n)) * 100.0 > 85.0 {
                    self.eject(n, now);
                }
            }
        }
        for n in 0..counts.len() {
            match self.ejected[n] {
                None => self.multiplier[n] = self.multiplier[n].saturating_sub(1),
                Some(since) => {
                    let time = (30 * SECOND * self.multiplier[n]).min(300 * SECOND);
                    if since + time < now {
                        self.ejected[n] = None;
                    }
                }
            }
        }
    }
}

proptest! {
    /// Each endpoint succeeds and fails as it likes in each interval; those that are tried succeed at once.
    /// gRFC A50 has no other limit than its own, which here stays under half.
    #[test]
    fn outliers_are_those_of_grfc_a50(
        percent in 0_u32..=30,
        history in (5_usize..12).prop_flat_map(|n| proptest::collection::vec(
            proptest::collection::vec((0_u64..200, prop_oneof![Just(0_u64), 0_u64..20, 50_u64..600]), n),
            1..60,
        )),
    ) {
        let n = history[0].len();
        let outliers = Outliers::default()
            .max_ejection_percent(percent)
            .success_rate(SuccessRate::default())
            .failure_percentage(FailurePercentage::default());
        let mut ejector = Ejector::new(Ejection::off().outliers(outliers), 7);
        let mut model = Model { multiplier: vec![0; n], ejected: vec![None; n] };
        let mut totals = vec![Counts::default(); n];
        let mut now = Instant::now();
        ejector.settle(n, now);

        for interval in history {
            now += 10 * SECOND;
            for (total, (succeeded, failed)) in totals.iter_mut().zip(&interval) {
                total.succeeded += succeeded;
                total.failed += failed;
            }
            prop_assert!(ejector.must_sweep(now));
            ejector.sweep((0..n).map(|n| (id(n), totals[n])).collect(), now);
            ejector.settle(n, now);
            for n in 0..n {
                if ejector.standing(&id(n)) == Standing::Trial {
                    ejector.proved(&id(n), now);
                }
            }
            ejector.tick(now);
            model.sweep(&interval, f64::from(percent), now);

            for n in 0..n {
                let standing = ejector.standing(&id(n));
                let should = if model.ejected[n].is_some() { Standing::Out } else { Standing::Good };
                prop_assert_eq!(standing, should, "{} at {:?}", n, interval);
            }
        }
    }

    /// Whatever happens in whatever order, enough are left.
    #[test]
    fn never_more_than_half_and_never_the_last(
        moves in proptest::collection::vec((0_u8..6, 0_usize..8, 0_u64..3_000), 1..300),
    ) {
        let mut ejector = ejector();
        let mut there: BTreeSet<usize> = (0..6).collect();
        let mut now = Instant::now();

        for (what, n, ms) in moves {
            match what {
                0 | 1 => ejector.tripped(&id(n), why(), now),
                2 => ejector.proved(&id(n), now),
                3 if there.remove(&n) => ejector.left(&id(n)),
                4 => drop(there.insert(n)),
                _ => now += Duration::from_millis(ms),
            }
            if !there.contains(&n) {
                ejector.left(&id(n));
            }
            ejector.tick(now);
            ejector.settle(there.len(), now);

            let out = there.iter().filter(|&&n| ejector.standing(&id(n)).is_out()).count();
            prop_assert_eq!(out, ejector.out);
            prop_assert!(out <= (there.len() / 2).max(1), "{} of {}", out, there.len());
            prop_assert!(out < there.len().max(1), "{} of {}", out, there.len());
            let wanted = there.iter().filter(|&&n| ejector.standing(&id(n)) != Standing::Good);
            prop_assert_eq!(wanted.count(), out + ejector.failing.len());
            prop_assert!(ejector.failing.is_empty() || out == ejector.room(there.len()));
        }
    }
}
