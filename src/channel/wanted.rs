//! What is wanted of calls, as it is at the moment.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;

use super::sizes::Sizes;
use crate::method::{Method, Methods, ServiceConfig, Throttle};

/// What is wanted of which method's calls; it may change at any time.
pub(super) struct Wanted {
    /// Looked at first: where nothing is wanted, a call costs no more than this.
    any: AtomicBool,
    /// Whether any of it is about the sizes of messages.
    sized: AtomicBool,
    now: ArcSwapOption<Wants>,
    own: Own,
}

/// What the program itself said, which goes before what a configuration says.
pub(super) struct Own {
    pub(super) methods: Methods,
    pub(super) throttle: Option<Throttle>,
    pub(super) max_attempts: u32,
}

struct Wants {
    methods: Methods,
    throttle: Option<Throttle>,
}

impl Wanted {
    pub(super) fn new(own: Own, config: &ServiceConfig) -> Self {
        let wanted = Self {
            any: AtomicBool::new(false),
            sized: AtomicBool::new(false),
            now: ArcSwapOption::empty(),
            own,
        };
        wanted.adopt(config);
        wanted
    }

    /// This is the configuration now.
    pub(super) fn adopt(&self, config: &ServiceConfig) {
        let methods = self.own.methods.clone().or(&config.methods);
        let methods = methods.at_most(self.own.max_attempts);
        let throttle = self.own.throttle.or(config.throttle);
        let any = !methods.is_empty();
        let sized = methods.all().any(|method| sizes(method).is_some());
        let wants = Wants { methods, throttle };
        self.now.store(any.then(|| Arc::new(wants)));
        // A call that does not see it yet was made before.
        self.any.store(any, Ordering::Relaxed);
        self.sized.store(sized, Ordering::Relaxed);
    }

    /// What is wanted of calls to this path.
    pub(super) fn of(&self, path: &str) -> Option<Arc<Method>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        self.now.load().as_ref()?.methods.lookup(path).cloned()
    }

    /// How large the messages of calls to this path may be.
    pub(super) fn sizes(&self, path: &str) -> Option<Sizes> {
        if !self.sized.load(Ordering::Relaxed) {
            return None;
        }
        sizes(&*self.of(path)?)
    }

    /// When nothing is sent again.
    pub(super) fn throttle(&self) -> Option<Throttle> {
        self.now.load().as_ref()?.throttle
    }
}

fn sizes(method: &Method) -> Option<Sizes> {
    let (request, response) = (method.max_request, method.max_response);
    (request.is_some() || response.is_some()).then_some(Sizes { request, response })
}
