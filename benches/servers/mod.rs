//! Echo servers in a process of their own, so that only the client is measured.

#[path = "../../examples/echo/mod.rs"]
pub(crate) mod echo;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use echo::{Echo, EchoServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The process ends with this value.
pub(crate) struct Servers {
    process: Child,
    pub(crate) addresses: Vec<String>,
}

impl Servers {
    pub(crate) fn start(n: usize) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--serve", &n.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let addresses = lines.take(n).map(Result::unwrap).collect();
        Self { process, addresses }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves, if that is what this process was started for.
pub(crate) fn serve_if_told() -> bool {
    let wanted = std::env::args().skip_while(|word| word != "--serve").nth(1);
    wanted
        .map(|servers| runtime().block_on(serve(servers.parse().unwrap())))
        .is_some()
}

async fn serve(n: usize) {
    for id in 0..n {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let echo = EchoServer::new(Echo::new(&id.to_string()));
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .tcp_nodelay(true)
                .add_service(echo)
                .serve_with_incoming(incoming),
        );
    }
    std::io::stdout().flush().unwrap();
    // The parent holds the other end; whatever becomes of it, this process ends with it.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
}
