//! A call that failed is sent again.

use std::time::Duration;

use http::{Request, Response};
use tokio::time::sleep;
use tonic::{Status, body::Body};

use super::{
    Gates, Repeated, Trying,
    said::{Pushback, Said},
};
use crate::{Why, method::Retry};

/// Sends the call until it is answered, fails in a way that another attempt does not mend, or may not be sent
/// again. The last failure is the call's.
pub(crate) async fn retry<B, F>(
    retry: Retry,
    mut call: Repeated,
    gates: Gates,
    mut send: F,
) -> Result<Response<B>, Status>
where
    F: FnMut(Request<Body>) -> Trying<B>,
{
    gates.begun();
    let mut why = Why::Called;
    // How many waits have grown from the first one.
    let mut waits = 0;
    loop {
        let answer = send(call.attempt(why)).await;
        let Some(wait) = wait(&retry, &call, &gates, &mut waits, Said::of(&answer)) else {
            let last = call.sent - 1;
            return call.settled(last, answer);
        };
        let last = call.sent - 1;
        if !call.recording.goes_on_without(last) {
            return call.settled(last, answer);
        }
        // It keeps a place at its server until then.
        drop(answer);
        sleep(wait).await;
        why = Why::Retried;
    }
}

/// How long to wait before the next attempt, if there is to be one.
fn wait(
    retry: &Retry,
    call: &Repeated,
    gates: &Gates,
    waits: &mut u32,
    said: Said,
) -> Option<Duration> {
    let pushback = match said {
        Said::Answered => {
            gates.succeeded();
            return None;
        }
        Said::Final => return None,
        _ if call.recording.has_failed() => return None,
        Said::RanOut => Pushback::None,
        Said::Failed {
            pushback: Pushback::Never,
            ..
        } => {
            gates.failed();
            return None;
        }
        Said::Failed { code, .. } if !retry.codes.contains(code) => return None,
        Said::Failed { pushback, .. } => pushback,
    };
    gates.failed();
    if call.sent >= retry.attempts || !call.recording.is_whole() {
        return None;
    }
    let wait = match pushback {
        Pushback::Wait(wait) => {
            *waits = 0;
            wait
        }
        _ => {
            *waits += 1;
            retry.wait(*waits)
        }
    };
    // Who has no time for another attempt need not wait for the end of it.
    (call.has_time(wait) && gates.let_through()).then_some(wait)
}
