//! One endpoint of a [`Set`](super::Set).

use std::sync::Arc;

use tokio::time::Instant;

use super::{Endpoint, State, Vitals, set::Share, tiers::Tier};
use crate::{
    Instance,
    health::{Standing, Verdict},
    stage::{Fitness, Outside},
};

/// An endpoint, and how it is getting on.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    pub(super) vitals: Arc<Vitals>,
    /// The connections it has, the oldest first.
    pub(super) up: Vec<Up>,
    pub(super) next: Next,
    /// How many attempts to connect have failed since one last proved good.
    pub(super) failed: u32,
    /// What came of asking it whether it is well, if it is asked.
    pub(super) verdict: Option<Verdict>,
    /// Since when the registry does not have it any more.
    pub(super) suspect: Option<Instant>,
    /// Where it was last put; see [`Entry::tier`].
    pub(super) tier: Option<Tier>,
    /// Where it stands with the ejector, and where it was last said to stand.
    pub(super) standing: Standing,
    pub(super) told: Standing,
    /// Whether it was last counted as well, if it was counted; see [`Entry::is_well`].
    pub(super) well: Option<bool>,
    pub(super) share: Share,
    /// Which stage leaves it out, if one does, and until when it keeps its connection all the same.
    pub(super) outside: Option<Outside>,
    pub(super) lingers: Option<Instant>,
    /// Whether it has lost its connection, and has no other yet.
    pub(super) lost: bool,
    /// Where it was among all when it was last put there.
    pub(super) place: usize,
}

/// A connection that is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Up {
    pub(super) attempt: u64,
    pub(super) since: Instant,
}

/// What is being done about an endpoint's next connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Next {
    /// Nothing: there are enough.
    Rest,
    Queued,
    Dialling(u64),
    Waiting(Instant),
}

impl Entry {
    /// One of which nothing is known yet.
    pub(super) fn new(instance: Arc<Instance>, vitals: Vitals) -> Self {
        Self {
            instance,
            vitals: Arc::new(vitals),
            up: Vec::new(),
            next: Next::Queued,
            verdict: None,
            failed: 0,
            suspect: None,
            tier: None,
            standing: Standing::Good,
            told: Standing::Good,
            well: None,
            share: Share::default(),
            outside: None,
            lingers: None,
            lost: false,
            place: 0,
        }
    }

    /// As views show it.
    pub(super) fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::new(Arc::clone(&self.instance), Arc::clone(&self.vitals));
        endpoint.given(self.share.given())
    }

    /// Among whom it takes calls, if it can. A set that panics makes no difference between those who stay.
    pub(super) fn tier(&self, held: bool, panics: bool) -> Option<Tier> {
        if self.up.is_empty() || self.is_unknown() {
            return None;
        }
        Some(match self.standing {
            _ if self.outside.is_some() => return self.is_good().then_some(Tier::Spare),
            _ if panics && !self.is_leaving() => Tier::Serving,
            _ if self.is_unwell() => Tier::Unwell,
            _ if self.is_leaving() => Tier::Draining,
            Standing::Trial => Tier::Trial,
            Standing::Out => Tier::Unwell,
            _ if self.suspect.is_some() && !held => Tier::Doubted,
            _ => Tier::Serving,
        })
    }

    /// Whether it is well, if it is one to choose among.
    pub(super) fn is_well(&self) -> Option<bool> {
        let is_inside = self.outside.is_none();
        let counts = is_inside && !self.up.is_empty() && !self.is_unknown() && !self.is_leaving();
        counts.then(|| self.standing == Standing::Good && !self.is_unwell())
    }

    /// Whether stages count on it.
    pub(super) fn fitness(&self) -> Fitness {
        if self.is_leaving() {
            Fitness::Leaving
        } else if self.lost || self.failed > 0 && self.up.is_empty() || !self.is_good() {
            Fitness::Unwell
        } else {
            Fitness::Well
        }
    }

    /// Whether nothing is known to be wrong with it while it is connected.
    fn is_good(&self) -> bool {
        self.standing == Standing::Good && !self.is_unwell() && !self.is_leaving()
    }

    /// Whether it wants no new calls.
    fn is_leaving(&self) -> bool {
        self.instance.is_draining() || self.instance.weight == 0
    }

    fn is_unknown(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Unknown))
    }

    fn is_unwell(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Unhealthy(_)))
    }

    /// Makes the state visible.
    pub(super) fn show(&self, now: Instant) {
        let state = match self.next {
            _ if self.outside.is_some() => State::Outside,
            _ if !self.up.is_empty() => self.connected(),
            Next::Queued if self.failed > 0 => State::Broken,
            Next::Queued | Next::Rest => State::Idle,
            Next::Dialling(_) => State::Connecting,
            Next::Waiting(_) => State::Broken,
        };
        self.vitals.enter(state, now);
    }

    /// What it is while it has a connection.
    fn connected(&self) -> State {
        if self.is_unknown() {
            State::Connecting
        } else if self.is_unwell() {
            State::Unhealthy
        } else if self.is_leaving() {
            State::Draining
        } else if self.standing.is_out() {
            State::Ejected
        } else {
            State::Ready
        }
    }

    /// Takes this connection off the books.
    pub(super) fn take_up(&mut self, attempt: u64) -> Option<Up> {
        let nth = self.up.iter().position(|up| up.attempt == attempt)?;
        Some(self.up.remove(nth))
    }
}
