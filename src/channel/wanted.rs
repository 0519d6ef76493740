//! What is wanted of calls, as it is at the moment.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;

use crate::method::{Method, Methods, Throttle};

/// What is wanted of which method's calls; it may change at any time.
pub(super) struct Wanted {
    /// Looked at first: where nothing was ever wanted, a call costs no more than this.
    any: AtomicBool,
    now: ArcSwapOption<Wants>,
}

struct Wants {
    methods: Methods,
    throttle: Option<Throttle>,
}

impl Wanted {
    pub(super) fn new(methods: Methods, throttle: Option<Throttle>, max_attempts: u32) -> Self {
        let methods = methods.at_most(max_attempts);
        let any = !methods.is_empty();
        let wants = Wants { methods, throttle };
        Self {
            any: AtomicBool::new(any),
            now: ArcSwapOption::new(any.then(|| Arc::new(wants))),
        }
    }

    /// What is wanted of calls to this path.
    pub(super) fn of(&self, path: &str) -> Option<Arc<Method>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        self.now.load().as_ref()?.methods.lookup(path).cloned()
    }

    /// When nothing is sent again.
    #[allow(dead_code, reason = "read by the engine that sends calls again")]
    pub(super) fn throttle(&self) -> Option<Throttle> {
        self.now.load().as_ref()?.throttle
    }
}
