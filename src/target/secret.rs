//! What nobody is shown.

use std::{fmt, sync::Arc};

/// A token: sent, and never shown.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(crate) struct Secret(Arc<str>);

impl Secret {
    /// Refuses what cannot stand in a header; the error does not quote it.
    pub(crate) fn new(token: &str) -> Result<Self, String> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a token is printable ASCII, without spaces".into());
        }
        Ok(Self(token.into()))
    }

    #[cfg(feature = "consul")]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
