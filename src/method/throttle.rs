//! When so much fails that nothing more is sent again.

use crate::{Error, health::ranged};

/// Nothing is sent again while too much of what a channel sends fails: gRPC's retry throttling.
///
/// There are so many tokens. Each failure that would be tried again takes one, as does each server that asks
/// for no retry; each success brings back a part of one. While there is no more than half of them, calls are
/// sent once. A server's answer that the caller is wrong counts for nothing.
///
/// ```
/// use tonic_fleet::method::Throttle;
///
/// // Up to a tenth of the calls may fail for ever.
/// let throttle = Throttle::new(10, 0.1);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Throttle {
    /// In thousandths, as they are counted.
    pub(crate) max_milli: u32,
    pub(crate) ratio_milli: u32,
}

/// What more than this is, is more than can be counted; a `tokenRatio` like that fills up at once.
const MOST: u32 = 1_000;

impl Throttle {
    /// From 1 to 1,000 tokens, and what part of one a success brings back: more than 0, to three decimals.
    pub fn new(max_tokens: u32, token_ratio: f64) -> Self {
        let ratio = (token_ratio * 1e3).clamp(0.0, f64::from(MOST) * 1e3);
        Self {
            max_milli: max_tokens.saturating_mul(1_000),
            // What is not a number is 0, and refused.
            ratio_milli: ratio.round() as u32,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        ranged("throttle: max_tokens", self.max_milli / 1_000, 1, MOST)?;
        if self.ratio_milli == 0 {
            return Err(Error::config(
                "throttle: token_ratio is less than a thousandth: no token would ever come back",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_decimals_of_the_ratio_are_kept() {
        assert_eq!(Throttle::new(10, 0.1).ratio_milli, 100);
        assert_eq!(Throttle::new(10, 0.1234).ratio_milli, 123);
        assert_eq!(Throttle::new(10, 1e300).ratio_milli, 1_000_000);
        assert_eq!(Throttle::new(10, 0.1).max_milli, 10_000);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (throttle, name) in [
            (Throttle::new(0, 0.1), "max_tokens"),
            (Throttle::new(1001, 0.1), "max_tokens"),
            (Throttle::new(u32::MAX, 0.1), "max_tokens"),
            (Throttle::new(10, 0.0), "token_ratio"),
            (Throttle::new(10, 0.0004), "token_ratio"),
            (Throttle::new(10, -1.0), "token_ratio"),
            (Throttle::new(10, f64::NAN), "token_ratio"),
        ] {
            let refused = throttle.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        Throttle::new(1000, 0.001).check().unwrap();
    }
}
