//! What users of generated clients expect of a channel, over sockets and against tonic's own server:
//! the cases of gRPC's interoperability tests, and servers that limit connections and streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "calls/broken.rs"]
mod broken;
#[path = "../examples/echo/mod.rs"]
mod echo;
#[cfg(feature = "server")]
#[path = "calls/load.rs"]
mod load;

use std::{pin::Pin, sync::Arc, time::Duration};

use echo::{Echo, EchoClient, EchoRequest, EchoResponse, EchoServer};
use futures_util::{
    FutureExt, Stream, StreamExt, future::join_all, stream, stream::FuturesUnordered,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    codec::CompressionEncoding,
    metadata::{MetadataMap, MetadataValue},
    service::Interceptor,
    transport::{Server, server::Router},
};
use tonic_fleet::{Builder, Channel, resolve::Fixed};

/// Longer than anything is waited for, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

/// A service that does what each case asks for.
#[derive(Clone, Default)]
struct Oracle {
    /// A call was begun, and a call was given up by its caller.
    begun: Arc<Notify>,
    dropped: Arc<Notify>,
}

/// Tells when the handler that holds it is dropped.
struct Witness(Arc<Notify>);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

fn answer(message: impl Into<String>) -> EchoResponse {
    EchoResponse {
        message: message.into(),
    }
}

fn ask(message: impl Into<String>) -> EchoRequest {
    EchoRequest {
        message: message.into(),
    }
}

/// The caller's own metadata, as head and as trailers.
fn echoed(metadata: &MetadataMap) -> MetadataMap {
    let mut echoed = MetadataMap::new();
    if let Some(value) = metadata.get("x-grpc-test-echo-initial") {
        echoed.insert("x-grpc-test-echo-initial", value.clone());
    }
    if let Some(value) = metadata.get_bin("x-grpc-test-echo-trailing-bin") {
        echoed.insert_bin("x-grpc-test-echo-trailing-bin", value.clone());
    }
    echoed
}

