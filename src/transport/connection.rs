//! One HTTP/2 connection, as those who call over it see it.

use std::{
    fmt,
    future::poll_fn,
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, task::AtomicWaker};
use h2::client::{ResponseFuture, SendRequest};
use http::Response;
use tokio::{runtime::Handle, time::Instant};
use tonic::Status;
#[cfg(feature = "tonic-channel")]
use tonic::transport::Channel;

#[cfg(feature = "tonic-channel")]
use super::lent;
use super::{
    driver::Traffic,
    incoming::{self, Incoming, Rest},
    outgoing::{Origin, Outgoing},
    quota::Quota,
    sending::{Sending, Sent},
};
use crate::{Address, Error, ErrorKind, InstanceId};

/// A connection that is ready for calls; clones are the same connection.
///
/// When the last clone is dropped, it takes no new call, and closes when the last one has ended.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Owner>);

/// Who is at the other end: said once for each connection, so that calls have only to point at it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Peer {
    pub(crate) id: InstanceId,
    pub(crate) address: Address,
}

/// Why a call got no response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It has not left this process.
    NotSent(Error),
    /// The server says that it did nothing about it.
    Refused(Error),
    /// The connection broke; the server may have processed it.
    Broken(Error),
    /// The server ended this call alone, with an HTTP/2 reset; it may have processed it.
    Reset(Status),
    /// The caller's own request is at fault: its body failed, or no HTTP/2 request can be made of it.
    Body(Status),
}

/// Ends the connection when the last one who could call over it has gone.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

/// What callers, open streams and the driver of one connection share.
pub(super) struct Shared {
    pub(super) peer: Arc<Peer>,
    pub(super) origin: Origin,
    pub(super) quota: Quota,
    /// Wakes the driver.
    pub(super) driver: AtomicWaker,
    pub(super) traffic: Arc<Traffic>,
    /// The most bytes that a request's head may have, as the peer says and HTTP/2 counts them.
    takes: u32,
    /// Whether the head of any response has come: it is more than a peer that shakes hands.
    answered: AtomicBool,
    /// How many of the open calls only listen.
    listening: AtomicUsize,
    /// What calls go over in place of a connection of ours.
    #[cfg(feature = "tonic-channel")]
    lent: Option<Channel>,
    parting: Mutex<Parting>,
    ended: OnceLock<Error>,
    /// For the rest of bodies whose response comes early: callers may be on another executor.
    runtime: Handle,
}

/// How far the end of a connection has come.
pub(super) struct Parting {
    /// h2 closes a connection in order once this is gone and the last stream has ended.
    pub(super) sender: Option<SendRequest<Bytes>>,
    pub(super) leaving: bool,
    pub(super) until: Option<Instant>,
}

/// Somebody has a call on a connection that only listens; see [`Connection::listen`].
pub(crate) struct Listening(Arc<Shared>);

/// A stream's place among those the peer allows.
pub(crate) struct Slot(Arc<Shared>);

/// Wakes the driver, when this is dropped, of a connection that nobody can use any more.
struct LastOut<'a>(&'a Shared);

impl Connection {
    pub(super) fn new(
        peer: Peer,
        origin: Origin,
        sender: SendRequest<Bytes>,
        (traffic, takes): (Arc<Traffic>, u32),
    ) -> (Self, Arc<Shared>) {
        let limit = sender.current_max_send_streams();
        let shared = Shared::new(peer, origin, limit, Some(sender), traffic);
        Self::with(Shared { takes, ..shared })
    }

    /// A channel of tonic's, which has its own idea of how many calls are too many.
    #[cfg(feature = "tonic-channel")]
    pub(super) fn lent(peer: Peer, origin: Origin, channel: Channel) -> (Self, Arc<Shared>) {
        let mut shared = Shared::new(peer, origin, usize::MAX, None, Arc::default());
        shared.lent = Some(channel);
        Self::with(shared)
    }

    fn with(shared: Shared) -> (Self, Arc<Shared>) {
        let shared = Arc::new(shared);
        let owner = Owner {
            shared: Arc::clone(&shared),
        };
        (Self(Arc::new(owner)), shared)
    }

