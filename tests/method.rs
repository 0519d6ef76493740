//! What is wanted of each method's calls, and of one call, holds. In memory, in paused time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "method/directed.rs"]
mod directed;
#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use futures_util::{StreamExt, stream};
use net::{ByHand, Net, Running};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, body::Body, server::NamedService, transport::Server};
use tonic_fleet::{
    Builder, Channel, Direct, Endpoints, Event, Instance, InstanceId, ServedBy,
    balance::{Call, Pick, Policy, RoundRobin},
    health::Ejection,
    method::{Method, Retry},
    resolve::{Change, Publisher},
};
use tower::Service;

const UNARY: &str = "grpc.examples.echo.Echo/UnaryEcho";

fn builder(net: &Net) -> (Publisher, Builder) {
    let (publisher, resolve) = ByHand::new();
    let builder = Channel::over("greeter".parse().unwrap(), resolve);
    (publisher, builder.connect_with(net.clone()))
}

/// A channel to these, all of them ready.
async fn to(net: &Net, instances: impl IntoIterator<Item = Instance>) -> (Publisher, Channel) {
    let (publisher, builder) = builder(net);
    let channel = builder.build().unwrap();
    let instances: Vec<_> = instances.into_iter().collect();
    let n = instances.len();
    publisher.reset(instances);
    channel.ready(n).await;
    (publisher, channel)
}

async fn ask_with(channel: &Channel, request: Request<EchoRequest>) -> Result<String, Status> {
    let response = EchoClient::new(channel.clone()).unary_echo(request).await?;
    let served = response.extensions().get::<ServedBy>().unwrap();
    Ok(served.id().to_string())
}

async fn ask(channel: &Channel) -> Result<String, Status> {
    ask_with(channel, Request::new(EchoRequest::default())).await
}

async fn ask_directed(channel: &Channel, direct: &Direct) -> Result<String, Status> {
    let mut request = Request::new(EchoRequest::default());
    request.extensions_mut().insert(direct.clone());
    ask_with(channel, request).await
}

/// Who answers so many calls.
async fn who(channel: &Channel, direct: &Direct, calls: usize) -> BTreeSet<String> {
    let mut who = BTreeSet::new();
    for _ in 0..calls {
        who.insert(ask_directed(channel, direct).await.unwrap());
    }
    who
}

/// Returns when it knows of so many, and so many of them are ready.
async fn has(channel: &Channel, known: usize, ready: usize) {
    let mut view = channel.view();
    while (view.known().len(), view.ready().len()) != (known, ready) {
        view = channel.changed(view.number()).await;
    }
}

fn id(id: &str) -> InstanceId {
    id.parse().unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test(start_paused = true)]
