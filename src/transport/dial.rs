//! From an instance to a connection that is ready for calls.

use std::{
    future::{Future, poll_fn},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::client::{self, SendRequest};
use http::uri::{Authority, Scheme};
use tokio::time::{Instant, sleep, timeout_at};

#[cfg(feature = "tonic-channel")]
use super::Lender;
use super::{
    Connect, Connection, Drive, Io, Peer, Settings, Tls,
    driver::{Driver, H2, Pace, Traffic},
    greeting::Greeting,
    keep_alive::Pulse,
    outgoing::Origin,
    overheard::Overheard,
};
use crate::{Address, Error, ErrorKind, Instance};

/// Connects to instances.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    connect: Arc<dyn Connect>,
    tls: Option<Tls>,
    settings: Settings,
    pace: Arc<Pace>,
    /// Tonic connects in our place.
    #[cfg(feature = "tonic-channel")]
    lender: Option<Lender>,
}

/// How long an attempt may keep the next one waiting (gRFC A61).
const STAGGER: Duration = Duration::from_millis(250);

/// What h2 is told to believe until the peer's settings come, when it becomes another number.
const NO_SETTINGS_YET: usize = usize::MAX - 1;

impl Dialer {
    pub(crate) fn new(connect: Arc<dyn Connect>, tls: Option<Tls>, settings: Settings) -> Self {
        Self {
            connect,
            tls,
            settings,
            pace: Arc::default(),
            #[cfg(feature = "tonic-channel")]
            lender: None,
        }
    }

    /// Has tonic connect, if there is a lender.
    #[cfg(feature = "tonic-channel")]
    pub(crate) fn lending(mut self, lender: Option<Lender>) -> Self {
        self.lender = lender;
        self
    }

    /// Connects to one of the instance's addresses: the first that is ready for calls.
    ///
    /// The next address is tried when one has failed, or has kept us waiting for 250 ms. All of it is
    /// over within the connect timeout. The driver has to run for the connection to live.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives all attempts up.
    pub(crate) async fn dial(&self, instance: &Instance) -> Result<(Connection, Drive), Error> {
        #[cfg(feature = "tonic-channel")]
        if let Some(lender) = &self.lender {
            return self.borrow_from(lender, instance).await;
        }
        let until = Instant::now() + self.settings.connect_timeout;
        if let [only] = &*instance.addresses {
            // Most have one: a race of one would take three times the memory.
            return self.attempt(instance, only, until).await;
        }
        let attempts = instance.addresses.iter();
        let attempts = attempts.map(|address| self.attempt(instance, address, until));
        race(attempts.collect()).await.map_err(|failed| {
            let kind = failed.first().map_or(ErrorKind::Config, Error::kind);
            let each = failed.iter().map(Error::chain).collect::<Vec<_>>();
            Error::new(kind, format!("connect to instance {}", instance.id))
                .because(each.join("; "))
        })
    }

    #[cfg(feature = "tonic-channel")]
    async fn borrow_from(
        &self,
        lender: &Lender,
        instance: &Instance,
    ) -> Result<(Connection, Drive), Error> {
        let unused = Address::Name("localhost".into(), 0);
        let origin = self.origin(instance, instance.addresses.first().unwrap_or(&unused))?;
        let made = lender.dial(instance, origin, self.settings.connect_timeout);
        let (connection, keeper) = made.await?;
        Ok((connection, Drive::Lent(keeper)))
    }

    async fn attempt(
        &self,
        instance: &Instance,
        address: &Address,
        until: Instant,
    ) -> Result<(Connection, Drive), Error> {
        let origin = self.origin(instance, address)?;
        let io = timeout_at(until, self.connect.connect(address)).await;
        let io = io.map_err(|_| self.overdue(address, "the network"))?;
        let io = io.map_err(|error| unavailable(format!("connect to {address}"), error))?;
        // Below TLS, which may have sent a part of what it says it could not.
        let traffic = Arc::<Traffic>::default();
        let mut io: Box<dyn Io> = Box::new(Overheard::by(Arc::clone(&traffic), io));
        if let Some(tls) = &self.tls {
            let over = timeout_at(until, tls.over(io, instance, address)).await;
            io = over.map_err(|_| self.overdue(address, "TLS"))??;
        }
        let (greeting, takes) = Greeting::new();
        let io = Overheard::by(greeting, io);
        let ready = timeout_at(until, self.handshake(Box::new(io), address)).await;
        let (sender, h2) = ready.map_err(|_| self.overdue(address, "HTTP/2"))??;

        let peer = Peer {
            id: instance.id.clone(),
            address: address.clone(),
        };
        let (connection, shared) = Connection::new(peer, origin, sender, (traffic, takes.bytes()));
        let keep_alive = self.settings.keep_alive.map(|mut rule| {
            rule.every = self.pace.of(rule.every);
            Pulse::new(rule)
        });
        let adaptive = self.settings.windows.adaptive;
        let driver = Driver::new(h2, shared, keep_alive, adaptive, Arc::clone(&self.pace));
        Ok((connection, Drive::Own(driver)))
    }

