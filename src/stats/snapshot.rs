//! What was counted, as it was at one moment.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeStruct};
use tonic::Code;

use super::{Histogram, bounds::TIMES, histogram::NANOSECONDS, ring};
use crate::{InstanceId, ServiceName, method};

/// What the calls of a channel came to since it was made: see [`Channel::stats`](crate::Channel::stats).
///
/// `Display` prints it as a table, and it serialises; see [the module](crate::stats) for what the words mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The service that is called.
    pub service: ServiceName,
    /// For how long the channel has been counting.
    #[serde(serialize_with = "seconds")]
    pub age: Duration,
    /// How many connections are open.
    pub connections: u64,
    /// All calls.
    pub calls: Calls,
    /// All attempts at them.
    pub attempts: Attempts,
    /// The calls of each method, in the order of their paths.
    pub methods: Vec<OfMethod>,
    /// The attempts that went to each endpoint that is known and was ever called, in the order of their ids.
    pub endpoints: Vec<OfEndpoint>,
}

/// The calls of one method, and the attempts at them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OfMethod {
    /// `/package.Service/Method`; or `other`, for those beyond the first thousand.
    pub path: Box<str>,
    /// The calls as their callers see them.
    pub calls: Calls,
    /// What was sent for them.
    pub attempts: Attempts,
    /// How soon they were answered lately.
    pub answered: Answered,
    /// How many calls were sent again how often.
    #[serde(skip)]
    pub(super) often: [Histogram; 3],
}

/// The attempts at calls that went to one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OfEndpoint {
    /// Which one.
    pub id: InstanceId,
    /// What was sent to it.
    #[serde(flatten)]
    pub attempts: Attempts,
    /// How they ended lately.
    pub lately: Lately,
}

/// Calls as their callers see them: each once, however often it was sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Calls {
    /// How many have begun.
    pub started: u64,
    /// How many of them have not ended.
    pub in_flight: u64,
    /// How the others ended.
    pub ended: Ended,
    /// How they ended lately.
    pub lately: Lately,
}

/// What was sent: each attempt at a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Attempts {
    /// How many were begun. Those are in flight, not sent, refused, or ended.
    pub started: u64,
    /// How many are under way.
    pub in_flight: u64,
    /// How many never left: the call went elsewhere.
    pub not_sent: u64,
    /// How many the server says it has done nothing about.
    pub refused: u64,
    /// How the others ended: those that a server has seen.
    pub ended: Ended,
    /// Those that were not the first at their call.
    pub again: Again,
    /// Bytes of request messages that were sent, as they were compressed, by those that ended.
    pub sent_bytes: u64,
    /// Bytes of response messages that were received, as they were compressed, by those that ended.
    pub received_bytes: u64,
}

/// Why attempts were made that were not the first at their call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Again {
    /// No server has seen the one before.
    pub transparent: u64,
    /// The method's retry policy said so.
    pub configured: u64,
    /// The one before took long, and the method's hedging policy said so.
    pub hedged: u64,
}

/// How calls, or attempts at them, ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Ended {
    /// With an answer, were it that the caller made a mistake.
    pub succeeded: u64,
    /// Otherwise, with a status.
    pub failed: u64,
    /// Their deadline came first.
    pub timed_out: u64,
    /// Whoever asked did not wait for the end.
    pub cancelled: u64,
    /// The same by status code, in the order of their numbers.
    pub codes: Vec<OfCode>,
}

/// Those that ended with one status code.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OfCode {
    /// The code. `Cancelled` and `DeadlineExceeded` where there was no status to bear one.
    pub code: Code,
    /// How long they took, from their beginning to the end of the response, as it was read; or as it came, if
    /// that was one message.
    pub took: Histogram,
    /// Bytes of messages sent and received; of a method's attempts only.
    pub sizes: Option<[Histogram; 2]>,
}

