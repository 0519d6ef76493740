//! How many connections an endpoint has, and that nobody notices when they come and go. In memory, with time
//! standing still: what a call takes is what it waited for, and not what the machine is busy with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest};
use futures_util::{StreamExt, future::join_all, stream};
use http_body_util::BodyExt;
use net::{ByHand, Net, Running};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, body::Body, transport::Server};
use tonic_fleet::{
    Address, Builder, Channel, Direct, Endpoint, Event, Instance, ServedBy, State,
    discover::Ready,
    resolve::{Change, Fixed},
    stage::{Filter, Subset, Zones},
    transport::{Connect, Connecting},
};

/// Enough for many lives of each connection; the full count where it takes seconds.
const CALLS: usize = if cfg!(debug_assertions) {
    10_000
} else {
    100_000
};

fn over(net: &Net, servers: &[&Running]) -> Builder {
    let (publisher, resolve) = ByHand::new();
    publisher.reset(servers.iter().map(|server| server.instance.clone()));
    Channel::over("echo".parse().unwrap(), resolve).connect_with(net.clone())
}

fn serve(net: &Net, server: Server, id: &str, delay: Duration) -> Running {
    let echo = Echo::new(id).delay(delay);
    net.serve_by(server, id, &format!("{id}.test:1"), echo)
}

fn say() -> EchoRequest {
    EchoRequest {
        message: "hello".into(),
    }
}

async fn ask(channel: &Channel) -> Result<(), Status> {
    let mut client = EchoClient::new(channel.clone());
    client.unary_echo(say()).await.map(drop)
}