    /// HTTP/2, until the peer's settings have come: only then it is known to be one that serves.
    async fn handshake(
        &self,
        io: Box<dyn Io>,
        address: &Address,
    ) -> Result<(SendRequest<Bytes>, H2), Error> {
        let failed = |error| {
            let denied = self.tls.as_ref().and_then(|tls| tls.late(address, &error));
            denied.unwrap_or_else(|| unavailable(format!("begin HTTP/2 with {address}"), error))
        };
        let (mut sender, mut h2) = self.h2().handshake(io).await.map_err(failed)?;
        poll_fn(|cx| match Pin::new(&mut h2).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(Error::new(
                ErrorKind::Unavailable,
                format!("begin HTTP/2 with {address}: it closed the connection"),
            ))),
            Poll::Pending if h2.max_concurrent_send_streams() == NO_SETTINGS_YET => Poll::Pending,
            // It may have said goodbye in the same breath.
            Poll::Pending => sender.poll_ready(cx).map_err(failed),
        })
        .await?;
        Ok((sender, h2))
    }

    fn h2(&self) -> client::Builder {
        let settings = &self.settings;
        let mut builder = client::Builder::new();
        builder
            .initial_max_send_streams(NO_SETTINGS_YET)
            .enable_push(false)
            .initial_window_size(settings.windows.stream)
            .initial_connection_window_size(settings.windows.connection)
            .max_header_list_size(settings.max_header_list_size)
            // Streams that we cancelled, remembered for what the server had under way for them.
            .max_concurrent_reset_streams(256)
            // By default a thousand small messages that wait for a slow reader break the connection
            // for all. The windows bound them; this is what messages of ten bytes may cost in them.
            .data_frame_budget(settings.windows.most() as usize * 16);
        builder
    }

    fn origin(&self, instance: &Instance, address: &Address) -> Result<Origin, Error> {
        let given = self.settings.origin.as_ref();
        let tls = self.tls.is_some();
        let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
        let name = self.tls.as_ref().and_then(Tls::name);
        let authority = match (
            given.and_then(|uri| uri.authority()),
            name.or(instance.server_name.as_ref()),
            address,
        ) {
            (Some(authority), ..) => Ok(authority.clone()),
            // An authority has IPv6 addresses in brackets; a name in a certificate has not.
            (None, Some(name), _) if name.parse::<Ipv6Addr>().is_ok() => {
                Authority::try_from(format!("[{name}]"))
            }
            (None, Some(name), _) => Authority::try_from(&**name),
            (None, None, Address::Unix(_)) => Ok(Authority::from_static("localhost")),
            (None, None, address) => Authority::try_from(address.to_string()),
        };
        Ok(Origin {
            scheme: given
                .and_then(|uri| uri.scheme())
                .cloned()
                .unwrap_or(scheme),
            authority: authority.map_err(|error| {
                let what = format!("instance {}: its server name is no authority", instance.id);
                Error::config(what).because(error)
            })?,
            user_agent: self.settings.user_agent.clone(),
        })
    }

    fn overdue(&self, address: &Address, what: &str) -> Error {
        let limit = self.settings.connect_timeout;
        let what = format!("connect to {address}: no answer from {what} within {limit:?}");
        Error::new(ErrorKind::Timeout, what)
    }
}

fn unavailable<E: std::error::Error + Send + Sync + 'static>(doing: String, cause: E) -> Error {
    Error::new(ErrorKind::Unavailable, doing).because(cause)
}

/// The first of these to succeed, each begun when the one before has failed or kept us waiting; or why
/// each has failed. The others are dropped.
pub(crate) async fn race<F, T, E>(attempts: Vec<F>) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter().enumerate();
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        if let Some((nth, attempt)) = waiting.next() {
            running.push(async move { (nth, attempt.await) });
        }
        tokio::select! {
            ended = running.next() => match ended {
                Some((_, Ok(won))) => return Ok(won),
                Some((nth, Err(error))) => failed.push((nth, error)),
                None => break,
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
    failed.sort_by_key(|(nth, _)| *nth);
    Err(failed.into_iter().map(|(_, error)| error).collect())
}

/// Addresses with the two families in turn, beginning with that of the first (RFC 8305).
pub(super) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut mixed = Vec::new();
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}
