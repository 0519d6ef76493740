//! Servers that say how busy they are, over sockets.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::transport::Server;
use tonic_fleet::{
    Channel, ServedBy,
    balance::Orca,
    orca::{Recorder, Report},
};

use super::{EchoClient, EchoServer, ask, builder, echo::Echo, listen};

/// Long enough for a machine that has much else to do.
const LONG: Duration = Duration::from_secs(60);

/// A server that is used so much, and says so with its calls and on a stream; its address.
async fn server(id: &str, utilization: f64) -> String {
    let recorder = Recorder::new();
    recorder.application_utilization(utilization);
    let stream = recorder.service().at_most_every(Duration::from_millis(20));
    let server = Server::builder().layer(recorder.layer());
    listen(
        { server }
            .add_service(EchoServer::new(Echo::new(id)))
            .add_service(stream),
    )
    .await
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
    let servers = [server("idle", 0.1).await, server("busy", 0.9).await];
    let idle = servers[0].clone();
    let channel = builder(servers).policy(policy()).build().unwrap();

    comes_to_be_preferred(channel, &idle).await;
}

#[tokio::test]
async fn who_reports_to_be_used_less_on_a_stream_is_given_more() {
    let servers = [server("idle", 0.1).await, server("busy", 0.9).await];
    let idle = servers[0].clone();
    let policy = policy().out_of_band(Duration::from_millis(50));
    let channel = builder(servers).policy(policy).build().unwrap();

    comes_to_be_preferred(channel, &idle).await;
}

#[tokio::test]
async fn a_report_is_in_the_trailers_that_any_client_sees() {
    let server = server("a", 0.5).await;
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
