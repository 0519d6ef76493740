//! A request's body that several attempts read, each from its start.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tonic::{Status, body::Body};

/// What a call sends, kept while it may have to be sent again.
///
/// Nothing is copied: attempts share the frames. A body that grows beyond the limit belongs to the attempt
/// that is the furthest, and is kept no more.
#[derive(Debug)]
pub(super) struct Recording(Arc<Tape>);

#[derive(Debug)]
struct Tape {
    reel: Mutex<Reel>,
    readers: Arc<Readers>,
}

#[derive(Debug)]
struct Reel {
    body: Body,
    ended: bool,
    failed: Option<Status>,
    /// What was read and may be wanted again; the first of them is frame number `cut`.
    kept: VecDeque<Bytes>,
    cut: usize,
    bytes: usize,
    most: usize,
    /// The attempt that the body belongs to alone, once there is one.
    only: Option<u32>,
    /// Attempts that have ended. What is left of one may still be polled, and is not to have the body.
    gone: Vec<u32>,
    /// Who is to hear when it is one's alone.
    race: Option<Waker>,
}

/// Those who wait for more of the body. Whoever asked last may be gone, or busy, when it comes: so all hear.
#[derive(Debug, Default)]
struct Readers(Mutex<Vec<(u32, Waker)>>);

/// The body as one attempt reads it.
#[derive(Debug)]
struct Reader {
    tape: Arc<Tape>,
    attempt: u32,
    at: usize,
}

impl Recording {
    pub(super) fn of(body: Body, most: usize) -> Self {
        Self(Arc::new(Tape {
            reel: Mutex::new(Reel {
                body,
                ended: false,
                failed: None,
                kept: VecDeque::new(),
                cut: 0,
                bytes: 0,
                most,
                only: None,
                gone: Vec::new(),
                race: None,
            }),
            readers: Arc::default(),
        }))
    }

    /// The body from its start, for the attempt of this number.
    pub(super) fn body(&self, attempt: u32) -> Body {
        Body::new(Reader {
            tape: Arc::clone(&self.0),
            attempt,
            at: 0,
        })
    }

    /// Whether another attempt could send all of it.
    pub(super) fn is_whole(&self) -> bool {
        let reel = self.0.reel();
        reel.only.is_none() && reel.failed.is_none()
    }

    /// Whether the caller's own body has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.0.reel().failed.is_some()
    }

    /// Whether there is no body for any other attempt when this one fails.
    pub(super) fn ends_with(&self, attempt: u32) -> bool {
        let reel = self.0.reel();
        reel.failed.is_some() || reel.only == Some(attempt)
    }

    /// The rest of the body is this attempt's alone, and is kept no more.
    pub(super) fn belongs_to(&self, attempt: u32) {
        self.0.reel().belongs_to(attempt);
    }

    /// This attempt has ended, and reads no more; `false` if the body has become its alone before that.
    pub(super) fn goes_on_without(&self, attempt: u32) -> bool {
        let mut reel = self.0.reel();
        reel.gone.push(attempt);
        reel.only != Some(attempt)
    }

    /// The attempt that the body belongs to, if it is one's alone; whoever asks is told when that changes.
    pub(super) fn poll_only(&self, cx: &mut Context<'_>) -> Option<u32> {
        let mut reel = self.0.reel();
        if reel.only.is_none() {
            let same = reel.race.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
            if !same {
                reel.race = Some(cx.waker().clone());
            }
        }
        reel.only
    }
}