/// The time from the beginning of a call to the head of its answer, of those that were answered in the last
/// half to whole minute. Rounded up, by an eighth at most; none while there were too few to tell.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answered {
    /// Half of them were quicker than this.
    #[serde(serialize_with = "some_seconds")]
    pub p50: Option<Duration>,
    /// 95 of a hundred were quicker than this.
    #[serde(serialize_with = "some_seconds")]
    pub p95: Option<Duration>,
    /// 99 of a hundred were quicker than this.
    #[serde(serialize_with = "some_seconds")]
    pub p99: Option<Duration>,
}

/// What ended lately. Nothing is reset for it: these are windows that slide, for any number of readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Lately {
    /// In the last second, or up to a tenth more.
    pub second: Window,
    /// In the last ten seconds, or up to one more.
    pub ten_seconds: Window,
    /// In the last sixty seconds, or up to one more.
    pub minute: Window,
}

/// What ended in the last while.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// How long that is: less than it should be while the channel, or the endpoint, is younger.
    pub over: Duration,
    /// See [`Ended`].
    pub succeeded: u32,
    /// See [`Ended`].
    pub failed: u32,
    /// See [`Ended`].
    pub timed_out: u32,
    /// See [`Ended`].
    pub cancelled: u32,
}

impl Stats {
    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The calls of one method: `/package.Service/Method`.
    pub fn method(&self, path: &str) -> Option<&OfMethod> {
        self.methods.iter().find(|method| &*method.path == path)
    }

    /// The attempts at one endpoint.
    pub fn endpoint(&self, id: &str) -> Option<&OfEndpoint> {
        self.endpoints.iter().find(|e| e.id.as_str() == id)
    }
}

impl Attempts {
    /// How many a server has seen and begun to work on, as far as is known.
    pub fn seen(&self) -> u64 {
        self.started.saturating_sub(self.not_sent + self.refused)
    }

    pub(super) fn add(&mut self, some: &Self) {
        self.started += some.started;
        self.in_flight += some.in_flight;
        self.not_sent += some.not_sent;
        self.refused += some.refused;
        self.ended.add(&some.ended);
        self.again.add([
            some.again.transparent,
            some.again.configured,
            some.again.hedged,
        ]);
        self.sent_bytes += some.sent_bytes;
        self.received_bytes += some.received_bytes;
    }
}

impl Calls {
    pub(super) fn add(&mut self, some: &Self) {
        self.started += some.started;
        self.in_flight += some.in_flight;
        self.ended.add(&some.ended);
        let pairs = self.lately.each_mut().into_iter().zip(some.lately.each());
        for (all, some) in pairs {
            all.add(some);
        }
    }
}

impl Again {
    pub(super) fn add(&mut self, some: [u64; 3]) {
        let all = [
            &mut self.transparent,
            &mut self.configured,
            &mut self.hedged,
        ];
        for (all, some) in all.into_iter().zip(some) {
            *all += some;
        }
    }
}

impl Ended {
    /// How many have ended.
    pub fn count(&self) -> u64 {
        self.succeeded + self.failed + self.timed_out + self.cancelled
    }

    /// How many ended with this code.
    pub fn with(&self, code: Code) -> u64 {
        let found = self.codes.iter().find(|of| of.code == code);
        found.map_or(0, |of| of.took.count())
    }

    /// How long they took, whatever became of them.
    pub fn took(&self) -> Histogram {
        let mut all = Histogram::new(&TIMES, NANOSECONDS);
        for of in &self.codes {
            all.merge(&of.took);
        }
        all
    }

    /// In the order of [`Ending`](super::Ending).
    pub(super) fn add_ways(&mut self, ways: [u64; 4]) {
        self.succeeded += ways[0];
        self.failed += ways[1];
        self.timed_out += ways[2];
        self.cancelled += ways[3];
    }

    fn add(&mut self, some: &Self) {
        self.add_ways([some.succeeded, some.failed, some.timed_out, some.cancelled]);
        for of in &some.codes {
            let to = self.of(of.code);
            to.took.merge(&of.took);
            if let (sizes @ None, Some(some)) = (&mut to.sizes, &of.sizes) {
                *sizes = Some(some.clone());
            } else if let (Some(all), Some(some)) = (&mut to.sizes, &of.sizes) {
                for (all, some) in all.iter_mut().zip(some) {
                    all.merge(some);
                }
            }
        }
    }

