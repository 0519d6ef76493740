//! What went wrong on the control path: resolving, registering, connecting.

use std::{error::Error as StdError, fmt, sync::Arc};

/// A failure of the control path: what kind it is, what was being done to what, and its cause.
///
/// Cheap to clone, so that one failure can be shown to every channel it concerns. `Display` prints
/// one level; the cause is [`source`](StdError::source). Calls fail with [`tonic::Status`] instead.
///
/// ```
/// use tonic_fleet::{ErrorKind, ServiceName};
///
/// let error = "shop//cart".parse::<ServiceName>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// assert_eq!(error.kind().code(), "config");
/// assert!(!error.is_transient());
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    doing: Box<str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of the control path.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which kind of failure an [`Error`] is; each has a stable word.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that was given is wrong: a name, a URL, an address, a certificate.
    Config,
    /// Somebody else holds what was asked for.
    Conflict,
    /// A value in the registry cannot be read.
    Decode,
    /// What was asked for is not there.
    NotFound,
    /// What was given to be written or asked for is not allowed: an empty name, a value that is too large.
    Validation,
    /// A lease or session ended before its time.
    Lost,
    /// The credentials were refused, or do not permit this.
    Denied,
    /// The registry has no room for more.
    NoSpace,
    /// No answer came in time.
    Timeout,
    /// As many calls are under way as may be.
    Overloaded,
    /// No connection could be made, so that nothing was sent.
    Connection,
    /// The other side cannot be reached, or cannot serve now.
    Unavailable,
}

impl ErrorKind {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Conflict => "conflict",
            Self::Decode => "decode",
            Self::NotFound => "not_found",
            Self::Validation => "validation",
            Self::Lost => "lost",
            Self::Denied => "denied",
            Self::NoSpace => "no_space",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Connection => "connection",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Error {
    /// A failure of this kind; `doing` says what was being done to what.
    pub fn new(kind: ErrorKind, doing: impl Into<Box<str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            doing: doing.into(),
            source: None,
        }))
    }

    /// Something that was given is wrong; `what` says what, where, and what to do.
    pub(crate) fn config(what: impl Into<Box<str>>) -> Self {
        Self::new(ErrorKind::Config, what)
    }

    /// The same failure with its cause.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Arc::new(Inner {
            kind: self.0.kind,
            doing: self.0.doing.clone(),
            source: Some(cause.into()),
        }))
    }

    /// Which kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same attempt may succeed later, with nothing changed by a person.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Unavailable
                | ErrorKind::Connection
                | ErrorKind::Timeout
                | ErrorKind::Lost
                | ErrorKind::NoSpace
                | ErrorKind::Overloaded
        )
    }

    /// This failure and its causes in one line, for a place that has only one.
    pub fn chain(&self) -> String {
        with_causes(self.to_string(), self)
    }
}

/// What was said of an error, and what its causes say, each once.
pub(crate) fn with_causes(mut line: String, error: &dyn StdError) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !line.contains(&words) {
            line.push_str(": ");
            line.push_str(&words);
        }
        cause = error.source();
    }
    line
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.doing)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("doing", &self.0.doing)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|cause| &**cause as _)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_one_level_and_chain_prints_all() {
        let cause = std::io::Error::other("connection refused");

        let error = Error::new(ErrorKind::Unavailable, "watch /services/greeter/").because(cause);

        assert_eq!(error.to_string(), "watch /services/greeter/");
        assert_eq!(
            error.chain(),
            "watch /services/greeter/: connection refused"
        );
    }

    #[test]
    fn a_clone_is_the_same_failure() {
        let error = Error::new(ErrorKind::Denied, "put /services/greeter/a");

        let copy = error.clone();

        assert_eq!(
            (copy.kind(), copy.to_string()),
            (error.kind(), error.to_string())
        );
    }
}