    /// Which of the instance's addresses it leads to.
    pub(crate) fn address(&self) -> &Address {
        &self.0.shared.peer.address
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.0.shared.peer
    }

    /// Whether it takes new calls: it is not broken, not going away, not draining.
    pub(crate) fn accepts(&self) -> bool {
        !self.0.shared.quota.is_closed()
    }

    /// Whether it has brought an answer to any call.
    pub(crate) fn answered(&self) -> bool {
        self.0.shared.answered.load(Ordering::Relaxed)
    }

    /// How many calls can begin now without waiting for another to end.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.0.shared.quota.room()
    }

    /// How many calls are open.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.0.shared.quota.open()
    }

    /// Takes no new call from now on; closes when the last one has ended, or at the limit.
    pub(crate) fn drain(&self, limit: Option<Duration>) {
        self.0
            .shared
            .leave(limit.map(|limit| Instant::now() + limit));
    }

    /// While this lives, one of the open calls only listens, however long: it does not make the connection a
    /// busy one, which is asked for signs of life more often than many servers like.
    pub(crate) fn listen(&self) -> Listening {
        let shared = &self.0.shared;
        shared.listening.fetch_add(1, Ordering::Relaxed);
        Listening(Arc::clone(shared))
    }

    /// A place for a call, if there is one now.
    pub(crate) fn try_slot(&self) -> Option<Slot> {
        let shared = &self.0.shared;
        shared.quota.try_take().then(|| Slot(Arc::clone(shared)))
    }

    /// A place for a call, in turn; none if the connection takes no more calls.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue, and nothing else.
    pub(crate) async fn slot(&self) -> Option<Slot> {
        let shared = &self.0.shared;
        // Whoever is sent away, or leaves, may give up a place that was handed over: the last one there was.
        let _last = LastOut(shared);
        let taken = shared.quota.take().await;
        taken.then(|| Slot(Arc::clone(shared)))
    }

    /// Sends a call and returns the head of its response.
    ///
    /// Without room for another stream, it waits in turn for one to end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call: the server is told by a reset of its stream.
    #[cfg(any(test, feature = "etcd"))]
    pub(crate) async fn call(&self, call: &mut Outgoing) -> Result<Response<Incoming>, Failure> {
        match self.slot().await {
            Some(slot) => self.call_in(slot, call).await,
            None => Err(Failure::NotSent(self.0.shared.closed())),
        }
    }

    /// Sends a call that has its place on this connection, and returns the head of its response.
    ///
    /// # Cancel safety
    ///
    /// As for [`call`](Self::call).
    pub(crate) fn call_in<'c>(
        &'c self,
        slot: Slot,
        call: &'c mut Outgoing,
    ) -> impl Future<Output = Result<Response<Incoming>, Failure>> + use<'c> {
        debug_assert!(
            Arc::ptr_eq(&slot.0, &self.0.shared),
            "a place on another connection"
        );
        async move { slot.call(call, &Sent::default()).await }
    }
}

impl Slot {
    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.0.peer
    }

    /// Sends a call in this place, and returns the head of its response. Says how much has been `sent` all the
    /// while, were it given up.
    ///
    /// # Cancel safety
    ///
    /// As for [`Connection::call`].
    pub(crate) async fn call(
        self,
        call: &mut Outgoing,
        sent: &Sent,
    ) -> Result<Response<Incoming>, Failure> {
        let slot = self;
        #[cfg(feature = "tonic-channel")]
        if let Some(channel) = slot.0.lent.clone() {
            return Box::pin(lent::call(Arc::clone(&slot.0), channel, slot, call, sent)).await;
        }
        let shared = &slot.0;
        let writes = shared.traffic.writes();
        let (mut response, mut sending) = shared.open(call)?;

        let head = poll_fn(|cx| {
            if let Some(rest) = &mut sending {
                let polled = rest.poll(call.source(), cx);
                sent.is(rest.sent());
                if let Poll::Ready(ended) = polled {
                    sending = None;
                    ended.map_err(Failure::Body)?;
                }
            }
            let head = Pin::new(&mut response).poll(cx);
            head.map_err(|error| shared.failure(error))
        });
        let (head, recv) = match head.await {
            Ok(head) => head.into_parts(),
            // Not a byte has left since before the call was given to the connection.
            Err(Failure::Broken(error) | Failure::Refused(error))
                if shared.traffic.writes() == writes && call.rewind() =>
            {
                return Err(Failure::NotSent(error));
            }
            Err(failure) => return Err(failure),
        };
        shared.note_answer();

        // Dropped with the sending half unfinished, a stream that the server has ended is reset.
        let rest = sending.filter(|_| !recv.is_end_stream());
        let rest = rest.map(|rest| shared.finish(rest, call));
        Ok(Response::from_parts(head, Incoming::new(recv, rest, slot)))
    }
}