/// So many calls by so many callers, none of which may fail; how long the longest took.
async fn longest(channel: &Channel, callers: usize, calls: usize) -> Duration {
    let caller = async || {
        let mut longest = Duration::ZERO;
        for _ in 0..calls / callers {
            let began = Instant::now();
            ask(channel).await.unwrap();
            longest = longest.max(Instant::now() - began);
        }
        longest
    };
    let all = join_all((0..callers).map(|_| caller())).await;
    all.into_iter().max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_every_connection_young_stalls_no_call() {
    let net = Net::default();
    let young = Server::builder().max_connection_age(Duration::from_millis(200));
    let server = serve(&net, young, "a", Duration::from_millis(1));
    let channel = over(&net, &[&server]).build().unwrap();

    let longest = longest(&channel, 4, CALLS).await;

    assert!(longest < Duration::from_millis(50), "{longest:?}");
    assert!(
        server.ever() > CALLS / 1000,
        "{} connections",
        server.ever()
    );
    assert_eq!(server.echo.served(), CALLS as u64);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_allows_few_streams_gets_more_connections_while_they_are_of_use() {
    let net = Net::default();
    let few = Server::builder().max_concurrent_streams(10);
    let server = serve(&net, few, "a", Duration::from_millis(1));
    let channel = over(&net, &[&server]).build().unwrap();

    let longest = longest(&channel, 64, CALLS).await;

    assert!(longest < Duration::from_millis(50), "{longest:?}");
    assert_eq!(server.echo.served(), (CALLS / 64 * 64) as u64);
    let endpoint = channel.view().ready()[0].clone();
    assert_eq!((endpoint.connections(), server.open()), (4, 4));
    assert!(channel.view().to_string().contains("connections 4"));
    sleep(Duration::from_secs(30 * 3)).await;
    assert_eq!((endpoint.connections(), server.open()), (1, 1));
    ask(&channel).await.unwrap();
    assert_eq!(server.ever(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_quietly_when_one_has_no_room_and_the_other_has_all_the_calls_it_may() {
    let (net, second) = (Net::default(), Duration::from_secs(1));
    let wide = serve(&net, Server::builder(), "a", second);
    let narrow = { Server::builder().max_concurrent_streams(1) };
    let narrow = serve(&net, narrow, "b", second);
    let builder = over(&net, &[&wide, &narrow]);
    let channel = builder.breaker(2).connections(1).build().unwrap();
    let ready = channel.ready(2).await.ready().clone();
    for _ in 0..3 {
        let channel = channel.clone();
        tokio::spawn(async move { ask(&channel).await.unwrap() });
    }
    while ready.iter().map(Endpoint::in_flight).sum::<usize>() < 3 {
        tokio::task::yield_now().await;
    }

    let mut polls = 0;
    let mut fourth = pin!(ask(&channel));
    let fourth = poll_fn(|cx| {
        polls += 1;
        assert!(polls < 1_000, "it spins");
        fourth.as_mut().poll(cx)
    });

    fourth.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_does_not_go_to_one_that_asks_for_no_more() {
    let net = Net::default();
    let one = || Server::builder().max_concurrent_streams(1);
    let first = serve(&net, one(), "a", Duration::from_millis(1_000));
    let second = serve(&net, one(), "b", Duration::from_millis(1_500));
    let (publisher, resolve) = ByHand::new();
    publisher.reset([first.instance.clone(), second.instance.clone()]);
    let channel = Channel::over("echo".parse().unwrap(), resolve).connect_with(net.clone());
    let channel = channel.connections(1).build().unwrap();
    let call = async |wait: u64| {
        sleep(Duration::from_millis(wait)).await;
        let answer = EchoClient::new(channel.clone()).unary_echo(say()).await;
        let answer = answer.unwrap();
        answer
            .extensions()
            .get::<ServedBy>()
            .unwrap()
            .id()
            .to_string()
    };
    let leave = async {
        sleep(Duration::from_millis(500)).await;
        let leaving = first.instance.clone().serving(false);
        publisher.delta([Change::Put(Arc::new(leaving))]);
    };

    let (_, _, waited, ()) = tokio::join!(call(100), call(101), call(102), leave);

    assert_eq!(waited, "b");
}

#[tokio::test(start_paused = true)]
async fn streams_that_stay_open_leave_room_for_other_calls() {
    let net = Net::default();
    let server = { Server::builder().max_concurrent_streams(1) };
    let server = serve(&net, server, "a", Duration::ZERO);
    let channel = over(&net, &[&server]).build().unwrap();
    let mut client = EchoClient::new(channel.clone());
    let mut open = Vec::new();

    for _ in 0..3 {
        let asked = stream::pending();
        open.push(client.bidirectional_streaming_echo(asked).await.unwrap());
    }
    ask(&channel).await.unwrap();
    let fourth = client.bidirectional_streaming_echo(stream::pending()).await;

    let mut late = Request::new(say());
    late.set_timeout(Duration::from_secs(1));
    let status = client.unary_echo(late).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::DeadlineExceeded,
        "four are all: {status}"
    );
    drop(fourth);
    ask(&channel).await.unwrap();
    assert_eq!(server.ever(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_to_one_endpoint_gets_the_room_that_is_made_for_it() {
    let net = Net::default();
    let server = { Server::builder().max_concurrent_streams(1) };
    let server = serve(&net, server, "a", Duration::ZERO);
    let channel = over(&net, &[&server]).build().unwrap();
    let mut client = EchoClient::new(channel.clone());
    let _open = client.bidirectional_streaming_echo(stream::pending()).await;

    let first = Ready::of(&channel).next().await;
    let Some(Ok(tower::discover::Change::Insert(_, mut one))) = first else {
        panic!("the endpoint is ready");
    };
    let request = http::Request::post("/grpc.examples.echo.Echo/UnaryEcho")
        .header("content-type", "application/grpc")
        .body(Body::new(
            http_body_util::Full::from(vec![0; 5]).map_err(never),
        ))
        .unwrap();
    let response = tower::Service::call(&mut one, request).await.unwrap();

    assert_eq!(response.status(), 200);
    assert_eq!(server.open(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_more_that_cannot_be_made_costs_the_endpoint_nothing() {
    let net = Net::default();
    let server = { Server::builder().max_concurrent_streams(1) };
    let server = serve(&net, server, "a", Duration::from_millis(1));
    let channel = over(&net, &[&server]).build().unwrap();
    channel.ready(1).await;
    let mut events = channel.events();
    let hidden = net.hide(&server);

    let longest_of_two = longest(&channel, 2, 2000).await;

    assert!(
        longest_of_two < Duration::from_millis(50),
        "{longest_of_two:?}"
    );
    let endpoint = channel.view().ready()[0].clone();
    assert_eq!((endpoint.state(), endpoint.failures()), (State::Ready, 0));
    let event = events.next().await;
    assert!(matches!(event, Some(Event::Lost(..))), "{event:?}");
    net.show(hidden);
    sleep(Duration::from_secs(30)).await;
    longest(&channel, 2, 100).await;
    assert_eq!(endpoint.connections(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_first_connection_took_along_does_not_end_the_others() {
    let net = Net::default();
    let young = Server::builder()
        .max_concurrent_streams(1)
        .max_connection_age(Duration::from_secs(5));
    let server = serve(&net, young, "a", Duration::from_secs(1));
    let channel = over(&net, &[&server]).build().unwrap();

    let longest = longest(&channel, 3, 120).await;

    // A call takes a second; it never has to wait for more than one other, nor for a connection.
    assert!(longest < Duration::from_millis(2_100), "{longest:?}");
}

/// Shakes hands with whoever comes, and breaks the connection at its first call.
#[derive(Clone, Debug, Default)]
struct Breaker(Arc<AtomicUsize>);

impl Connect for Breaker {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        self.0.fetch_add(1, SeqCst);
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut server = h2::server::handshake(theirs).await.unwrap();
                let _call = server.accept().await;
            });
            Ok::<_, io::Error>(Box::new(ours) as _)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_breaks_every_call_is_called_less_and_less_often() {
    let breaker = Breaker::default();
    let instance = Instance::at("10.0.0.1:1").unwrap();
    let channel = Channel::over("echo".parse().unwrap(), Fixed::new([instance]))
        .connect_with(breaker.clone())
        .patience(Duration::from_millis(10))
        .build()
        .unwrap();

    let calls = async {
        loop {
            let status = ask(&channel).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
    };
    let _ = timeout(Duration::from_secs(60), calls).await;

    let dialled = breaker.0.load(SeqCst);
    assert!((5..=20).contains(&dialled), "{dialled} dials in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_channel_without_calls_lets_go_of_its_connections_and_the_next_call_makes_them_again() {
    let net = Net::default();
    let [a, b] = ["a", "b"].map(|id| serve(&net, Server::builder(), id, Duration::ZERO));
    let minute = Duration::from_secs(60);
    let channel = over(&net, &[&a, &b]).idle_timeout(minute).build().unwrap();
    channel.ready(2).await;
    let mut client = EchoClient::new(channel.clone());
    let open = client.bidirectional_streaming_echo(stream::pending()).await;

    sleep(minute * 5).await;
    assert_eq!((a.open(), b.open()), (1, 1), "an open stream is a call");
    drop(open);
    sleep(minute * 2).await;
    assert_eq!((a.open(), b.open()), (0, 0));
    let view = channel.view();
    assert!(
        view.ready().is_empty() && view.known()[0].state() == State::Idle,
        "{view}"
    );

    ask(&channel).await.unwrap();
    channel.ready(2).await;
    assert_eq!((a.ever(), b.ever()), (2, 2));
    for _ in 0..10 {
        sleep(minute / 2).await;
        ask(&channel).await.unwrap();
    }
    assert_eq!(
        (a.ever(), b.ever()),
        (2, 2),
        "a call now and then keeps it awake"
    );
}

/// Shakes hands, and freezes.
#[derive(Debug)]
struct Freezer;

impl Connect for Freezer {
    fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let _server: h2::server::Connection<_, bytes::Bytes> =
                    h2::server::handshake(theirs).await.unwrap();
                std::future::pending::<()>().await;
            });
            Ok::<_, io::Error>(Box::new(ours) as _)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_freezes_while_nobody_calls_is_noticed_if_that_is_asked_for() {
    let second = Duration::from_secs(1);
    let frozen = || {
        let instance = Instance::at("10.0.0.1:1").unwrap();
        Channel::over("echo".parse().unwrap(), Fixed::new([instance]))
            .connect_with(Freezer)
            .keep_alive(second, second)
    };
    let trusting = frozen().build().unwrap();
    let asking = frozen().keep_alive_while_idle().build().unwrap();
    trusting.ready(1).await;
    asking.ready(1).await;
    let mut events = asking.events();

    let event = timeout(second * 3, events.next()).await;

    assert!(matches!(event, Ok(Some(Event::Lost(..)))), "{event:?}");
    assert_eq!(trusting.view().ready().len(), 1);
}

fn never(never: std::convert::Infallible) -> Status {
    match never {}
}

/// Waits until the view is so.
async fn see(channel: &Channel, so: impl Fn(&tonic_fleet::View) -> bool) {
    let mut events = channel.events();
    let seen = async {
        while !so(&channel.view()) {
            let _ = timeout(Duration::from_millis(50), events.next()).await;
        }
    };
    timeout(Duration::from_secs(60), seen).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_the_subset_is_connected_and_another_serves_when_it_is_gone() {
    let net = Net::default();
    let servers: Vec<_> = (0..9).map(|nth| net.serve(&format!("i{nth}"))).collect();
    let all: Vec<_> = servers.iter().collect();
    let channel = over(&net, &all)
        .subset(Subset::of(2).seed(1))
        .build()
        .unwrap();
    see(&channel, |view| view.ready().len() == 2).await;

    ask(&channel).await.unwrap();
    let used = servers.iter().filter(|server| server.ever() > 0);
    let used: Vec<_> = used.collect();
    assert_eq!(used.len(), 2);
    let left_out = channel
        .view()
        .known()
        .iter()
        .filter_map(Endpoint::outside)
        .count();
    assert_eq!(left_out, 7);
    used.iter().for_each(|server| server.kill());
    let is_new = |endpoint: &Endpoint| {
        used.iter()
            .all(|server| server.instance.id != *endpoint.id())
    };
    see(&channel, |view| {
        view.ready().len() == 2 && view.ready().iter().all(is_new)
    })
    .await;

    ask(&channel).await.unwrap();
    assert!(servers.iter().filter(|server| server.ever() > 0).count() >= 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_to_one_who_does_not_fit_the_filter_fails_at_once_and_says_so() {
    let net = Net::default();
    let servers = [net.serve("a"), net.serve("b")];
    let channel = over(&net, &servers.each_ref())
        .filter(Filter::by("is a", |instance| instance.id.as_str() == "a"))
        .build()
        .unwrap();
    ask(&channel).await.unwrap();
    let mut request = Request::new(say());
    request
        .extensions_mut()
        .insert(Direct::to("b".parse().unwrap()));
    let began = Instant::now();

    let status = EchoClient::new(channel.clone())
        .unary_echo(request)
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status
            .message()
            .contains("does not use it: does not fit the filter"),
        "{status}"
    );
    assert_eq!(Instant::now(), began);
    assert_eq!(servers[1].ever(), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_stay_in_the_channels_zone_until_that_is_down() {
    let net = Net::default();
    let here = [net.serve("a0"), net.serve("a1")];
    let there = [net.serve("b0"), net.serve("b1")];
    let (publisher, resolve) = ByHand::new();
    let zoned = |zone: &'static str| move |server: &Running| server.instance.clone().zone(zone);
    publisher.reset(
        here.iter()
            .map(zoned("a"))
            .chain(there.iter().map(zoned("b"))),
    );
    let channel = Channel::over("echo".parse().unwrap(), resolve).connect_with(net.clone());
    let channel = channel.zones(Zones::mine("a")).build().unwrap();
    see(&channel, |view| view.ready().len() == 2).await;

    for _ in 0..20 {
        ask(&channel).await.unwrap();
    }
    assert!(there.iter().all(|server| server.ever() == 0));
    assert!(
        channel
            .view()
            .to_string()
            .contains("not needed from another zone")
    );
    here.iter().for_each(Running::kill);
    let is_there = |endpoint: &Endpoint| endpoint.instance().zone.as_deref() == Some("b");
    see(&channel, |view| {
        view.ready().len() == 2 && view.ready().iter().all(is_there)
    })
    .await;

    ask(&channel).await.unwrap();
    let zones: Vec<_> = channel
        .view()
        .zones()
        .map(|(zone, share)| (zone.to_owned(), share))
        .collect();
    assert_eq!(zones, [("a".to_owned(), 0), ("elsewhere".to_owned(), 100)]);
}
