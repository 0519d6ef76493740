//! What we know about a server by using it, beside what the registry says.

mod columns;
mod endpoints;
mod entry;
mod event;
mod form;
mod glance;
mod in_flight;
mod latency;
mod links;
mod members;
mod peak;
mod probed;
mod senses;
mod set;
mod signs;
mod tiers;
mod verdict;
mod vitals;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub(crate) use columns::Columns;
pub use endpoints::Endpoints;
pub use event::Event;
pub(crate) use form::{Form, OLD_FAILURES, Tick, fade, micros};
pub(crate) use glance::Glance;
pub(crate) use in_flight::InFlight;
pub(crate) use latency::Latency;
use links::Links;
pub(crate) use members::Members;
use members::Weights;
pub(crate) use peak::Peak;
pub(crate) use probed::Probed;
pub(crate) use senses::Senses;
pub(crate) use set::{Dial, Health, Limits, Set, Step, Wellness};
use signs::Spot;
pub(crate) use signs::{Board, Signs};
pub(crate) use verdict::{Clock, Left, Verdict};
pub use vitals::State;
pub(crate) use vitals::{Owner, Told, Vitals};

use crate::{
    Address, Error, Instance, InstanceId, health::Conduct, moment::Moment, stage::Outside,
    transport::Connection,
};

/// An [`Instance`] and what is known about it by calling it.
///
/// A cheap handle. What is known, such as calls in flight, is shared by all handles and outlives changes in
/// the registry; the instance is as it was when the handle was made.
#[derive(Clone)]
pub struct Endpoint {
    instance: Arc<Instance>,
    vitals: Arc<Vitals>,
    /// The instance's, and the vitals', at hand: tables ask thousands for them.
    weight: u32,
    share: u8,
    spot: Spot,
}

impl Endpoint {
    pub(crate) fn new(instance: Arc<Instance>, vitals: Arc<Vitals>) -> Self {
        Self {
            weight: instance.weight,
            share: 100,
            spot: vitals.line().spot(),
            instance,
            vitals,
        }
    }

    /// Whether the other is a clone, or might as well be one.
    fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.instance, &other.instance)
            && Arc::ptr_eq(&self.vitals, &other.vitals)
            && self.share == other.share
    }

    /// The same, given so much of its weight in percent.
    pub(crate) fn given(self, share: u8) -> Self {
        Self { share, ..self }
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

    /// How many failed in a row, until now.
    pub fn failing(&self) -> usize {
        self.conduct().failed_in_a_row().into()
    }

    /// How soon it answers, as a rule and as far as is known: what the default policy goes by.
    ///
    /// A moving average of some fifty good answers, or twenty seconds. Calls of methods that usually take longer
    /// count as if they were of a usual one, so that servers can be told apart by it; one that was slow or failed and
    /// is well again counts for quicker than it is for some answers.
    pub fn latency(&self) -> Option<Duration> {
        let micros = self.vitals.form().latency();
        time_of(micros).filter(|_| micros > 0.0)
    }

    /// For how long calls to it have waited at that time and none has been answered, if any wait. Such that usually
    /// take long do not count, and such that others overtook make it no longer.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let form = self.vitals.form();
        time_of(form.stalled(Tick::at(now))).filter(|_| form.waits())
    }

    /// Whether it is ready, and if not, why.
    pub fn state(&self) -> State {
        self.vitals.condition().state
    }

    /// How long it has been in this state at that time.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.vitals.condition().since)
    }

    /// Since when it has been in this state.
    pub(crate) fn in_state_since(&self) -> Instant {
        self.vitals.condition().since
    }

    /// Whether the registry dropped it without a word, so that others are preferred for now.
    pub fn is_suspect(&self) -> bool {
        self.vitals.condition().suspect
    }

    /// Which [stage](crate::stage) leaves it out, if one does: then it is not connected, or not for long.
    pub fn outside(&self) -> Option<Outside> {
        self.vitals.condition().outside
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

    /// Where its signs are.
    fn spot(&self) -> Spot {
        self.spot
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// The oldest of its connections, which has room for all calls as a rule.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        self.vitals.links().first()
    }

    pub(crate) fn links(&self) -> &Links {
        self.vitals.links()
    }

    /// How much of its weight it was given when this handle was made, in percent: less than all after it
    /// joined or came back, and when it has too much to do. Policies are given new handles when it changes.
    pub fn share(&self) -> u8 {
        self.share
    }

    /// What it counts for among others: its weight in hundredths, as far as it has its
    /// [share](Self::share).
    pub fn weight(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.share)
    }

    /// How its calls have ended lately.
    pub(crate) fn conduct(&self) -> &Conduct {
        self.vitals.conduct()
    }

    /// Counts a call to it as in flight from now on, until what this returns is dropped; unless there are so many
    /// already.
    #[inline]
    pub(crate) fn begin_within(&self, limit: usize, now: Moment) -> Option<InFlight> {
        self.vitals.begin_within(limit, now)
    }

    /// The same for a call on which it is tried, if that is wanted now.
    pub(crate) fn begin_trial(&self) -> Option<InFlight> {
        self.vitals.begin_trial()
    }

    /// Counts a call to it as in flight, until what this returns is dropped.
    #[cfg(test)]
    pub(crate) fn begin(&self) -> InFlight {
        self.begin_within(usize::MAX, Moment::now())
            .expect("there is no limit")
    }
}

/// So many microseconds, unless that is longer than any time.
fn time_of(micros: f32) -> Option<Duration> {
    Duration::try_from_secs_f32(micros * 1e-6).ok()
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
