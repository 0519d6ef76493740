//! The less busy of two.

use super::{Call, Pick, Policy, alias::Alias, dice};
use crate::Endpoint;

/// The one with fewer calls in flight, for its weight, of two drawn by chance.
///
/// Two draws suffice to keep away from the busy ones, and unlike a search for the least busy of all they do
/// not send every client to the same place at once. A slow server has more calls in flight and so gets fewer
/// new ones; when nobody is busy, calls are shared by weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

#[derive(Debug)]
struct OfTwo {
    endpoints: Box<[Endpoint]>,
    /// How to draw by weight; none when all weights are equal.
    alias: Option<Alias>,
}

impl Policy for LeastLoaded {
    fn over(&self, ready: &[Endpoint]) -> Box<dyn Pick> {
        let weight = |endpoint: &Endpoint| endpoint.instance().weight;
        let equal = ready
            .windows(2)
            .all(|two| weight(&two[0]) == weight(&two[1]));
        Box::new(OfTwo {
            endpoints: ready.into(),
            alias: (!equal).then(|| Alias::of(ready)),
        })
    }
}

impl OfTwo {
    fn draw(&self) -> (usize, usize) {
        let n = self.endpoints.len();
        if let Some(alias) = &self.alias {
            return (alias.at(dice::roll()), alias.at(dice::roll()));
        }
        let bits = dice::roll();
        let first = dice::scale(bits as u32, n);
        let second = dice::scale((bits >> 32) as u32, n - 1);
        (first, if second >= first { second + 1 } else { second })
    }

    /// Whether the first is busier than the second, each for its weight.
    fn is_busier(&self, first: usize, second: usize) -> bool {
        let [first, second] = [first, second].map(|place| {
            let endpoint = &self.endpoints[place];
            (
                endpoint.in_flight() as u64,
                u64::from(endpoint.instance().weight.max(1)),
            )
        });
        first.0 * second.1 > second.0 * first.1
    }
}

impl Pick for OfTwo {
    fn pick(&self, _: &Call<'_>) -> usize {
        if self.endpoints.len() == 1 {
            return 0;
        }
        let (first, second) = self.draw();
        if self.is_busier(first, second) {
            second
        } else {
            first
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conform, *};

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
    fn idle_ones_share_by_weight() {
        let counts = conform::counts(&LeastLoaded, &[3, 1], 40_000);

        assert!(counts[0].abs_diff(30_000) < 800, "{counts:?}");
    }

    #[test]
    fn busyness_counts_for_its_weight() {
        let ready = conform::endpoints(&[4, 1]);
        let _calls = [ready[0].begin(), ready[0].begin(), ready[1].begin()];
        let of_two = OfTwo {
            endpoints: ready.into(),
            alias: None,
        };

        assert!(of_two.is_busier(1, 0));
        assert!(!of_two.is_busier(0, 1));
    }
}
