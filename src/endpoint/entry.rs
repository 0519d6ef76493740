//! One endpoint of a [`Set`](super::Set).

use std::sync::Arc;

use tokio::time::Instant;

use super::{Endpoint, State, Vitals, tiers::Tier};
use crate::{Backoff, Instance, health::Verdict};

/// An endpoint, and how it is getting on.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    pub(super) vitals: Arc<Vitals>,
    /// The connections it has, the oldest first.
    pub(super) up: Vec<Up>,
    pub(super) next: Next,
    pub(super) redial: Backoff,
    /// What came of asking it whether it is well, if it is asked.
    pub(super) verdict: Option<Verdict>,
    /// Since when the registry does not have it any more.
    pub(super) suspect: Option<Instant>,
    /// Where it was last put; see [`Entry::tier`].
    pub(super) tier: Option<Tier>,
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
    /// As views show it.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::new(Arc::clone(&self.instance), Arc::clone(&self.vitals))
    }

    /// Among whom it takes calls, if it can.
    pub(super) fn tier(&self, held: bool) -> Option<Tier> {
        if self.up.is_empty() || self.is_unknown() {
            return None;
        }
        Some(match self.suspect {
            _ if self.is_unwell() => Tier::Unwell,
            _ if self.instance.is_draining() => Tier::Draining,
            Some(_) if !held => Tier::Doubted,
            _ => Tier::Serving,
        })
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
            _ if !self.up.is_empty() => self.connected(),
            Next::Queued if self.redial.failures() > 0 => State::Broken,
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
        } else if self.instance.is_draining() {
            State::Draining
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
