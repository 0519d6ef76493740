//! As tower and Finagle choose.

use std::{sync::Arc, time::Duration};

use super::{Call, Pick, Policy, two::Two};
use crate::{
    Endpoint, Endpoints,
    endpoint::{OLD_FAILURES, Peak, Tick, Vitals, fade},
    moment::Moment,
};

/// The one that costs less of two drawn by chance, by its peak latency times its calls in flight: what tower's
/// `Balance` over `PeakEwma` does, for those who come from there.
///
/// - **Peak latency** is a moving average that a slow answer raises at once and that comes down in ten seconds. It
///   is tower's to the digit, and is measured to the head of a response. One that nothing is known of counts as if
///   it took a second, as there.
/// - **Failures** are what differs. tower takes a failure for an answer, the faster the better, and a server that
///   fails at once draws twice its share. Here only good answers and time-outs count as latencies, and what is
///   left of an endpoint's good name divides its cost by the fourth power, as for [`Adaptive`](super::Adaptive).
/// - **Weights**, and the [share](Endpoint::share) of one that is new, say how often it is drawn, and how many calls
///   in flight are usual for it. In tower all are equal.
///
/// A pick takes no lock and allocates nothing. All that is known of an endpoint outlives changes of the set, where
/// tower begins anew with each connection.
///
/// # Limits
///
/// With two to choose from, a slow tenth of a fleet still gets a hundredth of the calls: see
/// [`Adaptive`](super::Adaptive) for the better of five. One slow answer sends calls elsewhere for many seconds, and
/// where a newcomer is assumed to be faster than the fleet is, it is flooded.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::balance::PeakEwma;
///
/// let policy = PeakEwma::default().default_rtt(Duration::from_millis(30));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    decay: Duration,
    default_rtt: Duration,
}

#[derive(Debug)]
struct OfTwo {
    all: Box<[Candidate]>,
    two: Two,
}

#[derive(Debug)]
struct Candidate {
    vitals: Arc<Vitals>,
    /// One over its weight, as a part of the mean of all.
    per_weight: f32,
}

/// Costs that differ by less than this part are the same, and the first that was drawn is taken: roundings do not
/// choose.
const SAME: f32 = 1e-3;

impl Default for PeakEwma {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            default_rtt: Duration::from_secs(1),
        }
    }
}

impl PeakEwma {
    /// How long a peak is remembered: after so long, a third of it is left. Ten seconds, unless set; of the
    /// same endpoint, the policy that was asked last says so for all.
    #[must_use]
    pub fn decay(self, decay: Duration) -> Self {
        Self { decay, ..self }
    }

    /// What is assumed of an endpoint that nothing is known of. A second, unless set: long enough that a newcomer
    /// is not flooded.
    #[must_use]
    pub fn default_rtt(self, default_rtt: Duration) -> Self {
        Self {
            default_rtt,
            ..self
        }
    }
}

impl Policy for PeakEwma {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let now = Moment::now();
        let mean = ready.weights().sum as f32 / ready.len() as f32;
        let candidate = |endpoint: &Endpoint| {
            let vitals = Arc::clone(endpoint.vitals());
            let peak = vitals.sense().peak(self.default_rtt, now);
            peak.decays_in(self.decay);
            let per_weight = mean / endpoint.weight().max(1) as f32;
            Candidate { vitals, per_weight }
        };
        Box::new(OfTwo {
            all: ready.iter().map(candidate).collect(),
            two: Two::of(ready),
        })
    }
}

impl Pick for OfTwo {
    fn pick(&self, call: &Call<'_>) -> usize {
        if self.all.len() == 1 {
            return 0;
        }
        let (first, second) = self.two.draw();
        let now = call.at();
        let [a, b] = [first, second].map(|place| self.all[place].cost(now));
        if b < a * (1.0 - SAME) { second } else { first }
    }
}

impl Candidate {
    fn cost(&self, at: Moment) -> f32 {
        let (form, conduct) = (self.vitals.form(), self.vitals.conduct());
        if !conduct.is_open() {
            return f32::INFINITY;
        }
        let now = Tick::of(at);
        let mut name = conduct.name() as f32 / 256.0;
        if name < 1.0 {
            name = 1.0 - (1.0 - name) * fade(form.silent(now) / OLD_FAILURES);
        }
        let busy = self.vitals.in_flight() as f32 * self.per_weight + 1.0;
        self.peak(at).read(now) * busy / (name * name).powi(2)
    }

    fn peak(&self, at: Moment) -> &Peak {
        // It was made with this.
        self.vitals.sense().peak(Duration::ZERO, at)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tonic::Code;

    use super::{
        super::{Rehearsal, conform, seed},
        *,
    };
    use crate::{Instance, InstanceId};

    const MILLI: Duration = Duration::from_millis(1);

    /// How many calls each gets of those that come every ten milliseconds, one at a time, where the named one
    /// is like that.
    async fn shares(n: usize, calls: usize, odd: impl Fn(usize) -> (u32, Code)) -> Vec<usize> {
        seed(7);
        let mut rehearsal = Rehearsal::of(PeakEwma::default());
        let id = |n: usize| InstanceId::new(format!("i{n}")).unwrap();
        for n in 0..n {
            let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(id(n)));
            rehearsal.put(instance.unwrap());
        }
        let mut counts = vec![0; n];
        for call in 0..calls {
            let mut called = rehearsal.call().unwrap();
            let place = (0..n).find(|n| id(*n) == *called.endpoint().id()).unwrap();
            counts[place] += 1;
            let (took, code) = match place {
                0 => odd(call),
                _ => (10, Code::Ok),
            };
            advance(MILLI * took).await;
            if code == Code::Ok {
                called.answered();
            }
            called.ended(code);
            advance(MILLI * 10u32.saturating_sub(took)).await;
        }
        counts
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_is_left_alone_and_tried_again() {
        let counts = shares(10, 10_000, |call| {
            (if call < 5_000 { 200 } else { 10 }, Code::Ok)
        });

        // Its share of the second half would be 500.
        let counts = counts.await;
        assert!((100..600).contains(&counts[0]), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_at_once_is_no_fast_one() {
        let counts = shares(10, 5_000, |_| (0, Code::Unavailable)).await;

        assert!(counts[0] < 100, "{counts:?}");
        assert!(counts[1..].iter().all(|&n| n > 300), "{counts:?}");
    }

    #[test]
    fn the_busier_of_equals_is_not_picked_and_busyness_counts_for_its_weight() {
        let headers = http::HeaderMap::new();
        for (weights, busy, picked) in [([1, 1], [2, 1], 1), ([4, 1], [2, 1], 0)] {
            let ready = conform::endpoints(&weights);
            let calls = |place: usize| (0..busy[place]).map(move |_| place);
            let _calls: Vec<_> = [0, 1]
                .into_iter()
                .flat_map(calls)
                .map(|place| ready[place].begin())
                .collect();
            let pick = PeakEwma::default().over(&ready);

            let mut picks = (0..100).map(|_| pick.pick(&Call::new("/a.B/C", &headers)));

            assert!(picks.all(|place| place == picked), "{weights:?}");
        }
    }

    #[test]
    fn one_that_ramps_is_given_its_share() {
        let counts = conform::ramping(&PeakEwma::default(), &[100, 10, 100], 21_000);

        assert!(counts[1].abs_diff(1_000) < 300, "{counts:?}");
    }
}
