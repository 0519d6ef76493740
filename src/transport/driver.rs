//! The one task behind a connection.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, client};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Io,
    connection::Shared,
    keep_alive::{Act, Pulse},
    overheard::Ear,
    windows::Estimate,
};
use crate::{Error, ErrorKind};

/// What carries a connection's bytes; nothing moves unless [`run`](Self::run) is polled.
///
/// Dropping it breaks the connection.
pub(crate) struct Driver {
    h2: H2,
    shared: Arc<Shared>,
    pace: Arc<Pace>,
    seen: usize,
    heard: Instant,
    going_away: bool,
    pings: Option<PingPong>,
    pulse: Option<Pulse>,
    estimate: Option<Estimate>,
    /// A window for streams that the peer could not be told yet.
    window: Option<u32>,
    alarm: Alarm,
    end: Alarm,
    rest: Option<Rest>,
}

/// What a driver tells while it runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) enum Told {
    /// The server wants no new call here; those that are open go on. It is time for another connection.
    GoingAway(Error),
    /// The server allows this many calls at once now.
    Limit(usize),
    /// It has carried no call for as long as was asked for; told each time that is so.
    Idle,
}

pub(super) type H2 = client::Connection<Box<dyn Io>, Bytes>;

/// How much slower than asked for to ping, because servers complained: each step doubles.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU32);

/// How much a byte stream has brought, and how often it has taken something along.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: AtomicUsize,
    writes: AtomicUsize,
}

/// A timer that is kept, and moved when its time is another one.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom it wakes.
    waker: Option<Waker>,
}

/// Whether there were calls since it was last asked, which is now and then.
#[derive(Debug)]
struct Rest {
    every: Duration,
    busy: bool,
    alarm: Alarm,
}

/// How long a connection without calls may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

impl Driver {
    /// In a box, for it is large and moves from task to task: each would have room for it to the end.
    pub(super) fn new(
        mut h2: H2,
        shared: Arc<Shared>,
        pulse: Option<Pulse>,
        adaptive: bool,
        pace: Arc<Pace>,
    ) -> Box<Self> {
        let pings = (adaptive || pulse.is_some()).then(|| h2.ping_pong());
        Box::new(Self {
            h2,
            seen: shared.traffic.reads(),
            shared,
            pace,
            heard: Instant::now(),
            going_away: false,
            pings: pings.flatten(),
            pulse,
            estimate: adaptive.then(Estimate::new),
            window: None,
            alarm: Alarm::default(),
            end: Alarm::default(),
            rest: None,
        })
    }

    /// Has it told when it carries no call for so long, or up to twice that.
    #[must_use]
    pub(super) fn tell_idle(mut self: Box<Self>, every: Duration) -> Box<Self> {
        self.rest = Some(Rest {
            every,
            busy: true,
            alarm: Alarm::default(),
        });
        self
    }

    /// Carries the connection until it ends, and returns why it did.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future breaks the connection, with all calls on it.
    pub(super) async fn run(mut self: Box<Self>, mut told: impl FnMut(Told) + Send) -> Error {
        let why = poll_fn(|cx| self.poll(&mut told, cx)).await;
        self.shared.end(why.clone());
        why
    }

