//! By what servers report of their load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::{Call, Pick, Policy, dice, weighted};
use crate::{
    Endpoint, Endpoints, Error,
    endpoint::Vitals,
    moment::Moment,
    orca::{self, Metric, Rule},
};

/// Each in turn, as often as its own [reports](crate::orca) say that it can bear: gRPC's `weighted_round_robin` (gRFC
/// A58, with A114's metrics).
///
/// An endpoint weighs `calls a second / (utilization + errors a second / calls a second)`. Its utilization is what the
/// application says it is, or else the greatest of the metrics that are [named](Self::metrics), or else its
/// processors'. What it reports counts when it has reported for ten seconds, and for three minutes after its last
/// report; who has nothing that counts weighs the mean of the others. Where fewer than two have, all are equal. No
/// weight counts for less than a hundredth of the mean or more than ten times that, as in gRPC's C++: one odd report
/// takes nobody all calls, and nobody's.
///
/// The weights in the registry, and the [share](Endpoint::share) of one that is new, multiply that: with equal
/// weights servers are used equally in proportion to their size, which is what their reports show, so that weights
/// that stand for sizes are best left out.
///
/// Reports come in the trailers of calls, or on a stream where that is [asked for](Self::out_of_band). A server has
/// them by [`orca::Recorder`](crate::orca::Recorder); C++, Java and Go have them as well.
///
/// # Limits
///
/// It follows what was so seconds ago: it is good where servers differ and are the same for long, and where clients
/// are so many that each sees little. It does not see a server that has stalled, or has slow neighbours for a
/// while, as [`Adaptive`](super::Adaptive) does. A server that fails at once uses next to nothing, and A58's
/// penalty of one does not make up for that: it may be given several times its share until it is ejected, which
/// [`Builder`](crate::Builder) does by default. New weights are made once a second by the pick that finds it is
/// time, which takes some ten microseconds for a thousand endpoints; other picks allocate nothing, and none takes a
/// lock.
///
/// ```
/// use tonic_fleet::{Channel, balance::Orca};
///
/// # fn example() -> Result<(), tonic_fleet::Error> {
/// let target = "static://10.0.0.1:50051,10.0.0.2:50051".parse()?;
/// let queue = Orca::default().metrics(["named_metrics.queue"])?;
/// let builder = Channel::builder(target).policy(queue);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Orca {
    rule: Arc<Rule>,
    update: Duration,
    every: Option<Duration>,
    turn: Arc<AtomicU64>,
    alive: Arc<()>,
}

#[derive(Debug)]
struct Scheduled {
    all: Box<[Candidate]>,
    turn: Arc<AtomicU64>,
    update: u64,
    began: Moment,
    /// When the weights are made anew, in microseconds after that.
    due: AtomicU64,
    table: ArcSwap<Box<dyn Pick>>,
    /// Streams of reports go on as long as the policy, or a pick of it, is there.
    _alive: Arc<()>,
}

#[derive(Debug)]
struct Candidate {
    vitals: Arc<Vitals>,
    /// In the registry, as far as it has its share.
    weight: u64,
}

/// No weight is more than so many times the mean, or less than this part of it.
const MOST: f64 = 10.0;
const LEAST: f64 = 0.01;
/// The greatest weight, to which the others are scaled.
const SCALE: f64 = 65_535.0;
/// Weights are not made anew sooner than that.
const SOONEST: Duration = Duration::from_millis(100);

impl Default for Orca {
    fn default() -> Self {
        Self {
            rule: Arc::default(),
            update: Duration::from_secs(1),
            every: None,
            turn: Arc::new(AtomicU64::new(dice::roll() >> 32)),
            alive: Arc::default(),
        }
    }
}

impl Orca {
    /// How long an endpoint must have reported before that counts. Ten seconds, unless set.
    #[must_use]
    pub fn blackout(mut self, blackout: Duration) -> Self {
        self.rule_mut().blackout = blackout;
        self
    }

    /// How long the last report counts. Three minutes, unless set.
    #[must_use]
    pub fn expiration(mut self, expiration: Duration) -> Self {
        self.rule_mut().expiration = expiration;
        self
    }

    /// How often weights are made of what was reported. A second, unless set, and not more often than ten times
    /// in one.
    #[must_use]
    pub fn update_every(mut self, period: Duration) -> Self {
        self.update = period.max(SOONEST);
        self
    }

    /// How much errors cost: an endpoint all of whose calls fail counts as if it were used so much more. 1, unless
    /// set.
    ///
    /// # Errors
    /// When it is negative, or no number.
    pub fn error_penalty(mut self, penalty: f64) -> Result<Self, Error> {
        if !penalty.is_finite() || penalty < 0.0 {
            return Err(Error::config(format!(
                "the error penalty is {penalty}: it is 0 or more"
            )));
        }
        self.rule_mut().penalty = penalty;
        Ok(self)
    }

