//! What is kept of an endpoint for the policies that ask for it, beside what is kept for all.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

use super::Peak;
use crate::moment::Moment;

/// Empty, until a policy is given the endpoint that goes by more than others do.
#[derive(Debug, Default)]
pub(crate) struct Senses {
    peak: OnceLock<Peak>,
}

impl Senses {
    /// Its latency at its worst; assumed to be so while nothing is known.
    pub(crate) fn peak(&self, assumed: Duration, now: Instant) -> &Peak {
        self.peak.get_or_init(|| Peak::new(assumed, now))
    }

    /// A call was answered, or given up by those who waited for it, after so long.
    pub(super) fn took(&self, time: Duration, now: Moment) {
        if let Some(peak) = self.peak.get() {
            peak.took(time, now);
        }
    }
}
