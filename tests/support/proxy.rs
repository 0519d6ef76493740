//! A way to a server that can be cut in every way that networks know.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, sync::DropGuard, task::TaskTracker};

/// What happens on the way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// All goes through.
    Pass,
    /// Nothing goes through, and nobody is told; what is sent arrives when it passes again.
    Hole,
    /// What the server says is held back.
    HoleToClient,
    /// What the client says is held back.
    HoleToServer,
    /// Connections are made and reset, and so are those that exist.
    Reset,
    /// Nobody listens, and existing connections are reset.
    Refuse,
    /// Each piece takes this long, in each direction.
    Delay(Duration),
}

/// A TCP proxy in front of one server; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    attempts: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Proxy {
    /// In front of the server at this address; passes everything.
    pub async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let attempts = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let serving = serve(
            listener,
            server.to_owned(),
            modes,
            Arc::clone(&attempts),
            stop.clone(),
        );
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Self {
            address,
            mode,
            attempts,
            _stop: stop.drop_guard(),
        }
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on, this happens.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections were ever tried.
    pub fn attempts(&self) -> usize {
        self.attempts.load(SeqCst)
    }
}

async fn serve(
    listener: TcpListener,
    server: String,
    mut modes: watch::Receiver<Mode>,
    attempts: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let pumps = TaskTracker::new();
    loop {
        let mode = *modes.borrow_and_update();
        if mode == Mode::Refuse {
            listener = None;
            if modes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listening = listener.get_or_insert_with(|| listen(address));
        let client = tokio::select! {
            client = listening.accept() => client.unwrap().0,
            changed = modes.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        attempts.fetch_add(1, SeqCst);
        if mode == Mode::Reset {
            client.set_zero_linger().unwrap();
            continue;
        }
        let joined = join(client, server.clone(), modes.clone());
        pumps.spawn(stop.clone().run_until_cancelled_owned(joined));
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

/// Carries bytes both ways until one side ends, or a reset is wanted.
async fn join(client: TcpStream, server: String, mut modes: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(server).await else {
        client.set_zero_linger().unwrap();
        return;
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let _ = (client.set_zero_linger(), server.set_zero_linger());
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let cut = |mode: &Mode| matches!(mode, Mode::Reset | Mode::Refuse);
    let (up, down) = (modes.clone(), modes.clone());
    tokio::select! {
        () = pump(from_client, to_server, up, Mode::HoleToServer) => {}
        () = pump(from_server, to_client, down, Mode::HoleToClient) => {}
        _ = modes.wait_for(cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    hole: Mode,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else {
            return;
        };
        let passes = |mode: &Mode| *mode != Mode::Hole && *mode != hole;
        let Ok(mode) = modes.wait_for(passes).await.map(|mode| *mode) else {
            return;
        };
        if let Mode::Delay(time) = mode {
            sleep(time).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
