//! What a channel says its calls came to, beside what the servers have counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/net.rs"]
mod net;

use std::{collections::HashSet, time::Duration};

use echo::{EchoRequest, EchoResponse};
use futures_util::{StreamExt, stream};
use ledger::{Ledger, Server, ask, hello};
use net::{ByHand, Net};
use tokio::{net::TcpListener, time::sleep};
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_fleet::{
    Builder, Channel, Instance,
    balance::RoundRobin,
    method::{Hedge, Method, Retry},
    resolve::{Fixed, Publisher},
    stats::{Stats, Value},
};
use tonic_prost::ProstCodec;

const UNARY: &str = "/grpc.examples.echo.Echo/UnaryEcho";

const SECOND: Duration = Duration::from_secs(1);

/// Servers in memory that keep a ledger, and a channel to them.
struct Scene {
    channel: Channel,
    servers: Vec<Server>,
    _publisher: Publisher,
}

impl Scene {
    async fn of(n: usize, with: impl FnOnce(Builder) -> Builder) -> Self {
        let net = Net::default();
        let (publisher, resolve) = ByHand::new();
        let builder = Channel::over("echo".parse().unwrap(), resolve);
        let builder = builder
            .connect_with(net.clone())
            .policy(RoundRobin::default());
        let channel = with(builder).build().unwrap();
        let servers: Vec<_> = (0..n).map(|n| Server::on(&net, &format!("s{n}"))).collect();
        publisher.reset(servers.iter().map(|server| server.instance.clone()));
        channel.ready(n).await;
        Self {
            channel,
            servers,
            _publisher: publisher,
        }
    }
}

/// Holds line by line: what the servers counted is what the channel says.
fn agree(stats: &Stats, servers: &[(&str, &Ledger)]) {
    let attempts = &stats.attempts;
    assert_eq!(
        (stats.calls.in_flight, attempts.in_flight),
        (0, 0),
        "{stats}"
    );
    assert_eq!(stats.calls.started, stats.calls.ended.count(), "{stats}");
    let all = Ledger::sum(servers.iter().map(|(_, ledger)| *ledger));
    assert_eq!(attempts.seen(), all.asked(), "{stats}");
    for (code, n) in all.answered() {
        assert_eq!(attempts.ended.with(code), n, "{code:?} {stats}");
    }
    let ended = &attempts.ended;
    assert_eq!(ended.cancelled + ended.timed_out, all.given_up(), "{stats}");
    assert_eq!(attempts.sent_bytes, all.bytes_asked(), "{stats}");
    assert_eq!(attempts.received_bytes, all.bytes_answered(), "{stats}");
    let again = attempts.again.transparent + attempts.again.configured + attempts.again.hedged;
    assert_eq!(attempts.started, stats.calls.started + again, "{stats}");
    for (id, ledger) in servers {
        let Some(endpoint) = stats.endpoint(id) else {
            assert_eq!(ledger.asked(), 0, "{id} {stats}");
            continue;
        };
        assert_eq!(endpoint.attempts.seen(), ledger.asked(), "{id} {stats}");
        for (code, n) in ledger.answered() {
            assert_eq!(
                endpoint.attempts.ended.with(code),
                n,
                "{id} {code:?} {stats}"
            );
        }
        assert_eq!(
            endpoint.attempts.sent_bytes,
            ledger.bytes_asked(),
            "{id} {stats}"
        );
    }
}

fn ledgers(servers: &[Server]) -> Vec<(&str, &Ledger)> {
    let each = servers.iter().map(|server| (server.id(), &server.ledger));
    each.collect()
}

/// How often calls were sent again, for each reason: endpoints and methods agree.
fn again(stats: &Stats) -> [u64; 3] {
    let all = stats.attempts.again;
    let of_endpoints = stats.endpoints.iter().map(|of| of.attempts.again);
    let sum = of_endpoints.fold([0; 3], |[transparent, configured, hedged], of| {
        [
            transparent + of.transparent,
            configured + of.configured,
            hedged + of.hedged,
        ]
    });
    assert_eq!(
        sum,
        [all.transparent, all.configured, all.hedged],
        "{stats}"
    );
    sum
}