    /// What says how much an endpoint is used, if its application does not: `cpu_utilization`, `mem_utilization`,
    /// `named_metrics.NAME` or `utilization.NAME`; the greatest of them counts.
    ///
    /// # Errors
    /// When a name is none of these.
    pub fn metrics<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Result<Self, Error> {
        let read = |name: &str| {
            Metric::read(name).ok_or_else(|| {
                Error::config(format!(
                    "there is no metric {name:?}: it is application_utilization, cpu_utilization, mem_utilization, \
                     named_metrics.NAME or utilization.NAME"
                ))
            })
        };
        self.rule_mut().metrics = names.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Has endpoints report as often as that on a stream of their own, on the calls' connection, and not with each
    /// call: for calls that last, and for servers that answer many. What they make of a wish is theirs: gRPC's own
    /// report twice a minute at most, unless they are told to.
    ///
    /// A server that has no such service reports nothing.
    #[must_use]
    pub fn out_of_band(mut self, every: Duration) -> Self {
        self.rule_mut().out_of_band = true;
        self.every = Some(every);
        self
    }
}

impl Orca {
    fn rule_mut(&mut self) -> &mut Rule {
        Arc::make_mut(&mut self.rule)
    }
}

impl Policy for Orca {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let now = Instant::now();
        let candidate = |endpoint: &Endpoint| {
            let vitals = Arc::clone(endpoint.vitals());
            let weight = vitals.sense().weight(now);
            weight.goes_by(&self.rule);
            weight.is_ready_since(endpoint.in_state_since());
            if let Some(every) = self.every {
                vitals
                    .sense()
                    .listen(&self.alive, || orca::stream(&vitals, &self.alive, every));
            }
            let weight = endpoint.weight();
            Candidate { vitals, weight }
        };
        let all: Box<[_]> = ready.iter().map(candidate).collect();
        let table = table(&all, &self.turn, now);
        let update = u64::try_from(self.update.as_micros()).unwrap_or(u64::MAX);
        Box::new(Scheduled {
            all,
            turn: Arc::clone(&self.turn),
            update,
            began: Moment::at(now),
            due: AtomicU64::new(update),
            table: ArcSwap::from_pointee(table),
            _alive: Arc::clone(&self.alive),
        })
    }
}

impl Pick for Scheduled {
    fn pick(&self, call: &Call<'_>) -> usize {
        if self.all.len() == 1 {
            return 0;
        }
        self.refresh(call.at());
        self.table.load().pick(call)
    }
}

impl Scheduled {
    #[inline]
    fn refresh(&self, now: Moment) {
        let age = now.nanos_since(self.began) / 1_000;
        let due = self.due.load(Relaxed);
        let next = age.saturating_add(self.update);
        if age >= due
            && self
                .due
                .compare_exchange(due, next, Relaxed, Relaxed)
                .is_ok()
        {
            self.table
                .store(Arc::new(table(&self.all, &self.turn, Instant::now())));
        }
    }
}

/// Turns by what each weighs now.
fn table(all: &[Candidate], turn: &Arc<AtomicU64>, now: Instant) -> Box<dyn Pick> {
    let reported = |candidate: &Candidate| candidate.vitals.sense().weight(now).now(now);
    let reported: Vec<_> = all.iter().map(reported).collect();
    let weights = match scaled(&reported) {
        Some(scaled) => {
            let each = scaled.into_iter().zip(all);
            each.map(|(scaled, c)| scaled * c.weight).collect()
        }
        None => all.iter().map(|candidate| candidate.weight).collect(),
    };
    weighted::by(turn, weights)
}

/// Weights as whole numbers within their caps, who has none with the mean; none, where fewer than two have one.
fn scaled(reported: &[Option<f64>]) -> Option<Vec<u64>> {
    let known = || reported.iter().flatten();
    let n = known().count();
    if n < 2 {
        return None;
    }
    // Each as a part of the greatest, so that the least and the greatest numbers there are do no harm.
    let greatest = known().copied().fold(0.0, f64::max);
    let mean = known().map(|weight| weight / greatest).sum::<f64>() / n as f64;
    let factor = SCALE / (mean * MOST).min(1.0);
    let mean = (mean * factor).round();
    let least = (mean * LEAST).round().max(1.0);
    let scale = |weight: &Option<f64>| match weight {
        Some(weight) => (weight / greatest * factor).round().clamp(least, SCALE) as u64,
        None => mean as u64,
    };
    Some(reported.iter().map(scale).collect())
}

#[cfg(test)]
#[path = "orca_tests.rs"]
mod tests;
