//! Connections against peers that do what they like, over pipes in memory.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};
use tonic::body::Body;

use super::{Connect, Connecting, Connection, Dialer, Failure, Incoming, Outgoing, Settings, Told};
use crate::{Address, Error, ErrorKind, Instance};

mod calls;
mod dialing;
mod ends;
mod far;
mod hostile;
mod storm;
#[cfg(feature = "tls-ring")]
mod tls;

pub(super) use hostile::frame;

/// Connects to whoever holds the other end.
#[derive(Debug)]
pub(super) struct Pipe(mpsc::UnboundedSender<DuplexStream>);

impl Connect for Pipe {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        Box::pin(async {
            let (ours, theirs) = duplex(64 << 10);
            let sent = self.0.send(theirs);
            sent.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(ours) as _)
        })
    }
}

/// A connection, its running driver, and what it told.
pub(super) struct Dialed {
    pub(super) connection: Connection,
    pub(super) driver: JoinHandle<Error>,
    pub(super) told: mpsc::UnboundedReceiver<Told>,
}

pub(super) type Server = h2::server::Connection<DuplexStream, Bytes>;
pub(super) type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

pub(super) fn instance() -> Instance {
    Instance::at("10.0.0.5:50051").unwrap().id("a").unwrap()
}

pub(super) fn dialer(settings: Settings) -> (Dialer, mpsc::UnboundedReceiver<DuplexStream>) {
    let (pipe, peers) = mpsc::unbounded_channel();
    (Dialer::new(Arc::new(Pipe(pipe)), None, settings), peers)
}

/// Dials, and runs the driver.
pub(super) async fn dial(dialer: &Dialer) -> Result<Dialed, Error> {
    let (connection, driver) = dialer.dial(&instance()).await?;
    let (tell, told) = mpsc::unbounded_channel();
    let driver = tokio::spawn(driver.run(move |t| drop(tell.send(t))));
    Ok(Dialed {
        connection,
        driver,
        told,
    })
}

/// A connection to a server of the h2 crate that is the test's own.
pub(super) async fn served_by(server: h2::server::Builder, settings: Settings) -> (Dialed, Server) {
    let (dialer, mut peers) = dialer(settings);
    let serve = async { server.handshake(peers.recv().await.unwrap()).await.unwrap() };
    let (dialed, server) = tokio::join!(dial(&dialer), serve);
    (dialed.unwrap(), server)
}

pub(super) async fn served() -> (Dialed, Server) {
    served_by(h2::server::Builder::new(), Settings::default()).await
}

/// Keeps a server going, with each call handed to the test.
pub(super) fn accepting(mut server: Server) -> mpsc::UnboundedReceiver<Accepted> {
    let (hand, calls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(call)) = server.accept().await {
            let _ = hand.send(call);
        }
    });
    calls
}

/// Serves calls by sending back what they sent.
pub(super) fn echoing(server: Server) {
    let mut calls = accepting(server);
    tokio::spawn(async move {
        while let Some((request, respond)) = calls.recv().await {
            tokio::spawn(async move { echo(request, respond).await });
        }
    });
}

pub(super) async fn echo(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Option<()> {
    let mut body = request.into_body();
    let mut send = respond.send_response(Response::new(()), false).ok()?;
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).ok()?;
        write(&mut send, data).await?;
    }
    send.send_trailers(ok_trailers()).ok()
}

/// Writes all of it, under flow control.
pub(super) async fn write(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let window = poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
        send.send_data(data.split_to(window.min(data.len())), false)
            .ok()?;
    }
    Some(())
}

pub(super) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

pub(super) fn unary(message: impl Into<Bytes>) -> Outgoing {
    request(Body::new(Full::new(message.into())))
}

pub(super) fn request(body: Body) -> Outgoing {
    let request = Request::post("/grpc.examples.echo.Echo/UnaryEcho");
    Outgoing::new(request.body(body).unwrap())
}

/// A body whose frames come when the test sends them.
pub(super) fn streaming() -> (mpsc::UnboundedSender<Bytes>, Outgoing) {
    let (send, mut receive) = mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        let next = receive.poll_recv(cx);
        next.map(|data| data.map(|data| Ok::<_, tonic::Status>(http_body::Frame::data(data))))
    });
    (
        send,
        request(Body::new(http_body_util::StreamBody::new(frames))),
    )
}

/// The whole body, and its trailers.
pub(super) async fn read(
    response: Response<Incoming>,
) -> Result<(Bytes, Option<HeaderMap>), tonic::Status> {
    let whole = response.into_body().collect().await?;
    let trailers = whole.trailers().cloned();
    Ok((whole.to_bytes(), trailers))
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
