//! Has an endpoint report on a stream of its own.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use http::uri::PathAndQuery;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::{
    Report,
    messages::{Messages, Wish},
};
use crate::{
    Backoff, State,
    endpoint::Vitals,
    health::{Over, Question},
    transport::Connection,
};

pub(super) const PATH: PathAndQuery =
    PathAndQuery::from_static("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics");

/// Hears reports, until the endpoint or whoever wants them is gone.
pub(crate) fn stream(
    endpoint: &Arc<Vitals>,
    wanted: &Arc<()>,
    every: Duration,
) -> impl Future<Output = ()> + Send + use<> {
    let asked = Asked {
        endpoint: Arc::downgrade(endpoint),
        wanted: Arc::downgrade(wanted),
        every,
    };
    asked.follow()
}

struct Asked {
    endpoint: Weak<Vitals>,
    wanted: Weak<()>,
    every: Duration,
}

/// How long it takes to see that an endpoint is connected, or leaves.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure; a server that has no such service is asked again after as long as that, too.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(120);
/// Reports do not come sooner after each other, whoever sends them.
const BREATH: Duration = Duration::from_millis(10);
/// A server may not be willing to report as often as it is asked to: it has so much longer.
const GRACE: Duration = Duration::from_secs(120);

impl Asked {
    async fn follow(self) {
        let mut backoff = Backoff::between(LEAST, MOST);
        while let Some(endpoint) = self.endpoint() {
            let connection = endpoint.links().first();
            // Nobody is kept by the task that belongs to it.
            drop(endpoint);
            let Some(connection) = connection.filter(|connection| connection.accepts()) else {
                sleep(LOOK).await;
                continue;
            };
            let mut heard = false;
            let ended = self.listen(&connection, &mut heard).await;
            drop(connection);
            tracing::debug!(%ended, "an endpoint's stream of reports ended");
            if heard {
                backoff.reset();
            }
            if ended.code() == Code::Unimplemented {
                sleep(MOST).await;
            } else {
                sleep(backoff.next()).await;
            }
        }
    }

    /// While it is worth asking.
    fn endpoint(&self) -> Option<Arc<Vitals>> {
        self.wanted.upgrade()?;
        let endpoint = self.endpoint.upgrade()?;
        (endpoint.condition().state != State::Gone).then_some(endpoint)
    }

    /// One stream, to why it ended.
    async fn listen(&self, connection: &Connection, heard: &mut bool) -> Status {
        let late = || Status::deadline_exceeded("it reports nothing");
        // No clock counts further than that.
        let patience = self.every.min(GRACE * 30) * 3 + GRACE;
        let begin = async {
            let turn: Question = Over::Connection(connection.clone()).turn().await?;
            let listening = turn.listen();
            let wish = tonic::Request::new(Wish(self.every));
            let codec = Messages::<Wish, Report>::new();
            let mut client = tonic::client::Grpc::new(turn);
            let begun = client.server_streaming(wish, PATH, codec).await?;
            Ok::<_, Status>((begun.into_inner(), listening))
        };
        let (mut reports, _listening) = match timeout(patience, begin).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(status)) => return status,
            Err(_) => return late(),
        };
        let mut until = Instant::now() + patience;
        loop {
            // Who leaves, or whom nobody asks any more, is not to be kept by a stream without end.
            let Ok(told) = timeout(LOOK, reports.message()).await else {
                if !connection.accepts() || self.endpoint().is_none() {
                    return Status::cancelled("the connection, or whoever wanted to know, leaves");
                }
                if Instant::now() >= until {
                    return late();
                }
                continue;
            };
            let report = match told {
                Ok(Some(report)) => report,
                Ok(None) => return Status::unavailable("the server ended the stream"),
                Err(status) => return status,
            };
            let Some(endpoint) = self.endpoint().filter(|_| connection.accepts()) else {
                return Status::cancelled("nobody wants to know any more");
            };
            *heard = true;
            let now = Instant::now();
            endpoint.sense().weight(now).heard(&report, now);
            drop(endpoint);
            until = now + patience;
            sleep(BREATH).await;
        }
    }
}
