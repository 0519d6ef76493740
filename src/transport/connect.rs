//! How a byte stream to an address comes about.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::dial;
use crate::Address;

/// A byte stream that HTTP/2 can run over; implemented for all that can be one.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// The future of [`Connect::connect`].
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>>;

/// Opens byte streams to addresses.
///
/// [`Tcp`] is the usual one; a proxy, or pipes in memory for tests, can take its place. TLS and HTTP/2
/// are laid over what it returns. Dropping the future gives the attempt up; there is no need for a
/// time limit inside, because the whole attempt has one.
///
/// ```
/// use tonic_fleet::{Address, transport::{Connect, Connecting, Tcp}};
///
/// /// Every address, by way of a tunnel on this machine.
/// #[derive(Debug)]
/// struct Tunnel(Address);
///
/// impl Connect for Tunnel {
///     fn connect<'a>(&'a self, _: &'a Address) -> Connecting<'a> {
///         Box::pin(async { Tcp::default().connect(&self.0).await })
///     }
/// }
/// ```
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Connects to this address.
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a>;
}

/// TCP, with `TCP_NODELAY`, and Unix sockets.
///
/// A name is looked up at each attempt, and its addresses are tried by happy eyeballs: the next one
/// starts when one has failed or has kept us waiting for 250 ms, and the first to connect wins.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Tcp {}

impl Connect for Tcp {
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
        Box::pin(async move {
            Ok(match address {
                Address::Ip(addr) => Box::new(tcp(*addr).await?) as Box<dyn Io>,
                Address::Name(name, port) => Box::new(by_name(name, *port).await?),
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            })
        })
    }
}

async fn tcp(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    // A call is one small write, and must not wait for the answer to the one before.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn by_name(name: &str, port: u16) -> io::Result<TcpStream> {
    let found = tokio::net::lookup_host((name, port)).await.map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("the name {name} cannot be looked up: {e}"),
        )
    })?;
    let found = dial::interleave(found.collect());
    if found.is_empty() {
        let why = format!("the name {name} has no address");
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }

    let attempts = found.iter().map(|&addr| tcp(addr));
    dial::race(attempts.collect()).await.map_err(|mut failed| {
        if failed.len() == 1 {
            return failed.remove(0);
        }
        let kind = failed[0].kind();
        let each = found.iter().zip(&failed).map(|(a, e)| format!("{a}: {e}"));
        io::Error::new(kind, each.collect::<Vec<_>>().join("; "))
    })
}
