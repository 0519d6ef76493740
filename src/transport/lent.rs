//! Calls over a channel of tonic's, which is made, kept and mended by tonic.

use std::{
    error::Error as _,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::timeout;
use tonic::{
    Status, TimeoutExpired,
    body::Body,
    transport::{Channel, Endpoint, Error as Broken},
};
use tower::Service;

use super::{
    Connection, Failure, Incoming, Outgoing, Peer, Slot,
    connection::Shared,
    driver::Alarm,
    outgoing::{Origin, Piece, Source},
    sending::Sent,
};
use crate::{Error, ErrorKind, Instance, stats::Meter};

/// How to reach an instance.
#[derive(Clone)]
pub(crate) struct Lender(Arc<Reach>);

type Reach = dyn Fn(&Instance) -> Option<Endpoint> + Send + Sync;

/// Keeps a lent channel's books: it ends when the channel fails, or has been let go of and is free.
#[derive(Debug)]
pub(crate) struct Keeper(Arc<Shared>);

/// The body of an answer over a lent channel, and its place there.
#[derive(Debug)]
pub(super) struct Lent {
    body: Body,
    _slot: Slot,
}

/// A request's body on its way.
struct Whole {
    source: Source,
    meter: Meter,
    sent: Arc<Sent>,
}

impl Lender {
    pub(crate) fn new(
        make: impl Fn(&Instance) -> Option<Endpoint> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(make))
    }

    /// Has tonic connect to this instance.
    pub(super) async fn dial(
        &self,
        instance: &Instance,
        origin: Origin,
        limit: Duration,
    ) -> Result<(Connection, Keeper), Error> {
        let id = &instance.id;
        let endpoint = (self.0)(instance);
        let Some((endpoint, address)) = endpoint.zip(instance.addresses.first()) else {
            let what = format!("instance {id}: it was given no tonic endpoint");
            return Err(Error::config(what));
        };
        let channel = timeout(limit, endpoint.connect()).await.map_err(|_| {
            let what = format!("connect to {address} by tonic: no answer within {limit:?}");
            Error::new(ErrorKind::Timeout, what)
        })?;
        let channel = channel.map_err(|error| {
            let what = format!("connect to {address} by tonic");
            Error::new(ErrorKind::Unavailable, what).because(error)
        })?;
        let peer = Peer {
            id: id.clone(),
            address: address.clone(),
        };
        let (connection, shared) = Connection::lent(peer, origin, channel);
        Ok((connection, Keeper(shared)))
    }
}

impl Keeper {
    /// Returns why the channel takes no more calls, once those it has are over.
    pub(super) async fn run(self) -> Error {
        let mut alarm = Alarm::default();
        let why = poll_fn(|cx| self.poll(&mut alarm, cx)).await;
        self.0.end(why.clone());
        why
    }

    fn poll(&self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<Error> {
        self.0.driver.register(cx.waker());
        if let Some(why) = self.0.ended() {
            return Poll::Ready(why.clone());
        }
        let (leaving, until) = {
            let parting = self.0.parting();
            (parting.leaving, parting.until)
        };
        if !leaving {
            return Poll::Pending;
        }
        alarm.set(until);
        let open = self.0.quota.open();
        if open > 0 {
            ready!(alarm.poll(cx));
        }
        let address = &self.0.peer.address;
        let what = format!("the tonic channel to {address} was drained with {open} calls open");
        Poll::Ready(Error::new(ErrorKind::Unavailable, what))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let what = format!("the tonic channel to {} was given up", self.0.peer.address);
        self.0.end(Error::new(ErrorKind::Unavailable, what));
    }
}

/// Sends a call, which cannot be sent again: nobody knows whether it left.
pub(super) async fn call(
    shared: Arc<Shared>,
    mut channel: Channel,
    slot: Slot,
    outgoing: &mut Outgoing,
    sent: &Sent,
) -> Result<Response<Incoming>, Failure> {
    let noted = Arc::new(Sent::default());
    let answer = async {
        poll_fn(|cx| channel.poll_ready(cx)).await?;
        channel.call(request(outgoing, Arc::clone(&noted))).await
    };
    let answer = answer.await;
    sent.is(noted.bytes());
    match answer {
        Ok(response) => {
            shared.note_answer();
            Ok(response.map(|body| Incoming::lent(Lent { body, _slot: slot }, noted)))
        }
        Err(error) => Err(failed(&shared, error)),
    }
}

fn request(outgoing: &mut Outgoing, sent: Arc<Sent>) -> Request<Body> {
    let source = outgoing.take_source();
    let meter = Meter::default();
    let body = Whole {
        source,
        meter,
        sent,
    };
    let (method, uri, headers) = outgoing.take_head();
    let mut request = Request::new(Body::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// A call's own end if it is known to be that; or else the channel's.
fn failed(shared: &Shared, error: Broken) -> Failure {
    let mut cause = error.source();
    while let Some(this) = cause {
        let reset = this
            .downcast_ref::<h2::Error>()
            .is_some_and(h2::Error::is_reset);
        if reset || this.is::<TimeoutExpired>() || this.is::<Status>() {
            return Failure::Reset(Status::from_error(Box::new(error)));
        }
        cause = this.source();
    }
    let what = format!("the tonic channel to {} failed", shared.peer.address);
    let why = Error::new(ErrorKind::Unavailable, what).because(error);
    // Tonic would mend it at the next call's expense.
    shared.end(why.clone());
    shared.driver.wake();
    Failure::Broken(why)
}

impl Lent {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.source.poll_next(cx).map(|piece| match piece {
            Ok(Piece::Data(data)) => {
                this.meter.read(&data);
                this.sent.is(this.meter.bytes());
                Some(Ok(Frame::data(data)))
            }
            Ok(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(*trailers))),
            Ok(Piece::End) => None,
            Err(status) => Some(Err(status)),
        })
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lender").finish_non_exhaustive()
    }
}
