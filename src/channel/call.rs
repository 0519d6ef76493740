//! One call, from pick to response.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, body::Body};

use super::{Channel, ServedBy, Shared, View, body};
use crate::{
    Endpoint, Error, InstanceId,
    balance::{self, Call},
    endpoint::Outcome,
    transport::{Connection, Failure, Outgoing},
};

/// Sends a request to this endpoint, if it is connected.
pub(super) async fn call_one(
    channel: Channel,
    endpoint: Endpoint,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let mut call = Attempts::new(&channel.shared, request)?;
    let away = || Status::unavailable(format!("endpoint {} is not connected", endpoint.id()));
    let connection = connected(&endpoint).ok_or_else(away)?;
    call.attempt(&endpoint, &connection).await?.ok_or_else(away)
}

/// Sends a request to a ready endpoint; to another if it did not leave, or was refused unseen.
pub(super) async fn call(
    channel: Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let mut call = Attempts::new(&channel.shared, request)?;
    loop {
        let (endpoint, connection) = call.endpoint().await?;
        if let Some(response) = call.attempt(&endpoint, &connection).await? {
            return Ok(response);
        }
    }
}

struct Attempts<'a> {
    shared: &'a Shared,
    deadline: Option<Instant>,
    /// When a call without a deadline has waited long enough; set when it first waits.
    patience: Option<Instant>,
    /// Where it could not be sent, in this view or since the last wait.
    tried: Vec<InstanceId>,
    /// Why it was refused, if it was: that may happen once.
    refused: Option<InstanceId>,
    outgoing: Outgoing,
}

impl<'a> Attempts<'a> {
    fn new(shared: &'a Shared, mut request: http::Request<Body>) -> Result<Self, Status> {
        Ok(Self {
            shared,
            deadline: deadline(shared, request.headers_mut())?,
            patience: None,
            tried: Vec::new(),
            refused: None,
            outgoing: Outgoing::new(request),
        })
    }

    /// An endpoint that is connected and not yet tried, as soon as there is one.
    async fn endpoint(&mut self) -> Result<(Endpoint, Arc<Connection>), Status> {
        if let Some(chosen) = self.choose(&self.shared.view.load()) {
            return Ok(chosen);
        }
        // Marked as seen before the view is looked at again, so that no view goes by unnoticed.
        let mut changed = self.shared.changed.subscribe();
        let _waiting = Waiting::begin(self.shared);
        loop {
            changed.borrow_and_update();
            self.tried.clear();
            self.tried.extend(self.refused.clone());
            if let Some(chosen) = self.choose(&self.shared.view.load()) {
                self.tell_time_left();
                return Ok(chosen);
            }
            let (until, due) = self.until();
            // The sender lives in `shared`, so the only news is a change or the time.
            if timeout_at(until, changed.changed()).await.is_err() {
                let outlook = self.shared.view.load().outlook(Instant::now());
                return Err(due(outlook));
            }
        }
    }

    /// Until when to wait for an endpoint, and what to say then.
    fn until(&mut self) -> (Instant, fn(String) -> Status) {
        if let Some(deadline) = self.deadline {
            return (deadline, |outlook| Status::deadline_exceeded(outlook));
        }
        let patience = self.shared.patience;
        let until = *self
            .patience
            .get_or_insert_with(|| Instant::now() + patience);
        (until, |outlook| Status::unavailable(outlook))
    }

