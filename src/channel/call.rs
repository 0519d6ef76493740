//! One call, from pick to response.

use std::{
    future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status, body::Body};

use super::{Answer, Calling, Channel, ServedBy, Shared, View, body};
use crate::{
    Endpoint, Endpoints, Error, InstanceId,
    balance::{self, Call},
    endpoint::Outcome,
    transport::{Connection, Failure, Outgoing, Slot},
};

/// Sends a request to this endpoint, if it is connected.
pub(super) async fn call_one(
    channel: Channel,
    endpoint: Endpoint,
    request: http::Request<Body>,
) -> Result<http::Response<Answer>, Status> {
    let mut call = Attempts::new(channel, request)?;
    let id = endpoint.id().clone();
    let away = || Status::unavailable(format!("endpoint {id} is not connected"));
    let connection = connected(&endpoint).next().ok_or_else(away)?;
    let late = || ServedBy::over(&connection);
    let room = room_of(&call.channel.shared, &endpoint);
    let chosen = match call.deadline {
        Some(deadline) => timeout_at(deadline, room).await,
        None => Ok(room.await),
    };
    let chosen = chosen.map_err(|_| body::late(&late()))?;
    let chosen = chosen.ok_or_else(away)?;
    call.attempt(chosen).await?.ok_or_else(away)
}

/// Sends a request to a ready endpoint; to another if it did not leave, or was refused unseen.
///
/// What is made before the future is in it once; and what waits is in a box of its own. So the future
/// of each call is small enough for the allocator's fast road, which with glibc ends at 1 KiB.
pub(super) fn call(channel: Channel, request: http::Request<Body>) -> Calling {
    match Attempts::new(channel, request) {
        Ok(mut call) => Box::pin(async move {
            loop {
                let chosen = match call.choose_now() {
                    Some(chosen) => chosen,
                    None => Box::pin(call.endpoint()).await?,
                };
                if let Some(response) = call.attempt(chosen).await? {
                    return Ok(response);
                }
            }
        }),
        Err(status) => Box::pin(future::ready(Err(status))),
    }
}

/// Where a call goes, and its place there.
struct Chosen {
    endpoint: Endpoint,
    connection: Arc<Connection>,
    slot: Slot,
}

/// So many connections without room are waited for at once; which ones is left to chance.
const QUEUES: usize = 16;

struct Attempts {
    channel: Channel,
    deadline: Option<Instant>,
    /// When a call without a deadline has waited long enough; set when it first waits.
    patience: Option<Instant>,
    /// Where it could not be sent, in this view or since the last wait.
    tried: Vec<InstanceId>,
    /// Why it was refused, if it was: that may happen once.
    refused: Option<InstanceId>,
    outgoing: Outgoing,
}

impl Attempts {
    fn new(channel: Channel, mut request: http::Request<Body>) -> Result<Self, Status> {
        Ok(Self {
            deadline: deadline(&channel.shared, request.headers_mut())?,
            channel,
            patience: None,
            tried: Vec::new(),
            refused: None,
            outgoing: Outgoing::new(request),
        })
    }

    /// An endpoint that is connected, not yet tried and has room, if there is one now.
    fn choose_now(&self) -> Option<Chosen> {
        self.choose(&self.channel.shared.view.load())
    }

