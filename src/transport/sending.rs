//! A request body on its way, under flow control.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tonic::Status;

use super::outgoing::{Piece, Source};
use crate::stats::Meter;

/// The sending half of a stream, and the frame that waits for the peer's window.
///
/// One frame of the body is looked ahead, so that the end of the stream rides on the last one: a frame,
/// a write and a read less for each unary call.
#[derive(Debug)]
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    frame: Option<Bytes>,
    begun: bool,
    meter: Meter,
}

/// How many bytes of messages have been sent: written by whoever sends them, for others to read.
#[derive(Debug, Default)]
pub(crate) struct Sent(AtomicU64);

impl Sent {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn is(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// A first frame up to this size is given to the connection together with the head. Its window is seen
/// to there; to wait for it here would cost each unary call one more turn of two tasks.
const AT_ONCE: usize = 16 << 10;

impl Sending {
    pub(super) fn over(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            frame: None,
            begun: false,
            meter: Meter::default(),
        }
    }

    /// Sends what the body has and the window lets through; ready when there is no more to send, or
    /// when the peer wants no more. An error is the body's own.
    pub(super) fn poll(
        &mut self,
        source: &mut Source,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        loop {
            let frame = match self.frame.take() {
                Some(frame) => frame,
                None => match ready!(source.poll_next(cx))? {
                    Piece::Data(data) => data,
                    Piece::Trailers(trailers) => {
                        // It fails only when the stream has ended, which the reading half reports.
                        let _ = self.stream.send_trailers(*trailers);
                        return Poll::Ready(Ok(()));
                    }
                    Piece::End => {
                        let _ = self.stream.send_data(Bytes::new(), true);
                        return Poll::Ready(Ok(()));
                    }
                },
            };
            let last = match source.poll_ended(cx)? {
                Poll::Ready(last) => last,
                Poll::Pending => false,
            };
            if !ready!(self.poll_send(frame, last, cx)) || (last && self.frame.is_none()) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends this frame, or as much as there is window for; `false` if the peer wants no more.
    fn poll_send(&mut self, mut frame: Bytes, last: bool, cx: &mut Context<'_>) -> Poll<bool> {
        let begun = std::mem::replace(&mut self.begun, true);
        if begun || frame.len() > AT_ONCE {
            self.stream.reserve_capacity(frame.len());
            let mut window = self.stream.capacity();
            if window == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(granted))) => window = granted,
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(false),
                    Poll::Pending => {
                        self.frame = Some(frame);
                        return Poll::Pending;
                    }
                }
            }
            if window < frame.len() {
                self.frame = Some(frame.split_off(window));
            }
        }
        let last = last && self.frame.is_none();
        self.meter.read(&frame);
        Poll::Ready(self.stream.send_data(frame, last).is_ok())
    }

    /// Bytes of messages that were sent.
    pub(super) fn sent(&self) -> u64 {
        self.meter.bytes()
    }

    /// Ends the stream because the body failed.
    pub(super) fn give_up(&mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }
}
