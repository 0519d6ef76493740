//! A generated client straight on `h2`.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::poll_immediate;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Request, Response, Version, header, uri::Scheme};
use http_body::{Body as _, Frame};
use load::{Failure, Peer};
use tonic::{Status, body::Body};
use tower_service::Service;

use crate::{Pool, grpc::Grpc};

pub struct Codec(Pool);

impl Peer for Codec {
    type Caller = Grpc<Pool>;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        Ok(Self(Pool::open(servers).await?))
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.0.clone(), message)
    }
}

impl Service<Request<Body>> for Pool {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (send, authority) = self.next();
        Box::pin(async move {
            let (mut head, mut body) = request.into_parts();
            let mut uri = head.uri.into_parts();
            (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(authority));
            head.uri = http::Uri::from_parts(uri).map_err(status)?;
            head.version = Version::HTTP_2;
            let name = HeaderValue::from_static("bare-h2");
            head.headers.insert(header::USER_AGENT, name);
            let mut send = send.ready().await.map_err(status)?;
            let head = Request::from_parts(head, ());
            let (response, mut stream) = send.send_request(head, false).map_err(status)?;
            // What is there goes at once; the rest of a stream goes when it comes.
            match poll_immediate(write(&mut stream, &mut body)).await {
                Some(written) => written?,
                None => {
                    tokio::spawn(async move { write(&mut stream, &mut body).await });
                }
            }
            let response = response.await.map_err(status)?;
            Ok(response.map(Incoming))
        })
    }
}

/// Ends the stream with the last piece of data where it is known to be the last.
async fn write(stream: &mut SendStream<Bytes>, body: &mut Body) -> Result<(), Status> {
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let Some(frame) = next else {
            return stream.send_data(Bytes::new(), true).map_err(status);
        };
        if let Ok(data) = frame?.into_data() {
            let last = body.is_end_stream();
            stream.send_data(data, last).map_err(status)?;
            if last {
                return Ok(());
            }
        }
    }
}

pub struct Incoming(RecvStream);

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let data = data.map_err(status)?;
            let room = self.0.flow_control().release_capacity(data.len());
            room.map_err(status)?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.0.poll_trailers(cx)).map_err(status)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

fn status(error: impl Into<Failure>) -> Status {
    Status::from_error(error.into())
}
