//! The counters under the names that gRPC's metrics have in every language.

use std::iter;

use super::{Ended, Histogram, OfMethod, Stats};
use crate::method;

/// One of gRPC's metrics: see [`Stats::metrics`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metric<'s> {
    /// Such as `grpc.client.call.duration`.
    pub name: &'static str,
    /// What it tells, in a sentence.
    pub description: &'static str,
    /// In the words of OpenTelemetry: `s`, `By`, `{attempt}`.
    pub unit: &'static str,
    /// What tells it from others of the same name: `grpc.method`, `grpc.target`, `grpc.status`.
    pub labels: Vec<(&'static str, &'s str)>,
    /// What it comes to since the channel was made.
    pub value: Value<'s>,
}

/// What a [`Metric`] comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'s> {
    /// A number that only grows.
    Counter(u64),
    /// A number that goes up and down.
    UpDown(u64),
    /// Values by their size.
    Histogram(&'s Histogram),
}

/// A metric's name, unit and description.
struct Kind(&'static str, &'static str, &'static str);

const STARTED: Kind = Kind(
    "grpc.client.attempt.started",
    "{attempt}",
    "The attempts at calls that were started, those that have not ended included.",
);
const ATTEMPT: Kind = Kind(
    "grpc.client.attempt.duration",
    "s",
    "The time an attempt took from end to end.",
);
const SENT: Kind = Kind(
    "grpc.client.attempt.sent_total_compressed_message_size",
    "By",
    "The bytes of request messages, as they were compressed, that an attempt sent.",
);
const RECEIVED: Kind = Kind(
    "grpc.client.attempt.rcvd_total_compressed_message_size",
    "By",
    "The bytes of response messages, as they were compressed, that an attempt received.",
);
const CALL: Kind = Kind(
    "grpc.client.call.duration",
    "s",
    "The time a call took from end to end.",
);
const CONNECTIONS: Kind = Kind(
    "grpc.subchannel.open_connections",
    "{connection}",
    "The connections that are open.",
);
/// In the order of the reasons for which a call is sent again.
const OFTEN: [Kind; 3] = [
    Kind(
        "grpc.client.call.transparent_retries",
        "{transparent_retry}",
        "How often calls that no server had seen were sent again, of those that were.",
    ),
    Kind(
        "grpc.client.call.retries",
        "{retry}",
        "How often calls were retried, of those that were.",
    ),
    Kind(
        "grpc.client.call.hedges",
        "{hedge}",
        "How often calls were hedged, of those that were.",
    ),
];

impl Stats {
    /// The same under the names, labels, units and bounds that gRPC's metrics have in every language (gRFCs A66,
    /// A94, A96), for any exporter. `grpc.target` is the service's name. Attempts that no server has looked at
    /// were started, and have no duration.
    ///
    /// To Prometheus, for example, as its text format:
    ///
    /// ```
    /// use std::fmt::Write;
    /// use tonic_fleet::stats::{Stats, Value};
    ///
    /// fn prometheus(stats: &Stats) -> String {
    ///     let mut text = String::new();
    ///     for metric in stats.metrics() {
    ///         let name = metric.name.replace('.', "_");
    ///         let labels = metric.labels.iter().map(|(k, v)| format!("{}={v:?}", k.replace('.', "_")));
    ///         let labels = labels.collect::<Vec<_>>().join(",");
    ///         let _ = match metric.value {
    ///             Value::Histogram(all) => {
    ///                 for (bound, n) in all.cumulative() {
    ///                     let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {n}");
    ///                 }
    ///                 let (count, sum) = (all.count(), all.sum());
    ///                 writeln!(text, "{name}_count{{{labels}}} {count}\n{name}_sum{{{labels}}} {sum}")
    ///             }
    ///             Value::Counter(n) => writeln!(text, "{name}_total{{{labels}}} {n}"),
    ///             Value::UpDown(n) => writeln!(text, "{name}{{{labels}}} {n}"),
    ///             _ => Ok(()),
    ///         };
    ///     }
    ///     text
    /// }
    /// ```
    pub fn metrics(&self) -> impl Iterator<Item = Metric<'_>> {
        let target = ("grpc.target", self.service.as_str());
        let connections = CONNECTIONS.is(vec![target], Value::UpDown(self.connections));
        let of = self.methods.iter().flat_map(move |of| of.metrics(target));
        iter::once(connections).chain(of)
    }
}

impl OfMethod {
    fn metrics<'s>(&'s self, target: (&'static str, &'s str)) -> Vec<Metric<'s>> {
        let method = ("grpc.method", self.path.trim_start_matches('/'));
        let labels = vec![method, target];
        let started = Value::Counter(self.attempts.started);
        let mut all = vec![STARTED.is(labels.clone(), started)];
        let each =
            |kind: &Kind, ended: &'s Ended, what: fn(&super::OfCode) -> Option<&Histogram>| {
                let some = ended.codes.iter().filter_map(|of| {
                    let status = ("grpc.status", method::name(of.code));
                    Some(kind.is(vec![method, target, status], Value::Histogram(what(of)?)))
                });
                some.collect::<Vec<_>>()
            };
        all.extend(each(&CALL, &self.calls.ended, |of| Some(&of.took)));
        all.extend(each(&ATTEMPT, &self.attempts.ended, |of| Some(&of.took)));
        all.extend(each(&SENT, &self.attempts.ended, |of| {
            Some(&of.sizes.as_ref()?[0])
        }));
        all.extend(each(&RECEIVED, &self.attempts.ended, |of| {
            Some(&of.sizes.as_ref()?[1])
        }));
        let often = OFTEN
            .iter()
            .zip(&self.often)
            .filter(|(_, often)| often.count() > 0);
        all.extend(often.map(|(kind, often)| kind.is(labels.clone(), Value::Histogram(often))));
        all
    }
}

impl Kind {
    fn is<'s>(&self, labels: Vec<(&'static str, &'s str)>, value: Value<'s>) -> Metric<'s> {
        Metric {
            name: self.0,
            unit: self.1,
            description: self.2,
            labels,
            value,
        }
    }
}
