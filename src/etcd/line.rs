//! The way to one member: a connection of our own, under etcd's client.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{runtime::Handle, sync::OnceCell};
use tonic::{Status, body::Body};
use tower::{BoxError, Service};

use crate::{
    Error, Instance,
    transport::{Connection, Dialer, Failure, KeepAlive, Outgoing, Settings, Tcp, Tls, Windows},
};

/// One connection to one member, made by the first who asks over it, and never made anew: when it is
/// in doubt, it is replaced as a whole.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    member: Instance,
    connection: OnceCell<Connection>,
    runtime: Handle,
}

/// Why something was certainly never processed; found again in the causes of a status.
#[derive(Debug)]
pub(super) struct Unsent(pub(super) Error);

/// What makes connections to members.
pub(super) fn dialer(tls: Option<Tls>) -> Dialer {
    let settings = Settings {
        connect_timeout: CONNECT_LIMIT,
        keep_alive: Some(KeepAlive {
            every: PING_EVERY,
            timeout: PING_LIMIT,
            while_idle: false,
        }),
        // A list may be long, and is waited for.
        windows: Windows::fixed(4 << 20, 8 << 20),
        ..Settings::default()
    };
    Dialer::new(Arc::new(Tcp::default()), tls, settings)
}

impl Line {
    pub(super) fn to(member: Instance, dialer: Dialer, runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            dialer,
            member,
            connection: OnceCell::new(),
            runtime,
        }))
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let connection = self.0.connection.get_or_try_init(|| self.dial());
        let connection = connection.await.map_err(unsent)?;
        let mut call = Outgoing::keeping(0, request);
        match connection.call(&mut call).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(Failure::NotSent(error) | Failure::Refused(error)) => Err(unsent(error)),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn dial(&self) -> Result<Connection, Error> {
        let (connection, driver) = self.0.dialer.dial(&self.0.member).await?;
        // Ends by itself when the last who has the connection, or a stream over it, has gone.
        self.0.runtime.spawn(driver.run(|_| {}));
        Ok(connection)
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = self.clone();
        Box::pin(async move { line.send(request).await.map_err(Into::into) })
    }
}

fn unsent(error: Error) -> Status {
    let mut status = Status::unavailable(error.chain());
    status.set_source(Arc::new(Unsent(error)));
    status
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.chain())
    }
}

impl StdError for Unsent {}

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// etcd ends connections that ping more often than this.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_LIMIT: Duration = Duration::from_secs(2);
