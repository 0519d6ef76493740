//! What a cluster must be told before it answers.

use std::{fmt, time::Duration};

use etcd_client::ConnectOptions;

use crate::{Error, Result};

/// How to ask an etcd cluster: who asks, over what, and how long to wait.
///
/// Passwords and keys are not shown by `Debug`.
#[derive(Clone, Eq, PartialEq)]
pub struct Options {
    user: Option<(String, String)>,
    tls: Option<Tls>,
    pub(super) read: Duration,
    pub(super) write: Duration,
}

/// TLS to the members of a cluster; all of it is PEM.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Tls {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl Options {
    /// Asks as this user.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// Asks over TLS. Needs one of the features `tls-ring` and `tls-aws-lc`.
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
        #[cfg(not(feature = "_tls"))]
        if self.tls.is_some() {
            return Err(Error::config(
                "TLS to etcd needs one of the features `tls-ring` and `tls-aws-lc`",
            ));
        }
        Ok(())
    }

    pub(super) fn apply(&self, mut options: ConnectOptions) -> ConnectOptions {
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        #[cfg(feature = "_tls")]
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.config());
        }
        options
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

impl Tls {
    /// Trusts what this certificate authority signed.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows this certificate, with its key.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sets the name that members' certificates must bear; the host's, unless set.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    #[cfg(feature = "_tls")]
    fn config(&self) -> etcd_client::TlsOptions {
        let mut config = etcd_client::TlsOptions::new();
        if let Some(ca) = &self.ca {
            config = config.ca_certificate(etcd_client::Certificate::from_pem(ca));
        }
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(etcd_client::Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        config
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

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}
