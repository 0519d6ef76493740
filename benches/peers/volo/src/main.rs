//! volo-grpc, with its own codec and its default balancer, weighted random; written as its generated clients are.

mod discover;
mod message;

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use discover::Listed;
use futures_util::{StreamExt, TryStreamExt, stream};
use load::{Caller, Failure, Peer, Talk};
use message::{Echo, Echoes, Said};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volo::{client::MkClient, service::BoxCloneService};
use volo_grpc::{
    Request, Response, Status,
    client::{Client, ClientBuilder},
    context::ClientContext,
};

type Service = Client<BoxCloneService<ClientContext, Request<Said>, Response<Echoes>, Status>>;

struct Volo {
    client: Service,
    listed: Listed,
}

struct AsItIs;

impl<S> MkClient<S> for AsItIs {
    type Target = S;

    fn mk_client(&self, service: S) -> S {
        service
    }
}

impl Peer for Volo {
    type Caller = Calls;

    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let listed = Listed::new(servers);
        let client = ClientBuilder::new(AsItIs, "echo")
            .discover(listed.clone())
            // A second unless said; the others have no limit.
            .rpc_timeout(None)
            .build();
        Ok(Self { client, listed })
    }

    fn caller(&self, message: Arc<str>) -> Calls {
        let client = self.client.clone();
        Calls { client, message }
    }

    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        self.listed.change(servers)
    }
}

struct Calls {
    client: Service,
    message: Arc<str>,
}

impl Calls {
    async fn call(&mut self, path: &'static str, said: Said) -> Result<Echoes, Failure> {
        let mut cx = self.client.make_cx(path);
        let request = Request::new(said);
        let answer = volo::service::Service::call(&self.client, &mut cx, request).await?;
        Ok(answer.into_inner())
    }
}

impl Caller for Calls {
    type Talk = Talking;

    async fn ask(&mut self) -> Result<usize, Failure> {
        let message = Echo {
            message: self.message.to_string().into(),
        };
        let said = stream::once(async { Ok(message) }).boxed();
        let mut echoes = self
            .call("/grpc.examples.echo.Echo/UnaryEcho", said.into())
            .await?;
        let echo = echoes.0.try_next().await?.ok_or("no message")?;
        echoes.0.trailers().await?;
        Ok(echo.message.len())
    }

    async fn talk(&mut self) -> Result<Talking, Failure> {
        let (say, said) = mpsc::channel(1);
        let said = ReceiverStream::new(said).boxed();
        let path = "/grpc.examples.echo.Echo/BidirectionalStreamingEcho";
        let echoes = self.call(path, said.into()).await?;
        Ok(Talking {
            message: Arc::clone(&self.message),
            say,
            echoes,
        })
    }
}

struct Talking {
    message: Arc<str>,
    say: mpsc::Sender<Result<Echo, Status>>,
    echoes: Echoes,
}

impl Talk for Talking {
    async fn say(&mut self) -> Result<usize, Failure> {
        let message = self.message.to_string().into();
        let said = self.say.send(Ok(Echo { message })).await;
        said.map_err(|_| "the stream is closed")?;
        let echo = self.echoes.0.try_next().await?;
        Ok(echo.ok_or("the stream has ended early")?.message.len())
    }

    async fn end(mut self) -> Result<(), Failure> {
        drop(self.say);
        match self.echoes.0.try_next().await? {
            None => Ok(()),
            Some(_) => Err("more came back than was said".into()),
        }
    }
}

fn main() -> ExitCode {
    load::run::<Volo>()
}
