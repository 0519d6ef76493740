//! A [`Caller`] over whatever a generated client takes: the same for each contender that has one.

use std::sync::Arc;

use load::{Caller, Failure, Talk};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
};

use crate::echo::{EchoRequest, EchoResponse, echo_client::EchoClient};

pub struct Grpc<S> {
    client: EchoClient<S>,
    message: Arc<str>,
}

impl<S> Grpc<S>
where
    S: GrpcService<Body> + Send + 'static,
    S::Error: Into<StdError>,
    S::Future: Send,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    pub fn new(service: S, message: Arc<str>) -> Self {
        let client = EchoClient::new(service);
        Self { client, message }
    }
}

impl<S> Caller for Grpc<S>
where
    S: GrpcService<Body> + Send + 'static,
    S::Error: Into<StdError>,
    S::Future: Send,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    type Talk = Talking;

    async fn ask(&mut self) -> Result<usize, Failure> {
        let message = self.message.to_string();
        let response = self.client.unary_echo(EchoRequest { message }).await?;
        Ok(response.get_ref().message.len())
    }

    async fn talk(&mut self) -> Result<Talking, Failure> {
        let (say, said) = mpsc::channel(1);
        let said = ReceiverStream::new(said);
        let response = self.client.bidirectional_streaming_echo(said).await?;
        Ok(Talking {
            message: Arc::clone(&self.message),
            say,
            echoes: response.into_inner(),
        })
    }
}

pub struct Talking {
    message: Arc<str>,
    say: mpsc::Sender<EchoRequest>,
    echoes: Streaming<EchoResponse>,
}

impl Talk for Talking {
    async fn say(&mut self) -> Result<usize, Failure> {
        let message = self.message.to_string();
        self.say.send(EchoRequest { message }).await?;
        let echo = self.echoes.message().await?;
        Ok(echo.ok_or("the stream has ended early")?.message.len())
    }

    async fn end(mut self) -> Result<(), Failure> {
        drop(self.say);
        match self.echoes.message().await? {
            None => Ok(()),
            Some(_) => Err("more came back than was said".into()),
        }
    }
}
