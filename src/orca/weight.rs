//! What an endpoint weighs by its own reports, as gRFC A58 has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::Report;

/// How reports become a weight.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// How long reports must come before they count.
    pub(crate) blackout: Duration,
    /// How long the last one counts.
    pub(crate) expiration: Duration,
    /// How much an error costs.
    pub(crate) penalty: f64,
    /// What says how much an endpoint is used that does not say so itself (gRFC A114).
    pub(crate) metrics: Vec<Metric>,
    /// Only those that come by themselves count, and not those that come with calls.
    pub(crate) out_of_band: bool,
}

/// A part of a report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Metric {
    Application,
    Cpu,
    Memory,
    Named(String),
    Utilization(String),
}

/// The weight of one endpoint, and since when and when it was reported. Each is a word by itself: should two reports
/// come at once, the next one settles it.
#[derive(Debug)]
pub(crate) struct Weight {
    rule: ArcSwap<Rule>,
    known_since: Instant,
    /// As a float.
    value: AtomicU64,
    /// Moments are microseconds since it is known, and one more: 0 is never.
    first: AtomicU64,
    last: AtomicU64,
    ready: AtomicU64,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            penalty: 1.0,
            metrics: Vec::new(),
            out_of_band: false,
        }
    }
}

impl Rule {
    /// What an endpoint that reports this weighs; none, where that says nothing.
    fn weight(&self, report: &Report) -> Option<f64> {
        let utilization = self.utilization(report)?;
        let calls = positive(report.rps_fractional)?;
        let errors = positive(report.eps).unwrap_or(0.0) / calls;
        positive(calls / (utilization + errors * self.penalty))
    }

    fn utilization(&self, report: &Report) -> Option<f64> {
        positive(report.application_utilization)
            .or_else(|| {
                let named = self.metrics.iter().filter_map(|metric| metric.of(report));
                named.reduce(f64::max)
            })
            .or_else(|| positive(report.cpu_utilization))
    }
}

impl Metric {
    /// As service configs name it.
    pub(crate) fn read(name: &str) -> Option<Self> {
        let key = |key: &str| (!key.is_empty()).then(|| key.to_owned());
        match name {
            "application_utilization" => Some(Self::Application),
            "cpu_utilization" => Some(Self::Cpu),
            "mem_utilization" => Some(Self::Memory),
            name => match name.split_once('.')? {
                ("named_metrics", name) => key(name).map(Self::Named),
                ("utilization", name) => key(name).map(Self::Utilization),
                _ => None,
            },
        }
    }

    fn of(&self, report: &Report) -> Option<f64> {
        positive(match self {
            Self::Application => report.application_utilization,
            Self::Cpu => report.cpu_utilization,
            Self::Memory => report.mem_utilization,
            Self::Named(name) => *report.named_metrics.get(name)?,
            Self::Utilization(name) => *report.utilization.get(name)?,
        })
    }
}

/// What is more than nothing, and a number.
fn positive(value: f64) -> Option<f64> {
    (value > 0.0 && value.is_finite()).then_some(value)
}