    /// A server that is called late is not to work longer than the caller waits.
    fn tell_time_left(&mut self) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            self.outgoing.headers_mut().insert(TIMEOUT, write(left));
        }
    }

    fn choose(&self, view: &View) -> Option<(Endpoint, Arc<Connection>)> {
        let pick = view.pick.as_ref()?;
        let ready = &view.ready;
        let picked = pick.pick(&Call {
            path: self.outgoing.path(),
            headers: self.outgoing.headers(),
            tried: &self.tried,
        });
        let picked = if picked < ready.len() { picked } else { 0 };
        if let Some(connection) = self
            .usable(&ready[picked])
            .filter(|connection| connection.room() > 0)
        {
            return Some((ready[picked].clone(), connection));
        }
        // The next after a place by chance, so that a dead one's neighbour does not get all its calls.
        let start = balance::below(ready.len());
        let others = || ready[start..].iter().chain(&ready[..start]);
        let usable = |endpoint: &Endpoint| Some((endpoint.clone(), self.usable(endpoint)?));
        let with_room = others()
            .filter_map(usable)
            .find(|(_, connection)| connection.room() > 0);
        let any = || with_room.or_else(|| others().find_map(usable));
        any().or_else(|| self.refused_again(ready))
    }

    /// Whoever refused it may have it once more, when there is nobody else.
    fn refused_again(&self, ready: &[Endpoint]) -> Option<(Endpoint, Arc<Connection>)> {
        let refused = self.refused.as_ref()?;
        let times = self.tried.iter().filter(|id| *id == refused).count();
        let endpoint = ready
            .iter()
            .find(|endpoint| endpoint.id() == refused && times < 2)?;
        Some((endpoint.clone(), connected(endpoint)?))
    }

    fn usable(&self, endpoint: &Endpoint) -> Option<Arc<Connection>> {
        if self.tried.contains(endpoint.id()) {
            return None;
        }
        connected(endpoint)
    }

    /// A response; or none, if it can be sent to another.
    async fn attempt(
        &mut self,
        endpoint: &Endpoint,
        connection: &Connection,
    ) -> Result<Option<http::Response<Body>>, Status> {
        let mut in_flight = endpoint.begin();
        let sent = match self.deadline {
            Some(deadline) => timeout_at(deadline, connection.call(&mut self.outgoing)).await,
            None => Ok(connection.call(&mut self.outgoing).await),
        };
        let served = ServedBy::new(endpoint.id().clone(), connection.address().clone());
        let failed = |mut status: Status| {
            served.note_in(&mut status);
            Err(status)
        };
        match sent {
            Ok(Ok(response)) => {
                let (mut head, incoming) = response.into_parts();
                // A status in the head is the last word: callers look for no more in the body.
                if let Some(code) = body::code(&head.headers) {
                    in_flight.ended(Outcome::of(code));
                    if code != Code::Ok {
                        served.note(&mut head.headers);
                    }
                } else if head.status != http::StatusCode::OK {
                    in_flight.ended(Outcome::Failure);
                }
                head.extensions.insert(served.clone());
                let watched = body::Watched::new(incoming, in_flight, served, self.deadline);
                Ok(Some(http::Response::from_parts(head, Body::new(watched))))
            }
            Ok(Err(Failure::NotSent(_))) => {
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
                in_flight.ended(Outcome::Failure);
                failed(body::late(&served))
            }
        }
    }
}

/// A call that waits, for the channel's task to see.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
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

fn connected(endpoint: &Endpoint) -> Option<Arc<Connection>> {
    endpoint
        .connection()
        .filter(|connection| connection.accepts())
}

fn unavailable(error: Error) -> Status {
    let mut status = Status::unavailable(error.chain());
    status.set_source(Arc::new(error));
    status
}

/// When the call must have ended: the earlier of its own time limit and the channel's.
fn deadline(shared: &Shared, headers: &mut HeaderMap) -> Result<Option<Instant>, Status> {
    let own = headers.get(TIMEOUT).map(read).transpose()?;
    let limit = match (own, shared.timeout) {
        (None, None) => return Ok(None),
        (Some(own), Some(ours)) if own <= ours => own,
        (Some(own), None) => own,
        (_, Some(ours)) => {
            headers.insert(TIMEOUT, write(ours));
            ours
        }
    };
    // A limit beyond what the clock can count is none.
    Ok(Instant::now().checked_add(limit))
}

const TIMEOUT: &str = "grpc-timeout";

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
        let request = http::Request::builder().header(TIMEOUT, "5S");
        let request = request.body(Body::empty()).unwrap();
        let mut call = Attempts::new(&channel.shared, request).unwrap();

        tokio::time::advance(Duration::from_secs(2)).await;
        call.tell_time_left();

        assert_eq!(call.outgoing.headers()[TIMEOUT], "3000000u");
    }

    #[test]
    fn a_time_limit_that_is_none_is_refused() {
        for text in ["", "S", "10", "-1S", "123456789S", "1.5S", "1X", "é"] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert!(read(&value).is_err(), "{text:?}");
        }
    }
}
