//! What is wanted of a method's calls: how long they may take, whether they wait for a server, how large their
//! messages may be, and what is done when one fails.
//!
//! Nothing is, unless set: no call is sent again that a server may have seen, and none is sent twice.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tonic_fleet::Error> {
//! use std::time::Duration;
//! use tonic::Code;
//! use tonic_fleet::{Channel, method::{Hedge, Method, Retry}};
//!
//! let channel = Channel::builder("static://10.0.0.5:50051,10.0.0.6:50051/shop".parse()?)
//!     // All methods of all services,
//!     .method("", Method::new().timeout(Duration::from_secs(5)))
//!     // all methods of one,
//!     .method("shop.Cart", Method::new().retry(Retry::attempts(3).on([Code::Unavailable])))
//!     // and one: what is said of it says all.
//!     .method("shop.Cart/Show", Method::new().hedge(Hedge::after(Duration::from_millis(50))))
//!     .build()?;
//! # Ok(())
//! # }
//! ```

mod budget;
mod codes;
mod config;
mod hedge;
mod methods;
mod retry;
mod throttle;

use std::{pin::Pin, time::Duration};

use futures_core::Stream;

pub use budget::Budget;
pub(crate) use codes::name;
pub(crate) use config::Named;
pub use config::ServiceConfig;
pub use hedge::{Delay, Hedge};
pub use methods::Methods;
pub use retry::Retry;
pub use throttle::Throttle;

use crate::Error;

/// What a service's configuration is, each time it changes: its JSON, or none.
pub(crate) type Configs = Pin<Box<dyn Stream<Item = Option<String>> + Send>>;

/// What is wanted of the calls of one method, of all methods of a service, or of all.
///
/// What is not set is as it is for the whole channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Method {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) max_request: Option<usize>,
    pub(crate) max_response: Option<usize>,
    pub(crate) again: Option<Again>,
}

/// What is done beside sending a call once: it is sent again when it failed, or before it did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Again {
    Retry(Retry),
    Hedge(Hedge),
}

impl Method {
    /// Nothing beyond what is wanted of every call.
    pub fn new() -> Self {
        Self::default()
    }

    /// The time limit of every call that brings none, or a longer one, of its own; the channel's, if that is
    /// shorter. None, unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Whether a call waits for a server when none is ready. It does, until its deadline or for the channel's
    /// [`patience`](crate::Builder::patience), unless set to `false`: then it fails at once with
    /// `UNAVAILABLE` when nobody is ready and nobody is about to be. With `true` it waits until its deadline,
    /// and without one for as long as it takes.
    #[must_use]
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = Some(wait);
        self
    }

    /// How many bytes a message to the server may have, as it is sent: compressed, if it is. Any number,
    /// unless set; 0 is for messages that are empty. A larger one is not sent, and its call fails with
    /// `RESOURCE_EXHAUSTED`.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request = Some(bytes);
        self
    }

    /// How many bytes a message from the server may have, as it is sent. Any number, unless set; generated
    /// clients have a limit of their own, 4 MiB. A larger one ends its call with `RESOURCE_EXHAUSTED` before
    /// it is read.
    #[must_use]
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response = Some(bytes);
        self
    }

    /// A call that failed is sent again, to another server. Instead of [`hedge`](Self::hedge), if that was
    /// set.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.again = Some(Again::Retry(retry));
        self
    }

    /// A call that takes long is sent to another server as well. Only for methods that may run twice, or
    /// more often, for one call. Instead of [`retry`](Self::retry), if that was set.
    #[must_use]
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.again = Some(Again::Hedge(hedge));
        self
    }

    /// How it is sent again, if it is.
    pub(crate) fn again(&self) -> Option<&Again> {
        self.again.as_ref()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Error::config("timeout is 0: no call could ever succeed"));
        }
        match &self.again {
            Some(Again::Retry(retry)) => retry.check(),
            Some(Again::Hedge(hedge)) => hedge.check(),
            None => Ok(()),
        }
    }

    /// The same, sent so many times at most, the first included.
    pub(crate) fn at_most(&self, attempts: u32) -> Self {
        let mut method = self.clone();
        if attempts < 2 {
            method.again = None;
        }
        match &mut method.again {
            Some(Again::Retry(retry)) => retry.attempts = retry.attempts.min(attempts),
            Some(Again::Hedge(hedge)) => hedge.attempts = hedge.attempts.min(attempts),
            None => {}
        }
        method
    }
}
