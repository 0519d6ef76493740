//! What came of an attempt.

use std::sync::Arc;

use http::{Response, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, error::Elapsed};
use tonic::{Code, Status};

use super::{Attempts, caused};
use crate::{
    Error, ServedBy,
    channel::{Answer, again::RanOut, body},
    endpoint::InFlight,
    health::EndedBy,
    moment::Moment,
    transport::{Failure, Incoming},
};

impl Attempts {
    /// An answer; or why there is none, which is nothing if it can be sent to another.
    #[inline]
    pub(super) fn heard(
        &mut self,
        sent: Result<Result<Response<Incoming>, Failure>, Elapsed>,
        in_flight: InFlight,
        served: ServedBy,
    ) -> Result<Response<Answer>, Option<Status>> {
        match sent {
            Ok(Ok(response)) => Ok(self.answered(response, in_flight, served)),
            Ok(Err(failure)) => Err(self.failed(failure, in_flight, &served)),
            Err(_) => Err(Some(self.ran_out(in_flight, &served))),
        }
    }

    #[inline]
    fn answered(
        &mut self,
        response: Response<Incoming>,
        mut in_flight: InFlight,
        served: ServedBy,
    ) -> Response<Answer> {
        let (mut head, incoming) = response.into_parts();
        let code = body::settle(&mut head.headers, self.deadline);
        // Callers do not look into a body that has ended: nobody else would see that it says nothing.
        let is_silent = code.is_none() && incoming.is_end_stream();
        if head.status == StatusCode::OK && code.is_none_or(|code| code == Code::Ok) && !is_silent {
            let now = Moment::now();
            in_flight.is_answered(now);
            match (&self.counted, &self.again) {
                (Some(counted), _) => counted.answered(now),
                (None, Some(again)) => again.attempt.answered(now),
                (None, None) => {}
            }
        }
        // A status in the head is the last word: callers look for no more in the body.
        if let Some(code) = code {
            in_flight.ended_with(code, &head.headers, self.deadline);
            if code != Code::Ok {
                served.note(&mut head.headers);
            }
        } else if head.status != StatusCode::OK {
            in_flight.ended_by(EndedBy::Status, body::code_of(head.status));
        } else if is_silent {
            in_flight.ended_by(EndedBy::Reset, Code::Unknown);
        } else {
            in_flight.says(&head.headers);
        }
        head.extensions = self.outgoing.take_extensions();
        head.extensions.insert(served.clone());
        let held = (self.admitted.take(), self.counted.take());
        let watched = body::Watched::new(incoming, in_flight, served, self.deadline, held);
        Response::from_parts(head, Answer::new(watched))
    }

    #[cold]
    fn failed(
        &mut self,
        failure: Failure,
        mut in_flight: InFlight,
        served: &ServedBy,
    ) -> Option<Status> {
        let mut status = match failure {
            Failure::NotSent(_) => {
                in_flight.not_sent();
                self.again();
                self.tried.push(served.id().clone());
                return None;
            }
            Failure::Refused(error) => {
                in_flight.is_refused();
                // Who says goodbye may well refuse what comes too late; who stays may not.
                if !body::is_goodbye(&error) {
                    in_flight.ended_by(EndedBy::Refusal, Code::Unavailable);
                }
                if self.refused.is_none() && self.outgoing.rewind() {
                    self.again();
                    self.refused = Some(served.id().clone());
                    self.tried.push(served.id().clone());
                    return None;
                }
                unavailable(error)
            }
            Failure::Broken(error) => {
                in_flight.lost();
                unavailable(error)
            }
            Failure::Reset(status) => {
                let status = body::broken_off(status, self.deadline, served);
                in_flight.reset_with(status.code(), self.deadline);
                status
            }
            Failure::Body(status) => {
                in_flight.failed_itself(status.code());
                status
            }
        };
        served.note_in(&mut status);
        Some(status)
    }

    #[cold]
    fn ran_out(&self, mut in_flight: InFlight, served: &ServedBy) -> Status {
        in_flight.ended_by(EndedBy::Deadline, Code::DeadlineExceeded);
        in_flight.is_given_up();
        let mut late = body::late(served);
        let is_over = |deadline| Instant::now() >= deadline;
        if !self.deadline.is_some_and(is_over) {
            late.set_source(Arc::new(RanOut));
        }
        served.note_in(&mut late);
        late
    }
}

fn unavailable(error: Error) -> Status {
    caused(Code::Unavailable, error)
}
