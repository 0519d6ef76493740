//! The less busy of two.

use super::{Call, Pick, Policy, two::Two};
use crate::{Endpoint, Endpoints, endpoint::Board};

/// The one with fewer calls in flight, for its weight, of two drawn by chance.
///
/// Two draws suffice to keep away from the busy ones, and unlike a search for the least busy of all they do
/// not send every client to the same place at once. When nobody is busy, calls are shared by weight. One
/// that takes four times as long to answer as the other counts as that much busier: calls in flight alone
/// would give a hundred times slower server every second call of a caller who asks one at a time. One whose
/// calls fail counts as busier, too, the more of them the busier: failing at once is no way to look idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

#[derive(Debug)]
struct OfTwo {
    board: Board,
    two: Two,
    /// None when all are equal.
    weights: Option<Box<[u64]>>,
}

impl Policy for LeastLoaded {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        Box::new(OfTwo::of(ready))
    }
}

impl OfTwo {
    fn of(ready: &Endpoints) -> Self {
        let two = Two::of(ready);
        let weight = |endpoint: &Endpoint| endpoint.weight().max(1);
        Self {
            board: Board::of(ready),
            weights: two
                .is_by_weight()
                .then(|| ready.iter().map(weight).collect()),
            two,
        }
    }

    /// Whether the first is busier than the second, each for its weight.
    #[inline]
    fn is_busier(&self, first: usize, second: usize, call: &Call<'_>) -> bool {
        let places = [first, second];
        // Not by `map`, which would be a call.
        let [a, b] = [self.board.glance(first), self.board.glance(second)];
        let [m, n] = [a.in_flight(), b.in_flight()].map(u64::from);
        let weights = self.weights.as_deref();
        let [v, w] = weights.map_or([1; 2], |weights| places.map(|place| weights[place]));
        let [a, b] = [a.gist(), b.gist()];
        let [slow, fast] = [a.latency(), b.latency()];
        let [good, bad] = [a.name(), b.name()];
        let differ = slow.min(fast) > 0.0 && slow.max(fast) >= slow.min(fast) * APART;
        if !differ && good.abs_diff(bad) < BLEMISH {
            return m * w > n * v;
        }
        // Failures cost by the square of what is left of a good name.
        let cost = |load: u64, latency: f32, other: u64, name: u32| {
            let latency = if differ { latency as u64 } else { 1 };
            let busy = u128::from((load + 1) * latency);
            busy * u128::from(other) * u128::from(name).pow(2)
        };
        let busier = cost(m, slow, w, bad) > cost(n, fast, v, good);
        let loser = if busier { first } else { second };
        self.board.signs(loser).lost_comparison(call.at());
        busier
    }
}

/// Latencies closer than this times each other are the same: to follow every difference would leave the
/// slightly slower half of a fleet idle.
const APART: f32 = 4.0;
/// Good names that differ by less, of 256, are the same.
const BLEMISH: u32 = 16;

impl Pick for OfTwo {
    fn pick(&self, call: &Call<'_>) -> usize {
        if self.board.len() == 1 {
            return 0;
        }
        let (first, second) = self.two.draw();
        if self.is_busier(first, second, call) {
            second
        } else {
            first
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::{super::conform, *};
    use crate::health::EndedBy;

    #[test]
    fn the_busier_of_two_is_not_picked() {
        let ready = conform::endpoints(&[1, 1]);
        let _calls = [ready[0].begin(), ready[0].begin(), ready[1].begin()];
        let pick = LeastLoaded.over(&ready);
        let headers = http::HeaderMap::new();

        let picks = (0..100).map(|_| pick.pick(&Call::new("/a.B/C", &headers)));

        assert!(picks.eq([1; 100]));
    }

    #[test]
    fn one_without_weight_gets_no_call_however_busy_the_other_is() {
        let ready = conform::endpoints(&[100, 0]);
        let _calls: Vec<_> = (0..5).map(|_| ready[0].begin()).collect();
        let pick = LeastLoaded.over(&ready);
        let headers = http::HeaderMap::new();

        let picks = (0..1_000).map(|_| pick.pick(&Call::new("/a.B/C", &headers)));

        assert!(picks.eq([0; 1_000]));
    }

    #[test]
    fn idle_ones_share_by_weight() {
        let counts = conform::counts(&LeastLoaded, &[3, 1], 40_000);

        assert!(counts[0].abs_diff(30_000) < 800, "{counts:?}");
    }

    #[test]
    fn the_much_slower_one_is_tried_now_and_then_and_the_slightly_slower_one_always() {
        let headers = http::HeaderMap::new();
        let shares = |times: [u64; 2]| {
            let ready = conform::endpoints(&[1, 1]);
            let pick = LeastLoaded.over(&ready);
            let mut counts = [0_usize; 2];
            for _ in 0..20_000 {
                let picked = pick.pick(&Call::new("/a.B/C", &headers));
                ready[picked]
                    .begin()
                    .took(std::time::Duration::from_millis(times[picked]));
                counts[picked] += 1;
            }
            counts
        };

        let [slow, _] = shares([100, 1]);
        assert!((10..200).contains(&slow), "{slow}");
        let [slightly, _] = shares([3, 1]);
        assert!(slightly.abs_diff(10_000) < 600, "{slightly}");
    }

    #[test]
    fn busyness_counts_for_its_weight() {
        let ready = conform::endpoints(&[4, 1]);
        let _calls = [ready[0].begin(), ready[0].begin(), ready[1].begin()];
        let of_two = OfTwo::of(&ready);
        let headers = http::HeaderMap::new();
        let call = Call::new("/a.B/C", &headers);

        assert!(of_two.is_busier(1, 0, &call));
        assert!(!of_two.is_busier(0, 1, &call));
    }

    #[test]
    fn one_that_fails_at_once_gets_next_to_nothing_and_is_tried_again() {
        let headers = http::HeaderMap::new();
        let ready = conform::endpoints(&[1; 5]);
        let pick = LeastLoaded.over(&ready);
        let mut failed = 0;

        for _ in 0..20_000 {
            let picked = pick.pick(&Call::new("/a.B/C", &headers));
            let mut call = ready[picked].begin();
            let code = if picked == 0 {
                Code::Internal
            } else {
                Code::Ok
            };
            call.ended_by(EndedBy::Status, code);
            failed += usize::from(picked == 0);
        }

        assert!((3..400).contains(&failed), "{failed}");
    }

    #[test]
    fn one_that_ramps_is_given_its_share() {
        let counts = conform::ramping(&LeastLoaded, &[100, 10, 100], 21_000);

        assert!(counts[1].abs_diff(1_000) < 150, "{counts:?}");
    }
}
