//! The official `grpc` crate, as it is published: `pick_first`, and Nagle's algorithm left on.
//!
//! Its round robin and its TCP_NODELAY are private to it, so it can take part with one server alone.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use bytes::{Buf, Bytes};
use grpc::{
    client::{
        CallOptions, Channel, ChannelOptions, Invoke, RecvStream, ResponseStreamItem, SendOptions,
        SendStream,
    },
    core::{RecvMessage, RequestHeaders, SendMessage},
    credentials::LocalChannelCredentials,
};
use load::{Caller, Failure, Peer, Talk};
use prost::Message;

struct Grpc(Channel);

impl Peer for Grpc {
    type Caller = Calls;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let first = servers.first().ok_or("no server")?;
        let credentials = LocalChannelCredentials::new_arc();
        let target = format!("dns:///{first}");
        Ok(Self(Channel::new(
            target,
            credentials,
            ChannelOptions::default(),
        )))
    }

    fn caller(&self, message: Arc<str>) -> Calls {
        Calls {
            channel: self.0.clone(),
            message,
        }
    }
}

/// `EchoRequest` and `EchoResponse` both.
#[derive(Clone, PartialEq, Message)]
struct Echo {
    #[prost(string, tag = "1")]
    message: String,
}

struct Sent(Echo);

impl SendMessage for Sent {
    fn encode(&self) -> Result<Box<dyn Buf + Send + Sync>, String> {
        Ok(Box::new(Bytes::from(self.0.encode_to_vec())))
    }
}

#[derive(Default)]
struct Received(Echo);

impl RecvMessage for Received {
    fn decode(&mut self, data: &mut dyn Buf) -> Result<(), String> {
        self.0 = Echo::decode(data).map_err(|error| error.to_string())?;
        Ok(())
    }
}

struct Calls {
    channel: Channel,
    message: Arc<str>,
}

type Streams = (
    <Channel as Invoke>::SendStream,
    <Channel as Invoke>::RecvStream,
);

impl Calls {
    async fn start(&mut self, method: &str) -> Streams {
        let path = format!("/grpc.examples.echo.Echo/{method}");
        let headers = RequestHeaders::new().with_method_name(path);
        self.channel.invoke(headers, CallOptions::default()).await
    }
}

impl Caller for Calls {
    type Talk = Talking;

    async fn ask(&mut self) -> Result<usize, Failure> {
        let (mut send, mut receive) = self.start("UnaryEcho").await;
        let message = Sent(Echo {
            message: self.message.to_string(),
        });
        let last = SendOptions::default().with_final_msg(true);
        // When the stream is closed, the trailers say why.
        let _ = send.send(&message, last).await;
        let mut echo = Received::default();
        let mut length = None;
        loop {
            match receive.recv(&mut echo).await {
                ResponseStreamItem::Headers(_) => {}
                ResponseStreamItem::Message => length = Some(echo.0.message.len()),
                ResponseStreamItem::Trailers(trailers) => {
                    if let Err(status) = trailers.status() {
                        return Err(format!("{status:?}").into());
                    }
                    return length.ok_or_else(|| "no message".into());
                }
                ResponseStreamItem::StreamClosed => return Err("closed without trailers".into()),
            }
        }
    }

    async fn talk(&mut self) -> Result<Talking, Failure> {
        let (send, receive) = self.start("BidirectionalStreamingEcho").await;
        Ok(Talking {
            message: Arc::clone(&self.message),
            send,
            receive,
        })
    }
}

struct Talking {
    message: Arc<str>,
    send: <Channel as Invoke>::SendStream,
    receive: <Channel as Invoke>::RecvStream,
}

impl Talk for Talking {
    async fn say(&mut self) -> Result<usize, Failure> {
        let message = Sent(Echo {
            message: self.message.to_string(),
        });
        let sent = self.send.send(&message, SendOptions::default()).await;
        sent.map_err(|()| "the stream is closed")?;
        let mut echo = Received::default();
        loop {
            match self.receive.recv(&mut echo).await {
                ResponseStreamItem::Headers(_) => {}
                ResponseStreamItem::Message => return Ok(echo.0.message.len()),
                other => return Err(format!("{other:?}").into()),
            }
        }
    }

    async fn end(self) -> Result<(), Failure> {
        let Self {
            send, mut receive, ..
        } = self;
        drop(send);
        match receive.recv(&mut Received::default()).await {
            ResponseStreamItem::Trailers(_) => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    }
}

fn main() -> ExitCode {
    load::run::<Grpc>()
}