/// So many calls, of which some fail, some are late, and some are given up once a server has them.
///
/// Some of those that have this much time are answered: it must be so much that none of them is late.
async fn play(channel: &Channel, ledgers: &[Ledger], calls: usize, time: Duration) {
    let each = stream::iter(0..calls).map(|n| async move {
        match n % 10 {
            0 => drop(ask(channel, "fail 14", None).await.unwrap_err()),
            // With a policy that sends them again, most of these succeed.
            4 => drop(ask(channel, "odd", None).await),
            5 => drop(ask(channel, "stall", Some(time)).await),
            1 => drop(ask(channel, "fail 5", None).await.unwrap_err()),
            2 => {
                let late = ask(channel, "sleep", Some(Duration::from_secs(1))).await;
                // Whoever is first to say so: servers of tonic's end what is late as well.
                assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
            }
            3 => {
                let mark = format!("sleep {n}");
                tokio::select! {
                    _ = ask(channel, &mark, None) => unreachable!("it sleeps for long"),
                    () = ledger::begun(ledgers, &mark) => {}
                }
            }
            _ => assert_eq!(ask(channel, &hello(n), None).await.unwrap(), hello(n)),
        }
    });
    each.buffer_unordered(20).collect::<Vec<_>>().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_is_what_the_servers_counted() {
    // Nobody is left out for failing: who is asked what stays the same.
    let scene = Scene::of(4, |builder| builder.ejection(ledger::never())).await;
    let ledgers_of: Vec<_> = scene.servers.iter().map(|s| s.ledger.clone()).collect();

    play(&scene.channel, &ledgers_of, 2_000, SECOND).await;

    ledger::settled(&ledgers_of).await;
    let stats = scene.channel.stats();
    agree(&stats, &ledgers(&scene.servers));
    let ended = &stats.calls.ended;
    let ways = (
        ended.succeeded,
        ended.failed,
        ended.timed_out,
        ended.cancelled,
    );
    // What becomes of the odd, and of those that stall, depends on who is asked.
    assert_eq!(ways.3, 200, "{stats}");
    assert!(ways.2 > 200 && ways.1 > 200 && ways.0 > 1_000, "{stats}");
    assert_eq!(ended.with(Code::NotFound), 200);
    assert_eq!(again(&stats), [0; 3]);
    assert_eq!(stats.method(UNARY).unwrap().calls, stats.calls);
    assert_eq!(stats.endpoints.len(), 4);
}

#[tokio::test]
async fn over_sockets_what_is_counted_is_what_the_servers_counted() {
    let mut ledgers_of = Vec::new();
    let mut instances = Vec::new();
    for n in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
        instances.push(instance.id(format!("s{n}")).unwrap());
        ledgers_of.push(Ledger::serve(listener));
    }
    let ids: Vec<_> = instances.iter().map(|i| i.id.to_string()).collect();
    let builder = Channel::over("echo".parse().unwrap(), Fixed::new(instances));
    let builder = builder
        .policy(RoundRobin::default())
        .ejection(ledger::never());
    let builder = builder.method("", retry()).budget(None);
    let channel = builder.build().unwrap();
    channel.ready(3).await;

    play(&channel, &ledgers_of, 500, Duration::from_secs(10)).await;

    ledger::settled(&ledgers_of).await;
    let servers: Vec<_> = ids.iter().map(String::as_str).zip(&ledgers_of).collect();
    let stats = channel.stats();
    agree(&stats, &servers);
    assert!(again(&stats)[1] >= 100, "{stats}");
}

/// The same with this wanted of all calls; how often they were sent again.
async fn what_is_counted_with(method: Method) -> (Stats, [u64; 3]) {
    let with = |builder: Builder| {
        let builder = builder.ejection(ledger::never()).budget(None);
        builder.method("", method)
    };
    let scene = Scene::of(4, with).await;
    let ledgers_of: Vec<_> = scene.servers.iter().map(|s| s.ledger.clone()).collect();

    play(&scene.channel, &ledgers_of, 1_000, SECOND).await;

    ledger::settled(&ledgers_of).await;
    let stats = scene.channel.stats();
    agree(&stats, &ledgers(&scene.servers));
    let again = again(&stats);
    (stats, again)
}

fn retry() -> Method {
    let backoff = [5, 50].map(Duration::from_millis);
    let retry = Retry::attempts(3).backoff(backoff[0], backoff[1]);
    Method::new().retry(retry.on([Code::Unavailable]))
}

#[tokio::test(start_paused = true)]
async fn with_retries_what_is_counted_is_what_the_servers_counted() {
    let (stats, [transparent, configured, hedged]) = what_is_counted_with(retry()).await;

    // A hundred always fail, and some of the odd did once or twice.
    assert!(configured > 200, "{stats}");
    assert_eq!((transparent, hedged), (0, 0), "{stats}");
}

