//! What a cluster must be told before it answers.

use std::{fmt, time::Duration};

use etcd_client::ConnectOptions;

use crate::{Error, Result, transport::Tls};

/// How to ask an etcd cluster: who asks, over what, and how long to wait.
///
/// Passwords and keys are not shown by `Debug`.
#[derive(Clone, Eq, PartialEq)]
pub struct Options {
    user: Option<(String, String)>,
    pub(super) tls: Option<Tls>,
    pub(super) read: Duration,
    pub(super) write: Duration,
}

impl Options {
    /// Asks as this user.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// Asks over TLS.
    #[cfg(feature = "_tls")]
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long to wait for an answer to a question. Two seconds, unless set; above seven, the
    /// cluster's own limit comes first.
    #[must_use]
    pub fn read_limit(mut self, limit: Duration) -> Self {
        self.read = limit;
        self
    }

    /// Sets how long to wait for a write. Three seconds, unless set.
    #[must_use]
    pub fn write_limit(mut self, limit: Duration) -> Self {
        self.write = limit;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if matches!(&self.user, Some((name, _)) if name.is_empty()) {
            return Err(Error::config("the etcd user has no name"));
        }
        if self.read.is_zero() || self.write.is_zero() {
            return Err(Error::config(
                "a time limit of zero lets nothing be answered",
            ));
        }
        self.tls.as_ref().map_or(Ok(()), Tls::check)
    }

    pub(super) fn tls_given(&self) -> Option<Tls> {
        self.tls.clone()
    }

    pub(super) fn apply(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.user {
            Some((name, password)) => options.with_user(name, password),
            None => options,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user: None,
            tls: None,
            read: Duration::from_secs(2),
            write: Duration::from_secs(3),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls)
            .field("read_limit", &self.read)
            .field("write_limit", &self.write)
            .finish()
    }
}
