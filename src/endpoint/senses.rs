//! What is kept of an endpoint for the policies that ask for it, beside what is kept for all.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use http::HeaderMap;
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Peak, Probed};
use crate::{
    moment::Moment,
    orca::{Report, Weight},
};

/// Empty, until a policy is given the endpoint that goes by more than others do.
#[derive(Debug, Default)]
pub(crate) struct Senses {
    peak: OnceLock<Peak>,
    weight: OnceLock<Weight>,
    probed: OnceLock<Probed>,
    /// Who wanted it asked for reports, and the task that asks.
    asking: Mutex<Option<(Weak<()>, AbortOnDropHandle<()>)>>,
}

impl Senses {
    /// Its latency at its worst; assumed to be so while nothing is known.
    pub(crate) fn peak(&self, assumed: Duration, now: Moment) -> &Peak {
        self.peak.get_or_init(|| Peak::new(assumed, now))
    }

    /// What it weighs by its own reports, from now on.
    pub(crate) fn weight(&self, now: Instant) -> &Weight {
        self.weight.get_or_init(|| Weight::new(now))
    }

    /// What it said when it was last asked how busy it is.
    pub(crate) fn probed(&self, now: Instant) -> &Probed {
        self.probed.get_or_init(|| Probed::new(now))
    }

    /// Asks it for reports as long as it is there, for those who want that; once for the same.
    pub(crate) fn listen<F>(&self, wanted: &Arc<()>, ask: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Where nothing can be asked, as in a rehearsal, nobody is.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asking
            .as_ref()
            .is_some_and(|(by, task)| by.as_ptr() == Arc::as_ptr(wanted) && !task.is_finished());
        if !asked {
            let task = AbortOnDropHandle::new(runtime.spawn(ask()));
            *asking = Some((Arc::downgrade(wanted), task));
        }
    }

    /// A call was answered, or given up by those who waited for it, after so long.
    pub(super) fn took(&self, time: Duration, now: Moment) {
        if let Some(peak) = self.peak.get() {
            peak.took(time, now);
        }
    }

    /// These are headers or trailers of its, in which it may have reported.
    pub(super) fn said(&self, metadata: &HeaderMap) {
        // What cannot be read says nothing.
        if self.weight.get().is_some()
            && let Ok(Some(report)) = Report::of(metadata)
        {
            self.reports(&report);
        }
    }

    /// It reports this with a call.
    pub(super) fn reports(&self, report: &Report) {
        if let Some(weight) = self.weight.get() {
            weight.heard_with_call(report, Instant::now());
        }
    }
}