    /// The same, as soon as there is one.
    async fn endpoint(&mut self) -> Result<Chosen, Status> {
        let shared = Arc::clone(&self.channel.shared);
        // Marked as seen before the view is looked at again, so that no view goes by unnoticed.
        let mut changed = shared.changed.subscribe();
        let _waiting = Waiting::begin(&shared);
        let mut full = Queues::default();
        loop {
            changed.borrow_and_update();
            self.tried.clear();
            self.tried.extend(self.refused.clone());
            let view = shared.view.load_full();
            if let Some(chosen) = self.choose(&view) {
                self.tell_time_left();
                return Ok(chosen);
            }
            // It has not left, so that whoever has room first may have it.
            full.join(self.usable_of(&view.ready));
            let (until, due) = match self.deadline {
                // A call without a time limit waits for room as long as there is a connection.
                None if !full.is_empty() => (None, Status::unavailable as fn(String) -> Status),
                _ => {
                    let (until, due) = self.until();
                    (Some(until), due)
                }
            };
            // The sender lives in `shared`, so the only news is a change, room or the time.
            tokio::select! {
                Some(chosen) = full.next() => if let Some(chosen) = chosen {
                    self.tell_time_left();
                    return Ok(chosen);
                },
                _ = changed.changed() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    let mut outlook = shared.view.load().outlook(Instant::now());
                    if !full.is_empty() {
                        outlook += "; those that are ready allow no more calls at once";
                    }
                    return Err(due(outlook));
                }
            }
        }
    }

    /// Until when to wait for an endpoint, and what to say then.
    fn until(&mut self) -> (Instant, fn(String) -> Status) {
        if let Some(deadline) = self.deadline {
            return (deadline, |outlook| Status::deadline_exceeded(outlook));
        }
        let patience = self.channel.shared.patience;
        let until = *self
            .patience
            .get_or_insert_with(|| Instant::now() + patience);
        (until, |outlook| Status::unavailable(outlook))
    }

    /// A server that is called late is not to work longer than the caller waits.
    fn tell_time_left(&mut self) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            self.outgoing.headers_mut().insert(&TIMEOUT, write(left));
        }
    }

    fn choose(&self, view: &View) -> Option<Chosen> {
        let pick = view.pick.as_ref()?;
        let ready = &view.ready;
        let picked = pick.pick(&Call {
            path: self.outgoing.path(),
            headers: self.outgoing.headers(),
            tried: &self.tried,
        });
        let endpoint = ready.get(picked).or_else(|| ready.get(0))?;
        if let Some(connection) = self.usable(endpoint)
            && let Some(slot) = connection.try_slot()
        {
            return Some(Chosen {
                endpoint: endpoint.clone(),
                connection,
                slot,
            });
        }
        self.choose_roomy(ready, endpoint)
    }

    /// The picked endpoint has no room on its first connection: another of its own, or another endpoint.
    #[cold]
    fn choose_roomy(&self, ready: &Endpoints, picked: &Endpoint) -> Option<Chosen> {
        if !self.tried.contains(picked.id()) {
            let own = connected(picked).map(|connection| (picked.clone(), connection));
            let mut own = own.peekable();
            let is_connected = own.peek().is_some();
            if let Some(chosen) = own.find_map(has_room) {
                return Some(chosen);
            }
            if is_connected {
                self.channel.shared.crowd(picked);
            }
        }
        let with_room = self.usable_of(ready).find_map(has_room);
        with_room.or_else(|| self.refused_again(ready))
    }

    /// Those a call can go to, from a place by chance: a dead one's neighbour does not get all its calls.
    fn usable_of<'r>(
        &'r self,
        ready: &'r Endpoints,
    ) -> impl Iterator<Item = (Endpoint, Arc<Connection>)> + 'r {
        let start = balance::below(ready.len());
        let untried = ready
            .iter_from(start)
            .filter(|e| !self.tried.contains(e.id()));
        untried.flat_map(|endpoint| connected(endpoint).map(|c| (endpoint.clone(), c)))
    }

    /// Whoever refused it may have it once more, when there is nobody else.
    fn refused_again(&self, ready: &Endpoints) -> Option<Chosen> {
        let refused = self.refused.as_ref()?;
        let times = self.tried.iter().filter(|id| *id == refused).count();
        if times >= 2 || self.usable_of(ready).next().is_some() {
            return None;
        }
        let endpoint = ready.find(refused)?;
        let mut own = connected(endpoint).map(|connection| (endpoint.clone(), connection));
        own.find_map(has_room)
    }

    fn usable(&self, endpoint: &Endpoint) -> Option<Arc<Connection>> {
        if self.tried.contains(endpoint.id()) {
            return None;
        }
        endpoint.connection().filter(|first| first.accepts())
    }

    /// A response; or none, if it can be sent to another.
    async fn attempt(&mut self, chosen: Chosen) -> Result<Option<http::Response<Answer>>, Status> {
        let Chosen {
            endpoint,
            connection,
            slot,
        } = chosen;
        let mut in_flight = endpoint.begin();
        let began = Instant::now();
        let sent = match self.deadline {
            Some(deadline) => {
                timeout_at(deadline, connection.call_in(slot, &mut self.outgoing)).await
            }
            None => Ok(connection.call_in(slot, &mut self.outgoing).await),
        };
        let served = ServedBy::over(&connection);
        let failed = |mut status: Status| {
            served.note_in(&mut status);
            Err(status)
        };
        match sent {
            Ok(Ok(response)) => {
                let (mut head, incoming) = response.into_parts();
                let code = body::code(&head.headers);
                if head.status == http::StatusCode::OK && code.is_none_or(|code| code == Code::Ok) {
                    in_flight.took(Instant::now() - began);
                }
                // A status in the head is the last word: callers look for no more in the body.
                if let Some(code) = code {
                    in_flight.ended(Outcome::of(code));
                    if code != Code::Ok {
                        served.note(&mut head.headers);
                    }
                } else if head.status != http::StatusCode::OK {
                    in_flight.ended(Outcome::Failure);
                }
                head.extensions = self.outgoing.take_extensions();
                head.extensions.insert(served.clone());
                let watched = body::Watched::new(incoming, in_flight, served, self.deadline);
                Ok(Some(http::Response::from_parts(head, Answer::new(watched))))
            }
            Ok(Err(Failure::NotSent(_))) => {
                in_flight.not_sent();
                self.tried.push(endpoint.id().clone());
                Ok(None)
            }
            Ok(Err(Failure::Refused(error))) => {
                if self.refused.is_some() || !self.outgoing.rewind() {
                    in_flight.ended(Outcome::Failure);
                    return failed(unavailable(error));
                }
                self.refused = Some(endpoint.id().clone());
                self.tried.push(endpoint.id().clone());
                Ok(None)
            }
            Ok(Err(Failure::Broken(error))) => {
                in_flight.ended(Outcome::Failure);
                failed(unavailable(error))
            }
            Ok(Err(Failure::Reset(status))) => {
                in_flight.ended(Outcome::of(status.code()));
                failed(status)
            }
            Ok(Err(Failure::Body(status))) => failed(status),
            Err(_) => {
                in_flight.took(Instant::now() - began);
                in_flight.ended(Outcome::Failure);
                failed(body::late(&served))
            }
        }
    }
}

