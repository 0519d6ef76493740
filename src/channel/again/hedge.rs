//! A call that takes long is sent to another server as well.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use http::{Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, body::Body};

use super::{
    Gates, Pace, Repeated, Trying,
    said::{Pushback, Said},
};
use crate::{
    Why,
    method::{Delay, Hedge},
};

/// The attempts of one call, side by side.
struct Race<B> {
    call: Repeated,
    flying: Vec<(u32, Trying<B>)>,
    /// The last attempt that failed.
    failed: Option<(u32, Result<Response<B>, Status>)>,
    /// When the next is sent; none when there is no next.
    next: Option<Instant>,
    began: Instant,
    attempts: u32,
    delay: Option<Duration>,
    gates: Gates,
    pace: Arc<Pace>,
}

/// The least wait for an attempt that has yet to find somewhere to go.
const LITTLE: Duration = Duration::from_millis(1);

/// Sends the call, and sends it again while it takes long; the first answer is the call's, and the other
/// attempts are cancelled.
pub(crate) async fn hedge<B, F>(
    hedge: Hedge,
    call: Repeated,
    gates: Gates,
    pace: Arc<Pace>,
    mut send: F,
) -> Result<Response<B>, Status>
where
    F: FnMut(Request<Body>) -> Trying<B>,
{
    gates.begun();
    let now = Instant::now();
    let mut race = Race {
        call,
        flying: Vec::new(),
        failed: None,
        next: Some(now),
        began: now,
        attempts: hedge.attempts,
        delay: match hedge.delay {
            Delay::Fixed(delay) => Some(delay),
            Delay::Percentile(percent) => pace.percentile(percent),
        },
        gates,
        pace,
    };
    loop {
        race.send_what_is_due(&mut send);
        if race.flying.is_empty()
            && race.next.is_none()
            && let Some((attempt, answer)) = race.failed
        {
            return race.call.settled(attempt, answer);
        }
        let next = race.next;
        let (attempt, answer) = tokio::select! {
            biased;
            ended = race.ended() => ended,
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => continue,
        };
        if race.is_over(&hedge, attempt, &answer) || !race.call.recording.goes_on_without(attempt) {
            return race.call.settled(attempt, answer);
        }
        race.failed = Some((attempt, without_body(answer)));
    }
}

/// What failed keeps no place at its server while others are under way: its status is all there is to it.
fn without_body<B>(answer: Result<Response<B>, Status>) -> Result<Response<B>, Status> {
    let response = answer?;
    match Status::from_header_map(response.headers()) {
        Some(status) => Err(status),
        None => Ok(response),
    }
}

impl<B> Race<B> {
    fn send_what_is_due(&mut self, send: &mut impl FnMut(Request<Body>) -> Trying<B>) {
        while let Some(next) = self.next {
            let now = Instant::now();
            if next > now {
                // Nobody waits for an attempt that comes too late.
                let wait = next - now;
                self.next = Some(next).filter(|_| self.call.has_time(wait));
                return;
            }
            if self.call.sent == 0 {
                self.fly(Why::Called, send);
            } else if self.call.sent >= self.attempts || !self.call.recording.is_whole() {
                self.next = None;
            } else if self.waits_for_a_place() {
                // Never at once, whatever the delay: those that fly are to be looked at first.
                let wait = self.delay.map_or(LITTLE, |delay| delay.max(LITTLE));
                self.next = now.checked_add(wait);
                return;
            } else if self.gates.let_through() {
                self.fly(Why::Hedged, send);
            } else {
                self.next = None;
            }
        }
    }

    fn fly(&mut self, why: Why, send: &mut impl FnMut(Request<Body>) -> Trying<B>) {
        let number = self.call.sent;
        let attempt = send(self.call.attempt(why));
        self.flying.push((number, attempt));
        self.next = self.later(Instant::now());
    }

    /// When the attempt after the next is due, at the earliest.
    fn later(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.delay?)
    }

    /// Where one finds nobody to go to, a second would wait beside it.
    fn waits_for_a_place(&self) -> bool {
        let is_eager = self.delay.is_some_and(|delay| delay.is_zero());
        !is_eager && !self.flying.is_empty() && self.call.placed() < self.call.sent
    }

    /// The next of the attempts to end. Attempts that can no longer send their body are given up.
    async fn ended(&mut self) -> (u32, Result<Response<B>, Status>) {
        poll_fn(|cx| {
            let mut at = 0;
            while at < self.flying.len() {
                let attempt = self.flying[at].0;
                let only = self.call.recording.poll_only(cx);
                // It would fail for want of its body, which is no word on the call.
                if only.is_some_and(|only| only != attempt) {
                    drop(self.flying.swap_remove(at));
                    continue;
                }
                if let Poll::Ready(answer) = self.flying[at].1.as_mut().poll(cx) {
                    drop(self.flying.swap_remove(at));
                    return Poll::Ready((attempt, answer));
                }
                at += 1;
            }
            if let Some(only) = self.call.recording.poll_only(cx) {
                self.flying.retain(|(attempt, _)| *attempt == only);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether this is what the call comes to; if not, when the next attempt is due is seen to.
    fn is_over(
        &mut self,
        hedge: &Hedge,
        attempt: u32,
        answer: &Result<Response<B>, Status>,
    ) -> bool {
        let pushback = match Said::of(answer) {
            Said::Answered => {
                self.gates.succeeded();
                self.note_pace(attempt);
                return true;
            }
            _ if self.call.recording.ends_with(attempt) => return true,
            // There may be others under way, and more would come to the same.
            Said::Final => Pushback::Never,
            Said::RanOut => Pushback::None,
            Said::Failed { code, pushback } => {
                let is_fatal = !hedge.non_fatal.contains(code);
                if !is_fatal || pushback == Pushback::Never {
                    self.gates.failed();
                }
                if is_fatal {
                    return true;
                }
                pushback
            }
        };
        let now = Instant::now();
        self.next = match pushback {
            Pushback::None if self.has_more() => Some(now),
            Pushback::Wait(wait) if self.has_more() => now.checked_add(wait),
            _ => {
                self.attempts = self.call.sent;
                None
            }
        };
        false
    }

    fn has_more(&self) -> bool {
        self.call.sent < self.attempts
    }

    /// The first attempt took so long, or longer.
    fn note_pace(&self, winner: u32) {
        let still_flies = self.flying.iter().any(|(attempt, _)| *attempt == 0);
        if winner == 0 || still_flies {
            self.pace.took(Instant::now() - self.began);
        }
    }
}
