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
    pub(super) link: Link,
    pub(super) redial: Backoff,
    /// What came of asking it whether it is well, if it is asked.
    pub(super) verdict: Option<Verdict>,
    /// Since when the registry does not have it any more.
    pub(super) suspect: Option<Instant>,
    /// Where it was last put; see [`Entry::tier`].
    pub(super) tier: Option<Tier>,
}

/// Whether it is connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Link {
    Queued,
    Dialling(u64),
    Up(u64),
    Waiting(Instant),
}

impl Entry {
    /// As views show it.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::new(Arc::clone(&self.instance), Arc::clone(&self.vitals))
    }

    /// Among whom it takes calls, if it can.
    pub(super) fn tier(&self, held: bool) -> Option<Tier> {
        match self.link {
            Link::Up(_) if self.is_unknown() => None,
            Link::Up(_) if self.is_unwell() => Some(Tier::Unwell),
            Link::Up(_) if self.instance.is_draining() => Some(Tier::Draining),
            Link::Up(_) if self.suspect.is_some() && !held => Some(Tier::Doubted),
            Link::Up(_) => Some(Tier::Serving),
            _ => None,
        }
    }

    fn is_unknown(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Unknown))
    }

    fn is_unwell(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Unhealthy(_)))
    }

    /// Makes the state visible.
    pub(super) fn show(&self, now: Instant) {
        let state = match self.link {
            Link::Queued if self.redial.failures() > 0 => State::Broken,
            Link::Queued => State::Idle,
            Link::Dialling(_) => State::Connecting,
            Link::Up(_) if self.is_unknown() => State::Connecting,
            Link::Up(_) if self.is_unwell() => State::Unhealthy,
            Link::Up(_) if self.instance.is_draining() => State::Draining,
            Link::Up(_) => State::Ready,
            Link::Waiting(_) => State::Broken,
        };
        self.vitals.enter(state, now);
    }
}