/// A call that waits, for the channel's task to see.
pub(super) struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        shared.hurry.notify_one();
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A place there, if there is one now.
fn has_room((endpoint, connection): (Endpoint, Arc<Connection>)) -> Option<Chosen> {
    let slot = connection.try_slot()?;
    Some(Chosen {
        endpoint,
        connection,
        slot,
    })
}

/// A place at this endpoint, as soon as there is one; none when it is not connected any more.
async fn room_of(shared: &Shared, endpoint: &Endpoint) -> Option<Chosen> {
    let mut changed = shared.changed.subscribe();
    let mut full = Queues::default();
    loop {
        changed.borrow_and_update();
        let own = || connected(endpoint).map(|connection| (endpoint.clone(), connection));
        if let Some(chosen) = own().find_map(has_room) {
            return Some(chosen);
        }
        full.join(own());
        if full.is_empty() {
            return None;
        }
        shared.crowd(endpoint);
        tokio::select! {
            Some(chosen) = full.next() => if chosen.is_some() {
                return chosen;
            },
            _ = changed.changed() => {}
        }
    }
}

/// The places a call has in the queues of connections without room.
#[derive(Default)]
struct Queues {
    at: Vec<Arc<Connection>>,
    turns: FuturesUnordered<Pin<Box<dyn Future<Output = Option<Chosen>> + Send>>>,
}

