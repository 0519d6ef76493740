//! Servers that say how busy they are, over sockets.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_fleet::{
    Channel, ServedBy,
    balance::{Orca, Probing},
    orca::{Recorder, Report},
};

use super::{EchoClient, EchoServer, ask, builder, echo::Echo, over};

/// Long enough for a machine that has much else to do.
const LONG: Duration = Duration::from_secs(60);

/// A server that is used so much, and says so with its calls, on a stream and when it is asked; its address.
async fn server(echo: Echo, utilization: f64) -> String {
    let recorder = Recorder::new();
    recorder.application_utilization(utilization);
    recorder.concurrency(100);
    let stream = recorder.service().at_most_every(Duration::from_millis(20));
    let server = Server::builder().layer(recorder.layer());
    let router = { server }
        .add_service(EchoServer::new(echo))
        .add_service(stream);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn two() -> [String; 2] {
    [
        server(Echo::new("idle"), 0.1).await,
        server(Echo::new("busy"), 0.9).await,
    ]
}

/// One call; the address that answered.
async fn asked(client: &mut EchoClient<Channel>) -> String {
    let response = client.unary_echo(ask("hello")).await.unwrap();
    let served = response.extensions().get::<ServedBy>().unwrap();
    served.address().to_string()
}

/// Until this one has been given three quarters of a hundred calls.
async fn comes_to_be_preferred(channel: Channel, preferred: &str) {
    let mut client = EchoClient::new(channel);
    let come = async {
        loop {
            let mut given = 0;
            for _ in 0..100 {
                given += usize::from(asked(&mut client).await == preferred);
            }
            if given >= 75 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, come)
        .await
        .expect("who is used less is given more");
}

fn policy() -> Orca {
    let policy = Orca::default().blackout(Duration::ZERO);
    policy.update_every(Duration::from_millis(100))
}

#[tokio::test]
async fn who_reports_to_be_used_less_with_its_calls_is_given_more() {
    let servers = two().await;
    let idle = servers[0].clone();
    let channel = builder(servers).policy(policy()).build().unwrap();

    comes_to_be_preferred(channel, &idle).await;
}

#[tokio::test]
async fn who_reports_to_be_used_less_on_a_stream_is_given_more() {
    let servers = two().await;
    let idle = servers[0].clone();
    let policy = policy().out_of_band(Duration::from_millis(50));
    let channel = builder(servers).policy(policy).build().unwrap();

    comes_to_be_preferred(channel, &idle).await;
}

#[tokio::test]
async fn a_report_is_in_the_trailers_that_any_client_sees() {
    let server = server(Echo::new("a"), 0.5).await;
    let mut client = EchoClient::connect(format!("http://{server}"))
        .await
        .unwrap();

    let mut answers = client
        .server_streaming_echo(ask("hello"))
        .await
        .unwrap()
        .into_inner();
    while answers.message().await.unwrap().is_some() {}
    let trailers = answers.trailers().await.unwrap().unwrap();

    let report = Report::of(&trailers.into_headers()).unwrap().unwrap();
    assert_eq!(report.application_utilization, 0.5);
    assert!(report.rps_fractional > 0.0, "{report:?}");
}

#[tokio::test]
async fn who_says_when_asked_that_it_is_busy_with_others_calls_is_given_none() {
    let slow = |id| Echo::new(id).delay(Duration::from_millis(200));
    let mut servers = [const { String::new() }; 5];
    for (server_at, id) in servers.iter_mut().zip(["a", "b", "c", "d", "busy"]) {
        *server_at = server(slow(id), 0.5).await;
    }
    let busy = servers[4].clone();
    let of_others = over([busy.clone()]);
    let mut others = JoinSet::new();
    for _ in 0..20 {
        let mut client = EchoClient::new(of_others.clone());
        others.spawn(async move {
            loop {
                client.unary_echo(ask("hello")).await.unwrap();
            }
        });
    }
    let channel = builder(servers).policy(Probing::default()).build().unwrap();
    let batch = || {
        let calls = stream::iter(0..40).map(|_| {
            let mut client = EchoClient::new(channel.clone());
            async move { asked(&mut client).await }
        });
        let at_busy = calls
            .buffer_unordered(8)
            .filter(|at| std::future::ready(*at == busy));
        at_busy.count()
    };

    // Of calls that are shared evenly, forty go elsewhere once in ten thousand times.
    let none = async { while batch().await > 0 {} };

    timeout(LONG, none)
        .await
        .expect("who is busy is left alone");
}
