//! A response on its way to the caller, watched for its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::{ServedBy, admitted::Admitted, details};
use crate::{
    Error,
    deadline::is_over,
    endpoint::InFlight,
    health::EndedBy,
    moment::Moment,
    stats::{Counted, Meter},
    transport::Incoming,
};

/// Counts the call as in flight until its body ends, is dropped, or runs out of time.
pub(super) struct Watched {
    incoming: Incoming,
    call: Option<InFlight>,
    served: ServedBy,
    deadline: Option<Instant>,
    admitted: Option<Admitted>,
    counted: Option<Counted>,
    meter: Meter,
    /// Whether any of the response has come.
    begun: bool,
    /// Whether the body came later than its head, or may have: its reader has waited, or it is a long one.
    drawn_out: bool,
    /// How many frames came without a wait, and so without a look at the deadline.
    unwatched: u8,
    /// Made when the body first keeps the caller waiting: most bodies are there by then.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(
        incoming: Incoming,
        call: InFlight,
        served: ServedBy,
        deadline: Option<Instant>,
        (admitted, counted): (Option<Admitted>, Option<Counted>),
    ) -> Self {
        Self {
            incoming,
            call: Some(call),
            served,
            deadline,
            admitted,
            counted,
            meter: Meter::default(),
            begun: false,
            drawn_out: false,
            unwatched: 0,
            sleep: None,
        }
    }

    /// It counts among the calls under way until its end, and is counted then.
    pub(super) fn hold(&mut self, admitted: Option<Admitted>, counted: Option<Counted>) {
        if self.call.is_some() {
            self.admitted = admitted;
            self.counted = counted;
        }
    }

    /// The call has ended, and this is what it showed.
    fn ended(&mut self, how: impl FnOnce(&mut InFlight)) {
        if let Some(mut call) = self.call.take() {
            how(&mut call);
            let at = self.came_with_head(&call);
            self.close(at, &mut call);
        }
        self.admitted = None;
    }

    /// When the head came, if all of the body came with it: one message, as a rule, and the trailers. To read the
    /// clock costs as much as all the counters.
    fn came_with_head(&self, attempt: &InFlight) -> Option<Moment> {
        attempt.answered_at().filter(|_| !self.drawn_out)
    }

    /// Counts what has come of it.
    fn close(&mut self, at: Option<Moment>, attempt: &mut InFlight) {
        // The request may have gone on after the response had begun.
        if let Some(sent) = self.incoming.sent() {
            attempt.sent().is(sent);
        }
        attempt.close(at, self.meter.bytes(), self.counted.take());
    }

    /// The time is over. A stream that has brought something may well have been meant to last.
    fn late(&mut self, status: Status) -> Status {
        let begun = self.begun;
        self.ended(|call| {
            if !begun {
                call.ended_by(EndedBy::Deadline, Code::DeadlineExceeded);
            }
            call.is_late();
        });
        self.noted(status)
    }

    fn failed(&mut self, mut status: Status) -> Status {
        let deadline = self.deadline;
        let cause = std::error::Error::source(&status);
        let is_reset = cause.is_some_and(|cause| cause.is::<h2::Error>());
        let is_broken = cause.is_some_and(|cause| cause.is::<Error>());
        if is_reset {
            status = broken_off(status, deadline, &self.served);
        }
        let code = status.code();
        self.ended(|call| match (is_reset, is_broken) {
            (true, _) => call.reset_with(code, deadline),
            (_, true) => call.lost(),
            // The caller's own body failed.
            _ => call.failed_itself(code),
        });
        self.noted(status)
    }

    fn noted(&self, mut status: Status) -> Status {
        self.served.note_in(&mut status);
        status
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(late(&self.served))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut call) = self.call.take() {
            self.close(None, &mut call);
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.call.is_none() {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut this.incoming).poll_frame(cx);
        // A server that sends without a pause is not to go on for ever, nor is the clock to be read each time.
        this.unwatched = this.unwatched.wrapping_add(1);
        this.drawn_out |= frame.is_pending() || this.unwatched > WITH_HEAD;
        if (frame.is_pending() || this.unwatched.is_multiple_of(LOOK))
            && let Poll::Ready(status) = this.poll_deadline(cx)
        {
            // Who has got the error may hold on to the body for long.
            this.incoming.cancel();
            return Poll::Ready(Some(Err(this.late(status))));
        }
        let frame = ready!(frame);
        match frame {
            Some(Ok(mut frame)) => {
                this.begun = true;
                if let Some(data) = frame.data_ref() {
                    this.meter.read(data);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    let deadline = this.deadline;
                    let code = settle(trailers, deadline).unwrap_or(Code::Unknown);
                    this.ended(|call| call.ended_with(code, trailers, deadline));
                    if code != Code::Ok {
                        this.served.note(trailers);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(status)) => Poll::Ready(Some(Err(this.failed(status)))),
            None => {
                // The head has said what became of the call, or nobody has.
                this.ended(|call| call.ended_by(EndedBy::Reset, Code::Unknown));
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none() || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A message, and the trailers.
const WITH_HEAD: u8 = 2;

/// One in so many frames that come without a wait is checked against the deadline.
const LOOK: u8 = 32;

static STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What these headers or trailers say became of the call.
pub(super) fn code(metadata: &HeaderMap) -> Option<Code> {
    // Looked through, as there are few: to look a name up is to hash it.
    let status = metadata.iter().find(|(name, _)| **name == STATUS);
    Some(Code::from_bytes(status?.1.as_bytes()))
}

/// The same, for good. Both sides keep time, and the server may be the first to say that it is over, which tonic's
/// says as CANCELLED: to the caller it is DEADLINE_EXCEEDED, whoever was first. Whoever reads it may read all of it.
pub(super) fn settle(metadata: &mut HeaderMap, deadline: Option<Instant>) -> Option<Code> {
    let code = code(metadata)?;
    details::tidy(metadata);
    if code != Code::Cancelled || !is_over(deadline) {
        return Some(code);
    }
    metadata.insert(&STATUS, HeaderValue::from_static("4"));
    Some(Code::DeadlineExceeded)
}

/// This status, with which the server broke the call off; or, where it did because our time is over, that.
pub(super) fn broken_off(status: Status, deadline: Option<Instant>, served: &ServedBy) -> Status {
    match status.code() {
        Code::Cancelled if is_over(deadline) => late(served),
        _ => status,
    }
}

/// What a response that is none of gRPC's says in gRPC's words.
pub(super) fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Whether a call was refused because the server is about to leave.
pub(super) fn is_goodbye(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    cause
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .is_some_and(h2::Error::is_go_away)
}

/// The call went to this server, and its time ran out.
pub(super) fn late(served: &ServedBy) -> Status {
    Status::deadline_exceeded(format!(
        "no answer in time from {} at {}",
        served.id(),
        served.address()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_cancels_what_is_late_says_that_it_is_late() {
        let now = Instant::now();
        let [near, far] = [1, 1_000].map(|ms| Some(now + Duration::from_millis(ms)));
        let settled = |code: &'static str, deadline| {
            let mut trailers = HeaderMap::new();
            trailers.insert(&STATUS, HeaderValue::from_static(code));
            let settled = settle(&mut trailers, deadline);
            assert_eq!(settled, super::code(&trailers));
            settled
        };

        assert_eq!(settled("1", near), Some(Code::DeadlineExceeded));
        assert_eq!(settled("1", far), Some(Code::Cancelled));
        assert_eq!(settled("1", None), Some(Code::Cancelled));
        assert_eq!(settled("14", near), Some(Code::Unavailable));
        assert_eq!(settle(&mut HeaderMap::new(), near), None);
    }
}
