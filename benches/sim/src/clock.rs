//! The simulation's time, as the crate's policies see it.

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::server::Time;

/// tokio's clock, which is paused and goes with the simulation. Shared by all clients of a run.
#[derive(Clone, Default)]
pub struct Clock(Rc<Cell<Time>>);

impl Clock {
    /// It is so late now.
    pub fn reach(&self, at: Time) {
        let by = at.saturating_sub(self.0.replace(at));
        if by == 0 {
            return;
        }
        // Moved when first polled; the rest would be a round of tokio's scheduler, and nobody sleeps here.
        let mut moving = pin!(tokio::time::advance(Duration::from_nanos(by)));
        let _: Poll<()> = moving
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// Runs something on a clock that stands still but for [`Clock::reach`].
pub fn paused<T>(run: impl FnOnce() -> T) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    Ok(runtime.block_on(async { run() }))
}
