//! What happens to a channel's endpoints, told to whoever listens.

use std::{fmt, time::Duration};

use crate::{Address, Error, InstanceId};

/// A change of state, as [`Channel::events`](crate::Channel::events) tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The registry has a new instance.
    Added(InstanceId),
    /// The registry says something new about an instance.
    Updated(InstanceId),
    /// An instance left the set; its calls in flight end in peace.
    Removed(InstanceId),
    /// An instance is no longer in the registry, and nobody said why. It serves while its connection does.
    Suspected(InstanceId),
    /// A suspected instance is in the registry again.
    Cleared(InstanceId),
    /// An endpoint is connected, and ready unless it drains or is yet to say that it is well.
    Connected(InstanceId, Address),
    /// An endpoint asked for no new calls.
    Draining(InstanceId),
    /// An endpoint says that it is well, so that it takes calls.
    Healthy(InstanceId),
    /// An endpoint says that it is not well, or does not say; no new calls go to it.
    Unhealthy(InstanceId, Error),
    /// An endpoint is left out, because its calls failed like this.
    Ejected(InstanceId, Error),
    /// An endpoint should be left out for this reason, and is not: too many are.
    Spared(InstanceId, Error),
    /// An endpoint that was ejected is tried with a few calls.
    Tried(InstanceId),
    /// An endpoint is in good standing again, and was left out for so long.
    Restored(InstanceId, Duration),
    /// So few are well that calls go to all that are connected.
    Panicked {
        /// How many are well.
        well: usize,
        /// How many there are to choose among.
        of: usize,
    },
    /// Enough are well again.
    Calmed {
        /// How many are well.
        well: usize,
        /// How many there are to choose among.
        of: usize,
    },
    /// A connection failed or ended.
    Lost(InstanceId, Error),
    /// The registry is out of reach; the last set serves.
    Stale(Error),
    /// The registry is in reach again.
    Fresh,
    /// More than half of the set vanished, this many; all are kept until the registry is sure.
    Held(usize),
    /// What was held is in the registry again, or is known to be gone.
    Released,
    /// Records that cannot be used are passed over, this many.
    Skipped(usize),
    /// What is wanted of calls was read anew; see [`Builder::config_from`](crate::Builder::config_from).
    Configured,
    /// What is wanted of calls cannot be read; what was read last holds.
    Misconfigured(Error),
    /// The listener was too slow for this many events.
    Missed(u64),
}

impl Event {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Added(_) => "added",
            Self::Updated(_) => "updated",
            Self::Removed(_) => "removed",
            Self::Suspected(_) => "suspected",
            Self::Cleared(_) => "cleared",
            Self::Connected(..) => "connected",
            Self::Draining(_) => "draining",
            Self::Healthy(_) => "healthy",
            Self::Unhealthy(..) => "unhealthy",
            Self::Ejected(..) => "ejected",
            Self::Spared(..) => "spared",
            Self::Tried(_) => "tried",
            Self::Restored(..) => "restored",
            Self::Panicked { .. } => "panicked",
            Self::Calmed { .. } => "calmed",
            Self::Lost(..) => "lost",
            Self::Stale(_) => "stale",
            Self::Fresh => "fresh",
            Self::Held(_) => "held",
            Self::Released => "released",
            Self::Skipped(_) => "skipped",
            Self::Configured => "configured",
            Self::Misconfigured(_) => "misconfigured",
            Self::Missed(_) => "missed",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(id) => write!(f, "{id} added"),
            Self::Updated(id) => write!(f, "{id} updated"),
            Self::Removed(id) => write!(f, "{id} removed"),
            Self::Suspected(id) => write!(f, "{id} vanished from the registry"),
            Self::Cleared(id) => write!(f, "{id} is in the registry again"),
            Self::Connected(id, address) => write!(f, "{id} connected at {address}"),
            Self::Draining(id) => write!(f, "{id} drains"),
            Self::Healthy(id) => write!(f, "{id} is well"),
            Self::Unhealthy(id, error) => write!(f, "{id} is unwell: {}", error.chain()),
            Self::Ejected(id, error) => write!(f, "{id} ejected: {}", error.chain()),
            Self::Spared(id, error) => {
                write!(f, "{id} fails, but too many are out: {}", error.chain())
            }
            Self::Tried(id) => write!(f, "{id} is tried again"),
            Self::Restored(id, time) if time.is_zero() => write!(f, "{id} is well again"),
            Self::Restored(id, time) => write!(f, "{id} is well again after {time:.1?}"),
            Self::Panicked { well, of } => write!(f, "{well} of {of} are well; calls go to all"),
            Self::Calmed { well, of } => write!(f, "{well} of {of} are well; that is enough"),
            Self::Lost(id, error) => write!(f, "{id} lost: {}", error.chain()),
            Self::Stale(error) => write!(f, "registry out of reach: {}", error.chain()),
            Self::Fresh => write!(f, "registry in reach again"),
            Self::Held(n) => write!(f, "{n} vanished at once; the set is held"),
            Self::Released => write!(f, "the set is no longer held"),
            Self::Skipped(n) => write!(f, "{n} records passed over"),
            Self::Configured => write!(f, "calls are made as configured anew"),
            Self::Misconfigured(error) => {
                write!(
                    f,
                    "the configuration is bad, the last one holds: {}",
                    error.chain()
                )
            }
            Self::Missed(n) => write!(f, "{n} events missed"),
        }
    }
}
