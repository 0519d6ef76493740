//! The body of a response, as callers get it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{admitted::Admitted, body::Watched, sizes::Frames};
use crate::stats::Counted;

/// The body of a response: messages, then trailers.
///
/// Generated clients read it for you. It is a type of its own, and not [`tonic::body::Body`], because tonic
/// puts what it is given in a box anyway: one allocation less for each call. Where a
/// [`tonic::body::Body`] is wanted, [`Body::new`](tonic::body::Body::new) makes one of it.
///
/// Dropping it before its end cancels the call.
///
/// ```
/// use tonic::body::Body;
/// use tonic_fleet::Channel;
/// use tower::{ServiceExt, util::BoxCloneSyncService};
///
/// /// The channel as one of many services of the same type.
/// fn boxed(
///     channel: Channel,
/// ) -> BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::Status> {
///     BoxCloneSyncService::new(channel.map_response(|answer| answer.map(Body::new)))
/// }
/// ```
#[derive(Default)]
pub struct Answer(Option<Watched>, Option<Box<Frames>>);

impl Answer {
    pub(super) fn new(watched: Watched) -> Self {
        Self(Some(watched), None)
    }

    /// The same, as far as its messages are no larger than that.
    pub(super) fn limited(self, frames: Frames) -> Self {
        Self(self.0, Some(Box::new(frames)))
    }
}

impl Answer {
    /// The call counts among those under way until this ends, and is counted then.
    pub(super) fn hold(&mut self, admitted: Option<Admitted>, counted: Option<Counted>) {
        if let Some(watched) = &mut self.0 {
            watched.hold(admitted, counted);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self(Some(watched), frames) = &mut *self else {
            return Poll::Ready(None);
        };
        let Some(frames) = frames else {
            return Pin::new(watched).poll_frame(cx);
        };
        let frame = match frames.is_over() {
            Err(status) => Err(status),
            Ok(()) => match ready!(Pin::new(watched).poll_frame(cx)?) {
                Some(frame) => frames.pass(frame),
                None => return Poll::Ready(None),
            },
        };
        if frame.is_err() {
            // Nobody is going to read the rest.
            self.0 = None;
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        let has_more = self.1.as_ref().is_some_and(|frames| frames.has_more());
        !has_more && self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(watched) => watched.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("ended", &self.is_end_stream())
            .finish_non_exhaustive()
    }
}