impl Weight {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            rule: ArcSwap::default(),
            known_since: now,
            value: AtomicU64::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            ready: AtomicU64::new(0),
        }
    }

    /// From now on.
    pub(crate) fn goes_by(&self, rule: &Arc<Rule>) {
        self.rule.store(Arc::clone(rule));
    }

    /// It takes calls since then: what it reported before is of no use.
    pub(crate) fn is_ready_since(&self, then: Instant) {
        let then = self.moment(then);
        if self.ready.fetch_max(then, Relaxed) < then && self.last.load(Relaxed) < then {
            self.first.store(0, Relaxed);
            self.last.store(0, Relaxed);
        }
    }

    /// A report came with a call.
    pub(crate) fn heard_with_call(&self, report: &Report, now: Instant) {
        if !self.rule.load().out_of_band {
            self.heard(report, now);
        }
    }

    /// A report came. One that is empty says nothing.
    pub(crate) fn heard(&self, report: &Report, now: Instant) {
        let Some(weight) = self.rule.load().weight(report) else {
            return;
        };
        let now = self.moment(now);
        self.value.store(weight.to_bits(), Relaxed);
        self.last.store(now, Relaxed);
        // Only if nobody has set it.
        let _ = self.first.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// What it weighs now; none, where nothing is known, or not for long enough, or not of late.
    pub(crate) fn now(&self, now: Instant) -> Option<f64> {
        let rule = self.rule.load();
        let (now, last) = (self.moment(now), self.last.load(Relaxed));
        let before = |then: u64| Duration::from_micros(now.saturating_sub(then));
        if last == 0 {
            return None;
        }
        if before(last) >= rule.expiration {
            // When reports come again, they have to come for a while again.
            self.first.store(0, Relaxed);
            return None;
        }
        let first = self.first.load(Relaxed);
        if !rule.blackout.is_zero() && (first == 0 || before(first) < rule.blackout) {
            return None;
        }
        positive(f64::from_bits(self.value.load(Relaxed)))
    }

    fn moment(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.known_since);
        age.as_micros() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(utilization: f64, calls: f64, errors: f64) -> Report {
        Report {
            application_utilization: utilization,
            rps_fractional: calls,
            eps: errors,
            ..Report::default()
        }
    }

    /// A weight that counts at once, and what it is some seconds after it was reported.
    fn weighed(report: &Report, rule: Rule) -> Option<f64> {
        let (rule, now) = (
            Rule {
                blackout: Duration::ZERO,
                ..rule
            },
            Instant::now(),
        );
        let weight = Weight::new(now);
        weight.goes_by(&rule.into());
        weight.heard_with_call(report, now);
        weight.now(now)
    }

    fn by(metrics: &[&str]) -> Rule {
        let metrics = metrics.iter().filter_map(|name| Metric::read(name));
        Rule {
            metrics: metrics.collect(),
            ..Rule::default()
        }
    }

    #[test]
    fn a_weight_is_calls_a_second_over_utilization() {
        assert_eq!(
            weighed(&report(0.5, 100.0, 0.0), Rule::default()),
            Some(200.0)
        );
        // More than all it should do is possible.
        assert_eq!(
            weighed(&report(2.0, 100.0, 0.0), Rule::default()),
            Some(50.0)
        );
    }

    #[test]
    fn errors_count_as_utilization_times_the_penalty() {
        let failing = report(0.25, 100.0, 50.0);
        let penalty = |penalty| Rule {
            penalty,
            ..Rule::default()
        };

        assert_eq!(weighed(&failing, Rule::default()), Some(100.0 / 0.75));
        assert_eq!(weighed(&failing, penalty(0.0)), Some(400.0));
        assert_eq!(weighed(&failing, penalty(3.5)), Some(50.0));
    }

    #[test]
    fn the_application_is_believed_before_the_processor() {
        let mut both = report(0.5, 100.0, 0.0);
        both.cpu_utilization = 0.1;
        assert_eq!(weighed(&both, Rule::default()), Some(200.0));

        both.application_utilization = 0.0;

        assert_eq!(weighed(&both, Rule::default()), Some(1000.0));
    }

    #[test]
    fn named_metrics_stand_between_the_two_and_the_greatest_counts() {
        let mut report = report(0.0, 100.0, 0.0);
        report.cpu_utilization = 0.1;
        report.mem_utilization = 0.2;
        report.named_metrics.insert("queue".into(), 0.5);
        report.named_metrics.insert("odd".into(), f64::NAN);
        report.utilization.insert("disk".into(), 0.4);
        let all = [
            "mem_utilization",
            "named_metrics.queue",
            "utilization.disk",
            "named_metrics.odd",
        ];

        assert_eq!(weighed(&report, by(&all)), Some(200.0));
        assert_eq!(weighed(&report, by(&all[2..])), Some(250.0));
        let unknown = ["named_metrics.none", "named_metrics.odd", "utilization.x"];
        assert_eq!(weighed(&report, by(&unknown)), Some(1000.0));
        report.application_utilization = 1.0;
        assert_eq!(weighed(&report, by(&all)), Some(100.0));
    }

    #[test]
    fn a_report_without_calls_or_utilization_says_nothing() {
        for (utilization, calls) in [
            (0.0, 100.0),
            (0.5, 0.0),
            (-0.5, 100.0),
            (f64::NAN, 1.0),
            (f64::INFINITY, 1.0),
            (0.5, f64::INFINITY),
        ] {
            let odd = report(utilization, calls, 0.0);
            assert_eq!(weighed(&odd, Rule::default()), None, "{odd:?}");
        }
        let odd = report(0.5, 100.0, f64::NAN);
        assert_eq!(weighed(&odd, Rule::default()), Some(200.0));
    }

    /// A weight by A58's numbers, and its now at seconds after the first.
    struct Watch(Weight, Instant);

    impl Watch {
        fn new() -> Self {
            let now = Instant::now();
            Self(Weight::new(now), now)
        }

        fn at(&self, seconds: f64) -> Instant {
            self.1 + Duration::from_secs_f64(seconds)
        }

        fn hears(&self, seconds: f64) {
            let at = self.at(seconds);
            self.0.heard_with_call(&report(0.5, 100.0, 0.0), at);
        }

        fn says(&self, seconds: f64) -> bool {
            self.0.now(self.at(seconds)).is_some()
        }
    }

    #[test]
    fn for_ten_seconds_after_the_first_report_a_weight_does_not_count() {
        let watch = Watch::new();
        assert!(!watch.says(0.0));

        watch.hears(1.0);
        watch.hears(9.0);

        assert_eq!(
            [1.0, 10.9, 11.0].map(|at| watch.says(at)),
            [false, false, true]
        );
    }

    #[test]
    fn three_minutes_after_the_last_report_a_weight_counts_no_more_and_the_blackout_begins_anew() {
        let watch = Watch::new();
        watch.hears(0.0);
        watch.hears(20.0);
        assert_eq!([199.9, 200.0].map(|at| watch.says(at)), [true, false]);

        watch.hears(201.0);

        assert_eq!(
            [202.0, 210.9, 211.0].map(|at| watch.says(at)),
            [false, false, true]
        );
    }

    #[test]
    fn who_is_ready_again_begins_its_blackout_anew() {
        let watch = Watch::new();
        watch.0.is_ready_since(watch.at(0.0));
        watch.hears(0.0);
        watch.0.is_ready_since(watch.at(0.0));
        assert!(watch.says(15.0));

        watch.0.is_ready_since(watch.at(16.0));
        assert!(!watch.says(17.0));
        watch.hears(18.0);

        assert_eq!([27.9, 28.0].map(|at| watch.says(at)), [false, true]);
    }

    #[test]
    fn where_reports_come_by_themselves_those_of_calls_do_not_count() {
        let watch = Watch::new();
        watch.0.goes_by(&Arc::new(Rule {
            out_of_band: true,
            blackout: Duration::ZERO,
            ..Rule::default()
        }));

        watch.hears(1.0);
        assert!(!watch.says(1.0));
        watch.0.heard(&report(0.5, 100.0, 0.0), watch.at(2.0));

        assert!(watch.says(2.0));
    }

    #[test]
    fn metrics_are_read_by_their_names() {
        assert_eq!(
            Metric::read("named_metrics.a.b"),
            Some(Metric::Named("a.b".into()))
        );
        for wrong in ["", "cpu", "named_metrics.", "request_cost.x", "utilization"] {
            assert_eq!(Metric::read(wrong), None, "{wrong}");
        }
    }
}
