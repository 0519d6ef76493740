//! A call on its way, and what its end shows about its endpoint.

use std::{mem, sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Code;

use super::Vitals;
use crate::health::{Ended, EndedBy, Outcome};

/// A call in flight; it is no more when this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    vitals: Arc<Vitals>,
    began: Instant,
    judged: bool,
    on_trial: bool,
}

impl InFlight {
    pub(super) fn begun(vitals: Arc<Vitals>, on_trial: bool) -> Self {
        Self {
            vitals,
            began: Instant::now(),
            judged: false,
            on_trial,
        }
    }

    /// It ended like this; only the first word counts.
    fn ended(&mut self, ended: Ended<'_>) {
        if mem::replace(&mut self.judged, true) {
            return;
        }
        match self.vitals.judge(&ended) {
            Outcome::Success => self.vitals.succeeded(self.on_trial),
            Outcome::Failure => self.vitals.failed_like(&ended, self.on_trial),
            Outcome::Overload => {
                self.vitals.overloaded(&ended);
                self.shows_nothing();
            }
            Outcome::Ignore => self.shows_nothing(),
        }
    }

    /// It ended with a status in these headers or trailers.
    pub(crate) fn ended_with(
        &mut self,
        code: Code,
        metadata: &HeaderMap,
        deadline: Option<Instant>,
    ) {
        let ended = Ended::with(code, metadata);
        self.ended(self.in_time(ended, deadline));
    }

    /// The server broke it off.
    pub(crate) fn reset_with(&mut self, code: Code, deadline: Option<Instant>) {
        let ended = Ended::without_status(code, EndedBy::Reset);
        self.ended(self.in_time(ended, deadline));
    }

    /// Both sides keep time, and the server may be the first to say that it is over.
    fn in_time<'e>(&self, ended: Ended<'e>, deadline: Option<Instant>) -> Ended<'e> {
        let of_time = matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled);
        let is_over = |deadline| Instant::now() + TOLERANCE >= deadline;
        if of_time && deadline.is_some_and(is_over) {
            return ended.late().fair(self.had_fair_time());
        }
        ended
    }

    /// It ended without a status of the server's.
    pub(crate) fn ended_by(&mut self, by: EndedBy, code: Code) {
        let ended = Ended::without_status(code, by);
        self.ended(ended.fair(by != EndedBy::Deadline || self.had_fair_time()));
    }

    /// It ended with its connection, of which the channel's task hears: the endpoint is not to be blamed for
    /// each call that was on it.
    pub(crate) fn lost(&mut self) {
        if !mem::replace(&mut self.judged, true) {
            self.vitals.lost_one();
            self.is_undecided();
        }
    }

    /// The server has had as long as it usually takes.
    pub(crate) fn had_fair_time(&self) -> bool {
        Instant::now() - self.began >= self.vitals.latency().usual()
    }

    /// The server has answered, and may have more to say.
    pub(crate) fn is_answered(&self) {
        self.took(Instant::now() - self.began);
        if self.on_trial {
            self.vitals.conduct().answered();
        }
    }

    /// It was given up unanswered. One that was in a hurry says only that it takes longer than this.
    pub(crate) fn is_given_up(&self) {
        let time = Instant::now() - self.began;
        if time >= self.vitals.latency().usual() {
            self.took(time);
        }
    }

    pub(crate) fn took(&self, time: Duration) {
        self.vitals.latency().heard(time);
    }

    /// It never left, so it was no call to this endpoint.
    pub(crate) fn not_sent(&mut self) {
        self.judged = true;
        self.vitals.not_called();
        if self.on_trial {
            self.vitals.conduct().untried();
        }
    }

    fn shows_nothing(&self) {
        self.vitals.ignored();
        self.is_undecided();
    }

    fn is_undecided(&self) {
        if self.on_trial {
            self.vitals.conduct().undecided();
        }
    }
}

/// So much sooner than ours may a server's clock say that the time is over.
const TOLERANCE: Duration = Duration::from_millis(5);

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.judged {
            self.shows_nothing();
        }
        self.vitals.ends();
    }
}
