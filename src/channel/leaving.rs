//! An attempt on the point of leaving, as users see it.

use std::{fmt, sync::Arc};

use http::HeaderMap;

use super::ServedBy;

/// The head of an attempt whose server has been chosen; see
/// [`Builder::each_attempt`](crate::Builder::each_attempt).
#[derive(Debug)]
pub struct Leaving<'a> {
    pub(super) path: &'a str,
    pub(super) headers: &'a mut HeaderMap,
    pub(super) number: u32,
    pub(super) why: Why,
    pub(super) server: &'a ServedBy,
}

/// Why a request leaves.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// Somebody calls.
    Called,
    /// It did not leave before, or the server did nothing about it.
    Unseen,
    /// It failed.
    Retried,
    /// It takes long.
    Hedged,
}

/// What a user does to each attempt.
#[derive(Clone)]
pub(super) struct Each(Arc<dyn Fn(&mut Leaving<'_>) + Send + Sync>);

impl Leaving<'_> {
    /// The method called: `/package.Service/Method`.
    pub fn path(&self) -> &str {
        self.path
    }

    /// What is sent with it.
    pub fn headers(&self) -> &HeaderMap {
        self.headers
    }

    /// The same, to change. Those of an attempt that did not leave may be seen again: insert, do not append.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers
    }

    /// How many attempts of the call there were before: retries and hedges, not those that nobody has seen.
    pub fn previous(&self) -> u32 {
        self.number
    }

    /// Why it leaves.
    pub fn why(&self) -> Why {
        self.why
    }

    /// Where it goes.
    pub fn server(&self) -> &ServedBy {
        self.server
    }
}

impl Each {
    pub(super) fn new(each: impl Fn(&mut Leaving<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(each))
    }

    pub(super) fn leaves(&self, attempt: &mut Leaving<'_>) {
        (self.0)(attempt);
    }
}

impl fmt::Debug for Each {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Each")
    }
}