impl Tape {
    fn reel(&self) -> MutexGuard<'_, Reel> {
        // A caller's body may panic while it is read; then its call is over, and this says how far it came.
        self.reel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reel {
    /// The frame of this number, if it has been read and is still there.
    fn frame(&mut self, at: usize) -> Option<Bytes> {
        if self.only.is_none() {
            return self.kept.get(at.checked_sub(self.cut)?).cloned();
        }
        // What its only reader has passed is wanted no more.
        while self.cut < at {
            self.kept.pop_front()?;
            self.cut += 1;
        }
        let frame = self.kept.pop_front()?;
        self.cut += 1;
        Some(frame)
    }

    fn end(&self) -> usize {
        self.cut + self.kept.len()
    }

    fn record(&mut self, data: &Bytes, attempt: u32) {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.only.is_none() && self.bytes > self.most {
            self.belongs_to(attempt);
        }
        if self.only.is_some() {
            // It has read all that was kept, or else it would not be at the end.
            self.cut = self.end() + 1;
            self.kept = VecDeque::new();
        } else {
            self.kept.push_back(data.clone());
        }
    }

    fn belongs_to(&mut self, attempt: u32) {
        self.only.get_or_insert(attempt);
        if let Some(race) = self.race.take() {
            race.wake();
        }
    }
}

impl Reader {
    fn poll_more(&self, reel: &mut Reel, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        self.tape.readers.note(self.attempt, cx.waker());
        let all = Waker::from(Arc::clone(&self.tape.readers));
        let mut cx = Context::from_waker(&all);
        loop {
            let frame = match ready!(Pin::new(&mut reel.body).poll_frame(&mut cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => {
                    reel.failed = Some(status);
                    return Poll::Ready(None);
                }
                None => {
                    reel.ended = true;
                    return Poll::Ready(None);
                }
            };
            match frame.data_ref() {
                Some(data) if data.is_empty() => {}
                Some(data) => {
                    reel.record(data, self.attempt);
                    return Poll::Ready(Some(frame));
                }
                None => {
                    // gRPC's requests have none. They end the body, and are given once.
                    reel.ended = true;
                    reel.belongs_to(self.attempt);
                    return Poll::Ready(Some(frame));
                }
            }
        }
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let tape = Arc::clone(&self.tape);
        let mut reel = tape.reel();
        let is_others = reel.only.is_some_and(|only| only != self.attempt);
        if is_others || reel.gone.contains(&self.attempt) {
            let why = "another attempt of this call goes on";
            return Poll::Ready(Some(Err(Status::cancelled(why))));
        }
        if let Some(data) = reel.frame(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let more = if reel.ended || reel.failed.is_some() {
            None
        } else {
            let more = ready!(self.poll_more(&mut reel, cx));
            self.tape.readers.wake_all();
            more
        };
        if let Some(frame) = more {
            self.at += usize::from(frame.is_data());
            return Poll::Ready(Some(Ok(frame)));
        }
        Poll::Ready(reel.failed.clone().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        let reel = self.tape.reel();
        let ended = reel.ended || (reel.failed.is_none() && reel.body.is_end_stream());
        ended && self.at >= reel.end()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tape.readers.forget(self.attempt);
    }
}

impl Readers {
    fn note(&self, attempt: u32, waker: &Waker) {
        let mut all = self.all();
        match all.iter_mut().find(|(reader, _)| *reader == attempt) {
            Some((_, known)) => known.clone_from(waker),
            None => all.push((attempt, waker.clone())),
        }
    }

    fn forget(&self, attempt: u32) {
        self.all().retain(|(reader, _)| *reader != attempt);
    }

    fn wake_all(&self) {
        let all = mem::take(&mut *self.all());
        for (_, waker) in all {
            waker.wake();
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<(u32, Waker)>> {
        self.0
            .lock()
            .expect("no code here panics with the lock held")
    }
}

impl Wake for Readers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::{FutureExt, future::poll_fn, stream};
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    fn source(frames: &[&'static [u8]]) -> Body {
        let frames: Vec<_> = (frames.iter().copied())
            .map(|f| Ok::<_, Status>(Frame::data(Bytes::from_static(f))))
            .collect();
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    fn next(body: &mut Body) -> Option<Result<Bytes, Status>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).now_or_never()?;
        frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
    }

    fn rest(body: &mut Body) -> Vec<Bytes> {
        std::iter::from_fn(|| next(body))
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn each_attempt_reads_the_same_at_its_own_pace() {
        let recording = Recording::of(source(&[b"one", b"two", b"three"]), 100);
        let [mut first, mut second] = [0, 1].map(|attempt| recording.body(attempt));

        assert_eq!(next(&mut first).unwrap().unwrap(), "one");
        assert_eq!(rest(&mut second), ["one", "two", "three"]);

        assert_eq!(rest(&mut first), ["two", "three"]);
        assert!(recording.is_whole() && first.is_end_stream() && second.is_end_stream());
    }

    #[test]
    fn nothing_is_copied() {
        let recording = Recording::of(source(&[b"one"]), 100);

        let [one, other] = [0, 1].map(|n| next(&mut recording.body(n)).unwrap().unwrap());

        assert_eq!(one.as_ptr(), other.as_ptr());
    }

    #[test]
    fn a_body_over_the_limit_is_the_furthest_attempts_and_kept_no_further() {
        let recording = Recording::of(source(&[b"one", b"two", b"three"]), 5);
        let [mut first, mut second] = [0, 1].map(|attempt| recording.body(attempt));
        next(&mut second);

        assert_eq!(rest(&mut first), ["one", "two", "three"]);

        assert!(!recording.is_whole());
        assert!(recording.0.reel().kept.is_empty());
        assert!(next(&mut second).unwrap().is_err());
    }

    #[test]
    fn who_got_the_answer_reads_what_was_kept_and_then_the_rest() {
        let recording = Recording::of(source(&[b"one", b"two", b"three"]), 100);
        let [mut first, mut second] = [0, 1].map(|attempt| recording.body(attempt));
        next(&mut first);
        next(&mut first);
        next(&mut second);

        recording.belongs_to(1);

        assert_eq!(rest(&mut second), ["two", "three"]);
        assert!(next(&mut first).unwrap().is_err());
        assert!(recording.0.reel().kept.is_empty());
    }

    #[test]
    fn an_empty_body_has_ended_before_it_is_read() {
        let recording = Recording::of(Body::empty(), 100);

        assert!(recording.body(0).is_end_stream());
    }

    #[test]
    fn a_body_that_fails_fails_for_all() {
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"one"))),
            Err(Status::aborted("no")),
        ];
        let recording = Recording::of(Body::new(StreamBody::new(stream::iter(frames))), 100);
        let mut first = recording.body(0);
        next(&mut first);
        assert!(next(&mut first).unwrap().is_err());

        let mut second = recording.body(1);

        assert!(recording.has_failed() && !recording.is_whole());
        assert_eq!(next(&mut second).unwrap().unwrap(), "one");
        assert!(next(&mut second).unwrap().is_err());
    }

    #[tokio::test]
    async fn more_of_the_body_wakes_every_attempt_even_when_one_is_gone() {
        let (send, frames) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Status>>();
        let frames = tokio_stream::wrappers::UnboundedReceiverStream::new(frames);
        let recording = Recording::of(Body::new(StreamBody::new(frames)), 100);
        let mut bodies: Vec<_> = (0..3).map(|attempt| recording.body(attempt)).collect();
        let last = bodies.pop().unwrap();
        let waiting = bodies.into_iter().map(|mut body| {
            tokio::spawn(async move { poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        // The one whose waker the body would have kept.
        let mut last = last;
        poll_fn(|cx| {
            assert!(Pin::new(&mut last).poll_frame(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(last);

        send.send(Ok(Frame::data(Bytes::from_static(b"one"))))
            .unwrap();

        for waits in waiting {
            assert!(waits.await.unwrap().unwrap().is_ok());
        }
    }
}
