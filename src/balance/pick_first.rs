//! One endpoint for all calls, as long as it is ready.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Call, Pick, Policy, below};
use crate::{Endpoints, InstanceId};

/// All calls go to one endpoint, as long as it is ready.
///
/// Each channel chooses its own by chance, so that many clients spread over the fleet; or all take the first, in the
/// order of the ids, where one serves and the others stand by. The others are connected all the same, and take
/// over at once.
///
/// ```
/// use tonic_fleet::balance::PickFirst;
///
/// let one_of_many = PickFirst::default();
/// let main_and_standby = PickFirst::in_order();
/// ```
#[derive(Clone, Debug, Default)]
pub struct PickFirst {
    in_order: bool,
    chosen: Arc<Mutex<Option<InstanceId>>>,
}

#[derive(Debug)]
struct Only(usize);

impl PickFirst {
    /// The first in the order of the ids; and back to it, when it is ready again.
    pub fn in_order() -> Self {
        Self {
            in_order: true,
            ..Self::default()
        }
    }
}

impl Policy for PickFirst {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        if self.in_order {
            let first = ready.iter().position(|endpoint| endpoint.weight() > 0);
            return Box::new(Only(first.unwrap_or(0)));
        }
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let id = chosen.take();
        let place = id.and_then(|id| ready.iter().position(|endpoint| *endpoint.id() == id));
        let place = place.unwrap_or_else(|| some(ready));
        *chosen = ready.get(place).map(|endpoint| endpoint.id().clone());
        Box::new(Only(place))
    }
}

/// One by chance, of those that want calls.
fn some(ready: &Endpoints) -> usize {
    let n = ready.len();
    let start = below(n);
    let from = (0..n).map(|nth| (start + nth) % n);
    let mut wanting = from.filter(|&place| ready[place].weight() > 0);
    wanting.next().unwrap_or(start)
}

impl Pick for Only {
    fn pick(&self, _: &Call<'_>) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conform::endpoints, *};

    fn picked(policy: &PickFirst, ready: &Endpoints) -> InstanceId {
        let headers = http::HeaderMap::new();
        let place = policy.over(ready).pick(&Call::new("/a.B/C", &headers));
        ready[place].id().clone()
    }

    #[test]
    fn one_is_kept_while_it_is_ready_and_another_found_when_it_is_not() {
        let policy = PickFirst::default();
        let ready = endpoints(&[1; 10]);
        let first = picked(&policy, &ready);
        let fewer = ready.iter().filter(|endpoint| *endpoint.id() != first);
        let fewer: Endpoints = fewer.cloned().collect();

        assert_eq!(picked(&policy, &ready), first);
        let second = picked(&policy, &fewer);

        assert_ne!(second, first);
        assert_eq!(picked(&policy, &ready), second, "nobody moves without need");
    }

    #[test]
    fn in_order_the_first_is_returned_to() {
        let policy = PickFirst::in_order();
        let ready = endpoints(&[0, 1, 1]);
        let fewer: Endpoints = ready.iter().skip(2).cloned().collect();

        assert_eq!(picked(&policy, &ready).as_str(), "i00001");
        assert_eq!(picked(&policy, &fewer).as_str(), "i00002");
        assert_eq!(picked(&policy, &ready).as_str(), "i00001");
    }

    #[test]
    fn channels_choose_different_ones() {
        let ready = endpoints(&[1; 10]);
        let chosen = (0..200).map(|_| picked(&PickFirst::default(), &ready));
        let chosen: std::collections::BTreeSet<_> = chosen.collect();
        assert_eq!(chosen.len(), 10);
    }
}
