//! Whether a server is well, beyond being connected.
//!
//! Presence in a registry is not health, and neither is a connection. [`Builder::health`] has a channel's
//! endpoints asked, and only those that say that they are well take calls. What a server refuses, calls in
//! flight still finish. The same checks tie a server's own registration to its health:
//! [`Registrar::health`].
//!
//! | | asks |
//! |---|---|
//! | [`Grpc::watch`] | the server's health service, by a stream: it says so at once |
//! | [`Grpc::check`] | the same, by a call every few seconds |
//! | [`Http`] | `GET /health` |
//! | [`Tcp`] | whether anybody listens |
//! | [`ask`] | a closure of yours |
//! | a [`Probe`] | whatever you like |
//! | [`Watchdog`] | whether this process still works |
//!
//! What calls show counts as well, whether anybody is asked or not. The outcome of every call is judged once, by
//! one [`Classify`]. Failures in a row eject an endpoint ([`Ejection`]), which is tried later, and comes back
//! gently ([`SlowStart`]). Overload lowers its share. When too few are well, calls go to all.
//!
//! Nothing here depends on the registry: while it is away, or comes back, nobody is asked anew.
//!
//! [`Builder::health`]: crate::Builder::health
//! [`Registrar::health`]: crate::Registrar::health

mod alarm;
mod checks;
mod codec;
mod conduct;
mod eject;
mod grpc;
mod http;
mod outcome;
mod outlier;
mod over;
mod places;
mod poll;
mod rule;
mod slow_start;
mod tcp;
mod watchdog;

use std::{fmt, pin::Pin};

pub use checks::Checks;
pub(crate) use checks::{follow_at, follow_over};
pub use eject::Ejection;
pub use grpc::Grpc;
pub use http::Http;
pub use outcome::{Classify, Ended, EndedBy, Outcome};
pub use outlier::{FailurePercentage, Outliers, SuccessRate};
pub use slow_start::SlowStart;
pub use tcp::Tcp;
pub use watchdog::Watchdog;
pub(crate) use {
    alarm::{Alarm, Notice},
    conduct::{Conduct, Mode, Turn},
    eject::{Ejector, Standing},
    outcome::PUSHBACK,
    outlier::Counts,
    over::{Over, Turn as Question},
};

use crate::{Error, ErrorKind, Instance, Result};

/// Asks a server whether it is well.
///
/// ```
/// use tonic_fleet::{Error, ErrorKind, Instance, health::{Probe, Probing}};
///
/// /// A server is well when the file of its name is there.
/// struct Touched;
///
/// impl Probe for Touched {
///     fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a> {
///         Box::pin(async move {
///             let found = tokio::fs::try_exists(format!("/run/{}", instance.id)).await;
///             match found {
///                 Ok(true) => Ok(()),
///                 _ => Err(Error::new(ErrorKind::Unavailable, "it has no file")),
///             }
///         })
///     }
/// }
/// ```
pub trait Probe: Send + Sync + 'static {
    /// Asks once; an error says why it is not well. The caller limits the time.
    fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a>;

    /// Refuses what could never work, when a channel or a registration is built.
    ///
    /// # Errors
    /// When nobody could ever be asked like this.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What [`Probe::probe`] gives.
pub type Probing<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// How a verdict is told.
pub(crate) type Tell<'a> = dyn Fn(Verdict) + Send + Sync + 'a;

/// What is known of an endpoint's health by asking.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// It was asked, and has not answered yet. It takes no calls meanwhile.
    Unknown,
    /// It is well.
    Healthy,
    /// It is not, or does not say; calls in flight may end. This is why.
    Unhealthy(Error),
}

/// Asks by a closure: for a server that knows by itself whether it is well.
///
/// ```
/// use tonic_fleet::{Memory, Registrar, health};
///
/// # async fn ping() -> std::io::Result<()> { Ok(()) }
/// let registrar = Registrar::on(Memory::default())
///     .health(health::ask(|| async { ping().await }));
/// ```
pub fn ask<F, Fut, E>(question: F) -> impl Probe
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Ask(question)
}

struct Ask<F>(F);

impl<F, Fut, E> Probe for Ask<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a> {
        let answer = (self.0)();
        Box::pin(async move {
            answer.await.map_err(|cause| {
                let what = format!("ask {} whether it is well", instance.id);
                Error::new(ErrorKind::Unavailable, what).because(cause)
            })
        })
    }
}

/// Refuses what is out of range, by its name and with its limits.
pub(crate) fn ranged<T: PartialOrd + fmt::Debug>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), Error> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Error::config(format!(
        "{name} is {value:?}: it is from {least:?} to {most:?}"
    )))
}

impl Verdict {
    /// Whether calls may go to it.
    pub(crate) fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy)
    }

    /// Tells one verdict from another, whatever the reasons.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }
}
