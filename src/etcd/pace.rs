//! When to try again what failed.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Backoff, Error, ErrorKind};

/// How long to wait before trying again.
#[derive(Debug)]
pub(crate) struct Pace {
    quick: Backoff,
    /// For what only a person can put right.
    slow: Backoff,
}

impl Pace {
    /// At least as often as this while etcd refuses connections: a lease that it still has when it is back
    /// must be renewed before it ends.
    pub(crate) fn within(most: Duration) -> Self {
        let quick = Backoff::between(Duration::from_millis(50), most.min(Duration::from_secs(10)));
        let slow = Backoff::between(Duration::from_secs(1), Duration::from_secs(30));
        Self {
            quick: quick.factor(2.0).jitter(0.5),
            slow: slow.factor(2.0),
        }
    }

    /// When to try again what was begun then and failed like this.
    pub(crate) fn next(&mut self, error: &Error, began: Instant) -> Instant {
        let now = Instant::now();
        match error.kind() {
            // The next attempt gets a new lease.
            ErrorKind::Lost if self.quick.failures() == 0 => {
                self.quick.next();
                now
            }
            ErrorKind::Lost | ErrorKind::Unavailable => now + self.quick.next(),
            // It has waited already; and an etcd that thaws should find a question waiting for it.
            ErrorKind::Timeout => now.max(began + Duration::from_secs(1)),
            ErrorKind::Conflict => now + self.slow.next().min(Duration::from_secs(5)),
            _ => now + self.slow.next(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.quick.reset();
        self.slow.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: ErrorKind) -> Error {
        Error::new(kind, "register /services/greeter/a")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_replaced_at_once_and_then_with_growing_waits() {
        let mut pace = Pace::within(Duration::from_secs(3));
        let now = Instant::now();
        let mut wait = |kind| pace.next(&failure(kind), now) - now;

        assert_eq!(wait(ErrorKind::Lost), Duration::ZERO);
        let waits = [(); 12].map(|()| wait(ErrorKind::Lost));

        assert!(waits[0] < Duration::from_millis(200), "{waits:?}");
        assert!(waits[11] >= Duration::from_millis(1_500), "{waits:?}");
        assert!(waits[11] <= Duration::from_secs(3), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_not_answered_has_waited_already() {
        let mut pace = Pace::within(Duration::from_secs(3));
        let began = Instant::now();

        let at_once = pace.next(&failure(ErrorKind::Timeout), began);
        tokio::time::advance(Duration::from_secs(2)).await;
        let later = pace.next(&failure(ErrorKind::Timeout), began);

        assert_eq!(at_once, began + Duration::from_secs(1));
        assert_eq!(later, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_a_person_can_put_right_is_tried_rarely() {
        for kind in [ErrorKind::Denied, ErrorKind::NoSpace, ErrorKind::Conflict] {
            let mut pace = Pace::within(Duration::from_secs(3));
            let now = Instant::now();

            let waits = [(); 8].map(|()| pace.next(&failure(kind), now) - now);

            assert!(waits[0] >= Duration::from_millis(800), "{waits:?}");
            assert!(waits[7] >= Duration::from_millis(4_000), "{waits:?}");
        }
    }
}
