//! Who is well, as calls show it, and what follows.

use std::sync::Arc;

use super::Builder;
use crate::{
    Error,
    health::{Classify, Ejection, SlowStart, ranged},
};

impl Builder {
    /// When an endpoint whose calls fail is left out, and for how long. After five failures in a row, unless
    /// set; see [`Ejection`].
    pub fn ejection(mut self, ejection: Ejection) -> Self {
        self.limits.health.ejection = ejection;
        self
    }

    /// How an endpoint that joins a set under load, or comes back to it, is brought to its full weight. In
    /// ten seconds, unless set; see [`SlowStart`].
    pub fn slow_start(mut self, slow_start: SlowStart) -> Self {
        self.limits.health.slow_start = slow_start;
        self
    }

    /// When less than so many of a hundred that are connected are well, calls go to all of them. 50, unless
    /// set. Up to 100; 0 is when nobody is well any more.
    ///
    /// What seems to be wrong with most servers is more likely to be wrong elsewhere; and if it is not, the
    /// few that are well would not bear the calls of all. Who drains by the word of the registry does not
    /// count; who says `NOT_SERVING` counts as unwell. [`View::panic`](crate::View::panic) tells.
    pub fn panic_threshold(mut self, percent: u32) -> Self {
        self.limits.health.panic = percent;
        self
    }

    /// What a call that has ended shows about its server. [`Ended::usual`](crate::health::Ended::usual),
    /// unless set.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic_fleet::{Channel, health::{Ended, Outcome}};
    ///
    /// let channel = Channel::builder("static://10.0.0.5:50051/greeter".parse()?)
    ///     .classify(|ended: &Ended<'_>| match ended.code() {
    ///         tonic::Code::Aborted => Outcome::Failure,
    ///         _ => ended.usual(),
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.limits.health.classify = Some(Arc::new(classify));
        self
    }

    /// How many calls one endpoint may have in flight. 1,024, unless set. From 1 to a million.
    ///
    /// One that has as many is passed over. When all have, calls fail at once with `UNAVAILABLE`; the source
    /// of the status is an [`Error`] of the kind [`Overloaded`](crate::ErrorKind::Overloaded).
    pub fn breaker(mut self, calls: usize) -> Self {
        self.breaker = calls;
        self
    }

    /// How many calls may be under way on the whole channel, those that wait for an endpoint included. Any
    /// number, unless set. From 1 to a hundred million.
    ///
    /// More fail at once with `RESOURCE_EXHAUSTED`; the source of the status is an [`Error`] of the kind
    /// [`Overloaded`](crate::ErrorKind::Overloaded).
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.max_calls = Some(calls);
        self
    }

    pub(super) fn check_health(&self) -> Result<(), Error> {
        let health = &self.limits.health;
        health.ejection.check()?;
        health.slow_start.check()?;
        ranged("panic_threshold", health.panic, 0, 100)?;
        ranged("breaker", self.breaker, 1, 1_000_000)?;
        ranged("max_calls", self.max_calls.unwrap_or(1), 1, 100_000_000)
    }
}
