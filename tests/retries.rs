//! Calls that are sent more than once, against servers in memory and while time stands still.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;
#[path = "support/office.rs"]
mod office;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use echo::{EchoClient, EchoRequest};
use futures_util::{StreamExt, stream};
use office::{Act, Office, request};
use tokio::time::{Instant, timeout};
use tonic::{Code, Request, Status, service::InterceptorLayer};
use tonic_fleet::{
    Builder, Channel, Why, layer,
    method::{Budget, Hedge, Method, Retry},
};
use tower::{Layer, ServiceBuilder};

const MS: Duration = Duration::from_millis(1);

fn retried(attempts: u32) -> impl FnOnce(Builder) -> Builder {
    let retry = Retry::attempts(attempts).backoff(MS, 10 * MS);
    move |builder| builder.method("", Method::new().retry(retry)).budget(None)
}

fn hedged(hedge: Hedge) -> impl FnOnce(Builder) -> Builder {
    move |builder| builder.method("", Method::new().hedge(hedge)).budget(None)
}

fn down() -> Act {
    Act::Fails(Status::unavailable("down"))
}

fn well() -> Act {
    Act::Answers(2 * MS)
}

/// Every second of a count.
fn coin(n: &AtomicUsize) -> bool {
    n.fetch_add(1, SeqCst).is_multiple_of(2)
}

