//! A response on its way to the caller, watched for its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::ServedBy;
use crate::{
    endpoint::{InFlight, Outcome},
    transport::Incoming,
};

/// Counts the call as in flight until its body ends, is dropped, or runs out of time.
pub(super) struct Watched {
    incoming: Incoming,
    call: Option<InFlight>,
    served: ServedBy,
    deadline: Option<Instant>,
    /// Made when the body first keeps the caller waiting: most bodies are there by then.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(
        incoming: Incoming,
        call: InFlight,
        served: ServedBy,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            incoming,
            call: Some(call),
            served,
            deadline,
            sleep: None,
        }
    }

    fn ended(&mut self, outcome: Outcome) {
        if let Some(mut call) = self.call.take() {
            call.ended(outcome);
        }
    }

    fn failed(&mut self, mut status: Status) -> Status {
        self.ended(Outcome::of(status.code()));
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
        let frame = match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let status = ready!(this.poll_deadline(cx));
                // Who has got the error may hold on to the body for long.
                this.incoming.cancel();
                return Poll::Ready(Some(Err(this.failed(status))));
            }
        };
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    let code = code(trailers).unwrap_or(Code::Unknown);
                    if code != Code::Ok {
                        this.served.note(trailers);
                    }
                    this.ended(Outcome::of(code));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(status)) => Poll::Ready(Some(Err(this.failed(status)))),
            None => {
                // The head has said what became of the call, or nobody has.
                this.ended(Outcome::Failure);
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

static STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What these headers or trailers say became of the call.
pub(super) fn code(metadata: &HeaderMap) -> Option<Code> {
    // Looked through, as there are few: to look a name up is to hash it.
    let status = metadata.iter().find(|(name, _)| **name == STATUS);
    Some(Code::from_bytes(status?.1.as_bytes()))
}

/// The call went to this server, and its time ran out.
pub(super) fn late(served: &ServedBy) -> Status {
    Status::deadline_exceeded(format!(
        "no answer in time from {} at {}",
        served.id(),
        served.address()
    ))
}
