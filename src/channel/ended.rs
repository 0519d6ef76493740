//! What is left of a channel whose task has ended before it.

use std::{panic::AssertUnwindSafe, sync::Arc, thread};

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{Shared, View, driver::Driver};
use crate::{
    Endpoint, Endpoints, Error, ErrorKind, State,
    resolve::{Update, Updates},
};

/// Why a channel's task can have ended, for those who still call.
const SHUT_DOWN: &str =
    "the runtime that this channel was built on has been shut down: build another";
const PANICKED: &str = "this channel's task has panicked: build another";

impl Drop for Driver {
    /// A runtime that is shut down drops its tasks, and all connections with them. Calls from another one
    /// would find servers that look ready, and wait for connections that nobody makes.
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            end(&self.shared);
        }
    }
}

/// The last view: nobody is ready, and why.
fn end(shared: &Shared) {
    let why = if thread::panicking() {
        PANICKED
    } else {
        SHUT_DOWN
    };
    let last = shared.view.load();
    let now = Instant::now();
    let connected =
        |endpoint: &&Endpoint| matches!(endpoint.state(), State::Ready | State::Connecting);
    for endpoint in last.known.iter().filter(connected) {
        endpoint.vitals().enter(State::Idle, now);
    }
    let number = last.number + 1;
    shared.view.store(Arc::new(View {
        number,
        known: last.known.clone(),
        ready: Endpoints::default(),
        stale: last.stale.clone(),
        skipped: Arc::clone(&last.skipped),
        listed: last.listed,
        ended: Some(why),
        ..View::empty(shared.service.clone())
    }));
    shared.changed.send_replace(number);
    tracing::debug!(service = %shared.service, why, "channel ended");
}

/// A resolver that panics must not take the channel along: what was known serves on, and the view says why
/// nothing new comes.
pub(super) fn unshaken(updates: Updates) -> Updates {
    let updates = AssertUnwindSafe(updates).catch_unwind();
    Box::pin(updates.map(|update| {
        update.unwrap_or_else(|_| {
            tracing::error!("the resolver panicked; what was known serves on");
            Update::Stale(Error::new(ErrorKind::Unavailable, "the resolver panicked"))
        })
    }))
}