#[tokio::test(start_paused = true)]
async fn with_hedges_what_is_counted_is_what_the_servers_counted() {
    let hedge = Hedge::after(Duration::from_millis(20)).attempts(3);
    let method = Method::new().hedge(hedge.non_fatal([Code::Unavailable]));

    let (stats, [transparent, configured, hedged]) = what_is_counted_with(method).await;

    assert!(hedged > 300, "{stats}");
    assert_eq!((transparent, configured), (0, 0), "{stats}");
    let cancelled = stats.attempts.ended.cancelled;
    assert!(cancelled > stats.calls.ended.cancelled, "{stats}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_find_nobody_are_calls_and_no_attempts() {
    let channel = Channel::over("echo".parse().unwrap(), Fixed::at(["10.0.0.1:1"]).unwrap());
    let channel = channel.connect_with(Net::default()).build().unwrap();

    let late = ask(&channel, "hello", Some(Duration::from_secs(2))).await;
    let alone = ask(&channel, "hello", None).await;

    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(alone.unwrap_err().code(), Code::Unavailable);
    let stats = channel.stats();
    assert_eq!(
        (stats.calls.ended.timed_out, stats.calls.ended.failed),
        (1, 1)
    );
    assert_eq!(stats.attempts.started, 0);
    let took = stats.calls.ended.took().sum();
    assert!((took - 7.0).abs() < 0.01, "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_short_answer_that_is_read_late_took_as_long_as_it_took_to_come() {
    let scene = Scene::of(1, |builder| builder).await;
    let request = Request::new(EchoRequest {
        message: "hello".into(),
    });
    let codec = ProstCodec::<EchoRequest, EchoResponse>::default();
    let mut client = Grpc::new(scene.channel.clone());

    let path = PathAndQuery::from_static(UNARY);
    let answer = client.server_streaming(request, path, codec).await;
    sleep(Duration::from_secs(10)).await;
    let mut messages = answer.unwrap().into_inner();
    assert!(messages.message().await.unwrap().is_some());
    assert!(messages.message().await.unwrap().is_none());

    let ended = scene.channel.stats().calls.ended;
    assert_eq!(ended.succeeded, 1);
    assert!(ended.took().sum() < 5.0, "{}", ended.took().sum());
}

#[tokio::test(start_paused = true)]
async fn windows_slide_and_totals_stay() {
    let scene = Scene::of(1, |builder| builder.ejection(ledger::never())).await;
    for _ in 0..6 {
        ask(&scene.channel, "hello", None).await.unwrap();
    }
    for _ in 0..2 {
        ask(&scene.channel, "fail 14", None).await.unwrap_err();
    }

    let lately = scene.channel.stats().calls.lately;
    assert_eq!(lately.second.success_rate(), Some(0.75));
    assert_eq!(lately.minute.failure_rate(), Some(0.25));
    sleep(Duration::from_secs(5)).await;
    let of_one = scene.channel.stats();
    assert_eq!(of_one.calls.lately.second.success_rate(), None);
    assert_eq!(of_one.calls.lately.ten_seconds.count(), 8);
    assert_eq!(of_one.endpoints[0].lately, of_one.calls.lately);
    sleep(Duration::from_secs(60)).await;

    let stats = scene.channel.stats();
    assert_eq!(stats.calls.lately.minute.count(), 0);
    assert_eq!(stats.calls.ended.succeeded, 6);
}

#[tokio::test(start_paused = true)]
async fn what_is_seen_can_be_written_as_a_table_as_json_and_as_metrics() {
    let scene = Scene::of(2, |builder| builder).await;
    for n in 0..30 {
        ask(&scene.channel, &hello(n), None).await.unwrap();
    }
    ask(&scene.channel, "fail 5", None).await.unwrap_err();

    let stats = scene.channel.stats();

    let table = stats.to_string();
    assert!(table.starts_with("echo: 31 calls in"), "{table}");
    assert!(table.contains("succeeded 31  (NOT_FOUND 1)"), "{table}");
    assert!(table.contains("p95 "), "{table}");
    let json = stats.to_json();
    assert_eq!(json["methods"][0]["path"], UNARY);
    assert_eq!(json["calls"]["ended"]["codes"][1]["code"], "NOT_FOUND");
    assert_eq!(json["calls"]["lately"]["minute"]["success_rate"], 1.0);
    assert_eq!(json["endpoints"][1]["id"], "s1");
    let metrics: Vec<_> = stats.metrics().collect();
    let names: HashSet<_> = metrics.iter().map(|metric| metric.name).collect();
    for name in [
        "grpc.client.attempt.started",
        "grpc.client.attempt.duration",
        "grpc.client.attempt.sent_total_compressed_message_size",
        "grpc.client.attempt.rcvd_total_compressed_message_size",
        "grpc.client.call.duration",
        "grpc.subchannel.open_connections",
    ] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    let call = metrics
        .iter()
        .find(|m| m.name == "grpc.client.call.duration")
        .unwrap();
    let labels = [
        ("grpc.method", &UNARY[1..]),
        ("grpc.target", "echo"),
        ("grpc.status", "OK"),
    ];
    assert_eq!(call.labels, labels);
    let Value::Histogram(took) = call.value else {
        panic!("{call:?}")
    };
    assert_eq!((took.count(), took.bounds().len()), (30, 41));
}
