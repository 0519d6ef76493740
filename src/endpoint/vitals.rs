//! What calls and connections show about an endpoint.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;

use super::{Latency, links::Links};
use crate::Error;

/// Shared by everybody who looks at one endpoint; survives what the registry says.
#[derive(Debug)]
pub(crate) struct Vitals {
    in_flight: AtomicUsize,
    calls: AtomicU64,
    failures: AtomicU64,
    latency: Latency,
    links: Links,
    condition: Mutex<Condition>,
}

/// Written by the channel's one task only, read by whoever looks.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) state: State,
    pub(crate) since: Instant,
    pub(crate) suspect: bool,
    pub(crate) last_error: Option<Error>,
}

/// Whether calls can go to an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// Known, and not yet tried.
    Idle,
    /// Being connected, or asked for the first time whether it is well.
    Connecting,
    /// Connected, and taking calls.
    Ready,
    /// Connected, but it asked for no new calls.
    Draining,
    /// Connected, but it says that it is not well, or does not say.
    Unhealthy,
    /// Not connected; the next attempt waits its turn.
    Broken,
    /// No longer in the set.
    Gone,
}

/// A call in flight; it is no more when this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    vitals: Arc<Vitals>,
    judged: bool,
}

/// What a call showed about its server: the one judgement that every count uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It answered as it should, were it with an error of the caller's making.
    Success,
    /// It failed.
    Failure,
    /// It says that it has too much to do.
    Overload,
    /// Nothing: the call was given up by the caller.
    Ignore,
}

impl Vitals {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: Latency::default(),
            links: Links::new(),
            condition: Mutex::new(Condition {
                state: State::Idle,
                since: now,
                suspect: false,
                last_error: None,
            }),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.latency.is_tried();
        InFlight {
            vitals: Arc::clone(self),
            judged: false,
        }
    }

    /// How soon it answers; see [`Latency`].
    pub(crate) fn latency(&self) -> &Latency {
        &self.latency
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn condition(&self) -> Condition {
        self.with_condition(|condition| condition.clone())
    }

    pub(crate) fn enter(&self, state: State, now: Instant) {
        self.with_condition(|condition| {
            if condition.state != state {
                condition.state = state;
                condition.since = now;
            }
        });
    }

    pub(crate) fn suspect(&self, suspect: bool) {
        self.with_condition(|condition| condition.suspect = suspect);
    }

    pub(crate) fn failed(&self, error: Error) {
        self.with_condition(|condition| condition.last_error = Some(error));
    }

    fn with_condition<T>(&self, with: impl FnOnce(&mut Condition) -> T) -> T {
        // Each write is whole, so a panic elsewhere leaves nothing half done.
        with(
            &mut self
                .condition
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl InFlight {
    /// What the call showed; only the first word counts.
    pub(crate) fn ended(&mut self, outcome: Outcome) {
        let first = !std::mem::replace(&mut self.judged, true);
        if first && outcome == Outcome::Failure {
            self.vitals.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It was answered, or given up unanswered, after so long.
    pub(crate) fn took(&self, time: Duration) {
        self.vitals.latency.heard(time);
    }

    /// It never left, so it was no call to this endpoint.
    pub(crate) fn not_sent(&self) {
        self.vitals.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.vitals.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outcome {
    /// Mistakes of the caller are not the server's failures.
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::Unavailable
            | Code::Internal
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::DataLoss => Self::Failure,
            Code::ResourceExhausted => Self::Overload,
            Code::Cancelled => Self::Ignore,
            _ => Self::Success,
        }
    }
}

impl State {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Broken => "broken",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_flight_until_its_guard_is_dropped() {
        let vitals = Arc::new(Vitals::new(Instant::now()));

        let mut call = vitals.begin();
        call.ended(Outcome::Failure);
        call.ended(Outcome::Failure);

        assert_eq!(
            (vitals.in_flight(), vitals.calls(), vitals.failures()),
            (1, 1, 1)
        );
        drop(call);
        assert_eq!((vitals.in_flight(), vitals.calls()), (0, 1));
    }

    #[test]
    fn a_mistake_of_the_caller_is_no_failure_of_the_server() {
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::PermissionDenied,
            Code::Ok,
        ] {
            assert_eq!(Outcome::of(code), Outcome::Success, "{code:?}");
        }
        assert_eq!(Outcome::of(Code::Unavailable), Outcome::Failure);
        assert_eq!(Outcome::of(Code::ResourceExhausted), Outcome::Overload);
        assert_eq!(Outcome::of(Code::Cancelled), Outcome::Ignore);
    }
}
