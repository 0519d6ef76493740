//! A network in memory, with echo servers that can be killed, so that time can stand still.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    task::{Context, Poll},
};

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    body::Body,
    server::NamedService,
    transport::{Server, server::Connected},
};
use tonic_fleet::{
    Address, Instance, ServiceName, balance,
    resolve::{Publisher, Resolve, Updates, publish},
    transport::{Connect, Connecting, Io},
};

use crate::echo::{Echo, EchoServer};

/// Addresses, and what happens to who connects there.
#[derive(Clone, Debug)]
pub struct Net(Arc<Mutex<HashMap<Address, Host>>>);

impl Default for Net {
    /// An empty one; what picks on this thread leave to chance goes the same way each time.
    fn default() -> Self {
        balance::seed(7);
        Self(Arc::default())
    }
}

#[derive(Clone, Debug)]
enum Host {
    /// Somebody listens.
    Up(mpsc::UnboundedSender<Line>),
    /// Connecting never ends.
    Silent,
    /// Connecting succeeds, and then nothing is ever read or said.
    Dumb,
}

/// A server that cannot be connected to for now.
pub struct Hidden(Address, Host);

/// A server of the echo service on a [`Net`].
pub struct Running {
    pub instance: Instance,
    pub echo: Echo,
    /// Connections that are open now, and that ever were.
    pub open: Arc<AtomicUsize>,
    pub ever: Arc<AtomicUsize>,
    net: Net,
    killed: CancellationToken,
    frozen: CancellationToken,
    stopping: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Net {
    /// A server with this id, at an address made of it.
    pub fn serve(&self, id: &str) -> Running {
        self.serve_at(id, &format!("{id}.test:1"), Echo::new(id))
    }

    pub fn serve_at(&self, id: &str, address: &str, echo: Echo) -> Running {
        self.serve_by(Server::builder(), id, address, echo)
    }

    /// The same with limits of the server's own.
    pub fn serve_by(&self, server: Server, id: &str, address: &str, echo: Echo) -> Running {
        self.serve_with(server, id, address, echo.clone(), EchoServer::new(echo))
    }

    /// The same with another service in the echo's place.
    pub fn serve_with<S>(
        &self,
        mut server: Server,
        id: &str,
        address: &str,
        echo: Echo,
        service: S,
    ) -> Running
    where
        S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let (dialled, lines) = mpsc::unbounded_channel::<Line>();
        let address: Address = address.parse().unwrap();
        self.0
            .lock()
            .unwrap()
            .insert(address.clone(), Host::Up(dialled));
        let (killed, stopping) = (CancellationToken::new(), CancellationToken::new());
        let (open, ever) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let frozen = CancellationToken::new();
        let freezes = frozen.clone();
        let cut = (killed.clone(), Arc::clone(&open), Arc::clone(&ever));
        let incoming = stream::unfold(lines, |mut lines| async {
            Some((lines.recv().await?, lines))
        });
        let incoming = incoming.map(move |line| {
            let line = line.counted(&cut.0, &cut.1, &cut.2);
            Ok::<_, io::Error>(line.until_frozen(&freezes))
        });
        let router = server.add_service(service);
        let (stop, kill) = (stopping.clone(), killed.clone());
        let serving = tokio::spawn(async move {
            let serve = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            let _ = kill.run_until_cancelled_owned(serve).await;
        });
        Running {
            instance: Instance::at(address).and_then(|i| i.id(id)).unwrap(),
            echo,
            open,
            ever,
            net: self.clone(),
            killed,
            frozen,
            stopping,
            serving,
        }
    }

    pub fn silent(&self, id: &str) -> Instance {
        self.without_server(id, Host::Silent)
    }

    pub fn dumb(&self, id: &str) -> Instance {
        self.without_server(id, Host::Dumb)
    }

    /// One at an address where nobody listens.
    pub fn refusing(&self, id: &str) -> Instance {
        Instance::at(format!("{id}.test:1"))
            .and_then(|i| i.id(id))
            .unwrap()
    }

