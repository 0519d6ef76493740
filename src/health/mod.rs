//! Whether a server is well, beyond being connected.

use crate::Error;

/// What is known of an endpoint's health by asking.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// It was asked, and has not answered yet. It takes no calls meanwhile.
    Unknown,
    /// It is well.
    Healthy,
    /// It is not, or does not say; calls in flight may end. This is why.
    Unhealthy(Error),
}

impl Verdict {
    /// Whether calls may go to it.
    pub fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy)
    }

    /// A stable, lower-case word for logs and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }
}