impl Shared {
    fn new(
        peer: Peer,
        origin: Origin,
        limit: usize,
        sender: Option<SendRequest<Bytes>>,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            peer: Arc::new(peer),
            origin,
            quota: Quota::new(limit),
            driver: AtomicWaker::new(),
            traffic,
            takes: u32::MAX,
            answered: AtomicBool::new(false),
            listening: AtomicUsize::new(0),
            #[cfg(feature = "tonic-channel")]
            lent: None,
            parting: Mutex::new(Parting {
                sender,
                leaving: false,
                until: None,
            }),
            ended: OnceLock::new(),
            runtime: Handle::current(),
        }
    }

    /// Why it ended, if it has.
    #[cfg(feature = "tonic-channel")]
    pub(super) fn ended(&self) -> Option<&Error> {
        self.ended.get()
    }

    /// Notes that an answer has come.
    pub(super) fn note_answer(&self) {
        // Only the first answer writes where all callers read.
        if !self.answered.load(Ordering::Relaxed) {
            self.answered.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn parting(&self) -> MutexGuard<'_, Parting> {
        self.parting
            .lock()
            .expect("no code here panics with the lock held")
    }

    fn open(&self, call: &mut Outgoing) -> Result<(ResponseFuture, Option<Sending>), Failure> {
        // A sender of our own: h2 ties a shared one to streams that wait to be opened.
        let sender = self.parting().sender.clone();
        let mut sender = sender.ok_or_else(|| Failure::NotSent(self.closed()))?;
        let (head, size, empty) = call.head(&self.origin);
        if size > self.takes as usize {
            return Err(self.takes_less(size));
        }
        let error = match sender.send_request(head, empty) {
            Ok((response, stream)) => {
                return Ok((response, (!empty).then(|| Sending::over(stream))));
            }
            Err(error) => error,
        };
        // It is either the connection, which takes no more streams or has no more ids for them, or
        // a request that cannot be one of HTTP/2, which would fail everywhere.
        let mut idle = Context::from_waker(Waker::noop());
        match sender.poll_ready(&mut idle) {
            Poll::Ready(Err(error)) => {
                // Nothing of the body has been read, so that the head is all there is to restore.
                call.rewind();
                // Nobody else need try; and why is for the driver to see, which may be asleep.
                self.quota.close();
                self.driver.wake();
                Err(Failure::NotSent(self.broke(error)))
            }
            _ => {
                let why = format!("the request cannot be sent over HTTP/2: {error}");
                Err(Failure::Body(Status::internal(why)))
            }
        }
    }

    /// Most servers break a connection by which too large a head comes, with all calls that are on it.
    #[cold]
    fn takes_less(&self, than: usize) -> Failure {
        let what = format!(
            "the call's metadata comes to {than} bytes, and {} takes {} at most: send less, or have the server take \
             more (tonic: `http2_max_header_list_size`)",
            self.peer.address, self.takes
        );
        Failure::Body(Status::resource_exhausted(what))
    }

    /// Sends the rest of a body beside the reading of the response: callers may do one without the other.
    fn finish(&self, mut sending: Sending, call: &mut Outgoing) -> Rest {
        let mut source = call.take_source();
        let sent = Arc::new(Sent::default());
        let noted = Arc::clone(&sent);
        let task = self.runtime.spawn(async move {
            let ended = poll_fn(|cx| {
                let polled = sending.poll(&mut source, cx);
                noted.is(sending.sent());
                polled
            });
            // A body is its caller's own, and may panic: neither side must wait for the rest of it then.
            let failed = match AssertUnwindSafe(ended).catch_unwind().await {
                Ok(ended) => ended.err(),
                Err(_) => Some(Status::internal(
                    "the stream of the request's messages panicked",
                )),
            };
            if failed.is_some() {
                sending.give_up();
            }
            failed
        });
        Rest { task, sent }
    }

    /// Whether there are calls that want an answer.
    pub(super) fn is_busy(&self) -> bool {
        self.quota.open() > self.listening.load(Ordering::Relaxed)
    }

    /// Takes no new stream, and lets the driver see to the end.
    pub(super) fn leave(&self, until: Option<Instant>) {
        let mut parting = self.parting();
        parting.leaving = true;
        parting.until = match (parting.until, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        drop(parting);
        self.quota.close();
        self.driver.wake();
    }

    /// Keeps the reason why it ended, for those whose streams it took along.
    pub(super) fn end(&self, why: Error) {
        let _ = self.ended.set(why);
        self.quota.close();
    }

    fn closed(&self) -> Error {
        self.ended.get().cloned().unwrap_or_else(|| {
            let what = format!("the connection to {} takes no new call", self.peer.address);
            Error::new(ErrorKind::Unavailable, what)
        })
    }

    /// This error as the reason why the connection ended, unless a better one is known.
    pub(super) fn broke(&self, error: h2::Error) -> Error {
        if let Some(ended) = self.ended.get() {
            return ended.clone();
        }
        let what = format!("the connection to {} broke", self.peer.address);
        let what = Error::new(ErrorKind::Unavailable, what);
        match error.get_io().map(io::Error::kind) {
            Some(io::ErrorKind::BrokenPipe) => what.because("the server closed it"),
            _ => what.because(error),
        }
    }

    fn failure(&self, error: h2::Error) -> Failure {
        // A stream sees a peer's GOAWAY as its own error only if its id is past the last one processed.
        if error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        {
            let what = format!("{} did not process the call", self.peer.address);
            return Failure::Refused(Error::new(ErrorKind::Unavailable, what).because(error));
        }
        if error.is_reset() {
            return Failure::Reset(incoming::reset(error));
        }
        Failure::Broken(self.broke(error))
    }
}

impl Slot {
    /// What a failure after the head means.
    pub(super) fn status(&self, error: h2::Error) -> Status {
        if error.is_reset() {
            return incoming::reset(error);
        }
        Failure::Broken(self.0.broke(error)).into()
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(error) | Failure::Refused(error) | Failure::Broken(error) => {
                let mut status = Self::unavailable(error.chain());
                status.set_source(Arc::new(error));
                status
            }
            Failure::Reset(status) | Failure::Body(status) => status,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.0.quota.put() == 0 && self.0.quota.is_closed() {
            self.0.driver.wake();
        }
    }
}

impl Drop for LastOut<'_> {
    fn drop(&mut self) {
        if self.0.quota.is_closed() && self.0.quota.open() == 0 {
            self.0.driver.wake();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.leave(None);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("address", &self.peer.address)
            .field("quota", &self.quota)
            .field("ended", &self.ended.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.0.peer.address).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::{super::tests, *};

    #[tokio::test]
    async fn a_call_that_a_dying_connection_did_not_take_is_whole_for_the_next() {
        let (dialed, mut server) = tests::served().await;
        let mut call = tests::unary("hello");
        call.headers_mut()
            .insert("x-key", HeaderValue::from_static("v"));
        server.graceful_shutdown();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        dialed.driver.await.unwrap();

        // As if it had found room just before the news came.
        let opened = dialed.connection.0.shared.open(&mut call);

        assert!(matches!(opened, Err(Failure::NotSent(_))));
        assert_eq!(call.headers()["x-key"], "v");
    }
}