#[tonic::async_trait]
impl echo::Service for Oracle {
    async fn unary_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<EchoResponse>, Status> {
        let echoed = echoed(request.metadata());
        let message = request.into_inner().message;
        match message.split_once(':') {
            Some(("fail", words)) => {
                let details = words.as_bytes().to_vec();
                return Err(Status::with_details(Code::Unknown, words, details.into()));
            }
            Some(("sleep", _)) => {
                let _witness = Witness(Arc::clone(&self.dropped));
                self.begun.notify_one();
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        let mut response = Response::new(answer(message));
        *response.metadata_mut() = echoed;
        Ok(response)
    }

    type ServerStreamingEchoStream = Answers;

    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Answers>, Status> {
        let sizes = request.into_inner().message;
        let sizes = sizes
            .split(',')
            .map(|n| n.parse::<usize>().unwrap())
            .collect::<Vec<_>>();
        let answers = sizes.into_iter().map(|n| Ok(answer("x".repeat(n))));
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoResponse>, Status> {
        let _witness = Witness(Arc::clone(&self.dropped));
        self.begun.notify_one();
        let mut asked = request.into_inner();
        let mut sum = 0;
        while let Some(next) = asked.message().await? {
            sum += next.message.len();
        }
        Ok(Response::new(answer(sum.to_string())))
    }

    type BidirectionalStreamingEchoStream = Answers;

    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let witness = Witness(Arc::clone(&self.dropped));
        let answers = request.into_inner().map(move |asked| {
            let _held = &witness;
            asked.map(|asked| answer("x".repeat(asked.message.parse().unwrap())))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn serve(router: Router) -> Channel {
    over([listen(router).await])
}

/// The address of a server of this.
async fn listen(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn over<const N: usize>(addresses: [String; N]) -> Channel {
    builder(addresses).build().unwrap()
}

fn builder<const N: usize>(addresses: [String; N]) -> Builder {
    let servers = Fixed::at(addresses.each_ref().map(String::as_str)).unwrap();
    Channel::over("oracle".parse().unwrap(), servers)
}

async fn oracle() -> (Oracle, EchoClient<Channel>) {
    let oracle = Oracle::default();
    let server = EchoServer::new(oracle.clone()).max_decoding_message_size(64 << 20);
    let channel = serve(Server::builder().add_service(server)).await;
    (
        oracle,
        EchoClient::new(channel).max_decoding_message_size(64 << 20),
    )
}

#[tokio::test]
async fn large_unary() {
    let (_, mut client) = oracle().await;
    let large = "x".repeat(20 << 20);

    let response = client.unary_echo(ask(&large)).await.unwrap();

    assert!(response.into_inner().message == large);
}

#[tokio::test]
async fn client_streaming() {
    let (_, mut client) = oracle().await;
    let asked = [27_182, 8, 1_828, 45_904].map(|n| ask("x".repeat(n)));

    let response = client
        .client_streaming_echo(stream::iter(asked))
        .await
        .unwrap();

    assert_eq!(response.into_inner().message, "74922");
}

#[tokio::test]
async fn server_streaming() {
    let (_, mut client) = oracle().await;

    let answers = client
        .server_streaming_echo(ask("31415,9,2653,58979"))
        .await
        .unwrap();

    let sizes = answers
        .into_inner()
        .map(|answer| answer.unwrap().message.len());
    assert_eq!(sizes.collect::<Vec<_>>().await, [31_415, 9, 2_653, 58_979]);
}

#[tokio::test]
async fn ping_pong() {
    let (_, mut client) = oracle().await;
    let (send, asked) = mpsc::unbounded_channel();
    let asked = UnboundedReceiverStream::new(asked);
    let answers = client.bidirectional_streaming_echo(asked).await.unwrap();
    let mut answers = answers.into_inner();

    for size in [31_415, 9, 2_653, 58_979] {
        send.send(ask(size.to_string())).unwrap();
        assert_eq!(
            answers.message().await.unwrap().unwrap().message.len(),
            size
        );
    }
    drop(send);

    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn empty_stream() {
    let (_, mut client) = oracle().await;

    let answers = client
        .bidirectional_streaming_echo(stream::empty())
        .await
        .unwrap();

    assert!(answers.into_inner().message().await.unwrap().is_none());
}

#[tokio::test]
async fn custom_metadata() {
    let (_, mut client) = oracle().await;
    let mut request = Request::new(ask("hello"));
    let (plain, bytes) = ("test_initial_metadata_value", [0xab, 0xab, 0xab]);
    request
        .metadata_mut()
        .insert("x-grpc-test-echo-initial", plain.parse().unwrap());
    let value = MetadataValue::from_bytes(&bytes);
    request
        .metadata_mut()
        .insert_bin("x-grpc-test-echo-trailing-bin", value);

    let response = client.unary_echo(request).await.unwrap();

    assert_eq!(
        response.metadata().get("x-grpc-test-echo-initial").unwrap(),
        plain
    );
    let echoed = response
        .metadata()
        .get_bin("x-grpc-test-echo-trailing-bin")
        .unwrap();
    assert_eq!(echoed.to_bytes().unwrap(), &bytes[..]);
}

#[tokio::test]
async fn status_code_message_and_details() {
    let (_, mut client) = oracle().await;
    for words in [
        "test status message",
        "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n",
    ] {
        let status = client
            .unary_echo(ask(format!("fail:{words}")))
            .await
            .unwrap_err();

        assert_eq!((status.code(), status.message()), (Code::Unknown, words));
        assert_eq!(status.details(), words.as_bytes());
    }
}

#[tokio::test]
async fn unimplemented() {
    let channel =
        serve(Server::builder().add_service(tonic_health::server::health_reporter().1)).await;

    let status = EchoClient::new(channel)
        .unary_echo(ask("hello"))
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn cancel_after_begin() {
    let (oracle, mut client) = oracle().await;
    let mut calling = Box::pin(client.client_streaming_echo(stream::pending()));
    tokio::select! {
        _ = &mut calling => unreachable!("the stream does not end"),
        () = oracle.begun.notified() => {}
    }

    drop(calling);

    is_seen(oracle.dropped.notified()).await;
}

#[tokio::test]
async fn cancel_after_first_response() {
    let (oracle, mut client) = oracle().await;
    let asked = stream::iter([ask("31415")]).chain(stream::pending());
    let answers = client.bidirectional_streaming_echo(asked).await.unwrap();
    let mut answers = answers.into_inner();
    assert_eq!(
        answers.message().await.unwrap().unwrap().message.len(),
        31_415
    );

    drop(answers);

    is_seen(oracle.dropped.notified()).await;
}

#[tokio::test]
async fn timeout_on_sleeping_server() {
    let (oracle, mut client) = oracle().await;
    client.unary_echo(ask("connected")).await.unwrap();
    let limited = || {
        let mut request = Request::new(ask("sleep:"));
        request.set_timeout(Duration::from_millis(20));
        request
    };
    let began = oracle.begun.notified();
    tokio::pin!(began);

    // On a machine that is busy, a call may be over before the server hears of it.
    while began.as_mut().now_or_never().is_none() {
        let answer = timeout(SOON, client.unary_echo(limited())).await;
        let status = answer.expect("it ends with its deadline").unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }

    is_seen(oracle.dropped.notified()).await;
}

#[tokio::test]
async fn compressed_messages_go_both_ways() {
    let server = EchoServer::new(Oracle::default())
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let channel = serve(Server::builder().add_service(server)).await;
    let mut client = EchoClient::new(channel)
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let large = "x".repeat(1 << 20);

    let response = client.unary_echo(ask(&large)).await.unwrap();

    assert_eq!(response.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert!(response.into_inner().message == large);
}

#[tokio::test]
async fn an_interceptor_adds_what_it_likes_and_a_limit_on_messages_holds() {
    #[derive(Clone)]
    struct Signed;
    impl Interceptor for Signed {
        fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
            let value = "signed".parse().unwrap();
            request
                .metadata_mut()
                .insert("x-grpc-test-echo-initial", value);
            Ok(request)
        }
    }
    let channel = serve(Server::builder().add_service(EchoServer::new(Oracle::default()))).await;
    let mut client = EchoClient::with_interceptor(channel, Signed).max_decoding_message_size(1_000);

    let small = client.unary_echo(ask("hello")).await.unwrap();
    let large = client.unary_echo(ask("x".repeat(2_000))).await.unwrap_err();

    assert_eq!(
        small.metadata().get("x-grpc-test-echo-initial").unwrap(),
        "signed"
    );
    assert_eq!(large.code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_every_connection_young_costs_no_call() {
    let server = EchoServer::new(Oracle::default());
    // Older than a call is on a machine that is busy: one that two connections in a row turn away has failed.
    let young = Server::builder().max_connection_age(Duration::from_millis(1_500));
    let channel = serve({ young }.add_service(server)).await;

    none_stalls(&channel, 32, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_allows_few_streams_costs_no_call() {
    let server = EchoServer::new(Oracle::default());
    let channel = serve({ Server::builder().max_concurrent_streams(10) }.add_service(server)).await;

    none_stalls(&channel, 256, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_find_no_room_go_where_there_is_room_first() {
    let one_at_a_time = |echo| {
        let mut server = Server::builder().max_concurrent_streams(1);
        server.add_service(EchoServer::new(echo))
    };
    let stuck = Echo::new("stuck").delay(Duration::from_secs(3600));
    let servers = [
        listen(one_at_a_time(stuck)).await,
        listen(one_at_a_time(Echo::new("quick"))).await,
    ];
    let channel = builder(servers).connections(1).build().unwrap();
    channel.ready(2).await;

    let calls = (0..64).map(|_| {
        let mut client = EchoClient::new(channel.clone());
        async move { client.unary_echo(ask("hello")).await }
    });
    let mut calls: FuturesUnordered<_> = calls.collect();

    // One is what the stuck server took, and no other waits for it to end.
    for _ in 0..63 {
        let answer = timeout(SOON, calls.next()).await.expect("it finds room");
        answer.unwrap().unwrap();
    }
    assert!(calls.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_call_that_waits_for_room_ends_with_its_deadline_and_says_what_it_waited_for() {
    let server = EchoServer::new(Oracle::default());
    let server = { Server::builder().max_concurrent_streams(1) }.add_service(server);
    let one = builder([listen(server).await]).connections(1);
    let channel = one.build().unwrap();
    let mut client = EchoClient::new(channel.clone());
    let asked = stream::pending();
    let _open = client.bidirectional_streaming_echo(asked).await.unwrap();
    let mut request = Request::new(ask("hello"));
    request.set_timeout(Duration::from_millis(200));

    let status = client.unary_echo(request).await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(
        status.message().contains("allow no more calls at once"),
        "{status}"
    );
    let view = channel.view();
    assert_eq!(
        (view.known()[0].failures(), view.known()[0].in_flight()),
        (0, 1)
    );
}

/// Calls by so many callers, for this time or 100,000 of them, none of which may fail or take much longer than
/// the others. What else the machine does counts here: `tests/pool.rs` has the strict bounds.
async fn none_stalls(channel: &Channel, callers: usize, time: Duration) {
    let calls = if cfg!(debug_assertions) { 0 } else { 100_000 };
    let each = calls / callers + 1;
    let began = Instant::now();
    let all = (0..callers).map(|_| tokio::spawn(called_for(channel.clone(), time, each)));
    let (longest, calls): (Vec<_>, Vec<_>) = join_all(all)
        .await
        .into_iter()
        .map(|caller| caller.unwrap())
        .unzip();
    let longest = longest.into_iter().max().unwrap();
    let calls: usize = calls.iter().sum();
    let mean = (Instant::now() - began).mul_f64(callers as f64 / calls as f64);
    println!("{calls} calls, {mean:?} each, the longest {longest:?}");
    assert!(
        longest < mean * 10 + Duration::from_secs(10),
        "{longest:?}, {mean:?}"
    );
}

/// Calls one after the other, each of which must succeed; how long the longest took, and how many there were.
async fn called_for(channel: Channel, time: Duration, at_least: usize) -> (Duration, usize) {
    let mut client = EchoClient::new(channel);
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let mut calls = 0;
    let mut now = began;
    while now - began < time || calls < at_least {
        client.unary_echo(ask("hello")).await.unwrap();
        let ended = Instant::now();
        longest = longest.max(ended - now);
        now = ended;
        calls += 1;
    }
    (longest, calls)
}

async fn is_seen(event: impl Future<Output = ()>) {
    let limit = timeout(SOON, event);
    limit.map(|seen| seen.expect("the server sees it")).await;
}