async fn the_tightest_time_limit_of_call_method_and_channel_holds() {
    for (call, method, channel, tightest) in [
        (Some(100), Some(200), Some(300), 100),
        (Some(300), Some(100), Some(200), 100),
        (Some(300), Some(200), Some(100), 100),
        (None, Some(100), None, 100),
        (Some(200), Some(100), None, 100),
        (None, None, Some(100), 100),
    ] {
        let (_publisher, mut builder) = builder(&Net::default());
        if let Some(limit) = method {
            builder = builder.method(UNARY, Method::new().timeout(ms(limit)));
        }
        if let Some(limit) = channel {
            builder = builder.timeout(ms(limit));
        }
        let channel = builder.build().unwrap();
        let mut request = Request::new(EchoRequest::default());
        if let Some(limit) = call {
            request.set_timeout(ms(limit));
        }
        let began = Instant::now();

        let status = ask_with(&channel, request).await.unwrap_err();

        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(Instant::now() - began, ms(tightest));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_to_wait_fails_at_once_when_nobody_can_be_reached() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let at_once = Method::new().wait_for_ready(false);
    let channel = builder.method(UNARY, at_once).build().unwrap();
    let mut events = channel.events();
    publisher.reset([net.refusing("a")]);
    while !matches!(events.next().await, Some(Event::Lost(..))) {}
    let began = Instant::now();

    let status = ask(&channel).await.unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(Instant::now(), began);
    let said = status.message();
    assert!(
        said.starts_with("greeter: 0 of 1 endpoints ready; a: "),
        "{said}"
    );
    assert!(said.ends_with("; the call is not to wait"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_to_wait_waits_while_somebody_is_being_connected() {
    let net = Net::default();
    let a = net.serve("a");
    let (publisher, builder) = builder(&net);
    let at_once = Method::new().wait_for_ready(false);
    let channel = builder.method(UNARY, at_once).build().unwrap();

    let (answer, ()) = tokio::join!(ask(&channel), async {
        publisher.reset([a.instance.clone()]);
    });

    assert_eq!(answer.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_to_wait_outlasts_the_channels_patience() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let waits = Method::new().wait_for_ready(true);
    let channel = builder
        .patience(ms(100))
        .method(UNARY, waits)
        .build()
        .unwrap();
    publisher.reset::<[Instance; 0]>([]);
    let calling = ask(&channel);
    tokio::pin!(calling);
    assert!(timeout(ms(60_000), &mut calling).await.is_err());

    let a = net.serve("a");
    publisher.delta([Change::Put(Arc::new(a.instance.clone()))]);

    assert_eq!(calling.await.unwrap(), "a");
}

/// A channel that is told its configuration, and how.
fn configured(builder: Builder) -> (mpsc::UnboundedSender<Option<String>>, Channel) {
    let (tell, told) = mpsc::unbounded_channel();
    let builder = builder.config_from(UnboundedReceiverStream::new(told));
    (tell, builder.build().unwrap())
}

fn limit(seconds: u64) -> String {
    format!(r#"{{ "methodConfig": [{{ "name": [{{}}], "timeout": "{seconds}s" }}] }}"#)
}

fn limit_of(channel: &Channel) -> Option<String> {
    let method = channel.method("/grpc.examples.echo.Echo/UnaryEcho")?;
    Some(format!("{method:?}"))
}

#[tokio::test(start_paused = true)]
async fn a_configuration_changes_while_the_channel_lives_and_a_bad_one_changes_nothing() {
    let (_publisher, builder) = builder(&Net::default());
    let (tell, channel) = configured(builder.service_config(&limit(9)).unwrap());
    let mut events = channel.events();
    let limit_is = |seconds: &str| limit_of(&channel).unwrap().contains(seconds);
    assert!(limit_is("Some(9s)"));

    tell.send(Some(limit(3))).unwrap();
    assert!(matches!(events.next().await, Some(Event::Configured)));
    assert!(limit_is("Some(3s)"));

    tell.send(Some(limit(0))).unwrap();
    let Some(Event::Misconfigured(why)) = events.next().await else {
        panic!("it is bad");
    };
    let why = why.to_string();
    assert!(
        why.starts_with("service config: methodConfig[0].timeout: "),
        "{why}"
    );
    assert!(limit_is("Some(3s)"));

    tell.send(None).unwrap();
    assert!(matches!(events.next().await, Some(Event::Configured)));
    assert!(limit_is("Some(9s)"));

    // The end of what it is told changes nothing, and costs nothing.
    drop(tell);
    assert!(timeout(ms(1000), events.next()).await.is_err());
    assert!(limit_is("Some(9s)"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_configurations_that_panics_takes_nothing_along() {
    let net = Net::default();
    let a = net.serve("a");
    let (publisher, builder) = builder(&net);
    let said = stream::iter([limit(3)]).chain(stream::poll_fn(|_| panic!("as it may")));
    let channel = builder.config_from(said.map(Some)).build().unwrap();

    publisher.reset([a.instance.clone()]);

    assert_eq!(ask(&channel).await.unwrap(), "a");
    assert!(limit_of(&channel).unwrap().contains("Some(3s)"));
}

#[tokio::test(start_paused = true)]
async fn what_the_program_says_goes_before_the_configuration() {
    let (_publisher, builder) = builder(&Net::default());
    let builder = builder.method(UNARY, Method::new().timeout(ms(7000)));
    let (tell, channel) = configured(builder);
    let mut events = channel.events();

    let both = r#"{ "methodConfig": [
        { "name": [{ "service": "grpc.examples.echo.Echo", "method": "UnaryEcho" }], "timeout": "1s" },
        { "name": [{ "service": "other" }], "timeout": "2s" }
    ]}"#;
    tell.send(Some(both.into())).unwrap();
    events.next().await;

    assert!(limit_of(&channel).unwrap().contains("Some(7s)"));
    assert!(channel.method("/other/Any").is_some() && channel.method("/more/Any").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_configuration_says_how_calls_are_shared_out() {
    let net = Net::default();
    let all = [net.serve("a"), net.serve("b")];
    let (publisher, builder) = builder(&net);
    let (tell, channel) = configured(builder);
    let mut events = channel.events();
    let heavy = all[0].instance.clone().weight(9);
    publisher.reset([heavy, all[1].instance.clone()]);
    channel.ready(2).await;

    let mut shares = Vec::new();
    for policy in ["round_robin", "weighted_round_robin"] {
        let config = format!(r#"{{ "loadBalancingConfig": [{{ "{policy}": {{}} }}] }}"#);
        tell.send(Some(config)).unwrap();
        while !matches!(events.next().await, Some(Event::Configured)) {}
        let before = channel.view().known()[0].calls();
        for _ in 0..100 {
            ask(&channel).await.unwrap();
        }
        shares.push(channel.view().known()[0].calls() - before);
    }

    assert_eq!(shares, [50, 90]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_when_the_channel_is_built() {
    type With = fn(Builder) -> Result<Builder, tonic_fleet::Error>;
    let cases: [(With, &str); 6] = [
        (
            |b| Ok(b.method("a b", Method::new())),
            "method \"a b\": a name is",
        ),
        (
            |b| Ok(b.method("", Method::new().timeout(ms(0)))),
            "timeout is 0",
        ),
        (|b| Ok(b.max_attempts(0)), "max_attempts is 0"),
        (|b| Ok(b.max_attempts(101)), "max_attempts is 101"),
        (|b| b.service_config("{"), "it is not JSON"),
        (
            |b| b.service_config(r#"{ "methodConfig": 1 }"#),
            "methodConfig: 1 is not a list",
        ),
    ];
    for (with, why) in cases {
        let (_publisher, builder) = builder(&Net::default());

        let refused = with(builder).and_then(Builder::build).unwrap_err();

        assert!(refused.to_string().contains(why), "{refused}");
    }
}

fn saying(message: &str) -> Request<EchoRequest> {
    Request::new(EchoRequest {
        message: message.into(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_larger_than_its_method_allows_is_not_sent() {
    let net = Net::default();
    let a = net.serve("a");
    let (publisher, builder) = builder(&net);
    // A field's number and length, and ten letters.
    let method = Method::new().max_request_bytes(12);
    let channel = builder.method(UNARY, method).build().unwrap();
    publisher.reset([a.instance.clone()]);

    let fits = ask_with(&channel, saying("0123456789")).await;
    let refused = ask_with(&channel, saying("0123456789a")).await.unwrap_err();

    assert_eq!(fits.unwrap(), "a");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let words = "a message to the server has 13 bytes, and may have 12";
    assert_eq!(refused.message(), words);
    assert_eq!(a.echo.served(), 1);
    assert_eq!(channel.view().known()[0].in_flight(), 0);
    assert_eq!(
        channel.view().known()[0].failures(),
        0,
        "it is not the server's fault"
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_larger_than_its_method_allows_ends_the_call_when_it_comes() {
    let net = Net::default();
    let a = net.serve("a");
    let (publisher, builder) = builder(&net);
    let method = Method::new().max_response_bytes(12);
    let channel = builder
        .method("grpc.examples.echo.Echo", method)
        .build()
        .unwrap();
    publisher.reset([a.instance.clone()]);
    let said = ["0123456789", "short", "0123456789a", "short"].map(|words| EchoRequest {
        message: words.into(),
    });

    let mut client = EchoClient::new(channel.clone());
    let answers = client
        .bidirectional_streaming_echo(stream::iter(said))
        .await;
    let mut answers = answers.unwrap().into_inner();

    assert_eq!(
        answers.message().await.unwrap().unwrap().message,
        "0123456789"
    );
    assert_eq!(answers.message().await.unwrap().unwrap().message, "short");
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let words = "a message from the server has 13 bytes, and may have 12";
    assert_eq!(refused.message(), words);
    assert_eq!(channel.view().known()[0].in_flight(), 0, "the call is over");
    assert_eq!(
        channel.view().known()[0].failures(),
        0,
        "it is not the server's fault"
    );
}

/// Answers every call with `UNAVAILABLE`, and counts them.
#[derive(Clone, Default)]
struct Failing(Arc<AtomicUsize>);

impl NamedService for Failing {
    const NAME: &'static str = <EchoServer<Echo> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Failing {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        self.0.fetch_add(1, SeqCst);
        ready(Ok(Status::unavailable("as always").into_http()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_directed_call_is_tried_again_where_it_may_go_and_nowhere_else() {
    let net = Net::default();
    let well = ["a", "b"].map(|id| net.serve(id));
    let failing = Failing::default();
    let (echo, server) = (Echo::new("c"), Server::builder());
    let ill = net.serve_with(server, "c", "c.test:1", echo, failing.clone());
    let (publisher, builder) = builder(&net);
    let builder = builder.policy(RoundRobin::default()).budget(None);
    let builder = builder.ejection(Ejection::off());
    let builder = builder.method(UNARY, Method::new().retry(Retry::attempts(3)));
    let channel = builder.build().unwrap();
    let all = well.iter().chain([&ill]);
    publisher.reset(all.map(|one| one.instance.clone()));
    channel.ready(3).await;

    let pinned = ask_directed(&channel, &Direct::to(id("c"))).await;
    let tried = failing.0.swap(0, SeqCst);
    let avoiding = who(&channel, &Direct::avoiding([id("a")]), 50).await;

    assert_eq!(pinned.unwrap_err().code(), Code::Unavailable);
    assert_eq!(tried, 3, "there is nobody else to ask");
    assert_eq!(avoiding, ["b".to_owned()].into());
    assert!(failing.0.load(SeqCst) > 0, "it was tried, and failed");
    assert_eq!(
        well[0].echo.served(),
        0,
        "nobody went where nobody was to go"
    );
}

#[cfg(feature = "server")]
mod travel {
    //! A server that calls another on behalf of its caller.

    use std::{pin::Pin, sync::Mutex};

    use tokio::time::sleep;
    use tonic_fleet::deadline::{self, Deadline};
    use tower::Layer;

    use super::*;

    /// Takes 30 ms, calls another if it knows one, and then answers.
    #[derive(Clone)]
    struct Relay {
        next: Option<Channel>,
        /// The time limits that it was told.
        told: Arc<Mutex<Vec<String>>>,
        echo: EchoServer<Echo>,
    }

    impl NamedService for Relay {
        const NAME: &'static str = <EchoServer<Echo> as NamedService>::NAME;
    }

    impl Service<http::Request<Body>> for Relay {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let told = request.headers().get("grpc-timeout");
            let told = told.map_or("", |told| told.to_str().unwrap());
            self.told.lock().unwrap().push(told.to_owned());
            let mut relay = self.clone();
            Box::pin(async move {
                sleep(ms(30)).await;
                let Some(next) = &relay.next else {
                    return relay.echo.call(request).await;
                };
                assert_eq!(
                    request.extensions().get().copied(),
                    Deadline::current(),
                    "who spawns can take it along"
                );
                match ask(next).await {
                    Ok(_) => relay.echo.call(request).await,
                    Err(status) => Ok(status.into_http()),
                }
            })
        }
    }

    /// A server that relays to another over this channel, if there is one, and what it is told.
    fn serve(net: &Net, id: &str, next: Option<Channel>) -> (Running, Arc<Mutex<Vec<String>>>) {
        let echo = Echo::new(id);
        let told = Arc::default();
        let relay = Relay {
            next,
            told: Arc::clone(&told),
            echo: EchoServer::new(echo.clone()),
        };
        let at = format!("{id}.test:1");
        let service = deadline::layer().layer(relay);
        let running = net.serve_with(Server::builder(), id, &at, echo, service);
        (running, told)
    }

    async fn two_hops(limit: Option<Duration>) -> (Result<String, Status>, Vec<String>) {
        let net = Net::default();
        let (far, told) = serve(&net, "far", None);
        let (there, onward) = builder(&net);
        there.reset([far.instance.clone()]);
        let onward = onward.pass_deadline_on().build().unwrap();
        onward.ready(1).await;
        let (near, _) = serve(&net, "near", Some(onward));
        let (_publisher, channel) = to(&net, [near.instance.clone()]).await;
        let mut request = Request::new(EchoRequest::default());
        if let Some(limit) = limit {
            request.set_timeout(limit);
        }

        let answer = ask_with(&channel, request).await;

        let told = told.lock().unwrap().clone();
        (answer, told)
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_travels_with_what_is_left_of_it() {
        let (answer, told) = two_hops(Some(ms(100))).await;

        assert_eq!(answer.unwrap(), "near");
        assert_eq!(told, ["70000000n"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_deadline_passes_none_on() {
        let (answer, told) = two_hops(None).await;

        assert_eq!(answer.unwrap(), "near");
        assert_eq!(told, [""]);
    }

    #[tokio::test(start_paused = true)]
    async fn when_no_time_is_left_nobody_else_is_asked() {
        let (answer, told) = two_hops(Some(ms(30))).await;

        assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
        assert!(told.is_empty(), "{told:?}");
    }
}
