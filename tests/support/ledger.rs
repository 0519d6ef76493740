//! Servers that keep a ledger of what they were asked and what became of it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming, transport};
use tonic_fleet::{Channel, Instance, health::Ejection};

use crate::{
    echo::{self, Echo, EchoClient, EchoRequest, EchoResponse, EchoServer},
    net::{Net, Running},
};

/// What a server was asked, and what became of it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<watch::Sender<Pages>>);

#[derive(Clone, Debug, Default)]
struct Pages {
    asked: u64,
    under_way: u64,
    answered: BTreeMap<i32, u64>,
    given_up: u64,
    bytes_asked: u64,
    bytes_answered: u64,
    /// The messages of calls that sleep.
    asleep: Vec<String>,
}

/// A server in memory.
pub struct Server {
    pub instance: Instance,
    pub ledger: Ledger,
    _running: Running,
}

/// A call that the server works on: given up, if it is dropped before there is an answer.
struct Entry<'l> {
    ledger: &'l Ledger,
    answered: bool,
}

/// Nobody is left out.
pub fn never() -> Ejection {
    Ejection::off()
}

pub fn hello(n: usize) -> String {
    "hello ".repeat(n % 40 + 1)
}

/// One call, which says what is to become of it; the answer.
pub async fn ask(
    channel: &Channel,
    message: &str,
    deadline: Option<Duration>,
) -> Result<String, Status> {
    let message = message.to_owned();
    let mut request = Request::new(EchoRequest { message });
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    let response = EchoClient::new(channel.clone()).unary_echo(request).await?;
    Ok(response.into_inner().message)
}

/// Returns when one of them works on the call with this message.
pub async fn begun(ledgers: &[Ledger], message: &str) {
    let each = ledgers.iter().map(|ledger| {
        let mut pages = ledger.0.subscribe();
        Box::pin(async move {
            let is_there = |pages: &Pages| pages.asleep.iter().any(|m| m == message);
            pages.wait_for(is_there).await.map(drop).unwrap();
        })
    });
    futures_util::future::select_all(each).await;
}

/// Returns when none of them works on anything.
pub async fn settled(ledgers: &[Ledger]) {
    for ledger in ledgers {
        let mut pages = ledger.0.subscribe();
        let quiet = pages.wait_for(|pages| pages.under_way == 0);
        timeout(Duration::from_secs(20), quiet)
            .await
            .unwrap()
            .unwrap();
    }
}

impl Server {
    pub fn on(net: &Net, id: &str) -> Self {
        let ledger = Ledger::new();
        let service = EchoServer::new(ledger.clone());
        let at = format!("{id}.test:1");
        let running = net.serve_with(
            transport::Server::builder(),
            id,
            &at,
            Echo::new(id),
            service,
        );
        Self {
            instance: running.instance.clone(),
            ledger,
            _running: running,
        }
    }

    pub fn id(&self) -> &str {
        self.instance.id.as_str()
    }
}

impl Ledger {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Of a server that serves for as long as the runtime runs.
    pub fn serve(listener: TcpListener) -> Self {
        let ledger = Self::new();
        let router = transport::Server::builder().add_service(EchoServer::new(ledger.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        ledger
    }

    /// What all of them say together.
    pub fn sum<'l>(all: impl Iterator<Item = &'l Self>) -> Self {
        let sum = Self::new();
        for pages in all.map(|ledger| ledger.0.borrow().clone()) {
            sum.0.send_modify(|sum| {
                sum.asked += pages.asked;
                sum.given_up += pages.given_up;
                sum.bytes_asked += pages.bytes_asked;
                sum.bytes_answered += pages.bytes_answered;
                for (code, n) in pages.answered {
                    *sum.answered.entry(code).or_default() += n;
                }
            });
        }
        sum
    }

    pub fn asked(&self) -> u64 {
        self.0.borrow().asked
    }

    pub fn answered(&self) -> Vec<(Code, u64)> {
        let pages = self.0.borrow();
        let each = pages.answered.iter();
        each.map(|(code, n)| (Code::from_i32(*code), *n)).collect()
    }

    pub fn given_up(&self) -> u64 {
        self.0.borrow().given_up
    }

    pub fn bytes_asked(&self) -> u64 {
        self.0.borrow().bytes_asked
    }

    pub fn bytes_answered(&self) -> u64 {
        self.0.borrow().bytes_answered
    }

    async fn work(&self, message: &str) -> Result<EchoResponse, Status> {
        sleep(Duration::from_millis(2)).await;
        match message.split_once(' ').unwrap_or((message, "")) {
            ("fail", code) => Err(Status::new(
                Code::from_i32(code.parse().unwrap()),
                "as told",
            )),
            ("odd", _) if self.asked() % 2 == 1 => Err(Status::unavailable("an odd one")),
            ("stall", _) if self.asked().is_multiple_of(3) => {
                sleep(Duration::from_secs(3_600)).await;
                Err(Status::internal("it was to be given up"))
            }
            ("sleep", _) => {
                self.0
                    .send_modify(|pages| pages.asleep.push(message.to_owned()));
                sleep(Duration::from_secs(3_600)).await;
                Err(Status::internal("it was to be given up"))
            }
            _ => Ok(EchoResponse {
                message: message.to_owned(),
            }),
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.ledger.0.send_modify(|pages| {
            pages.under_way -= 1;
            pages.given_up += u64::from(!self.answered);
        });
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl echo::Service for Ledger {
    async fn unary_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<EchoResponse>, Status> {
        let request = request.into_inner();
        self.0.send_modify(|pages| {
            pages.asked += 1;
            pages.under_way += 1;
            pages.bytes_asked += request.encoded_len() as u64;
        });
        let mut entry = Entry {
            ledger: self,
            answered: false,
        };
        let answer = self.work(&request.message).await;
        entry.answered = true;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let bytes = answer.as_ref().map_or(0, Message::encoded_len);
        self.0.send_modify(|pages| {
            *pages.answered.entry(code as i32).or_default() += 1;
            pages.bytes_answered += bytes as u64;
        });
        answer.map(Response::new)
    }

    type ServerStreamingEchoStream = Answers;
    type BidirectionalStreamingEchoStream = Answers;

    async fn server_streaming_echo(
        &self,
        _: Request<EchoRequest>,
    ) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("this one is unary"))
    }

    async fn client_streaming_echo(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoResponse>, Status> {
        Err(Status::unimplemented("this one is unary"))
    }

    async fn bidirectional_streaming_echo(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("this one is unary"))
    }
}