    fn without_server(&self, id: &str, host: Host) -> Instance {
        let instance = self.refusing(id);
        self.0
            .lock()
            .unwrap()
            .insert(instance.addresses[0].clone(), host);
        instance
    }

    /// Nobody new can connect to it until this is given back; those who are stay.
    pub fn hide(&self, running: &Running) -> Hidden {
        let address = running.instance.addresses[0].clone();
        let host = self.0.lock().unwrap().remove(&address).unwrap();
        Hidden(address, host)
    }

    pub fn show(&self, Hidden(address, host): Hidden) {
        self.0.lock().unwrap().insert(address, host);
    }

    /// Lets the same server be found at one more address.
    pub fn alias(&self, of: &Running, id: &str) -> Instance {
        let mut hosts = self.0.lock().unwrap();
        let host = hosts[&of.instance.addresses[0]].clone();
        let instance = self.refusing(id);
        hosts.insert(instance.addresses[0].clone(), host);
        instance
    }
}

impl Running {
    /// Ends it as SIGKILL would: every connection is cut, and nobody listens any more.
    pub fn kill(&self) {
        self.net
            .0
            .lock()
            .unwrap()
            .retain(|address, _| !self.instance.addresses.contains(address));
        self.killed.cancel();
    }

    /// Stops listening, says goodbye on every connection, and returns when the last call has ended.
    pub async fn stop(self) -> u64 {
        self.net
            .0
            .lock()
            .unwrap()
            .retain(|address, _| !self.instance.addresses.contains(address));
        self.stopping.cancel();
        self.serving.await.unwrap();
        self.echo.served()
    }

    /// Freezes it as SIGSTOP would: its connections stay, and nothing is ever read or said on them again.
    pub fn freeze(&self) {
        self.frozen.cancel();
    }

    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub fn ever(&self) -> usize {
        self.ever.load(SeqCst)
    }
}

impl Connect for Net {
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
        Box::pin(async move {
            let host = self.0.lock().unwrap().get(address).cloned();
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            match host {
                None => return Err(io::ErrorKind::ConnectionRefused.into()),
                Some(Host::Silent) => return std::future::pending().await,
                Some(Host::Dumb) => drop(tokio::spawn(async move {
                    let _open = theirs;
                    std::future::pending::<()>().await;
                })),
                Some(Host::Up(dialled)) => dialled
                    .send(Line::new(theirs))
                    .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?,
            }
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// The server's end of a connection, which can be cut.
pub struct Line {
    io: DuplexStream,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    frozen: CancellationToken,
    open: Option<Arc<AtomicUsize>>,
}

impl Line {
    fn new(io: DuplexStream) -> Self {
        Self {
            io,
            cut: None,
            frozen: CancellationToken::new(),
            open: None,
        }
    }

    fn counted(
        mut self,
        cut: &CancellationToken,
        open: &Arc<AtomicUsize>,
        ever: &AtomicUsize,
    ) -> Self {
        open.fetch_add(1, SeqCst);
        ever.fetch_add(1, SeqCst);
        self.cut = Some(Box::pin(cut.clone().cancelled_owned()));
        self.open = Some(Arc::clone(open));
        self
    }

    fn until_frozen(mut self, frozen: &CancellationToken) -> Self {
        self.frozen = frozen.clone();
        self
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().map(|cut| cut.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.fetch_sub(1, SeqCst);
        }
    }
}

impl Connected for Line {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        if self.frozen.is_cancelled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        if self.frozen.is_cancelled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A resolver that says what the test tells it, to one channel.
pub struct ByHand(Mutex<Option<Updates>>);

impl ByHand {
    pub fn new() -> (Publisher, Self) {
        let (publisher, updates) = publish();
        (publisher, Self(Mutex::new(Some(updates))))
    }
}

impl Resolve for ByHand {
    fn resolve(&self, _: &ServiceName) -> Updates {
        self.0.lock().unwrap().take().expect("one channel only")
    }
}
