//! What a caller sees of a channel while servers come, go, stall and die. In memory, in paused time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;

use std::{
    collections::BTreeMap,
    future::{Future as _, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest};
use futures_util::{StreamExt, future::join_all, stream};
use net::{ByHand, Net};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_fleet::{
    Address, Backoff, Builder, Channel, Error, ErrorKind, Event, Instance, ServedBy, ServiceName,
    State,
    balance::{LeastLoaded, Random, RoundRobin, Weighted, WeightedRandom},
    resolve::{Change, Fixed, Publisher, Skipped},
    transport::{Connect, Connecting, Windows},
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

/// A channel on this network, and the hand that tells it who is there.
fn builder(net: &Net) -> (Publisher, Builder) {
    let (publisher, resolve) = ByHand::new();
    (
        publisher,
        Channel::over(greeter(), resolve).connect_with(net.clone()),
    )
}

fn channel(net: &Net) -> (Publisher, Channel) {
    let (publisher, builder) = builder(net);
    (publisher, builder.build().unwrap())
}

/// One call; who answered.
async fn ask(channel: &Channel) -> Result<String, Status> {
    ask_with(channel, Request::new(say("hello"))).await
}

async fn ask_with(channel: &Channel, request: Request<EchoRequest>) -> Result<String, Status> {
    let said = request.get_ref().message.clone();
    let response = EchoClient::new(channel.clone()).unary_echo(request).await?;
    assert_eq!(response.get_ref().message, said);
    Ok(response
        .extensions()
        .get::<ServedBy>()
        .unwrap()
        .id()
        .to_string())
}

/// So many calls, so many at a time; who answered how many.
async fn ask_many(channel: &Channel, calls: usize, at_a_time: usize) -> BTreeMap<String, usize> {
    let asked = stream::iter(0..calls)
        .map(|_| ask(channel))
        .buffer_unordered(at_a_time);
    let answers = asked.map(|answer| answer.expect("every call could succeed"));
    answers
        .fold(BTreeMap::new(), |mut counts, id| async {
            *counts.entry(id).or_default() += 1;
            counts
        })
        .await
}

fn say(message: &str) -> EchoRequest {
    EchoRequest {
        message: message.into(),
    }
}

fn vanish(instance: &Instance) -> [Change; 1] {
    [Change::Vanish(instance.id.clone())]
}

fn remove(instance: &Instance) -> [Change; 1] {
    [Change::Remove(instance.id.clone())]
}

fn put(instance: Instance) -> [Change; 1] {
    [Change::Put(Arc::new(instance))]
}

#[tokio::test(start_paused = true)]
async fn a_call_that_finds_nobody_fails_when_its_patience_ends() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    publisher.reset([net.refusing("a")]);
    let began = Instant::now();

    let status = ask(&channel).await.unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(Instant::now() - began, Duration::from_secs(5));
    let said = status.message();
    assert!(
        said.starts_with("greeter: 0 of 1 endpoints ready; a: "),
        "{said}"
    );
    assert!(said.contains("refused"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_covers_waiting_for_an_endpoint() {
    let net = Net::default();
    let (_publisher, channel) = channel(&net);
    let began = Instant::now();
    let mut request = Request::new(say("hello"));
    request.set_timeout(Duration::from_millis(300));

    let status = ask_with(&channel, request).await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(Instant::now() - began <= Duration::from_millis(302));
    assert!(
        status
            .message()
            .contains("the registry has not answered yet"),
        "{status}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_call_waits_for_the_first_endpoint() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let asked = tokio::spawn({
        let channel = channel.clone();
        async move { ask(&channel).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;

    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);

    assert_eq!(asked.await.unwrap().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn connections_come_and_go_without_traffic() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");

    publisher.reset([server.instance.clone()]);
    let view = channel.ready(1).await;
    assert_eq!((server.open(), server.ever()), (1, 1));
    publisher.delta(remove(&server.instance));
    channel.changed(view.number()).await;
    while server.open() > 0 {
        tokio::task::yield_now().await;
    }

    assert!(channel.view().known().is_empty());
    assert_eq!(server.ever(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_or_is_silent_or_dumb_costs_no_call() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let servers = ["a", "b", "c"].map(|id| net.serve(id));
    let bad = [net.refusing("r"), net.silent("s"), net.dumb("d")];
    publisher.reset(
        servers
            .iter()
            .map(|server| server.instance.clone())
            .chain(bad),
    );

    let counts = ask_many(&channel, 5_000, 64).await;

    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let view = channel.view();
    assert_eq!((view.ready().len(), view.known().len()), (3, 6));
}

#[tokio::test(start_paused = true)]
async fn a_new_weight_keeps_the_connection_and_counts_at_once() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let channel = builder.policy(Weighted::default()).build().unwrap();
    let [a, b] = ["a", "b"].map(|id| net.serve(id));
    publisher.reset([a.instance.clone(), b.instance.clone()]);
    let view = channel.ready(2).await;

    publisher.delta(put(a.instance.clone().weight(4)));
    channel.changed(view.number()).await;

    let counts = ask_many(&channel, 500, 8).await;
    assert_eq!((counts["a"], counts["b"]), (400, 100));
    assert_eq!((a.ever(), b.ever()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn shares_are_as_each_policy_promises() {
    let net = Net::default();
    let servers = ["a", "b", "c"].map(|id| net.serve(id));
    let instances = || servers.iter().map(|server| server.instance.clone());
    let weighted = || instances().map(|i| if i.id.as_str() == "a" { i.weight(3) } else { i });

    let (publisher, builder_) = builder(&net);
    let channel = builder_.policy(RoundRobin::default()).build().unwrap();
    publisher.reset(instances());
    channel.ready(3).await;
    let counts = ask_many(&channel, 3_001, 16).await;
    assert!(
        counts
            .values()
            .all(|&count| (1_000..=1_001).contains(&count)),
        "{counts:?}"
    );

    let (publisher, builder_) = builder(&net);
    let channel = builder_.policy(Weighted::default()).build().unwrap();
    publisher.reset(weighted());
    channel.ready(3).await;
    let counts = ask_many(&channel, 5_000, 16).await;
    assert!(
        counts["a"].abs_diff(3_000) <= 3 && counts["b"].abs_diff(1_000) <= 3,
        "{counts:?}"
    );

    for policy in [
        Arc::new(Random) as Arc<dyn tonic_fleet::balance::Policy>,
        Arc::new(WeightedRandom),
    ] {
        let (publisher, builder_) = builder(&net);
        let channel = builder_.policy(policy).build().unwrap();
        publisher.reset(instances());
        channel.ready(3).await;
        let counts = ask_many(&channel, 3_000, 16).await;
        assert!(
            counts.values().all(|count| count.abs_diff(1_000) < 150),
            "{counts:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_slow_one_gets_few_calls_from_least_loaded() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let channel = builder.policy(LeastLoaded).build().unwrap();
    let slow = net.serve_at(
        "slow",
        "slow.test:1",
        Echo::new("slow").delay(Duration::from_millis(100)),
    );
    let fast = net.serve_at(
        "fast",
        "fast.test:1",
        Echo::new("fast").delay(Duration::from_millis(1)),
    );
    publisher.reset([slow.instance.clone(), fast.instance.clone()]);
    channel.ready(2).await;

    for callers in [1, 2, 16, 64] {
        let counts = ask_many(&channel, 5_000, callers).await;

        assert!(counts["fast"] >= 4_750, "{callers} callers: {counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_registry_changes_nothing_for_calls_and_is_seen() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    let view = channel.ready(1).await;

    publisher.stale(Error::new(
        ErrorKind::Unavailable,
        "watch /services/greeter/",
    ));
    let view = channel.changed(view.number()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;

    assert_eq!(ask(&channel).await.unwrap(), "a");
    let (error, age) = view.stale(Instant::now()).unwrap();
    assert_eq!(error.to_string(), "watch /services/greeter/");
    assert!(age >= Duration::from_secs(3600));
    server.kill();
    channel.changed(view.number()).await;
    let status = ask(&channel).await.unwrap_err();
    assert!(
        status.message().contains("registry out of reach for 36"),
        "{status}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_updates_keeps_the_set() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);

    drop(publisher);
    tokio::time::sleep(Duration::from_secs(60)).await;

    assert_eq!(ask(&channel).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_vanished_server_that_lives_costs_no_call() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let servers = ["a", "b", "c", "d"].map(|id| net.serve(id));
    publisher.reset(servers.iter().map(|server| server.instance.clone()));
    let view = channel.ready(4).await;

    publisher.delta(servers.iter().flat_map(|server| vanish(&server.instance)));
    channel.changed(view.number()).await;
    let counts = ask_many(&channel, 1_000, 32).await;

    assert_eq!(counts.len(), 4, "all of a held set serve: {counts:?}");
    assert_eq!(channel.view().held(), Some(4));
    publisher.delta(
        servers
            .iter()
            .flat_map(|server| put(server.instance.clone())),
    );
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(ask_many(&channel, 1_000, 32).await.len(), 4);
    assert!(
        servers.iter().all(|server| server.ever() == 1),
        "no connection was lost on the way"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_costs_no_call() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let echo = |id: &str| Echo::new(id).delay(Duration::from_millis(3));
    let start = |id: String, n: usize| net.serve_at(&id, &format!("{id}-{n}.test:1"), echo(&id));
    let mut servers: Vec<_> = (0..5).map(|n| start(format!("i{n}"), 0)).collect();
    publisher.reset(servers.iter().map(|server| server.instance.clone()));
    channel.ready(5).await;
    let (done, asking) = (tokio_util::sync::CancellationToken::new(), 64);
    let callers = (0..asking).map(|_| {
        let (channel, done) = (channel.clone(), done.clone());
        tokio::spawn(async move {
            let mut answered = 0_u64;
            while !done.is_cancelled() {
                ask(&channel).await.expect("every call could succeed");
                answered += 1;
            }
            answered
        })
    });
    let callers: Vec<_> = callers.collect();

    let mut served = 0;
    for round in 1..=3 {
        for (n, server) in servers.iter_mut().enumerate() {
            let old = std::mem::replace(server, start(format!("i{n}"), round));
            publisher.delta(put(old.instance.clone().serving(false)));
            publisher.delta(vanish(&old.instance));
            tokio::time::sleep(Duration::from_millis(20)).await;
            served += old.stop().await;
            publisher.delta(put(server.instance.clone()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    done.cancel();
    let answered: u64 = join_all(callers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .sum();

    for server in servers {
        served += server.stop().await;
    }
    assert!(answered > 10_000, "{answered}");
    assert_eq!(answered, served, "no call was answered twice or not at all");
}

#[tokio::test(start_paused = true)]
async fn a_sudden_death_costs_only_the_calls_it_took_with_it() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let servers = ["a", "b", "c", "d", "e"].map(|id| {
        net.serve_at(
            id,
            &format!("{id}.test:1"),
            Echo::new(id).delay(Duration::from_millis(5)),
        )
    });
    publisher.reset(servers.iter().map(|server| server.instance.clone()));
    let view = channel.ready(5).await;
    // So many were in flight there when most were, looked at whenever a call has moved.
    let most = &std::cell::Cell::new(0);
    let view = &view;
    let channel = &channel;
    let asked = stream::iter(0..10_000).map(|n| {
        if n == 5_000 {
            servers[0].kill();
        }
        let mut call = Box::pin(ask(channel));
        poll_fn(move |cx| {
            let answer = call.as_mut().poll(cx);
            most.set(most.get().max(view.known()[0].in_flight()));
            answer
        })
    });

    let failed: Vec<Status> = asked
        .buffer_unordered(64)
        .filter_map(|answer| async { answer.err() })
        .collect()
        .await;

    assert!(
        failed.len() <= most.get(),
        "{} failed, {} were in flight",
        failed.len(),
        most.get()
    );
    for status in &failed {
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(ServedBy::of(status).unwrap().id().as_str(), "a", "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_four_kinds_of_call_work() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    let mut client = EchoClient::new(channel);
    let many = || stream::iter((0..50).map(|n| say(&n.to_string())));

    let one = client.unary_echo(say("one")).await.unwrap().into_inner();
    let answers = client
        .server_streaming_echo(say("many"))
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    let last = client
        .client_streaming_echo(many())
        .await
        .unwrap()
        .into_inner();
    let both = client
        .bidirectional_streaming_echo(many())
        .await
        .unwrap()
        .into_inner();
    let both: Vec<_> = both.map(|answer| answer.unwrap().message).collect().await;

    assert_eq!(one.message, "one");
    assert_eq!(
        answers,
        vec![
            echo::EchoResponse {
                message: "many".into()
            };
            10
        ]
    );
    assert_eq!(last.message, "49");
    assert_eq!(both, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_stream_survives_the_removal_of_its_endpoint() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let [a, b] = ["a", "b"].map(|id| net.serve(id));
    publisher.reset([a.instance.clone()]);
    let (send, receive) = tokio::sync::mpsc::channel::<EchoRequest>(1);
    let requests = stream::unfold(receive, |mut receive| async {
        Some((receive.recv().await?, receive))
    });
    let mut client = EchoClient::new(channel.clone());
    let mut answers = client
        .bidirectional_streaming_echo(requests)
        .await
        .unwrap()
        .into_inner();
    send.send(say("before")).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().message, "before");
    let view = channel.view();

    publisher.reset([b.instance.clone()]);
    channel.changed(view.number()).await;
    assert_eq!(ask(&channel).await.unwrap(), "b");
    tokio::time::sleep(Duration::from_secs(600)).await;
    send.send(say("after")).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().message, "after");
    drop(send);

    assert!(answers.next().await.is_none());
    while a.open() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_ends_all_there_was() {
    let net = Net::default();
    let servers = ["a", "b"].map(|id| net.serve(id));
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let (publisher, channel) = channel(&net);
    publisher.reset(
        servers
            .iter()
            .map(|server| server.instance.clone())
            .chain([net.silent("s")]),
    );
    channel.ready(2).await;
    let clone = channel.clone();
    ask(&channel).await.unwrap();

    drop(channel);
    ask(&clone).await.unwrap();
    drop(clone);

    publisher.closed().await;
    while tasks() > before || servers.iter().any(|server| server.open() > 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_change_of_state_is_an_event() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let mut events = channel.events();
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    channel.ready(1).await;
    server.kill();
    publisher.delta(vanish(&server.instance));
    publisher.skipped(vec![Skipped::new(
        "/services/greeter/bad",
        Error::new(ErrorKind::Decode, "no JSON"),
    )]);

    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.push(events.next().await.unwrap());
    }

    assert!(
        matches!(&seen[0], Event::Added(id) if id.as_str() == "a"),
        "{seen:?}"
    );
    assert!(
        matches!(&seen[1], Event::Connected(id, _) if id.as_str() == "a"),
        "{seen:?}"
    );
    for wanted in ["Lost", "Suspected", "Held", "Skipped"] {
        assert!(
            seen[2..]
                .iter()
                .any(|event| format!("{event:?}").starts_with(wanted)),
            "{wanted}: {seen:?}"
        );
    }
    let mut view = channel.view();
    while view.skipped().is_empty() {
        view = channel.changed(view.number()).await;
    }
    assert_eq!(&*view.skipped()[0].key, "/services/greeter/bad");
}

#[tokio::test(start_paused = true)]
async fn a_failure_tells_who_failed_and_a_mistake_is_no_failure() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    let unknown = http::uri::PathAndQuery::from_static("/grpc.examples.echo.Echo/NoSuchMethod");
    let mut client = tonic::client::Grpc::new(channel.clone());
    let codec = tonic_prost::ProstCodec::<EchoRequest, EchoRequest>::default();

    let status = client
        .unary(Request::new(say("x")), unknown, codec)
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(ServedBy::of(&status).unwrap().id().as_str(), "a");
    let view = channel.view();
    let endpoint = &view.known()[0];
    assert_eq!(
        (endpoint.calls(), endpoint.failures(), endpoint.in_flight()),
        (1, 0, 0)
    );
    assert_eq!(endpoint.state(), State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_ends_with_its_deadline_and_says_whose_it_was() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let channel = builder.timeout(Duration::from_secs(2)).build().unwrap();
    let slow = net.serve_at(
        "a",
        "a.test:1",
        Echo::new("a").delay(Duration::from_secs(60)),
    );
    publisher.reset([slow.instance.clone()]);
    channel.ready(1).await;
    let began = Instant::now();

    let status = ask(&channel).await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!((Instant::now() - began).abs_diff(Duration::from_secs(2)) <= Duration::from_millis(2));
    assert_eq!(channel.view().known()[0].in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn thousands_at_once_make_a_handful_of_views_and_fail_no_call() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    let instances = (0..5_000).map(|n| net.alias(&server, &format!("i{n:04}")));
    let instances: Vec<Instance> = instances.collect();
    let began = channel.view().number();

    publisher.reset(instances);
    let calls = ask_many(&channel, 2_000, 64).await;
    channel.ready(5_000).await;

    let views = channel.view().number() - began;
    assert!(views <= 40, "{views} views");
    assert_eq!(calls.values().sum::<usize>(), 2_000);
}

#[derive(Debug)]
struct Panics;

impl tonic_fleet::balance::Policy for Panics {
    fn over(&self, _: &tonic_fleet::Endpoints) -> Box<dyn tonic_fleet::balance::Pick> {
        panic!("on purpose");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_does_not_take_the_channel_along() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let channel = builder.policy(Panics).build().unwrap();
    let server = net.serve("a");

    publisher.reset([server.instance.clone()]);

    assert_eq!(ask(&channel).await.unwrap(), "a");
}

/// Counts how often it is asked.
#[derive(Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl tonic_fleet::balance::Policy for Counting {
    fn over(&self, ready: &tonic_fleet::Endpoints) -> Box<dyn tonic_fleet::balance::Pick> {
        self.0.fetch_add(1, SeqCst);
        LeastLoaded.over(ready)
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_asked_when_those_it_picks_from_change_and_not_for_the_others() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let asked = Arc::new(AtomicUsize::new(0));
    let policy = Counting(Arc::clone(&asked));
    let channel = builder.policy(policy).build().unwrap();
    let (server, away) = (net.serve("a"), net.refusing("b"));
    publisher.reset([server.instance.clone(), away.clone()]);
    channel.ready(1).await;
    assert_eq!(asked.load(SeqCst), 1);
    let weight_of = |view: &tonic_fleet::View, place: usize| view.known()[place].instance().weight;

    publisher.delta([Change::Put(away.weight(7).into())]);
    let mut view = channel.view();
    while weight_of(&view, 1) != 7 {
        view = channel.changed(view.number()).await;
    }
    let for_another = asked.load(SeqCst);
    publisher.delta([Change::Put(server.instance.clone().weight(5).into())]);
    while weight_of(&view, 0) != 5 {
        view = channel.changed(view.number()).await;
    }

    assert_eq!((for_another, asked.load(SeqCst)), (1, 2));
    assert_eq!(ask(&channel).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_serves_until_the_registry_speaks() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let [spare, real] = ["spare", "real"].map(|id| net.serve(id));
    let channel = builder.fallback([spare.instance.clone()]).build().unwrap();

    publisher.stale(Error::new(
        ErrorKind::Unavailable,
        "list /services/greeter/",
    ));
    assert_eq!(ask(&channel).await.unwrap(), "spare");
    publisher.reset([real.instance.clone()]);
    let mut view = channel.ready(1).await;
    while view.known()[0].id().as_str() == "spare" {
        view = channel.changed(view.number()).await;
    }

    assert_eq!(ask(&channel).await.unwrap(), "real");
    assert_eq!(channel.view().known().len(), 1);
}

#[test]
fn a_channel_without_a_runtime_is_refused() {
    let error = Channel::over(greeter(), Fixed::at(["10.0.0.1:1"]).unwrap())
        .build()
        .unwrap_err();

    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let build = |change: fn(Builder) -> Builder| {
        change(builder(&Net::default()).1)
            .build()
            .unwrap_err()
            .to_string()
    };

    assert!(build(|b| b.dials(0)).contains("dials"));
    assert!(build(|b| b.timeout(Duration::ZERO)).contains("timeout"));
    assert!(build(|b| b.connect_timeout(Duration::ZERO)).contains("connect_timeout"));
    assert!(build(|b| b.keep_alive(Duration::ZERO, Duration::ZERO)).contains("keep_alive"));
    assert!(build(|b| b.connections(0)).contains("connections"));
    assert!(build(|b| b.idle_timeout(Duration::ZERO)).contains("idle_timeout"));
    assert!(build(|b| b.windows(Windows::fixed(0, 1 << 20))).contains("windows"));
}

/// Panics at the first attempt.
#[derive(Debug)]
struct Clumsy(Net, AtomicBool);

impl Connect for Clumsy {
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
        assert!(self.1.swap(true, SeqCst), "a mistake of the user's");
        self.0.connect(address)
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_panics_is_one_failed_attempt() {
    let net = Net::default();
    let server = net.serve("a");
    let servers = Fixed::new([server.instance.clone()]);
    let channel = Channel::over(greeter(), servers)
        .connect_with(Clumsy(net.clone(), AtomicBool::new(false)))
        .build()
        .unwrap();

    assert_eq!(ask(&channel).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn for_ever_is_a_time_limit_like_any_other() {
    let net = Net::default();
    let (publisher, builder) = builder(&net);
    let channel = builder
        .patience(Duration::MAX)
        .timeout(Duration::MAX)
        .connect_timeout(Duration::MAX)
        .keep_alive(Duration::MAX, Duration::MAX)
        .drain_timeout(Duration::MAX)
        .grace(Duration::MAX)
        .hold(Duration::MAX)
        .redial(Backoff::between(Duration::MAX, Duration::MAX))
        .build()
        .unwrap();
    let [a, b] = ["a", "b"].map(|id| net.serve(id));
    publisher.reset([a.instance.clone(), b.instance.clone()]);
    channel.ready(2).await;

    publisher.delta([
        Change::Vanish(a.instance.id.clone()),
        Change::Vanish(b.instance.id.clone()),
    ]);
    ask_many(&channel, 10, 1).await;
    publisher.delta([Change::Remove(a.instance.id.clone())]);
    while channel.view().known().len() > 1 {
        channel.changed(channel.view().number()).await;
    }

    assert_eq!(ask(&channel).await.unwrap(), "b");
}

/// Looks like no `EchoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Gibberish {
    #[prost(uint64, tag = "1")]
    message: u64,
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_comes_without_a_body_is_counted_too() {
    let net = Net::default();
    let (publisher, channel) = channel(&net);
    let server = net.serve("a");
    publisher.reset([server.instance.clone()]);
    let path = http::uri::PathAndQuery::from_static("/grpc.examples.echo.Echo/UnaryEcho");
    let mut client = tonic::client::Grpc::new(channel.clone());
    let codec = tonic_prost::ProstCodec::<Gibberish, EchoRequest>::default();

    let request = Request::new(Gibberish { message: 7 });
    let status = client.unary(request, path, codec).await.unwrap_err();

    assert_eq!(status.code(), Code::Internal, "{status}");
    assert_eq!(channel.view().known()[0].failures(), 1);
}

#[tokio::test]
async fn a_very_long_list_leaves_others_on_the_thread_their_turns() {
    const N: usize = 20_000;
    let (publisher, channel) = channel(&Net::default());
    let turns = Arc::new(AtomicUsize::new(0));
    let others = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    let listed = |n| Instance::at(format!("10.1.{}.{}:1", n / 250, n % 250)).unwrap();

    publisher.reset((0..N).map(listed));
    turns.store(0, SeqCst);
    let mut view = channel.view();
    while view.known().len() < N {
        view = channel.changed(view.number()).await;
    }

    let turns = turns.load(SeqCst);
    assert!(turns >= N / 1024, "{turns} turns while it was loaded");
    others.abort();
}
