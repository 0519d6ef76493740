//! A channel's servers without the network: for trying out a policy.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use super::{Call, Pick, Policy, dice};
use crate::{
    Backoff, Endpoint, Endpoints, Instance, InstanceId,
    endpoint::{Health, InFlight, Limits, Set, Step},
    health::{Alarm, EndedBy},
    moment::Moment,
    resolve::{Change, Update},
    stage::{Stages, Subset},
};

/// What a policy would choose, call by call, in a channel whose servers are always connected.
///
/// All that a channel knows of its endpoints is kept as it is there: calls in flight, latency, failures,
/// ejection, trials, slow start. Time is tokio's, so that a test or a simulation can pause and move it; after
/// [`seed`](super::seed), chance is the same each time.
///
/// ```
/// use tonic::Code;
/// use tonic_fleet::{Instance, balance::{LeastLoaded, Rehearsal}};
///
/// let mut rehearsal = Rehearsal::of(LeastLoaded);
/// for id in ["a", "b"] {
///     rehearsal.put(Instance::at("10.0.0.1:1")?.id(id)?);
/// }
/// let busy = rehearsal.call().expect("somebody is there");
/// let mut other = rehearsal.call().expect("somebody is there");
/// assert_ne!(busy.endpoint().id(), other.endpoint().id());
/// other.answered();
/// other.ended(Code::Ok);
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
pub struct Rehearsal {
    set: Set,
    alarm: Arc<Alarm>,
    policy: Arc<dyn Policy>,
    ready: Endpoints,
    on_trial: Endpoints,
    pick: Option<Box<dyn Pick>>,
    due: Option<Instant>,
}

/// A call of a [`Rehearsal`], in flight until it is dropped. Dropped without a word, it was given up by its
/// caller.
#[derive(Debug)]
pub struct Rehearsed {
    endpoint: Endpoint,
    in_flight: InFlight,
}

impl Rehearsal {
    /// Of this policy, with nobody to call yet.
    pub fn of(policy: impl Policy) -> Self {
        Self::behind(policy, Stages::default())
    }

    /// The same where the policy is given no more than a [subset](Subset) of those that are put.
    pub fn within(policy: impl Policy, subset: Subset) -> Self {
        let stages = Stages {
            subset: Some(subset),
            ..Stages::default()
        };
        Self::behind(policy, stages)
    }

    fn behind(policy: impl Policy, stages: Stages) -> Self {
        let health = Health::default();
        let alarm = Arc::clone(&health.alarm);
        let limits = Limits {
            grace: Duration::from_secs(10),
            hold: Duration::from_secs(60),
            redial: Backoff::between(Duration::from_millis(100), Duration::from_secs(30)),
            dials: usize::MAX,
            asked: false,
            connections: 1,
            health,
            stages,
        };
        Self {
            set: Set::seeded(limits, dice::roll()),
            alarm,
            policy: Arc::new(policy),
            ready: Endpoints::default(),
            on_trial: Endpoints::default(),
            pick: None,
            due: None,
        }
    }

    /// The registry says that this instance is there, or has changed.
    pub fn put(&mut self, instance: impl Into<Arc<Instance>>) {
        self.hear(Change::Put(instance.into()));
    }

    /// The registry says that the one of this id has left.
    pub fn remove(&mut self, id: &InstanceId) {
        self.hear(Change::Remove(id.clone()));
    }

    /// Those that calls are shared among now.
    pub fn ready(&mut self) -> &Endpoints {
        self.catch_up();
        &self.ready
    }

    /// Begins a call where the policy wants it to go, or at one that is tried; none if nobody is there.
    pub fn call(&mut self) -> Option<Rehearsed> {
        let headers = http::HeaderMap::new();
        self.call_with(&Call::new("/rehearsal.Service/Method", &headers))
    }

    /// The same for a call that the policy is to look at.
    pub fn call_with(&mut self, call: &Call<'_>) -> Option<Rehearsed> {
        self.catch_up();
        if let Some(tried) = self.try_one() {
            return Some(tried);
        }
        let picked = self.pick.as_ref()?.pick(call);
        let picked = self.ready.get(picked).or_else(|| self.ready.get(0))?;
        // Where all have been barred since they were found ready, that counts for nothing.
        let start = super::below(self.ready.len());
        let is_open = |endpoint: &&Endpoint| endpoint.conduct().is_open();
        let endpoint = match is_open(&picked) {
            true => picked,
            false => self.ready.iter_from(start).find(is_open).unwrap_or(picked),
        };
        Some(Rehearsed {
            in_flight: endpoint.begin_within(usize::MAX, Moment::now())?,
            endpoint: endpoint.clone(),
        })
    }

