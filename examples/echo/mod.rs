//! The `grpc.examples.echo.Echo` service: its messages, its client, its server, and one that answers.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each program that takes this in uses a part of it"
)]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming, metadata::AsciiMetadataValue};

#[allow(
    clippy::all,
    clippy::clone_on_ref_ptr,
    clippy::use_self,
    missing_docs,
    unused_qualifications
)]
mod generated;

pub use generated::{
    EchoRequest, EchoResponse,
    echo_client::EchoClient,
    echo_server::{Echo as Service, EchoServer},
};

/// The header that says who answered.
pub const BACKEND: &str = "x-backend-id";

/// How many answers `ServerStreamingEcho` gives, as in every other language's example.
const ANSWERS: usize = 10;

/// Answers with what it is told, and says who it is in the header `x-backend-id`.
#[derive(Clone, Debug)]
pub struct Echo {
    id: AsciiMetadataValue,
    delay: Duration,
    served: Arc<AtomicU64>,
}

impl Echo {
    /// One that answers at once. An id that no header can hold is not said.
    pub fn new(id: &str) -> Self {
        Self {
            id: id
                .parse()
                .unwrap_or_else(|_| AsciiMetadataValue::from_static("unsayable")),
            delay: Duration::ZERO,
            served: Arc::default(),
        }
    }

    /// Makes each answer wait.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// How many calls it has answered; shared with its clones.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    async fn pause(&self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.served.fetch_add(1, Relaxed);
    }

    fn signed<T>(&self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        response.metadata_mut().insert(BACKEND, self.id.clone());
        response
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl generated::echo_server::Echo for Echo {
    async fn unary_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<EchoResponse>, Status> {
        self.pause().await;
        let message = request.into_inner().message;
        Ok(self.signed(EchoResponse { message }))
    }

    type ServerStreamingEchoStream = Answers;

    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Answers>, Status> {
        self.pause().await;
        let message = request.into_inner().message;
        let answers = stream::repeat_with(move || {
            let message = message.clone();
            Ok(EchoResponse { message })
        });
        Ok(self.signed(Box::pin(answers.take(ANSWERS))))
    }

    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoResponse>, Status> {
        let mut asked = request.into_inner();
        let mut message = String::new();
        while let Some(next) = asked.message().await? {
            message = next.message;
        }
        self.pause().await;
        Ok(self.signed(EchoResponse { message }))
    }

    type BidirectionalStreamingEchoStream = Answers;

    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Answers>, Status> {
        self.pause().await;
        let answers = request.into_inner().map(|asked| {
            let message = asked?.message;
            Ok(EchoResponse { message })
        });
        Ok(self.signed(Box::pin(answers)))
    }
}
