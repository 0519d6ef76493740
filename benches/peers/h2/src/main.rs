//! Bare `h2`, round robin over one connection to each server: what there is to be reached.
//!
//! `codec` takes a generated client of tonic's, `raw` writes the frames itself. Neither reconnects, balances, retries
//! or watches anything.
#![allow(clippy::all, reason = "generated code beside")]

mod codec;
#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
#[path = "../../common/grpc.rs"]
mod grpc;
mod raw;

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use h2::client::SendRequest;
use load::Failure;
use tokio::net::TcpStream;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("codec") => load::run::<codec::Codec>(),
        Some("raw") => load::run::<raw::Raw>(),
        _ => {
            eprintln!("say: peer-h2 codec|raw");
            ExitCode::from(2)
        }
    }
}

/// A connection to each server, each in turn.
#[derive(Clone)]
pub struct Pool(Arc<Connections>);

struct Connections {
    all: Vec<(SendRequest<Bytes>, http::uri::Authority)>,
    turn: AtomicUsize,
}

impl Pool {
    async fn open(servers: &[SocketAddr]) -> Result<Self, Failure> {
        let mut all = Vec::new();
        for server in servers {
            let socket = TcpStream::connect(server).await?;
            socket.set_nodelay(true)?;
            let (send, connection) = h2::client::Builder::new()
                // As hyper, and so tonic, has it.
                .initial_window_size(2 << 20)
                .initial_connection_window_size(5 << 20)
                .handshake(socket)
                .await?;
            tokio::spawn(connection);
            all.push((send, server.to_string().parse()?));
        }
        let turn = AtomicUsize::new(0);
        Ok(Self(Arc::new(Connections { all, turn })))
    }

    fn next(&self) -> (SendRequest<Bytes>, http::uri::Authority) {
        let turn = self.0.turn.fetch_add(1, Relaxed);
        let (send, authority) = &self.0.all[turn % self.0.all.len()];
        (send.clone(), authority.clone())
    }
}
