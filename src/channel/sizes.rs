//! How large a message may be, whichever way it goes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Frame;
use tonic::{Status, body::Body};

use super::{Answer, Calling, Channel, call};

/// The greatest number of bytes of a message to the server, and of one from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) request: Option<usize>,
    pub(super) response: Option<usize>,
}

impl Sizes {
    /// A call whose messages are no larger than that.
    pub(super) fn call(self, channel: Channel, request: http::Request<Body>) -> Calling {
        let request = match self.request {
            Some(most) => request.map(|body| Body::new(Limited::new(body, most))),
            None => request,
        };
        let calling = call::call(channel, request);
        match self.response {
            Some(most) => Box::pin(async move {
                let answer = calling.await?;
                Ok(answer
                    .map(|answer: Answer| answer.limited(Frames::new("from the server", most))))
            }),
            None => calling,
        }
    }
}

/// Reads the sizes of messages off the bytes that go by.
#[derive(Debug)]
pub(super) struct Frames {
    whence: &'static str,
    most: usize,
    /// The prefix of the next message, as far as it has come: whether it is compressed, and its size.
    prefix: [u8; PREFIX],
    have: usize,
    /// What is still to come of the message before it.
    rest: usize,
    /// One was too large.
    over: Option<Status>,
}

const PREFIX: usize = 5;

impl Frames {
    fn new(whence: &'static str, most: usize) -> Self {
        Self {
            whence,
            most,
            prefix: [0; PREFIX],
            have: 0,
            rest: 0,
            over: None,
        }
    }

    /// What comes next, as far as it belongs to messages that are not too large.
    ///
    /// # Errors
    /// When that is nothing, or one that was too large has come before.
    pub(super) fn pass(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Status> {
        self.is_over()?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return Ok(other),
        };
        let Err((good, status)) = self.read(&data) else {
            return Ok(Frame::data(data));
        };
        if good == 0 {
            return Err(status);
        }
        self.over = Some(status);
        Ok(Frame::data(data.slice(..good)))
    }

    /// An error, when nothing more is to come.
    pub(super) fn is_over(&mut self) -> Result<(), Status> {
        self.over.take().map_or(Ok(()), Err)
    }

    /// Whether an error is still to come.
    pub(super) fn has_more(&self) -> bool {
        self.over.is_some()
    }

    /// Takes in what comes next; where a message begins that is too large, if there is one.
    fn read(&mut self, data: &[u8]) -> Result<(), (usize, Status)> {
        let (mut at, mut start) = (0, 0);
        while at < data.len() {
            let skipped = self.rest.min(data.len() - at);
            self.rest -= skipped;
            at += skipped;
            if self.have == 0 {
                start = at;
            }
            let taken = (PREFIX - self.have).min(data.len() - at);
            self.prefix[self.have..self.have + taken].copy_from_slice(&data[at..at + taken]);
            self.have += taken;
            at += taken;
            if self.have == PREFIX {
                let [_, size @ ..] = self.prefix;
                (self.have, self.rest) = (0, u32::from_be_bytes(size) as usize);
                self.check().map_err(|status| (start, status))?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Status> {
        if self.rest <= self.most {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "a message {} has {} bytes, and may have {}",
            self.whence, self.rest, self.most
        )))
    }
}

/// A request's body that ends where a message begins which is too large.
struct Limited {
    body: Body,
    frames: Frames,
    is_over: bool,
}

impl Limited {
    fn new(body: Body, most: usize) -> Self {
        Self {
            body,
            frames: Frames::new("to the server", most),
            is_over: false,
        }
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        let frame = match this.frames.is_over() {
            Err(status) => Err(status),
            Ok(()) => match ready!(Pin::new(&mut this.body).poll_frame(cx)?) {
                Some(frame) => this.frames.pass(frame),
                None => return Poll::Ready(None),
            },
        };
        this.is_over = frame.is_err();
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || (self.body.is_end_stream() && !self.frames.has_more())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(size: usize) -> Vec<u8> {
        let mut message = vec![0; PREFIX + size];
        message[1..PREFIX].copy_from_slice(&(size as u32).to_be_bytes());
        message
    }

    /// How much of these pieces passes.
    fn passed<'a>(most: usize, pieces: impl Iterator<Item = &'a [u8]>) -> usize {
        let mut frames = Frames::new("in a test", most);
        let pass = |piece: &[u8]| {
            let passed = frames.pass(Frame::data(Bytes::copy_from_slice(piece)));
            Some(passed.ok()?.into_data().unwrap().len())
        };
        pieces.map_while(pass).sum()
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_when_its_size_is_known() {
        let all = [message(10), message(11)].concat();
        let mut frames = Frames::new("from the server", 10);

        let good = frames.pass(Frame::data(all.into())).unwrap();
        let refused = frames.pass(Frame::data(Bytes::new())).unwrap_err();

        assert_eq!(good.into_data().unwrap(), message(10));
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let words = "a message from the server has 11 bytes, and may have 10";
        assert_eq!(refused.message(), words);
    }

    #[test]
    fn where_nothing_is_allowed_an_empty_message_is() {
        let (empty, some) = (message(0), message(1));

        assert_eq!(passed(0, [&*empty, &empty, &some].into_iter()), 2 * PREFIX);
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_how_the_bytes_are_cut(
            sizes in prop::collection::vec(0_usize..40, 0..20),
            cut in 1_usize..50,
            most in 0_usize..45,
        ) {
            let stream: Vec<u8> = sizes.iter().flat_map(|&size| message(size)).collect();

            let passed = passed(most, stream.chunks(cut));

            let small = sizes.iter().take_while(|&&size| size <= most);
            let good: usize = small.map(|size| PREFIX + size).sum();
            // Of the prefix that says too much, a part may be gone before it is whole.
            prop_assert!((good..good + PREFIX).contains(&passed), "{passed} of {good}");
        }
    }
}
