//! What we know about a server by using it, beside what the registry says.

mod endpoints;
mod entry;
mod event;
mod latency;
mod links;
mod set;
mod tiers;
mod vitals;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use endpoints::Endpoints;
pub use event::Event;
pub(crate) use latency::Latency;
use links::Links;
pub(crate) use set::{Dial, Limits, Set, Step};
pub use vitals::State;
pub(crate) use vitals::{InFlight, Outcome, Vitals};

use crate::{Address, Error, Instance, InstanceId, transport::Connection};

/// An [`Instance`] and what is known about it by calling it.
///
/// A cheap handle. What is known, such as calls in flight, is shared by all handles and outlives changes in
/// the registry; the instance is as it was when the handle was made.
#[derive(Clone)]
pub struct Endpoint {
    instance: Arc<Instance>,
    vitals: Arc<Vitals>,
}

impl Endpoint {
    pub(crate) fn new(instance: Arc<Instance>, vitals: Arc<Vitals>) -> Self {
        Self { instance, vitals }
    }

    /// One that no channel knows and nobody has called: for trying out a policy.
    pub fn idle(instance: impl Into<Arc<Instance>>) -> Self {
        Self::new(instance.into(), Arc::new(Vitals::new(Instant::now())))
    }

    /// What tells it from the others.
    pub fn id(&self) -> &InstanceId {
        &self.instance.id
    }

    /// What the registry says.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(crate) fn instance_arc(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Calls that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.vitals.in_flight()
    }

    /// Calls that were sent to it since it is known.
    pub fn calls(&self) -> u64 {
        self.vitals.calls()
    }

    /// Calls that it, and not the caller, made fail.
    pub fn failures(&self) -> u64 {
        self.vitals.failures()
    }

    /// Whether it is ready, and if not, why.
    pub fn state(&self) -> State {
        self.vitals.condition().state
    }

    /// How long it has been in this state at that time.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.vitals.condition().since)
    }

    /// Whether the registry dropped it without a word, so that others are preferred for now.
    pub fn is_suspect(&self) -> bool {
        self.vitals.condition().suspect
    }

    /// Why the last connection to it failed or ended, or why it was last unwell.
    pub fn last_error(&self) -> Option<Error> {
        self.vitals.condition().last_error
    }

    /// Where it is connected.
    pub fn address(&self) -> Option<Address> {
        Some(self.connection()?.address().clone())
    }

    /// How many connections it has: one, unless the server allows too few calls at once on one.
    pub fn connections(&self) -> usize {
        self.vitals.links().all().count()
    }

    #[cfg(test)]
    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    pub(crate) fn latency(&self) -> &Latency {
        self.vitals.latency()
    }

    /// The oldest of its connections, which has room for all calls as a rule.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        self.vitals.links().first()
    }

    pub(crate) fn links(&self) -> &Links {
        self.vitals.links()
    }

    /// Counts a call to it as in flight, until what this returns is dropped.
    pub(crate) fn begin(&self) -> InFlight {
        self.vitals.begin()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", self.id())
            .field("state", &self.state())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
