//! A call's place at an endpoint: taken at once, or waited for in turn.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

use crate::{
    Endpoint,
    endpoint::InFlight,
    moment::Moment,
    transport::{Connection, Slot},
};

/// A call's place where it goes.
pub(super) struct Chosen {
    pub(super) slot: Slot,
    pub(super) in_flight: InFlight,
}

/// So many connections without room are waited for at once; which ones is left to chance.
const QUEUES: usize = 16;

/// There is no queue at an endpoint that has as many calls as it may: it is looked at again after this.
const AGAIN: Duration = Duration::from_millis(20);

/// A place there, if there is one now and it has fewer calls in flight than that.
pub(super) fn take(endpoint: &Endpoint, connection: &Connection, limit: usize) -> Option<Chosen> {
    take_at(Moment::now(), endpoint, connection, limit)
}

/// The same, where the time is known.
#[inline]
pub(super) fn take_at(
    now: Moment,
    endpoint: &Endpoint,
    connection: &Connection,
    limit: usize,
) -> Option<Chosen> {
    let slot = connection.try_slot()?;
    let in_flight = endpoint.begin_within(limit, now)?;
    Some(Chosen { slot, in_flight })
}

/// The places a call has in the queues of connections without room.
#[derive(Default)]
pub(super) struct Queues {
    at: Vec<Arc<Connection>>,
    turns: FuturesUnordered<Turn>,
}

/// The connection, and a place there, in turn; none, when it takes no more calls or the endpoint has enough.
type Turn = Pin<Box<dyn Future<Output = (Arc<Connection>, Option<Chosen>)> + Send>>;

impl Queues {
    /// Leaves those that take no more calls, and joins new ones; in all others it keeps its turn.
    pub(super) fn join<'e>(
        &mut self,
        usable: impl Iterator<Item = (&'e Endpoint, Arc<Connection>)>,
        limit: usize,
    ) {
        self.at.retain(|connection| connection.accepts());
        for (endpoint, connection) in usable.take(QUEUES) {
            if self.at.len() < QUEUES && !self.at.iter().any(|at| Arc::ptr_eq(at, &connection)) {
                self.at.push(Arc::clone(&connection));
                self.turns
                    .push(Box::pin(turn(endpoint.clone(), connection, limit)));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// A place; or none, from a connection whose queue it has left. Ends when there is none to wait for.
    pub(super) async fn next(&mut self) -> Option<Option<Chosen>> {
        let (connection, chosen) = self.turns.next().await?;
        self.at.retain(|at| !Arc::ptr_eq(at, &connection));
        Some(chosen)
    }
}

async fn turn(
    endpoint: Endpoint,
    connection: Arc<Connection>,
    limit: usize,
) -> (Arc<Connection>, Option<Chosen>) {
    if endpoint.in_flight() >= limit {
        sleep(AGAIN).await;
        return (connection, None);
    }
    let slot = connection.slot().await;
    let chosen = slot.and_then(|slot| {
        let in_flight = endpoint.begin_within(limit, Moment::now())?;
        Some(Chosen { slot, in_flight })
    });
    (connection, chosen)
}
