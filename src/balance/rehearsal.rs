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
    orca::Report,
    resolve::{Change, Update},
    stage::{Stages, Subset},
    stats::Tallies,
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
    methods: Tallies,
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
            methods: Tallies::new(),
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

    /// The one of this id, if it is there, reports this of its load by itself, on the stream that
    /// [`Orca::out_of_band`](super::Orca::out_of_band) asks for.
    pub fn reported(&mut self, id: &InstanceId, report: &Report) {
        if let Some(endpoint) = self.ready().iter().find(|endpoint| endpoint.id() == id) {
            let now = Instant::now();
            endpoint.vitals().sense().weight(now).heard(report, now);
        }
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
        let mut called = self.try_one().or_else(|| self.picked(call))?;
        let method = self.methods.method(call.path());
        called.in_flight.counts_for(&method, None);
        Some(called)
    }

    fn picked(&self, call: &Call<'_>) -> Option<Rehearsed> {
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

    /// The server reports this of its load in the trailers: to be told before it [ended](Self::ended).
    ///
    /// ```
    /// use tonic::Code;
    /// use tonic_fleet::{Instance, balance::{Orca, Rehearsal}, orca::Report};
    ///
    /// let mut rehearsal = Rehearsal::of(Orca::default());
    /// rehearsal.put(Instance::at("10.0.0.1:1")?);
    /// let mut call = rehearsal.call().expect("somebody is there");
    /// let mut report = Report::default();
    /// report.application_utilization = 0.7;
    /// report.rps_fractional = 120.0;
    ///
    /// call.answered();
    /// call.reported(&report);
    /// call.ended(Code::Ok);
    /// # Ok::<(), tonic_fleet::Error>(())
    /// ```
    pub fn reported(&self, report: &Report) {
        self.in_flight.reports(report);
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
        super::{RoundRobin, conform, named, seed},
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

    /// Whom so many calls go to that come every few milliseconds, eight at a time, some of which fail or are late.
    async fn trace(name: &str, number: u64, calls: u64) -> Vec<InstanceId> {
        seed(number);
        let mut rehearsal = among(&["a", "b", "c", "d", "e", "f"], named(name).unwrap());
        let mut in_flight = std::collections::VecDeque::new();
        let mut trace = Vec::new();
        for n in 0..calls {
            let call = rehearsal.call().unwrap();
            trace.push(call.endpoint().id().clone());
            in_flight.push_back(call);
            tokio::time::advance(Duration::from_nanos(9_123_457 + n * n % 9_999_991)).await;
            if n < 8 {
                continue;
            }
            let mut call: Rehearsed = in_flight.remove((n * n % 8) as usize).unwrap();
            let letter = call.endpoint().id().as_str().as_bytes()[0];
            call.reported(&Report {
                cpu_utilization: f64::from(letter) / 200.0,
                rps_fractional: 10.0,
                ..Report::default()
            });
            match n % 50 {
                7 | 8 => call.ended(Code::Unavailable),
                9 => call.late(),
                _ => {
                    call.answered();
                    call.ended(Code::Ok);
                }
            }
        }
        trace
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_and_the_same_calls_lead_to_the_same_picks_of_every_policy_whenever_they_come()
     {
        for name in conform::names() {
            let first = trace(name, 1, 1_200).await;
            tokio::time::advance(Duration::from_nanos(98_765_432_123)).await;
            let again = trace(name, 1, 1_200).await;
            let other = trace(name, 2, 1_200).await;

            assert_eq!(first.len(), 1_200);
            let differs = (0..1_200).find(|&n| first[n] != again[n]);
            assert_eq!(differs, None, "{name}");
            assert_ne!(first, other, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_servers_report_of_their_load_is_heard_with_calls_and_without() {
        use super::super::Orca;
        let at_once = Orca::default().blackout(Duration::ZERO);
        let by_itself = at_once.clone().out_of_band(Duration::from_secs(1));
        for policy in [at_once, by_itself.clone()] {
            let is_told_apart = format!("{policy:?}") == format!("{by_itself:?}");
            let mut rehearsal = among(&["a", "b"], policy);
            let mut calls = [0, 0];

            for n in 0..4_000 {
                let mut call = rehearsal.call().unwrap();
                let id = call.endpoint().id().clone();
                let a = id.as_str() == "a";
                calls[usize::from(a)] += usize::from(n >= 2_000);
                let report = Report {
                    application_utilization: if a { 0.25 } else { 0.75 },
                    rps_fractional: 100.0,
                    ..Report::default()
                };
                call.answered();
                match is_told_apart {
                    true => rehearsal.reported(&id, &report),
                    false => call.reported(&report),
                }
                call.ended(Code::Ok);
                tokio::time::advance(Duration::from_millis(1)).await;
            }

            assert!(calls[1].abs_diff(1_500) < 20, "{calls:?}");
        }
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
