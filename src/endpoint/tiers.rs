//! Who takes the calls: the best that there are.

use super::{Endpoint, Endpoints};

/// How good an endpoint is that can take calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tier {
    /// Nothing speaks against it.
    Serving,
    /// A stage leaves it out, and it is still connected.
    Spare,
    /// The registry dropped it without a word.
    Doubted,
    /// It asked for no new calls.
    Draining,
    /// It was asked whether it is well, and it is not; or its calls fail.
    Unwell,
    /// Its calls failed, and it is tried.
    Trial,
}

/// The endpoints that can take calls, each as it is known.
#[derive(Debug, Default)]
pub(super) struct Tiers {
    tiers: [Endpoints; 6],
}

impl Tiers {
    /// An endpoint that was in this tier, if in any, now is in that one, if in any; all that there are now, it
    /// among them unless it has left, are known like this.
    ///
    /// A tier that has all of them, as one has when all is well, shares what they are known by: the change was made
    /// there, and need not be made again.
    pub(super) fn shift(
        &mut self,
        endpoint: Endpoint,
        from: Option<Tier>,
        to: Option<Tier>,
        known: &Endpoints,
    ) {
        if let Some(from) = from.filter(|_| from != to) {
            let tier = &mut self.tiers[from as usize];
            if tier.len() == known.len() + 1 {
                *tier = known.clone();
            } else {
                tier.remove(endpoint.id());
            }
        }
        if let Some(to) = to {
            let is_new = from != Some(to);
            let tier = &mut self.tiers[to as usize];
            if tier.len() + usize::from(is_new) == known.len() {
                *tier = known.clone();
            } else {
                tier.put(endpoint);
            }
        }
    }

    /// Those of the best tier with anybody in it.
    pub(super) fn best(&self) -> &Endpoints {
        let best = self.tiers.iter().find(|tier| !tier.is_empty());
        best.unwrap_or(&self.tiers[0])
    }

    /// Those that are tried, beside the others.
    pub(super) fn on_trial(&self) -> &Endpoints {
        &self.tiers[Tier::Trial as usize]
    }
}