    fn poll(&mut self, told: &mut (impl FnMut(Told) + Send), cx: &mut Context<'_>) -> Poll<Error> {
        self.shared.driver.register(cx.waker());
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut self.h2).poll(cx) {
                return Poll::Ready(self.ended(ended));
            }
            let reads = self.shared.traffic.reads();
            let heard = reads != self.seen;
            if heard {
                self.seen = reads;
                self.heard = Instant::now();
            }
            // Only a read can bring anything new, but for the end of the stream ids: a caller runs into it.
            if heard || (self.shared.quota.is_closed() && !self.going_away) {
                self.observe(told, cx);
            }
            if self.part() || self.measure(heard, cx) {
                continue;
            }
            if self.shared.quota.is_closed() && self.end.poll(cx).is_ready() {
                return Poll::Ready(self.overdue());
            }
            let open = self.shared.is_busy();
            if let Some(rest) = &mut self.rest
                && rest.poll(open, cx)
            {
                told(Told::Idle);
            }
            return self.poll_pulse(cx);
        }
    }

    /// Looks at what the peer may have said.
    fn observe(&mut self, told: &mut impl FnMut(Told), cx: &mut Context<'_>) {
        let limit = self.h2.max_concurrent_send_streams();
        if self.shared.quota.allow(limit) {
            told(Told::Limit(limit));
        }
        if self.going_away {
            return;
        }
        let mut parting = self.shared.parting();
        let Some(Poll::Ready(Err(error))) = parting.sender.as_mut().map(|s| s.poll_ready(cx))
        else {
            return;
        };
        drop(parting);
        self.going_away = true;
        self.shared.quota.close();
        self.heed(&error);
        let what = format!(
            "{} wants no more calls on this connection",
            self.shared.peer.address
        );
        told(Told::GoingAway(
            Error::new(ErrorKind::Unavailable, what).because(error),
        ));
    }

    /// Pings the next connection less often if that was the complaint about this one.
    fn heed(&self, error: &h2::Error) {
        let complaint = error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
            && error.to_string().contains("too_many_pings");
        if complaint && self.pulse.is_some() {
            self.pace.slower();
            tracing::info!(address = %self.shared.peer.address, "the server wants fewer pings");
        }
    }

    /// Sees to a drain; the answer is whether h2 has to be polled again for it.
    fn part(&mut self) -> bool {
        if !self.shared.quota.is_closed() {
            return false;
        }
        let mut parting = self.shared.parting();
        if !parting.leaving {
            return false;
        }
        if parting.sender.is_some() && self.shared.quota.open() == 0 {
            let sender = parting.sender.take();
            drop(parting);
            drop(sender);
            self.end.set(Some(Instant::now() + GOODBYE));
            return true;
        }
        if parting.sender.is_some() {
            self.end.set(parting.until);
        }
        false
    }

    /// Sees to what pongs say about the windows; whether h2 has to be polled again for it.
    fn measure(&mut self, heard: bool, cx: &mut Context<'_>) -> bool {
        let (Some(pings), Some(estimate)) = (&mut self.pings, &mut self.estimate) else {
            return false;
        };
        let pong = pings.poll_pong(cx).is_ready();
        let mut wider = false;
        let bytes = self.shared.traffic.reads();
        if pong && let Some(window) = estimate.answered(bytes, Instant::now()) {
            self.h2.set_target_window_size(window);
            self.window = Some(window);
            wider = true;
        }
        if let Some(window) = self.window
            && self.h2.set_initial_window_size(window).is_ok()
        {
            self.window = None;
            wider = true;
        }
        let now = self.heard;
        if heard && estimate.wants_ping(now) && pings.send_ping(Ping::opaque()).is_ok() {
            estimate.asked(bytes, now);
        }
        wider
    }

    fn poll_pulse(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let (Some(pulse), Some(pings)) = (&mut self.pulse, &mut self.pings) else {
            return Poll::Pending;
        };
        // What is heard meanwhile only puts off what is due: it is soon enough to look when the alarm rings.
        if self.alarm.is_quiet(cx) {
            return Poll::Pending;
        }
        if self.estimate.is_none() {
            // Nothing is read from it but that it may be sent again; what counts is that bytes came.
            let _ = pings.poll_pong(cx).is_ready();
        }
        loop {
            let busy = self.shared.is_busy();
            match pulse.look(Instant::now(), self.heard, busy) {
                Act::Wait(until) => {
                    self.alarm.set(Some(until));
                    ready!(self.alarm.poll(cx));
                }
                Act::Rest => return Poll::Pending,
                // It fails when the one before is still on its way, which serves as well.
                Act::Ask => drop(pings.send_ping(Ping::opaque())),
                Act::Dead => return Poll::Ready(self.silent()),
            }
        }
    }

    fn ended(&self, result: Result<(), h2::Error>) -> Error {
        let address = &self.shared.peer.address;
        let what = match result {
            Err(error) => {
                if !self.going_away {
                    self.heed(&error);
                }
                return self.shared.broke(error);
            }
            Ok(()) if self.shared.parting().leaving => {
                format!("the connection to {address} was drained")
            }
            Ok(()) if self.going_away => format!("{address} went away in order"),
            Ok(()) => format!("{address} closed the connection"),
        };
        Error::new(ErrorKind::Unavailable, what)
    }

    fn overdue(&self) -> Error {
        let address = &self.shared.peer.address;
        let what = match self.shared.quota.open() {
            0 => format!("the connection to {address} was drained"),
            open => format!(
                "the connection to {address} was drained, and its time ran out with {open} calls open"
            ),
        };
        Error::new(ErrorKind::Unavailable, what)
    }

    fn silent(&self) -> Error {
        let what = format!("the connection to {} broke", self.shared.peer.address);
        Error::new(ErrorKind::Timeout, what).because("no answer to an HTTP/2 ping in time")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let what = format!(
            "the connection to {} was given up",
            self.shared.peer.address
        );
        self.shared.end(Error::new(ErrorKind::Unavailable, what));
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Pace {
    /// This often at most, by what servers said so far.
    pub(super) fn of(&self, every: Duration) -> Duration {
        every.saturating_mul(1 << self.0.load(Ordering::Relaxed))
    }

    fn slower(&self) {
        let steps = self.0.load(Ordering::Relaxed);
        self.0.store((steps + 1).min(8), Ordering::Relaxed);
    }
}

impl Rest {
    /// Whether a time has gone by without a call. Each call that comes or goes is a turn of the driver.
    fn poll(&mut self, open: bool, cx: &mut Context<'_>) -> bool {
        let mut idle = false;
        if self.alarm.sleep.is_none() || self.alarm.poll(cx).is_ready() {
            idle = !std::mem::replace(&mut self.busy, open) && !open;
            self.alarm.set(Some(Instant::now() + self.every));
            // It has to be polled to wake anybody.
            let _ = self.alarm.poll(cx).is_ready();
        }
        self.busy |= open;
        idle
    }
}

impl Alarm {
    pub(super) fn set(&mut self, until: Option<Instant>) {
        if let (Some(sleep), Some(until)) = (&self.sleep, until)
            && sleep.deadline() == until
        {
            return;
        }
        // One that has rung has forgotten whom to wake.
        self.waker = None;
        match (&mut self.sleep, until) {
            (Some(sleep), Some(until)) => sleep.as_mut().reset(until),
            (sleep, until) => *sleep = until.map(|until| Box::pin(sleep_until(until))),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_quiet(cx) {
            return Poll::Pending;
        }
        let Some(sleep) = &mut self.sleep else {
            return Poll::Pending;
        };
        let rung = sleep.as_mut().poll(cx);
        self.waker = rung.is_pending().then(|| cx.waker().clone());
        rung
    }

    /// Whether it is set, has not rung, and will wake this task when it does.
    fn is_quiet(&self, cx: &Context<'_>) -> bool {
        let wakes = |waker: &Waker| waker.will_wake(cx.waker());
        self.waker.as_ref().is_some_and(wakes)
            && self.sleep.as_ref().is_some_and(|sleep| !sleep.is_elapsed())
    }
}

impl Traffic {
    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub(super) fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }
}

impl Ear for Arc<Traffic> {
    fn read(&mut self, bytes: &[u8]) {
        self.reads.fetch_add(bytes.len(), Ordering::Relaxed);
    }

    fn wrote(&mut self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
}
