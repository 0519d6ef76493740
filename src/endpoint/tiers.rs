//! Who takes the calls: the best that there are.

use super::{Endpoint, Endpoints};
use crate::InstanceId;

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
    /// The tier of all that are known, as there is one when all is well: it is empty here, and what is known stands
    /// for it. A change is not made twice, nor is what is changed held by two who both keep it as it was.
    all: Option<Tier>,
}

impl Tiers {
    /// Somebody is about to be known besides.
    pub(super) fn others_come(&mut self, known: &Endpoints) {
        if let Some(all) = self.all.take() {
            self.tiers[all as usize] = known.clone();
        }
    }

    /// An endpoint that was in this tier, if in any, now is in that one, if in any. It is known like this already.
    pub(super) fn shift(
        &mut self,
        endpoint: Endpoint,
        from: Option<Tier>,
        to: Option<Tier>,
        known: &Endpoints,
    ) {
        if self.all.is_some() && self.all == to {
            return;
        }
        self.others_come(known);
        if let Some(from) = from.filter(|_| from != to) {
            self.tiers[from as usize].remove(endpoint.id());
        }
        if let Some(to) = to {
            let tier = &mut self.tiers[to as usize];
            tier.put(endpoint);
            if tier.len() == known.len() {
                *tier = Endpoints::default();
                self.all = Some(to);
            }
        }
    }

    /// An endpoint that was in this tier, if in any, is not known any more.
    pub(super) fn leave(&mut self, id: &InstanceId, from: Option<Tier>) {
        if let Some(from) = from.filter(|from| Some(*from) != self.all) {
            self.tiers[from as usize].remove(id);
        }
    }

    /// Those of the best tier with anybody in it.
    pub(super) fn best<'a>(&'a self, known: &'a Endpoints) -> &'a Endpoints {
        if self.all.is_some() {
            return known;
        }
        let best = self.tiers.iter().find(|tier| !tier.is_empty());
        best.unwrap_or(&self.tiers[0])
    }

    /// Those that are tried, beside the others.
    pub(super) fn on_trial<'a>(&'a self, known: &'a Endpoints) -> &'a Endpoints {
        if self.all == Some(Tier::Trial) {
            return known;
        }
        &self.tiers[Tier::Trial as usize]
    }
}