#[tokio::test(start_paused = true)]
async fn two_of_ten_servers_that_fail_half_of_their_calls_fail_no_call() {
    let coins = [const { AtomicUsize::new(0) }; 2];
    let office = Office::of(10, retried(3), move |visit| match visit.server {
        ill @ 0..2 if coin(&coins[ill]) => down(),
        _ => well(),
    })
    .await;
    let names: Vec<_> = (0..1500).map(|n| format!("c{n}")).collect();

    let calls = stream::iter(&names).map(|name| office.call(name));
    let failed = calls
        .buffer_unordered(20)
        .filter(|answer| std::future::ready(answer.is_err()))
        .count()
        .await;

    assert_eq!(failed, 0);
    let calls = office.record.calls();
    assert!(calls.values().any(|servers| servers.len() > 1));
    for (call, servers) in calls {
        let distinct: HashSet<_> = servers.iter().collect();
        assert_eq!(distinct.len(), servers.len(), "{call}: {servers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_servers_were_tried_the_last_is_still_left_out() {
    let office = Office::of(2, retried(5), |_| down()).await;

    let status = office.call("c").await.unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    let servers = office.record.of("c");
    assert_eq!(servers.len(), 5);
    assert!(
        servers.windows(2).all(|two| two[0] != two[1]),
        "{servers:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_only_server_is_tried_again() {
    let office = Office::of(
        1,
        retried(3),
        |visit| if visit.nth < 2 { down() } else { well() },
    )
    .await;

    office.call("c").await.unwrap();

    assert_eq!(office.record.of("c"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_a_failure_is_the_callers() {
    let office = Office::of(2, |builder| builder, |_| down()).await;

    office.call("c").await.unwrap_err();

    assert_eq!(office.record.of("c").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_a_time_limit_of_its_own_and_the_server_sees_its_end() {
    let retry = Retry::attempts(2).per_attempt(50 * MS).backoff(MS, MS);
    let with = |builder: Builder| builder.method("", Method::new().retry(retry));
    let first = AtomicUsize::new(0);
    let office = Office::of(
        2,
        with,
        move |_| if coin(&first) { Act::Never } else { well() },
    )
    .await;
    let began = Instant::now();

    office.call("c").await.unwrap();

    assert!(Instant::now() - began < 60 * MS);
    let servers = office.record.of("c");
    assert_ne!(servers[0], servers[1]);
    assert_eq!(office.record.cancelled(1).await, servers[..1]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_to_another_server_and_the_loser_sees_that_it_is_not_wanted() {
    let first = AtomicUsize::new(0);
    let plot = move |_: &office::Visit| if coin(&first) { Act::Never } else { well() };
    let office = Office::of(8, hedged(Hedge::after(10 * MS)), plot).await;
    let began = Instant::now();

    office.call("c").await.unwrap();

    let took = Instant::now() - began;
    assert!((12 * MS..20 * MS).contains(&took), "{took:?}");
    let servers = office.record.of("c");
    assert_eq!(servers.len(), 2);
    assert_ne!(servers[0], servers[1]);
    assert_eq!(office.record.cancelled(1).await, servers[..1]);
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_call_cancels_every_attempt() {
    let hedge = Hedge::after(10 * MS).attempts(3);
    let office = Office::of(3, hedged(hedge), |_| Act::Never).await;

    let gave_up = timeout(100 * MS, office.call("c")).await;

    assert!(gave_up.is_err());
    let mut servers = office.record.cancelled(3).await;
    servers.sort_unstable();
    assert_eq!(servers, [0, 1, 2]);
}

#[tokio::test]
async fn over_sockets_a_loser_is_cancelled_and_so_is_every_attempt_of_a_dropped_call() {
    let hedge = Hedge::after(20 * MS);
    let first = AtomicUsize::new(0);
    let office = Office::on_sockets(3, hedged(hedge), move |_| {
        // The second attempt of the first call answers, and nobody else.
        if first.fetch_add(1, SeqCst) == 1 {
            well()
        } else {
            Act::Never
        }
    })
    .await;

    office.call("answered").await.unwrap();
    let loser = office.record.cancelled(1).await;
    let gave_up = timeout(200 * MS, office.call("dropped")).await;

    assert_eq!(loser, office.record.of("answered")[..1]);
    assert!(gave_up.is_err());
    let sent = office.record.of("dropped").len();
    assert!(sent >= 1, "{sent}");
    assert!(office.record.cancelled(1 + sent).await.len() > sent);
}

#[tokio::test(start_paused = true)]
async fn methods_without_a_policy_are_never_hedged() {
    let with =
        |builder: Builder| builder.method("shop.Cart", Method::new().hedge(Hedge::after(MS)));
    let office = Office::of(3, with, |_| Act::Answers(100 * MS)).await;

    office.call("c").await.unwrap();

    assert_eq!(office.record.of("c").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_within_the_buffer_is_sent_again_and_one_beyond_it_is_not() {
    for (bytes, attempts) in [(200 << 10, 3), (300 << 10, 1)] {
        let office = Office::of(3, retried(3), |_| down()).await;
        let mut request = request("c");
        request.get_mut().message = "x".repeat(bytes);

        let status = EchoClient::new(office.channel.clone())
            .unary_echo(request)
            .await;

        assert_eq!(status.unwrap_err().code(), Code::Unavailable);
        assert_eq!(office.record.of("c").len(), attempts, "{bytes}");
        let read = office.record.read();
        assert!(
            (bytes * attempts..bytes * attempts + 100).contains(&read),
            "{read}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_sent_again_until_it_is_committed() {
    let office = Office::of(2, retried(3), |visit| {
        if visit.headers.contains_key("grpc-previous-rpc-attempts") {
            well()
        } else {
            down()
        }
    })
    .await;
    let asked = (0..5).map(|n| EchoRequest {
        message: n.to_string(),
    });

    let mut client = EchoClient::new(office.channel.clone());
    let answers = client
        .bidirectional_streaming_echo(stream::iter(asked))
        .await;

    let answers: Vec<_> = answers
        .unwrap()
        .into_inner()
        .map(Result::unwrap)
        .collect()
        .await;
    assert_eq!(answers.len(), 5);
    assert_eq!(office.record.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_once_among_those_under_way_however_often_it_is_sent() {
    let with = |builder: Builder| {
        let hedge = Hedge::after(MS).attempts(3);
        builder.method("", Method::new().hedge(hedge)).max_calls(1)
    };
    let office = Office::of(3, with, |_| Act::Answers(50 * MS)).await;

    let (one, other) = tokio::join!(office.call("one"), office.call("other"));

    one.unwrap();
    assert_eq!(other.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(office.record.of("one").len(), 3);
    office.call("later").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_each_attempt_is_can_be_seen_and_its_head_changed() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = Arc::clone(&seen);
    let with = move |builder: Builder| {
        retried(3)(builder).each_attempt(move |attempt| {
            let what = (
                attempt.previous(),
                attempt.why(),
                attempt.server().id().to_string(),
            );
            seeing.lock().unwrap().push(what);
            let number = attempt.previous().into();
            attempt.headers_mut().insert("x-attempt", number);
        })
    };
    let office = Office::of(2, with, |visit| {
        if visit.headers["x-attempt"] == "0" {
            down()
        } else {
            well()
        }
    })
    .await;

    let server = office.call("c").await.unwrap();

    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].0, seen[0].1), (0, Why::Called));
    assert_eq!(seen[1], (1, Why::Retried, server));
}

#[tokio::test(start_paused = true)]
async fn nobody_in_time_is_not_waited_for_again() {
    let retry = Retry::attempts(5).backoff(MS, MS);
    let builder = Channel::over("greeter".parse().unwrap(), tonic_fleet::Memory::default());
    let channel = builder
        .method("", Method::new().retry(retry))
        .patience(Duration::from_secs(2))
        .build()
        .unwrap();
    let began = Instant::now();

    let status = EchoClient::new(channel).unary_echo(request("c")).await;

    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    assert_eq!(Instant::now() - began, Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_layer_retries_elsewhere_and_interceptors_see_each_call_or_each_attempt() {
    let office = Office::of(
        4,
        |builder| builder.budget(None),
        |visit| {
            if visit.headers.contains_key("grpc-previous-rpc-attempts") {
                well()
            } else {
                down()
            }
        },
    )
    .await;
    let counts = [const { AtomicUsize::new(0) }; 2].map(Arc::new);
    let counting = |n: usize| {
        let count = Arc::clone(&counts[n]);
        InterceptorLayer::new(move |request: Request<()>| {
            count.fetch_add(1, SeqCst);
            Ok::<_, Status>(request)
        })
    };
    let retry = layer::Retry::new(Retry::attempts(3).backoff(MS, MS)).unwrap();
    let stack = ServiceBuilder::new()
        .layer(counting(0))
        .layer(retry)
        .layer(counting(1))
        .service(office.channel.clone());

    EchoClient::new(stack)
        .unary_echo(request("c"))
        .await
        .unwrap();

    let servers = office.record.of("c");
    assert!(
        servers.len() == 2 && servers[0] != servers[1],
        "{servers:?}"
    );
    assert_eq!(counts.map(|count| count.load(SeqCst)), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_hedges_elsewhere() {
    let first = AtomicUsize::new(0);
    let plot = move |_: &office::Visit| if coin(&first) { Act::Never } else { well() };
    let office = Office::of(4, |builder| builder, plot).await;
    let hedge = layer::Hedge::new(Hedge::after(10 * MS)).unwrap();
    let stack = hedge
        .only(|path| path.ends_with("/UnaryEcho"))
        .layer(office.channel.clone());

    EchoClient::new(stack)
        .unary_echo(request("c"))
        .await
        .unwrap();

    let servers = office.record.of("c");
    assert!(
        servers.len() == 2 && servers[0] != servers[1],
        "{servers:?}"
    );
    assert_eq!(office.record.cancelled(1).await, servers[..1]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_below_a_layer_does_not_retry_as_well() {
    let office = Office::of(4, retried(4), |_| down()).await;
    let retry = layer::Retry::new(Retry::attempts(2).backoff(MS, MS)).unwrap();

    let mut client = EchoClient::new(retry.layer(office.channel.clone()));
    client.unary_echo(request("c")).await.unwrap_err();

    assert_eq!(office.record.of("c").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_all_servers_are_down_attempts_stay_within_the_budget_and_recovery_is_at_once() {
    let is_down = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&is_down);
    let retry = Retry::attempts(5).backoff(MS, 10 * MS);
    let with = |builder: Builder| {
        let budget = Budget::share(0.2).floor(0);
        builder
            .method("", Method::new().retry(retry))
            .budget(budget)
    };
    let office = Office::of(5, with, move |_| match state.load(SeqCst) {
        1 => down(),
        _ => well(),
    })
    .await;
    for n in 0..1000 {
        office.call(&format!("down {n}")).await.unwrap_err();
        tokio::time::sleep(2 * MS).await;
    }
    let sent = office.record.attempts();
    assert!((1100..=1200).contains(&sent), "{sent}");

    is_down.store(0, SeqCst);

    let began = Instant::now();
    let mut calls = [0_usize; 2];
    while Instant::now() - began < Duration::from_secs(4) {
        let second = usize::from(Instant::now() - began > Duration::from_secs(2));
        let answer = office.call("up").await;
        calls[second] += usize::from(answer.is_err() && second == 1);
        tokio::time::sleep(10 * MS).await;
    }
    assert_eq!(calls[1], 0);
}
