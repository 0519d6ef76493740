//! The same situations for tonic's own balanced channel and for ours, side by side.

mod echo;

use std::{error::Error, future::pending, net::SocketAddr, time::Duration};

use echo::{BACKEND, Echo, EchoClient, EchoRequest, EchoServer};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::{
    Request, Status,
    body::Body,
    transport::{Channel as Tonic, Endpoint, Server, channel::Change, server::TcpIncoming},
};
use tonic_fleet::Channel as Fleet;
use tower::{ServiceExt, util::BoxCloneSyncService};

/// Either contender, as a generated client takes it.
type Caller = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("| situation | `balance_channel` | tonic-fleet |\n|---|---|---|");
    let live = servers(&[Duration::ZERO; 3]).await?;
    let refusing = refusing().await?;
    let four = [live[0], live[1], live[2], refusing];
    println!(
        "| one server of four refuses connections: calls that fail | {} | {} |",
        failing(tonic(&four), 20_000).await,
        failing(fleet(&four)?, 20_000).await
    );
    println!(
        "| nobody is there, and the deadline is 300 ms: the error comes after | {} | {} |",
        nobody(tonic(&[])).await,
        nobody(fleet(&[refusing])?).await
    );
    let two = servers(&[Duration::from_millis(100), Duration::from_millis(1)]).await?;
    println!(
        "| one server of two takes 100 ms, the other 1 ms, 64 callers: calls a second, share of the fast one | {} | {} |",
        uneven(tonic(&two)).await,
        uneven(fleet(&two)?).await
    );
    println!(
        "| a server is there, and nobody calls for half a second: it is connected | {} | {} |",
        idle(tonic).await?,
        idle(|addrs| fleet(addrs).expect("loopback addresses make a good target")).await?
    );
    Ok(())
}

fn tonic(addrs: &[SocketAddr]) -> Caller {
    let (channel, changes) = Tonic::balance_channel(64);
    for addr in addrs {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"));
        let endpoint = endpoint.expect("an address makes a good URL");
        // There is room: nothing else was sent.
        let _ = changes.try_send(Change::Insert(*addr, endpoint));
    }
    // While the sender lives, the set may change, as it may in earnest.
    tokio::spawn(async move {
        let _changes = changes;
        pending::<()>().await;
    });
    BoxCloneSyncService::new(channel.map_err(|error| Status::from_error(error.into())))
}

fn fleet(addrs: &[SocketAddr]) -> Result<Caller, tonic_fleet::Error> {
    let list: Vec<_> = addrs.iter().map(ToString::to_string).collect();
    let channel = Fleet::builder(format!("static://{}", list.join(",")).parse()?).build()?;
    let channel = channel.map_response(|answer| answer.map(Body::new));
    Ok(BoxCloneSyncService::new(channel))
}

/// Servers that take so long to answer, each named after its place.
async fn servers(delays: &[Duration]) -> Result<Vec<SocketAddr>, Box<dyn Error>> {
    let mut addrs = Vec::new();
    for (place, delay) in delays.iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addrs.push(listener.local_addr()?);
        let echo = Echo::new(&place.to_string()).delay(*delay);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(
            Server::builder()
                .add_service(EchoServer::new(echo))
                .serve_with_incoming(incoming),
        );
    }
    Ok(addrs)
}

/// An address where nobody listens.
async fn refusing() -> Result<SocketAddr, Box<dyn Error>> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

fn ask() -> EchoRequest {
    EchoRequest {
        message: "hello".into(),
    }
}

async fn failing(channel: Caller, calls: usize) -> String {
    let mut callers = JoinSet::new();
    const CALLERS: usize = 16;
    for _ in 0..CALLERS {
        let mut client = EchoClient::new(channel.clone());
        callers.spawn(async move {
            let mut failed = 0;
            for _ in 0..calls / CALLERS {
                failed += usize::from(client.unary_echo(ask()).await.is_err());
            }
            failed
        });
    }
    let failed: usize = callers.join_all().await.into_iter().sum();
    format!(
        "{failed} of {calls} ({:.1} %)",
        100.0 * failed as f64 / calls as f64
    )
}

async fn nobody(channel: Caller) -> String {
    const LIMIT: Duration = Duration::from_secs(5);
    let mut request = Request::new(ask());
    request.set_timeout(Duration::from_millis(300));
    let began = Instant::now();
    match timeout(LIMIT, EchoClient::new(channel).unary_echo(request)).await {
        Ok(_) => format!("{} ms", (Instant::now() - began).as_millis()),
        Err(_) => format!("not within {} s", LIMIT.as_secs()),
    }
}

async fn uneven(channel: Caller) -> String {
    const TIME: Duration = Duration::from_secs(3);
    let end = Instant::now() + TIME;
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let mut client = EchoClient::new(channel.clone());
        callers.spawn(async move {
            let (mut all, mut fast) = (0_u32, 0_u32);
            while Instant::now() < end {
                if let Ok(response) = client.unary_echo(ask()).await {
                    all += 1;
                    let by = response.metadata().get(BACKEND);
                    fast += u32::from(by.is_some_and(|by| by == "1"));
                }
            }
            (all, fast)
        });
    }
    let (all, fast) = callers
        .join_all()
        .await
        .into_iter()
        .fold((0, 0), |(all, fast), (a, f)| (all + a, fast + f));
    let share = 100.0 * f64::from(fast) / f64::from(all.max(1));
    format!("{:.0}, {share:.0} %", f64::from(all) / TIME.as_secs_f64())
}

async fn idle(over: impl FnOnce(&[SocketAddr]) -> Caller) -> Result<&'static str, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let _channel = over(&[listener.local_addr()?]);
    let connected = timeout(Duration::from_millis(500), listener.accept()).await;
    Ok(if connected.is_ok() { "yes" } else { "no" })
}