    /// What is said of this code, which may be nothing yet.
    pub(super) fn of(&mut self, code: Code) -> &mut OfCode {
        let at = self
            .codes
            .partition_point(|of| (of.code as i32) < code as i32);
        if self.codes.get(at).is_none_or(|of| of.code != code) {
            let new = OfCode {
                code,
                took: Histogram::new(&TIMES, NANOSECONDS),
                sizes: None,
            };
            self.codes.insert(at, new);
        }
        &mut self.codes[at]
    }
}

impl Lately {
    pub(super) fn of(last: impl Fn(ring::Last) -> (ring::Counted, Duration)) -> Self {
        let [second, ten_seconds, minute] = ring::Last::ALL.map(|length| {
            let ([succeeded, failed, timed_out, cancelled], over) = last(length);
            Window {
                over,
                succeeded,
                failed,
                timed_out,
                cancelled,
            }
        });
        Self {
            second,
            ten_seconds,
            minute,
        }
    }

    fn each(&self) -> [&Window; 3] {
        [&self.second, &self.ten_seconds, &self.minute]
    }

    fn each_mut(&mut self) -> [&mut Window; 3] {
        [&mut self.second, &mut self.ten_seconds, &mut self.minute]
    }
}

impl Window {
    /// How many ended, but for those that were cancelled, which say nothing.
    pub fn count(&self) -> u64 {
        u64::from(self.succeeded) + u64::from(self.failed) + u64::from(self.timed_out)
    }

    /// The part of them that succeeded, from 0 to 1. None when there were none.
    pub fn success_rate(&self) -> Option<f64> {
        self.rate(self.succeeded)
    }

    /// The part of them that failed otherwise than by their deadline.
    pub fn failure_rate(&self) -> Option<f64> {
        self.rate(self.failed)
    }

    /// The part of them whose deadline came first.
    pub fn timeout_rate(&self) -> Option<f64> {
        self.rate(self.timed_out)
    }

    /// How many ended in a second, cancelled ones included.
    pub fn per_second(&self) -> f64 {
        let all = self.count() + u64::from(self.cancelled);
        // Of what has only just begun nothing more can be said.
        all as f64 / self.over.as_secs_f64().max(0.1)
    }

    fn rate(&self, some: u32) -> Option<f64> {
        let all = self.count();
        (all > 0).then(|| f64::from(some) / all as f64)
    }

    fn add(&mut self, some: &Self) {
        self.over = self.over.max(some.over);
        self.succeeded += some.succeeded;
        self.failed += some.failed;
        self.timed_out += some.timed_out;
        self.cancelled += some.cancelled;
    }
}

/// With its rates.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = serializer.serialize_struct("Window", 9)?;
        written.serialize_field("over", &self.over.as_secs_f64())?;
        written.serialize_field("succeeded", &self.succeeded)?;
        written.serialize_field("failed", &self.failed)?;
        written.serialize_field("timed_out", &self.timed_out)?;
        written.serialize_field("cancelled", &self.cancelled)?;
        written.serialize_field("per_second", &self.per_second())?;
        written.serialize_field("success_rate", &self.success_rate())?;
        written.serialize_field("failure_rate", &self.failure_rate())?;
        written.serialize_field("timeout_rate", &self.timeout_rate())?;
        written.end()
    }
}

/// With the code's name.
impl Serialize for OfCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = serializer.serialize_struct("OfCode", 3)?;
        written.serialize_field("code", method::name(self.code))?;
        written.serialize_field("took", &self.took)?;
        match &self.sizes {
            Some(sizes) => written.serialize_field("sizes", sizes)?,
            None => written.skip_field("sizes")?,
        }
        written.end()
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn some_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::print::table(self, f)
    }
}
