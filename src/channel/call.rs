//! One call, from pick to response.

mod again;
mod begun;
mod directed;
mod heard;

use std::{
    future,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status, body::Body};

use again::Among;
use begun::Begun;
pub(super) use begun::over_before;

use super::{
    Answer, Calling, Channel, ServedBy, Shared, View,
    admitted::Admitted,
    again::Attempt,
    body,
    limit::limit,
    place::{Chosen, Queues, take, take_at},
    repeat::repeat,
};
use crate::{
    Direct, Endpoint, Endpoints, Error, ErrorKind, InstanceId,
    balance::{self, Call},
    deadline::{TIMEOUT, write},
    method::Method,
    moment::Moment,
    stats::{self, Counted},
    transport::{Connection, Outgoing},
};

/// Sends a request to this endpoint, if it is connected.
pub(super) async fn call_one(
    channel: Channel,
    endpoint: Endpoint,
    mut request: http::Request<Body>,
) -> Result<http::Response<Answer>, Status> {
    let again = request.extensions_mut().remove();
    let method = channel.shared.wanted.of(request.uri().path());
    let begun = Begun::call(
        &channel.shared,
        method.as_deref(),
        again.as_ref(),
        &mut request,
    )?;
    let mut call = Attempts::new(channel, method, again, begun, request);
    match call.room_at(&endpoint).await {
        Ok(chosen) => {
            let nowhere_else = move || Some(away(&endpoint));
            call.run(|_| Some(chosen), nowhere_else).await
        }
        Err(status) => Err(call.fails(status)),
    }
}

/// Sends a request to a ready endpoint; to another if it did not leave, or was refused unseen.
///
/// What is made before the future is in it once; and what waits is in a box of its own. So the future
/// of each call is small enough for the allocator's fast road, which with glibc ends at 1 KiB.
pub(super) fn call(channel: Channel, mut request: http::Request<Body>) -> Calling {
    let again = request.extensions_mut().remove::<Attempt>();
    let method = channel.shared.wanted.of(request.uri().path());
    if again.is_none()
        && let Some(wanted) = method.as_ref().and_then(|method| method.again())
    {
        let time = limit(&channel.shared, method.as_deref());
        return Box::pin(repeat(channel, wanted.clone(), time, request));
    }
    let begun = Begun::call(
        &channel.shared,
        method.as_deref(),
        again.as_ref(),
        &mut request,
    );
    match begun {
        Ok(begun) => {
            let call = Attempts::new(channel, method, again, begun, request);
            Box::pin(call.run(Attempts::choose_now, || None))
        }
        Err(status) => Box::pin(future::ready(Err(status))),
    }
}

/// So many of those that are tried are looked at for one call.
const LOOKS: usize = 4;

struct Attempts {
    channel: Channel,
    /// What is wanted of calls like this one, if anything is.
    method: Option<Arc<Method>>,
    /// Where its caller wants it to go, if he does.
    direct: Option<Direct>,
    deadline: Option<Instant>,
    /// When a call without a deadline has waited long enough; set when it first waits.
    patience: Option<Instant>,
    /// Where other attempts of the same call went; and then where this one could not be sent, in this view or
    /// since the last wait.
    tried: Vec<InstanceId>,
    /// Why it was refused, if it was: that may happen once.
    refused: Option<InstanceId>,
    outgoing: Outgoing,
    admitted: Option<Admitted>,
    /// Until there is an answer to watch, which then has it. None where the call counts as a whole, and not
    /// each of its attempts.
    counted: Option<Counted>,
    /// What it is of a call that may be sent more than once. In a box: most calls may not, and are small.
    again: Option<Box<Among>>,
}

impl Attempts {
    /// A call that was counted and let in. Made in one piece: it is large, and on its way into a box.
    #[inline]
    fn new(
        channel: Channel,
        method: Option<Arc<Method>>,
        again: Option<Attempt>,
        begun: Begun,
        mut request: http::Request<Body>,
    ) -> Self {
        let mut tried = Vec::new();
        let again = again.map(|attempt| Among::begin(attempt, &mut tried));
        let keep = again.as_ref().map(|among| among.attempt.keep());
        Self {
            deadline: begun.deadline,
            method,
            direct: request.extensions_mut().remove(),
            channel,
            patience: None,
            tried,
            refused: None,
            outgoing: Outgoing::keeping(keep.unwrap_or(Outgoing::KEPT), request),
            admitted: begun.admitted,
            counted: begun.counted,
            again,
        }
    }

