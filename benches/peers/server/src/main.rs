//! The servers, in a process of their own: `server lean|tonic N [CORE [DELAY_MILLIS [PORT]]]`.
//!
//! It prints an address for each, and ends when its standard input does.

#[path = "../../../../examples/echo/mod.rs"]
mod echo;
mod lean;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use echo::{Echo, EchoServer};
use load::Failure;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize| arguments.get(place).and_then(|n| n.parse::<u16>().ok());
    let (Some(kind @ ("lean" | "tonic")), Some(servers)) =
        (arguments.first().map(String::as_str), number(1))
    else {
        eprintln!("say: server lean|tonic N [CORE [DELAY_MILLIS [PORT]]]");
        return ExitCode::from(2);
    };
    if let Some(core) = number(2) {
        load::pin(core.into());
    }
    let delay = Duration::from_millis(number(3).unwrap_or(0).into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(serve(kind, servers, delay, number(4).unwrap_or(0))));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(kind: &str, servers: u16, delay: Duration, port: u16) -> Result<(), Failure> {
    let mut serving = JoinSet::new();
    for id in 0..servers {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        println!("{}", listener.local_addr()?);
        if kind == "lean" {
            serving.spawn(lean::serve(listener, delay));
        } else {
            serving.spawn(with_tonic(listener, id, delay));
        }
    }
    // The parent holds the other end; whatever becomes of it, this process ends with it.
    let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    parent.await??;
    Ok(())
}

async fn with_tonic(listener: TcpListener, id: u16, delay: Duration) {
    let echo = EchoServer::new(Echo::new(&id.to_string()).delay(delay));
    let served = Server::builder()
        .tcp_nodelay(true)
        .add_service(echo)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await;
    if let Err(error) = served {
        eprintln!("server {id}: {error}");
    }
}
