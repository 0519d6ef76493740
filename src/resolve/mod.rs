//! Which instances a service has, as a stream of updates that never fails.

#[cfg(feature = "dns")]
mod dns;
mod fallback;
mod file;
mod fixed;
mod known;
mod memory;
mod open;
mod publish;
mod snapshot;
#[cfg(test)]
mod testing;

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;

#[cfg(feature = "dns")]
pub use dns::Dns;
pub use fallback::Fallback;
pub use file::File;
pub use fixed::Fixed;
pub use memory::Memory;
pub use open::open;
pub use publish::{Publisher, publish};
pub use snapshot::Snapshot;

use crate::{Error, Instance, InstanceId, ServiceName};

/// Finds the instances of services.
///
/// ```
/// use tonic_fleet::{Instance, ServiceName, resolve::{self, Resolve, Updates}};
///
/// /// Every service is where this says.
/// struct Everywhere(Instance);
///
/// impl Resolve for Everywhere {
///     fn resolve(&self, _service: &ServiceName) -> Updates {
///         let (publisher, updates) = resolve::publish();
///         publisher.reset([self.0.clone()]);
///         updates
///     }
/// }
/// ```
pub trait Resolve: Send + Sync + 'static {
    /// The updates of one service: first its whole set, then what changes.
    ///
    /// The stream never fails: an outage is [`Update::Stale`], and what was known stays. The end of the
    /// stream means that nothing will change any more; the set stays then, too. Whatever works for the
    /// stream in the background must stop when the stream is dropped.
    fn resolve(&self, service: &ServiceName) -> Updates;

    /// These instances serve while this resolver cannot be reached and has not told its first set.
    ///
    /// Silence for a second counts as out of reach. The first set replaces them, and they never return.
    fn fallback<I>(self, instances: I) -> Fallback<Self>
    where
        Self: Sized,
        I: IntoIterator,
        I::Item: Into<Arc<Instance>>,
    {
        Fallback::over(self, Fixed::new(instances))
    }

    /// Keeps the last good set of each service in a file in this directory, and serves it when this
    /// resolver cannot be reached at the start, unless it is older than `max_age`.
    ///
    /// A file is written at most once a second, whole or not at all, for its owner's eyes only. While
    /// the registry stands by the set, it does not age. An empty set is never written.
    fn snapshot(self, directory: impl Into<PathBuf>, max_age: Duration) -> Snapshot<Self>
    where
        Self: Sized,
    {
        Snapshot::over(self, directory.into(), max_age)
    }
}

/// What [`Resolve::resolve`] gives; [`publish`] makes one.
pub type Updates = Pin<Box<dyn Stream<Item = Update> + Send>>;

/// What a registry says about a service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// The whole set. Whoever is not in it has left.
    Reset(Vec<Arc<Instance>>),
    /// What changed; with nothing in it, that the registry is in reach again.
    Delta(Vec<Change>),
    /// The registry is out of reach; what was known stays.
    Stale(Error),
    /// All the records that were passed over just now, because they cannot be used.
    Skipped(Vec<Skipped>),
}

/// One change to a set.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Change {
    /// An instance is new, or is now different.
    Put(Arc<Instance>),
    /// An instance has left on purpose, or is known to be gone.
    Remove(InstanceId),
    /// An instance is no longer in the registry, and nobody said why: a suspicion, not a death.
    Vanish(InstanceId),
}

/// A record in the registry that was passed over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// Where it stands: a key, a line, a record's name.
    pub key: Arc<str>,
    /// Why it cannot be used.
    pub why: Error,
}

impl Skipped {
    /// A record passed over.
    pub fn new(key: impl Into<Arc<str>>, why: Error) -> Self {
        Self {
            key: key.into(),
            why,
        }
    }
}

impl<R: Resolve + ?Sized> Resolve for Arc<R> {
    fn resolve(&self, service: &ServiceName) -> Updates {
        (**self).resolve(service)
    }
}

impl<R: Resolve + ?Sized> Resolve for Box<R> {
    fn resolve(&self, service: &ServiceName) -> Updates {
        (**self).resolve(service)
    }
}
