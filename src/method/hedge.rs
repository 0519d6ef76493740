//! When a call that takes long is sent to another server as well.

use std::time::Duration;

use tonic::Code;

use super::codes::Codes;
use crate::{Error, health::ranged};

/// A call that takes long is sent to another server as well; the first to answer has answered, and the others
/// are cancelled.
///
/// Only for methods that may run more than once for a call. Within the channel's [`Budget`](super::Budget) and
/// what [`Throttle`](super::Throttle) lets through: the first attempt is always sent.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::method::Hedge;
///
/// // One more when a call takes longer than 95 of 100 do: 5 % more calls, for a much shorter tail.
/// let slowest = Hedge::at_percentile(95.0);
/// // One more each 20 ms, four in all.
/// let eager = Hedge::after(Duration::from_millis(20)).attempts(4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Hedge {
    pub(crate) attempts: u32,
    pub(crate) delay: Delay,
    pub(crate) non_fatal: Codes,
}

/// How long an attempt has before the next is sent beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delay {
    /// So long; at once, if that is no time at all.
    Fixed(Duration),
    /// As long as so many of a hundred of the method's calls take. Nothing is sent twice before enough calls
    /// were seen to know.
    Percentile(f64),
}

impl Hedge {
    /// The next attempt is sent after this time without an answer. Two attempts, unless set.
    pub fn after(delay: Duration) -> Self {
        Self::new(Delay::Fixed(delay))
    }

    /// The next attempt is sent when a call takes longer than so many of a hundred of this method's calls do;
    /// see [`Delay::Percentile`]. Two attempts, unless set.
    pub fn at_percentile(percent: f64) -> Self {
        Self::new(Delay::Percentile(percent))
    }

    fn new(delay: Delay) -> Self {
        Self {
            attempts: 2,
            delay,
            non_fatal: Codes::default(),
        }
    }

    /// Sent so many times at most, the first included. At least 2; what is more than the channel's
    /// [`max_attempts`](crate::Builder::max_attempts) counts as that.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// An attempt that ends with one of these has the next one sent at once, and the call goes on while there
    /// are others. None, unless set: any error ends the call.
    #[must_use]
    pub fn non_fatal(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.non_fatal = codes.into_iter().collect();
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        ranged("hedge: attempts", self.attempts, 2, u32::MAX)?;
        if let Delay::Percentile(percent) = self.delay
            && !(percent > 0.0 && percent < 100.0)
        {
            return Err(Error::config(format!(
                "hedge: the percentile is {percent}: it is more than 0 and less than 100"
            )));
        }
        if self.non_fatal.contains(Code::Ok) {
            return Err(Error::config("hedge: OK is no failure: leave it out"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let second = Duration::from_secs(1);
        for (hedge, name) in [
            (Hedge::after(second).attempts(1), "attempts"),
            (Hedge::at_percentile(0.0), "percentile"),
            (Hedge::at_percentile(100.0), "percentile"),
            (Hedge::at_percentile(f64::NAN), "percentile"),
            (Hedge::after(second).non_fatal([Code::Ok]), "OK"),
        ] {
            let refused = hedge.check().unwrap_err().to_string();
            assert!(
                refused.starts_with("hedge: ") && refused.contains(name),
                "{refused}"
            );
        }
        Hedge::after(Duration::ZERO).check().unwrap();
        Hedge::at_percentile(99.9).check().unwrap();
    }
}
