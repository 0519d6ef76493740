//! A response's body, and what HTTP/2's failures mean to a call.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

#[cfg(feature = "tonic-channel")]
use super::lent::Lent;
use super::{connection::Slot, sending::Sent};

/// The body of a response: messages, then trailers.
///
/// What is read makes room in the stream's window, so a slow reader slows its server down. Dropping it
/// before its end cancels the call. While it lives its stream counts as open.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// `None` after the end.
    open: Option<Open>,
    /// The same over a channel of tonic's.
    #[cfg(feature = "tonic-channel")]
    lent: Option<Box<Lent>>,
    /// Where the request went on after this had begun.
    sent: Option<Arc<Sent>>,
}

#[derive(Debug)]
struct Open {
    recv: RecvStream,
    trailers_next: bool,
    /// What the caller has got last, and may still be reading.
    in_hand: usize,
    rest: Option<Rest>,
    slot: Slot,
}

/// The task that sends the rest of a request whose response has begun already.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) task: JoinHandle<Option<Status>>,
    pub(super) sent: Arc<Sent>,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Incoming {
    pub(super) fn new(recv: RecvStream, rest: Option<Rest>, slot: Slot) -> Self {
        if recv.is_end_stream() {
            return Self {
                open: None,
                #[cfg(feature = "tonic-channel")]
                lent: None,
                sent: None,
            };
        }
        Self {
            sent: rest.as_ref().map(|rest| Arc::clone(&rest.sent)),
            open: Some(Open {
                recv,
                trailers_next: false,
                in_hand: 0,
                rest,
                slot,
            }),
            #[cfg(feature = "tonic-channel")]
            lent: None,
        }
    }

    #[cfg(feature = "tonic-channel")]
    pub(super) fn lent(lent: Lent, sent: Arc<Sent>) -> Self {
        Self {
            open: None,
            sent: Some(sent),
            lent: Some(Box::new(lent)).filter(|lent| !lent.is_end_stream()),
        }
    }
}

impl Incoming {
    /// Bytes of messages that the request had by now, if it went on after its response had begun.
    pub(crate) fn sent(&self) -> Option<u64> {
        self.sent.as_ref().map(|sent| sent.bytes())
    }

    /// Gives the rest up, and tells the server.
    pub(crate) fn cancel(&mut self) {
        self.open = None;
        #[cfg(feature = "tonic-channel")]
        {
            self.lent = None;
        }
    }

    #[cfg(feature = "tonic-channel")]
    fn poll_lent(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(lent) = &mut self.lent else {
            return Poll::Ready(None);
        };
        let frame = ready!(lent.poll_frame(cx));
        if !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            self.lent = None;
        }
        Poll::Ready(frame)
    }

    #[cfg(not(feature = "tonic-channel"))]
    fn poll_lent(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(None)
    }
}

impl Open {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.trailers_next {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    self.release();
                    self.in_hand = data.len();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => return self.poll_failed(error, cx),
                // The connection gets back by itself what a stream that ends still holds.
                Poll::Ready(None) => self.trailers_next = true,
                Poll::Pending => {
                    self.release();
                    return Poll::Pending;
                }
            }
        }
        match ready!(self.recv.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t)))),
            Err(error) => self.poll_failed(error, cx),
        }
    }

    /// Makes room in the window for as much as the caller has read: it has come back for more.
    fn release(&mut self) {
        let read = std::mem::take(&mut self.in_hand);
        if read > 0 {
            // It fails only when the stream has ended, and then there is nothing to release.
            let _ = self.recv.flow_control().release_capacity(read);
        }
    }

    /// The reason why the stream failed: the request's own body, or else what HTTP/2 says.
    fn poll_failed<T>(
        &mut self,
        error: h2::Error,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<T, Status>>> {
        // Resets of h2's own, for what the server did wrong, end nothing that is still to be sent.
        if error.is_reset()
            && !error.is_remote()
            && !error.is_library()
            && let Some(rest) = &mut self.rest
        {
            // The task has reset the stream as its last act, so it is about to end.
            let ended = ready!(Pin::new(&mut rest.task).poll(cx));
            self.rest = None;
            if let Ok(Some(status)) = ended {
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(Some(Err(self.slot.status(error))))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(open) = &mut self.open else {
            return self.poll_lent(cx);
        };
        let frame = ready!(open.poll_frame(cx));
        if !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            self.open = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.open {
            Some(open) => open.recv.is_end_stream(),
            #[cfg(feature = "tonic-channel")]
            None => self.lent.as_ref().is_none_or(|lent| lent.is_end_stream()),
            #[cfg(not(feature = "tonic-channel"))]
            None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// gRPC's meaning of a stream's reset.
pub(super) fn reset(error: h2::Error) -> Status {
    let code = match error.reason() {
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(
            Reason::NO_ERROR
            | Reason::PROTOCOL_ERROR
            | Reason::INTERNAL_ERROR
            | Reason::FLOW_CONTROL_ERROR
            | Reason::SETTINGS_TIMEOUT
            | Reason::FRAME_SIZE_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::CONNECT_ERROR,
        ) => Code::Internal,
        _ => Code::Unknown,
    };
    let mut status = Status::new(code, error.to_string());
    status.set_source(Arc::new(error));
    status
}