    /// An answer from the first that is chosen; or from another when it did not come to be processed there,
    /// unless it ends with this then.
    ///
    /// All in one future, however long: what a future returns is moved by each that awaits it.
    #[expect(
        clippy::manual_async_fn,
        reason = "what an async fn is given it keeps twice"
    )]
    #[inline]
    fn run(
        mut self,
        first: impl FnOnce(&mut Self) -> Option<Chosen>,
        unless: impl Fn() -> Option<Status>,
    ) -> impl Future<Output = Result<http::Response<Answer>, Status>> {
        async move {
            let mut next = first(&mut self);
            loop {
                let chosen = match next {
                    Some(chosen) => chosen,
                    None => match Box::pin(self.endpoint()).await {
                        Ok(chosen) => chosen,
                        Err(status) => return Err(self.fails(again::nobody(status))),
                    },
                };
                let Chosen {
                    slot,
                    mut in_flight,
                } = chosen;
                self.leaves(slot.peer(), &mut in_flight);
                let served = ServedBy::by(slot.peer());
                let until = self.until_when();
                let call = slot.call(&mut self.outgoing, in_flight.sent());
                let sent = match until {
                    Some(until) => timeout_at(until, call).await,
                    None => Ok(call.await),
                };
                match self.heard(sent, in_flight, served) {
                    Ok(response) => return Ok(response),
                    Err(failed) => {
                        if let Some(status) = failed.or_else(&unless) {
                            return Err(self.fails(status));
                        }
                    }
                }
                next = self.choose_now();
            }
        }
    }

    /// A place at this one, within the call's time.
    async fn room_at(&mut self, endpoint: &Endpoint) -> Result<Chosen, Status> {
        let connection = connected(endpoint).next().ok_or_else(|| away(endpoint))?;
        let room = room_of(&self.channel.shared, endpoint);
        let chosen = match self.deadline {
            Some(deadline) => timeout_at(deadline, room).await,
            None => Ok(room.await),
        };
        let late = |_| body::late(&ServedBy::by(connection.peer()));
        chosen.map_err(late)?.ok_or_else(|| away(endpoint))
    }

    /// Counts the call if that is all that comes of it; answers are watched for their end.
    #[cold]
    fn fails(&mut self, status: Status) -> Status {
        if let Some(counted) = &mut self.counted {
            counted.fails(status.code(), self.deadline);
        }
        status
    }

    /// It did not come to be processed, and may be sent again.
    fn again(&mut self) {
        if let Some(counted) = &mut self.counted {
            counted.again(stats::Why::Transparent);
        }
    }

    /// An endpoint that is connected, not yet tried and has room, if there is one now.
    fn choose_now(&mut self) -> Option<Chosen> {
        let view = self.channel.shared.view.load();
        self.choose(&view)
    }

    /// The same, as soon as there is one.
    async fn endpoint(&mut self) -> Result<Chosen, Status> {
        let shared = Arc::clone(&self.channel.shared);
        if let Some(counted) = &mut self.counted {
            counted.waits();
        }
        // Marked as seen before the view is looked at again, so that no view goes by unnoticed.
        let mut changed = shared.changed.subscribe();
        let _waiting = Waiting::begin(&shared);
        let mut full = Queues::default();
        loop {
            changed.borrow_and_update();
            self.begin_anew();
            let view = shared.view.load_full();
            if let Some(chosen) = self.choose(&view) {
                self.tell_time_left();
                return Ok(chosen);
            }
            self.is_findable(&view)?;
            let scope = self.scope(&view);
            self.is_bearable(&scope)?;
            // It has not left, so that whoever has room first may have it.
            let breaker = self.channel.shared.breaker;
            full.join(self.usable_of(&scope), breaker);
            if full.is_empty() {
                full.join(self.refusing(&scope), breaker);
            }
            drop(scope);
            if full.is_empty() {
                self.is_hopeful(&view)?;
            }
            let (until, due) = match self.deadline {
                // A call without a time limit waits for room as long as there is a connection.
                None if !full.is_empty() || self.waits_for_ever() => {
                    (None, Status::unavailable as fn(String) -> Status)
                }
                _ => {
                    let (until, due) = self.until();
                    (Some(until), due)
                }
            };
            // The sender lives in `shared`, so the only news is a change, room or the time.
            tokio::select! {
                Some(chosen) = full.next() => if let Some(mut chosen) = chosen {
                    // Whose turn came may have asked for no more calls since it was waited for.
                    if self.scope(&shared.view.load()).find(&chosen.slot.peer().id).is_some() {
                        self.tell_time_left();
                        return Ok(chosen);
                    }
                    chosen.in_flight.not_sent();
                },
                _ = changed.changed() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    let view = shared.view.load();
                    let mut outlook = view.outlook(Instant::now()) + &self.wish(&view);
                    if !full.is_empty() {
                        outlook += "; those that are ready allow no more calls at once";
                    }
                    return Err(due(outlook));
                }
            }
        }
    }

    /// Whether it waits for somebody to be ready, however long that takes.
    fn waits_for_ever(&self) -> bool {
        let method = self.method.as_ref();
        method.is_some_and(|method| method.wait_for_ready == Some(true))
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

    fn choose(&mut self, view: &View) -> Option<Chosen> {
        if self.been() > 0 {
            self.look_elsewhere(view);
        }
        if let Some(chosen) = self.choose_directed(view) {
            return chosen;
        }
        if !view.on_trial.is_empty()
            && let Some(chosen) = self.try_one(&view.on_trial)
        {
            return Some(chosen);
        }
        let ready = &view.ready;
        let now = Moment::now();
        let mut endpoint = self.picked(view, now)?;
        if self.been() > 0 {
            endpoint = self.picked_elsewhere(view, endpoint);
        }
        let limit = self.channel.shared.breaker;
        if endpoint.conduct().is_open()
            && !self.tried.contains(endpoint.id())
            && let Some(chosen) = endpoint
                .links()
                .with_first(|c| take_at(now, endpoint, c, limit))
        {
            return Some(chosen);
        }
        self.choose_roomy(ready, endpoint)
    }

    /// The policy's choice.
    #[inline]
    fn picked<'v>(&self, view: &'v View, now: Moment) -> Option<&'v Endpoint> {
        let picked = view.pick.as_ref()?.pick(&Call {
            path: self.outgoing.path(),
            headers: self.outgoing.headers(),
            tried: &self.tried,
            key: self.direct.as_ref().and_then(Direct::key),
            at: Some(now),
        });
        view.ready.get(picked).or_else(|| view.ready.get(0))
    }

    /// The picked endpoint has no room on its first connection: another of its own, or another endpoint.
    #[cold]
    fn choose_roomy(&self, ready: &Endpoints, picked: &Endpoint) -> Option<Chosen> {
        let limit = self.channel.shared.breaker;
        if !self.tried.contains(picked.id()) && picked.conduct().is_open() {
            let mut own = connected(picked).peekable();
            let is_connected = own.peek().is_some();
            if let Some(chosen) = own.find_map(|connection| take(picked, &connection, limit)) {
                return Some(chosen);
            }
            // Where it is the breaker that says no, another connection would not help.
            if is_connected && picked.in_flight() < limit {
                self.channel.shared.crowd(picked);
            }
        }
        let has_room = |(endpoint, c): (&Endpoint, Arc<Connection>)| take(endpoint, &c, limit);
        let with_room = self.usable_of(ready).find_map(has_room);
        with_room.or_else(|| self.refused_again(ready))
    }

    /// One of those that were ejected, if it is to be tried with this call.
    #[cold]
    fn try_one(&self, on_trial: &Endpoints) -> Option<Chosen> {
        let (n, start) = (on_trial.len(), balance::below(on_trial.len()));
        let some = (0..n.min(LOOKS)).filter_map(|nth| on_trial.get((start + nth) % n));
        some.filter(|endpoint| !self.tried.contains(endpoint.id()))
            .find_map(|endpoint| {
                let connection = connected(endpoint).next()?;
                let mut in_flight = endpoint.begin_trial()?;
                let Some(slot) = connection.try_slot() else {
                    in_flight.not_sent();
                    return None;
                };
                Some(Chosen { slot, in_flight })
            })
    }

    /// Those a call can go to, from a place by chance: a dead one's neighbour does not get all its calls.
    /// Where all have been barred since they were found ready, that counts for nothing.
    fn usable_of<'r>(
        &'r self,
        ready: &'r Endpoints,
    ) -> impl Iterator<Item = (&'r Endpoint, Arc<Connection>)> + 'r {
        let start = balance::below(ready.len());
        let untried = move || {
            let all = ready.iter_from(start);
            let untried = all.filter(|endpoint| !self.tried.contains(endpoint.id()));
            untried.flat_map(|endpoint| connected(endpoint).map(move |c| (endpoint, c)))
        };
        let is_open = |endpoint: &Endpoint| endpoint.conduct().is_open();
        let any_open = untried().any(|(endpoint, _)| is_open(endpoint));
        untried().filter(move |(endpoint, _)| !any_open || is_open(endpoint))
    }

    /// Nobody has room; an error if that is because all have as many calls as they may.
    fn is_bearable(&self, ready: &Endpoints) -> Result<(), Status> {
        let limit = self.channel.shared.breaker;
        let mut usable = self.usable_of(ready).peekable();
        if usable.peek().is_none() || usable.any(|(endpoint, _)| endpoint.in_flight() < limit) {
            return Ok(());
        }
        let what = format!(
            "{}: each of the {} that are ready has {limit} calls in flight, as many as it may",
            self.channel.shared.service,
            ready.len()
        );
        let error = Error::new(ErrorKind::Overloaded, what);
        Err(caused(Code::Unavailable, error))
    }

    /// Whoever refused it may have it once more, when there is nobody else.
    fn refused_again(&self, ready: &Endpoints) -> Option<Chosen> {
        let limit = self.channel.shared.breaker;
        let mut refusing = self.refusing(ready);
        refusing.find_map(|(endpoint, connection)| take(endpoint, &connection, limit))
    }

    fn refusing<'r>(
        &self,
        ready: &'r Endpoints,
    ) -> impl Iterator<Item = (&'r Endpoint, Arc<Connection>)> + 'r {
        let refused = self.refused.as_ref().filter(|refused| {
            let own = &self.tried[self.been()..];
            let times = own.iter().filter(|id| id == refused).count();
            times < 2 && self.usable_of(ready).next().is_none()
        });
        let endpoint = refused.and_then(|refused| ready.find(refused));
        let each = endpoint.map(|endpoint| connected(endpoint).map(move |c| (endpoint, c)));
        each.into_iter().flatten()
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

/// A place at this endpoint, as soon as there is one; none when it is not connected any more.
async fn room_of(shared: &Shared, endpoint: &Endpoint) -> Option<Chosen> {
    let mut changed = shared.changed.subscribe();
    let mut full = Queues::default();
    loop {
        changed.borrow_and_update();
        // Who calls one and no other knows what it can bear.
        let limit = usize::MAX;
        if let Some(chosen) = connected(endpoint).find_map(|c| take(endpoint, &c, limit)) {
            return Some(chosen);
        }
        full.join(connected(endpoint).map(|c| (endpoint, c)), limit);
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

/// The endpoint's connections that take calls, the oldest first.
fn connected(endpoint: &Endpoint) -> impl Iterator<Item = Arc<Connection>> + use<> {
    let all = endpoint.links().all();
    all.filter(|connection| connection.accepts())
}

fn away(endpoint: &Endpoint) -> Status {
    Status::unavailable(format!("endpoint {} is not connected", endpoint.id()))
}

/// A status that has this error as its source, and in its message.
pub(super) fn caused(code: Code, error: Error) -> Status {
    let mut status = Status::new(code, error.chain());
    status.set_source(Arc::new(error));
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waited_tells_the_server_what_is_left() {
        let servers = crate::resolve::Fixed::at(["10.0.0.1:1"]).unwrap();
        let channel = Channel::over("greeter".parse().unwrap(), servers);
        let channel = channel.build().unwrap();
        let request = http::Request::builder().header(&TIMEOUT, "5S");
        let request = request.body(Body::empty()).unwrap();
        let mut request = request;
        let begun = Begun::call(&channel.shared, None, None, &mut request).unwrap();
        let mut call = Attempts::new(channel, None, None, begun, request);

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
}