impl Queues {
    /// Leaves those that take no more calls, and joins new ones; in all others it keeps its turn.
    fn join(&mut self, usable: impl Iterator<Item = (Endpoint, Arc<Connection>)>) {
        self.at.retain(|connection| connection.accepts());
        for (endpoint, connection) in usable.take(QUEUES) {
            if self.at.len() < QUEUES && !self.at.iter().any(|at| Arc::ptr_eq(at, &connection)) {
                self.at.push(Arc::clone(&connection));
                self.turns.push(Box::pin(room_at(endpoint, connection)));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// A place; or none, from a connection that takes no more calls. Ends when there is none to wait for.
    async fn next(&mut self) -> Option<Option<Chosen>> {
        self.turns.next().await
    }
}

/// A place there, in turn; none when the connection takes no more calls.
async fn room_at(endpoint: Endpoint, connection: Arc<Connection>) -> Option<Chosen> {
    let slot = connection.slot().await?;
    Some(Chosen {
        endpoint,
        connection,
        slot,
    })
}

/// The endpoint's connections that take calls, the oldest first.
fn connected(endpoint: &Endpoint) -> impl Iterator<Item = Arc<Connection>> + use<> {
    let all = endpoint.links().all();
    all.filter(|connection| connection.accepts())
}

fn unavailable(error: Error) -> Status {
    let mut status = Status::unavailable(error.chain());
    status.set_source(Arc::new(error));
    status
}

/// When the call must have ended: the earlier of its own time limit and the channel's.
fn deadline(shared: &Shared, headers: &mut HeaderMap) -> Result<Option<Instant>, Status> {
    // Looked through, as there are few: to look a name up is to hash it.
    let own = headers.iter().find(|(name, _)| **name == TIMEOUT);
    let own = own.map(|(_, value)| read(value)).transpose()?;
    let limit = match (own, shared.timeout) {
        (None, None) => return Ok(None),
        (Some(own), Some(ours)) if own <= ours => own,
        (Some(own), None) => own,
        (_, Some(ours)) => {
            headers.insert(&TIMEOUT, write(ours));
            ours
        }
    };
    // A limit beyond what the clock can count is none.
    Ok(Instant::now().checked_add(limit))
}

static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The greatest number that the header can hold: eight digits.
const MOST: u128 = 99_999_999;

/// Reads the header: at most eight digits and a unit.
fn read(value: &HeaderValue) -> Result<Duration, Status> {
    let refuse = || {
        Status::invalid_argument(format!(
            "grpc-timeout {value:?} is not up to eight digits and a unit"
        ))
    };
    let text = value.to_str().map_err(|_| refuse())?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(refuse)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err(refuse());
    }
    let n: u64 = digits.parse().map_err(|_| refuse())?;
    match unit {
        "H" => Ok(Duration::from_secs(n * 3600)),
        "M" => Ok(Duration::from_secs(n * 60)),
        "S" => Ok(Duration::from_secs(n)),
        "m" => Ok(Duration::from_millis(n)),
        "u" => Ok(Duration::from_micros(n)),
        "n" => Ok(Duration::from_nanos(n)),
        _ => Err(refuse()),
    }
}

/// Writes the header in the finest unit that fits.
fn write(limit: Duration) -> HeaderValue {
    let units = [
        (limit.as_nanos(), 'n'),
        (limit.as_micros(), 'u'),
        (limit.as_millis(), 'm'),
        (u128::from(limit.as_secs()), 'S'),
        (u128::from(limit.as_secs() / 60), 'M'),
    ];
    let fits = units.into_iter().find(|(n, _)| *n <= MOST);
    let (n, unit) = fits.unwrap_or_else(|| (u128::from(limit.as_secs() / 3600).min(MOST), 'H'));
    HeaderValue::try_from(format!("{n}{unit}")).unwrap_or(HeaderValue::from_static("99999999H"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_read_and_written() {
        for (text, limit) in [
            ("300m", Duration::from_millis(300)),
            ("1S", Duration::from_secs(1)),
            ("2H", Duration::from_secs(7200)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(read(&HeaderValue::from_static(text)).unwrap(), limit);
            assert_eq!(read(&write(limit)).unwrap(), limit);
        }
        assert_eq!(write(Duration::MAX), "99999999H");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waited_tells_the_server_what_is_left() {
        let servers = crate::resolve::Fixed::at(["10.0.0.1:1"]).unwrap();
        let channel = Channel::over("greeter".parse().unwrap(), servers);
        let channel = channel.build().unwrap();
        let request = http::Request::builder().header(&TIMEOUT, "5S");
        let request = request.body(Body::empty()).unwrap();
        let mut call = Attempts::new(channel, request).unwrap();

        tokio::time::advance(Duration::from_secs(2)).await;
        call.tell_time_left();

        assert_eq!(call.outgoing.headers()[&TIMEOUT], "3000000u");
    }

    #[tokio::test]
    async fn the_future_of_a_call_fits_where_allocators_are_fast() {
        let servers = crate::resolve::Fixed::at(["10.0.0.1:1"]).unwrap();
        let channel = Channel::over("greeter".parse().unwrap(), servers);

        let call = call(channel.build().unwrap(), http::Request::new(Body::empty()));

        assert!(size_of_val(&*call) <= 1024, "{}", size_of_val(&*call));
    }

    #[test]
    fn a_time_limit_that_is_none_is_refused() {
        for text in ["", "S", "10", "-1S", "123456789S", "1.5S", "1X", "é"] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert!(read(&value).is_err(), "{text:?}");
        }
    }
}