    fn try_one(&self) -> Option<Rehearsed> {
        let n = self.on_trial.len();
        let start = (n > 0).then(|| super::below(n))?;
        self.on_trial.iter_from(start).find_map(|endpoint| {
            Some(Rehearsed {
                in_flight: endpoint.begin_trial()?,
                endpoint: endpoint.clone(),
            })
        })
    }

    fn hear(&mut self, change: Change) {
        let steps = self.set.apply(Update::Delta(vec![change]), Instant::now());
        self.take(steps);
    }

    /// Does what a channel's task would have done by now.
    fn catch_up(&mut self) {
        let notices = self.alarm.take();
        let now = Instant::now();
        if !notices.is_empty() {
            let steps = self.set.heard(notices, now);
            self.take(steps);
        }
        while self.due.is_some_and(|due| due <= now) {
            let steps = self.set.tick(now);
            self.take(steps);
        }
    }

    /// Whoever is to be connected is so at once.
    fn take(&mut self, mut steps: Vec<Step>) {
        while let Some(step) = steps.pop() {
            if let Step::Dial(dial) = step {
                let (_, more) = self.set.up(&dial.instance.id, dial.attempt, Instant::now());
                steps.extend(more);
            }
        }
        self.due = self.set.next_due();
        if !self.set.take_changed() {
            return;
        }
        self.on_trial = self.set.on_trial().clone();
        if !self.set.ready().is_clone_of(&self.ready) {
            self.ready = self.set.ready().clone();
            self.pick = (!self.ready.is_empty()).then(|| self.policy.over(&self.ready));
        }
    }
}

impl Rehearsed {
    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The first of its response has come.
    pub fn answered(&mut self) {
        self.in_flight.is_answered(Moment::now());
    }

    /// It ended with this status of the server's.
    pub fn ended(mut self, code: Code) {
        self.in_flight.ended_by(EndedBy::Status, code);
    }

    /// Its time ran out before the first of its response came.
    pub fn late(mut self) {
        let code = Code::DeadlineExceeded;
        self.in_flight.ended_by(EndedBy::Deadline, code);
        self.in_flight.is_given_up();
    }
}

impl fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal")
            .field("policy", &self.policy)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{RoundRobin, seed},
        *,
    };

    fn among(ids: &[&str], policy: impl Policy) -> Rehearsal {
        let mut rehearsal = Rehearsal::of(policy);
        for id in ids {
            let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(*id)).unwrap();
            rehearsal.put(instance);
        }
        rehearsal
    }

    #[test]
    fn nobody_is_called_where_nobody_is() {
        assert!(among(&[], RoundRobin::default()).call().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_ejected_tried_and_back_as_in_a_channel() {
        let mut rehearsal = among(&["a", "b", "c"], RoundRobin::default());
        let mut ready = Vec::new();

        for n in 0..300 {
            let call = rehearsal.call().unwrap();
            let fails = call.endpoint().id().as_str() == "a" && n < 30;
            call.ended(if fails { Code::Internal } else { Code::Ok });
            ready.push(rehearsal.ready().len());
            tokio::time::advance(Duration::from_millis(100)).await;
        }

        assert_eq!((ready[0], ready[30], ready[299]), (3, 2, 3), "{ready:?}");
    }

    #[test]
    fn within_a_subset_nobody_else_is_called() {
        let mut rehearsal = Rehearsal::within(RoundRobin::default(), Subset::of(2).seed(7));
        for n in 1..=9 {
            let instance = Instance::at(format!("10.0.0.{n}:1")).unwrap();
            rehearsal.put(instance.id(format!("i{n}")).unwrap());
        }

        let calls = (0..100).filter_map(|_| Some(rehearsal.call()?.endpoint().id().clone()));
        let called: std::collections::BTreeSet<_> = calls.collect();

        assert_eq!((called.len(), rehearsal.ready().len()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_leads_to_the_same_calls() {
        let ids = ["a", "b", "c", "d", "e", "f"];
        let mut called = Vec::new();

        for number in [1, 1, 2] {
            seed(number);
            let mut rehearsal = among(&ids, super::super::Random);
            let all = (0..64).filter_map(|_| Some(rehearsal.call()?.endpoint().id().clone()));
            called.push(all.collect::<Vec<_>>());
        }

        assert_eq!(called[0], called[1]);
        assert_ne!(called[0], called[2]);
    }
}
