//! What questions go over: the connection of the calls, one of its own, or none at all.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use tokio::sync::Notify;
use tonic::{Status, body::Body};
use tower::{
    BoxError, Service, ServiceExt,
    util::{BoxCloneSyncService, MapErr},
};

use crate::{
    Error, Instance, Result,
    transport::{Connection, Dialer, Listening, Outgoing, Settings, Slot, Tcp, Told},
};

/// See the module's documentation.
#[derive(Clone)]
pub(crate) enum Over {
    Connection(Connection),
    Line(Arc<Line>),
    Service(Local),
}

type Local = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// A place for one question, at whoever is asked.
pub(crate) enum Turn {
    Connection(Connection, Option<Slot>),
    Line(Arc<Line>),
    Service(Local),
}

/// A connection of its own, made when it is needed.
pub(crate) struct Line {
    dialer: Dialer,
    instance: Arc<Instance>,
    connection: Mutex<Option<Connection>>,
}

impl Over {
    pub(super) fn line(instance: Arc<Instance>) -> Self {
        Self::Line(Arc::new(Line {
            dialer: Dialer::new(Arc::new(Tcp::default()), None, Settings::default()),
            instance,
            connection: Mutex::default(),
        }))
    }

    pub(super) fn service<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError> + 'static,
    {
        let service = MapErr::new(service, |error: S::Error| Status::from_error(error.into()));
        Self::Service(BoxCloneSyncService::new(service))
    }

    /// A place for a question, as soon as there is one: that a connection is full of calls says nothing of
    /// its server's health.
    pub(crate) async fn turn(&self) -> Result<Turn, Status> {
        let Self::Connection(connection) = self else {
            return self.try_turn().ok_or_else(away);
        };
        let slot = connection.slot().await.ok_or_else(away)?;
        Ok(Turn::Connection(connection.clone(), Some(slot)))
    }

    /// A place for a question, if there is one now.
    pub(crate) fn try_turn(&self) -> Option<Turn> {
        Some(match self {
            Self::Connection(connection) => {
                let slot = connection.try_slot()?;
                Turn::Connection(connection.clone(), Some(slot))
            }
            Self::Line(line) => Turn::Line(Arc::clone(line)),
            Self::Service(service) => Turn::Service(service.clone()),
        })
    }
}

impl Turn {
    /// For a question that may be answered for days; while this lives it is under way.
    pub(crate) fn listen(&self) -> Option<Listening> {
        match self {
            Self::Connection(connection, _) => Some(connection.listen()),
            Self::Line(_) | Self::Service(_) => None,
        }
    }
}

impl Service<Request<Body>> for Turn {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Self::Connection(connection, slot) => {
                let (connection, slot) = (connection.clone(), slot.take());
                async move { send(&connection, slot.ok_or_else(away)?, request).await }.boxed()
            }
            Self::Line(line) => {
                let line = Arc::clone(line);
                async move {
                    let unreached = |error: Error| Status::unavailable(error.chain());
                    let connection = line.connection().await.map_err(unreached)?;
                    let slot = connection.slot().await.ok_or_else(away)?;
                    send(&connection, slot, request).await
                }
                .boxed()
            }
            Self::Service(service) => service.clone().oneshot(request).boxed(),
        }
    }
}

impl Line {
    async fn connection(&self) -> Result<Connection> {
        let known = self.current().clone().filter(Connection::accepts);
        if let Some(known) = known {
            return Ok(known);
        }
        let (connection, driver) = self.dialer.dial(&self.instance).await?;
        // Ends by itself when the last who has the connection, or a stream over it, has gone. And a server
        // that stops waits for its streams to end, which a watch would not.
        tokio::spawn(async move {
            let leaving = Notify::new();
            let told = |told| {
                if matches!(told, Told::GoingAway(_)) {
                    leaving.notify_one();
                }
            };
            tokio::select! {
                _ = driver.run(told) => {}
                () = leaving.notified() => {}
            }
        });
        *self.current() = Some(connection.clone());
        Ok(connection)
    }

    fn current(&self) -> MutexGuard<'_, Option<Connection>> {
        // Each write is whole.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(
    connection: &Connection,
    slot: Slot,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let mut call = Outgoing::new(request);
    let response = connection.call_in(slot, &mut call).await?;
    Ok(response.map(Body::new))
}

fn away() -> Status {
    Status::unavailable("the connection takes no more calls")
}
