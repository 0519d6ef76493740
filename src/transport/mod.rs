//! How the bytes of a call reach one server: addresses, TLS, and an HTTP/2 connection of our own.
//!
//! One task drives a connection (its driver); the caller's own task opens its stream, sends its
//! body under flow control and reads the response. There is no queue between them, and no task per
//! call, but for the rest of a request whose response has begun. What a balancer must know is
//! visible: whether a call left at all, whether the server said that it did not process it, how many
//! streams fit, and when the server wants no more.

use std::time::Duration;

use http::{HeaderValue, Uri};

mod connect;
mod connection;
mod dial;
mod drive;
mod driver;
mod greeting;
mod incoming;
mod keep_alive;
#[cfg(feature = "_tls")]
mod last_words;
#[cfg(feature = "tonic-channel")]
mod lent;
#[cfg(not(feature = "_tls"))]
mod no_tls;
mod outgoing;
mod overheard;
mod quota;
mod sending;
#[cfg(feature = "_tls")]
mod tls;
mod windows;

#[cfg(test)]
mod tests;

pub use connect::{Connect, Connecting, Io, Tcp};
#[cfg(feature = "tonic-channel")]
pub(crate) use lent::Lender;
#[cfg(not(feature = "_tls"))]
pub(crate) use no_tls::Tls;
#[cfg(feature = "_tls")]
pub use tls::Tls;
pub use windows::Windows;
pub(crate) use {
    connection::{Connection, Failure, Listening, Peer, Slot},
    dial::{Dialer, race},
    drive::Drive,
    driver::Told,
    incoming::Incoming,
    keep_alive::KeepAlive,
    outgoing::Outgoing,
    sending::Sent,
};

/// What holds for all connections of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How long connecting may take, from the look-up of a name to the peer's HTTP/2 settings. More
    /// suits slow links; less finds a black hole sooner.
    pub(crate) connect_timeout: Duration,
    /// How an unresponsive peer is noticed. `None` leaves it to deadlines and to the kernel.
    pub(crate) keep_alive: Option<KeepAlive>,
    /// How much a server may send before it is read.
    pub(crate) windows: Windows,
    /// The most a response's metadata may take, as HTTP/2 counts it.
    pub(crate) max_header_list_size: u32,
    /// Sent with requests that bring no `user-agent` of their own.
    pub(crate) user_agent: HeaderValue,
    /// Scheme and authority of every request, instead of those of the instance.
    pub(crate) origin: Option<Uri>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keep_alive: Some(KeepAlive::default()),
            windows: Windows::default(),
            max_header_list_size: 16 << 10,
            user_agent: HeaderValue::from_static(concat!(
                "tonic-fleet/",
                env!("CARGO_PKG_VERSION")
            )),
            origin: None,
        }
    }
}
