//! What is wanted of each method's calls.

use super::Builder;
use crate::{
    Error,
    health::ranged,
    method::{Budget, Method, Methods, Throttle},
};

impl Builder {
    /// What is wanted of the calls of a method, `package.Service/Method`, of a service, `package.Service`, or
    /// of all others, an empty name. Nothing, unless set; see [`method`](crate::method).
    pub fn method(mut self, name: &str, method: Method) -> Self {
        self.methods = self.methods.and_then(|methods| methods.with(name, method));
        self
    }

    /// The same for many; what was said before of those that these name is forgotten.
    pub fn methods(mut self, methods: Methods) -> Self {
        self.methods = self.methods.map(|before| methods.or(&before));
        self
    }

    /// Nothing is sent again while too much fails. Whatever fails, unless set; see [`Throttle`].
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// How much may be sent again, all in all. A fifth of the calls and ten a second, unless set; `None` is
    /// without limit, as gRPC's own retries are. See [`Budget`].
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.budget = budget.into();
        self
    }

    /// How often a call is sent at most, the first time included, whatever its method's configuration says.
    /// 5, unless set. From 1, which turns retries and hedging off, to 100.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    pub(super) fn check_methods(&self) -> Result<(), Error> {
        self.throttle.as_ref().map_or(Ok(()), Throttle::check)?;
        self.budget.as_ref().map_or(Ok(()), Budget::check)?;
        ranged("max_attempts", self.max_attempts, 1, 100)
    }
}
