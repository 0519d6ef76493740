//! When a call that failed is sent again.

use std::time::Duration;

use rand::RngExt;
use tonic::Code;

use super::codes::Codes;
use crate::{Error, backoff::countable, health::ranged};

/// A call that failed is sent again, to another server while there is one that it was not sent to.
///
/// Only while nothing of the response has come and the request is still kept; within the call's deadline, the
/// channel's [`Budget`](super::Budget), and what [`Throttle`](super::Throttle) lets through. A server may ask
/// for a certain wait, or for no retry, by `grpc-retry-pushback-ms` in its trailers, and gets it.
///
/// ```
/// use std::time::Duration;
/// use tonic::Code;
/// use tonic_fleet::method::Retry;
///
/// let retry = Retry::attempts(4)
///     .backoff(Duration::from_millis(20), Duration::from_secs(1))
///     .on([Code::Unavailable, Code::Aborted])
///     .per_attempt(Duration::from_millis(500));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub(crate) attempts: u32,
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
    pub(crate) multiplier: f64,
    pub(crate) jitter: f64,
    pub(crate) codes: Codes,
    pub(crate) per_attempt: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self::attempts(3)
    }
}

impl Retry {
    /// Sent so many times at most, the first included. At least 2; what is more than the channel's
    /// [`max_attempts`](crate::Builder::max_attempts) counts as that.
    pub fn attempts(attempts: u32) -> Self {
        Self {
            attempts,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(1),
            multiplier: 2.0,
            jitter: 0.2,
            codes: [Code::Unavailable].into_iter().collect(),
            per_attempt: None,
        }
    }

    /// The wait before the first retry, and the longest. 100 ms and a second, unless set.
    #[must_use]
    pub fn backoff(mut self, initial: Duration, max: Duration) -> Self {
        self.initial = initial;
        self.max = max;
        self
    }

    /// How each wait grows. 2, unless set.
    #[must_use]
    pub fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// The share by which a wait may be shorter or longer. A fifth, unless set; from 0 to 1.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// The codes that are tried again. `UNAVAILABLE` alone, unless set: a server that says so has most
    /// likely done nothing. Others are for methods that may run more than once.
    #[must_use]
    pub fn on(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes = codes.into_iter().collect();
        self
    }

    /// How long one attempt may take until the first of its response. As long as the call, unless set. One
    /// that takes longer is given up, and the call tried again, whatever the codes are.
    #[must_use]
    pub fn per_attempt(mut self, limit: Duration) -> Self {
        self.per_attempt = Some(limit);
        self
    }

    /// How long to wait before this retry; the first is 1.
    pub(crate) fn wait(&self, retry: u32) -> Duration {
        let before = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.multiplier.powi(before);
        let base = grown.min(self.max.as_secs_f64());
        let spread = rand::rng().random_range(-self.jitter..=self.jitter);
        countable(Duration::try_from_secs_f64(base * (1.0 + spread)).unwrap_or(self.max))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        ranged("retry: attempts", self.attempts, 2, u32::MAX)?;
        ranged("retry: jitter", self.jitter, 0.0, 1.0)?;
        let refuse = |what: String| Err(Error::config(format!("retry: {what}")));
        for (name, wait) in [("initial", self.initial), ("max", self.max)] {
            if wait.is_zero() {
                return refuse(format!("the {name} backoff is 0: it is more than that"));
            }
        }
        if !(self.multiplier > 0.0 && self.multiplier.is_finite()) {
            return refuse(format!(
                "the multiplier is {}: it is more than 0",
                self.multiplier
            ));
        }
        if self.per_attempt.is_some_and(|limit| limit.is_zero()) {
            return refuse("per_attempt is 0: no attempt could ever succeed".into());
        }
        if self.codes.is_empty() {
            return refuse("no code is tried again: name at least one".into());
        }
        if self.codes.contains(Code::Ok) {
            return refuse("OK would be tried again: leave it out".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_multiplier_up_to_the_longest() {
        let retry = Retry::attempts(5)
            .backoff(Duration::from_millis(100), Duration::from_millis(700))
            .multiplier(3.0)
            .jitter(0.0);

        let waits = [1, 2, 3, 4, u32::MAX].map(|nth| retry.wait(nth).as_millis());

        assert_eq!(waits, [100, 300, 700, 700, 700]);
    }

    #[test]
    fn waits_may_shrink() {
        let second = Duration::from_secs(1);
        let retry = Retry::attempts(5).backoff(second, second);

        let retry = retry.multiplier(0.5).jitter(0.0);

        assert_eq!(
            [1, 2, 3].map(|nth| retry.wait(nth).as_millis()),
            [1000, 500, 250]
        );
        assert_eq!(retry.wait(u32::MAX), Duration::ZERO);
    }

    #[test]
    fn a_wait_is_a_fifth_shorter_or_longer() {
        let second = Duration::from_secs(1);
        let retry = Retry::attempts(5).backoff(second, second);

        let waits: Vec<_> = (0..1000).map(|_| retry.wait(3).as_millis()).collect();

        assert!(waits.iter().all(|wait| (800..=1200).contains(wait)));
        assert!(waits.iter().any(|&wait| wait < 900) && waits.iter().any(|&wait| wait > 1100));
    }

    #[test]
    fn the_longest_time_there_is_can_be_counted() {
        let retry = Retry::attempts(2).backoff(Duration::MAX, Duration::MAX);

        let until = tokio::time::Instant::now() + retry.wait(1);

        assert!(until > tokio::time::Instant::now());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let zero = Duration::ZERO;
        let second = Duration::from_secs(1);
        let retry = || Retry::attempts(2);
        for (retry, name) in [
            (Retry::attempts(1), "attempts"),
            (retry().backoff(zero, second), "initial"),
            (retry().backoff(second, zero), "max"),
            (retry().multiplier(0.0), "multiplier"),
            (retry().multiplier(f64::NAN), "multiplier"),
            (retry().multiplier(f64::INFINITY), "multiplier"),
            (retry().jitter(1.1), "jitter"),
            (retry().jitter(f64::NAN), "jitter"),
            (retry().per_attempt(zero), "per_attempt"),
            (retry().on([]), "no code"),
            (retry().on([Code::Ok]), "OK"),
        ] {
            let refused = retry.check().unwrap_err().to_string();
            assert!(
                refused.starts_with("retry: ") && refused.contains(name),
                "{refused}"
            );
        }
        Retry::default().check().unwrap();
    }
}
