//! How much may be sent again, all in all.

use crate::{Error, health::ranged};

/// How many attempts beyond the first the calls of a channel may have, all together.
///
/// A share of the calls of the last ten seconds, so that a fleet that is overloaded is not sent many times the
/// load; or so many each second where that is more, for channels with few calls. Calls count that may be sent
/// again. Retries and hedges are what they may have; what never left, or was refused unseen, does not count.
/// A fifth of the calls or ten a second, unless set.
///
/// ```
/// use tonic_fleet::method::Budget;
///
/// let thrifty = Budget::share(0.05).floor(2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    pub(crate) share: f64,
    pub(crate) floor: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self::share(0.2)
    }
}

impl Budget {
    /// So much of the calls: 0.2 is a fifth. From 0 to 100.
    pub fn share(share: f64) -> Self {
        Self { share, floor: 10 }
    }

    /// So many each second, however few calls there are: it is a floor, and does not add to the share. 10,
    /// unless set. Up to 10,000.
    #[must_use]
    pub fn floor(mut self, per_second: u32) -> Self {
        self.floor = per_second;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        ranged("budget: share", self.share, 0.0, 100.0)?;
        ranged("budget: floor", self.floor, 0, 10_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (budget, name) in [
            (Budget::share(-0.1), "share"),
            (Budget::share(100.1), "share"),
            (Budget::share(f64::NAN), "share"),
            (Budget::share(0.2).floor(10_001), "floor"),
        ] {
            let refused = budget.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        Budget::share(0.0).floor(0).check().unwrap();
    }
}
