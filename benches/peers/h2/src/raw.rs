//! Frames written by hand: no codec, no client, no body type.

use std::{net::SocketAddr, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{Method, Request, Uri, Version, header, uri::PathAndQuery};
use load::{Caller, Failure, Peer, Talk};

use crate::Pool;

pub struct Raw(Pool);

impl Peer for Raw {
    type Caller = Framed;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        Ok(Self(Pool::open(servers).await?))
    }

    fn caller(&self, message: Arc<str>) -> Framed {
        Framed {
            pool: self.0.clone(),
            message,
        }
    }
}

pub struct Framed {
    pool: Pool,
    message: Arc<str>,
}

impl Framed {
    async fn start(
        &self,
        path: &'static str,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Failure> {
        let (send, authority) = self.pool.next();
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(PathAndQuery::from_static(path))
            .build()?;
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "bare-h2")
            .body(())?;
        let mut send = send.ready().await?;
        Ok(send.send_request(request, false)?)
    }
}

impl Caller for Framed {
    type Talk = Talking;

    async fn ask(&mut self) -> Result<usize, Failure> {
        let (response, mut send) = self.start("/grpc.examples.echo.Echo/UnaryEcho").await?;
        send.send_data(framed(&self.message), true)?;
        let mut body = response.await?.into_body();
        let mut length = 0;
        let mut overhead = None;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            length += data.len();
            overhead.get_or_insert_with(|| head(&data));
        }
        check(&mut body).await?;
        Ok(length - overhead.unwrap_or(0))
    }

    async fn talk(&mut self) -> Result<Talking, Failure> {
        let path = "/grpc.examples.echo.Echo/BidirectionalStreamingEcho";
        let (response, send) = self.start(path).await?;
        Ok(Talking {
            message: Arc::clone(&self.message),
            send,
            body: response.await?.into_body(),
        })
    }
}

pub struct Talking {
    message: Arc<str>,
    send: SendStream<Bytes>,
    body: RecvStream,
}

impl Talk for Talking {
    async fn say(&mut self) -> Result<usize, Failure> {
        let frame = framed(&self.message);
        let whole = frame.len();
        self.send.send_data(frame, false)?;
        let mut length = 0;
        while length < whole {
            let data = self
                .body
                .data()
                .await
                .ok_or("the stream has ended early")??;
            self.body.flow_control().release_capacity(data.len())?;
            length += data.len();
        }
        Ok(length - (whole - self.message.len()))
    }

    async fn end(mut self) -> Result<(), Failure> {
        self.send.send_data(Bytes::new(), true)?;
        match self.body.data().await {
            None => check(&mut self.body).await,
            Some(_) => Err("more came back than was said".into()),
        }
    }
}

async fn check(body: &mut RecvStream) -> Result<(), Failure> {
    let trailers = body.trailers().await?.ok_or("no trailers")?;
    match trailers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        other => Err(format!("grpc-status {other:?}").into()),
    }
}

/// A message of gRPC's, holding protobuf's field 1.
fn framed(message: &str) -> Bytes {
    let mut varint = BytesMut::with_capacity(10);
    let mut left = message.len();
    while left >= 0x80 {
        varint.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    varint.put_u8(left as u8);
    let length = 1 + varint.len() + message.len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    frame.put_u8(0x0a);
    frame.put(varint);
    frame.put(message.as_bytes());
    frame.freeze()
}

/// How much of what begins here comes before the text.
fn head(frame: &[u8]) -> usize {
    let varint = frame.iter().skip(6).take_while(|byte| **byte >= 0x80);
    5 + 1 + varint.count() + 1
}
