//! Which instances a service has, as a stream of updates that never fails.

#[cfg(feature = "dns")]
mod dns;
mod fallback;
mod file;
mod fixed;
mod heard;
mod known;
mod memory;
mod merge;
mod open;
mod or;
mod publish;
#[cfg(any(feature = "etcd", feature = "consul"))]
mod readers;
mod shaped;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(any(feature = "etcd", feature = "consul"))]
mod vanished;

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;

#[cfg(feature = "dns")]
pub use dns::Dns;
pub use fallback::Fallback;
pub use file::File;
pub use fixed::Fixed;
pub use memory::Memory;
pub use merge::{Merge, merge};
pub use open::open;
pub use or::Or;
pub use publish::{Publisher, publish};
#[cfg(any(feature = "etcd", feature = "consul"))]
pub(crate) use readers::{Census, Readers};
pub use shaped::Shaped;
pub use snapshot::Snapshot;
#[cfg(any(feature = "etcd", feature = "consul"))]
pub(crate) use vanished::{Suspect, Vanished};

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
    /// the registry stands by the set, it does not age. An empty set is never written. A file that was cut
    /// off or changed is noticed, and passed over; a disk that is full or cannot be written costs the
    /// snapshot alone: it is logged, and tried again every half minute.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tonic_fleet::{Channel, Target, resolve::{self, Resolve}};
    ///
    /// let target: Target = "etcd://127.0.0.1:2379/greeter".parse()?;
    /// let greeter = resolve::open(&target)?.snapshot("/var/lib/shop", Duration::from_secs(24 * 3600));
    /// let channel = Channel::over("greeter".parse()?, greeter).build()?;
    /// # Ok::<(), tonic_fleet::Error>(())
    /// ```
    fn snapshot(self, directory: impl Into<PathBuf>, max_age: Duration) -> Snapshot<Self>
    where
        Self: Sized,
    {
        Snapshot::over(self, directory.into(), max_age)
    }

    /// A second resolver serves while this one has had no instance for so long, from the start or later.
    ///
    /// It is let go as soon as this one has instances again. One that is out of reach, and has a set, keeps
    /// it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tonic_fleet::{Memory, resolve::{Fixed, Resolve}};
    ///
    /// let here = Memory::named("here");
    /// let greeter = here.or(Fixed::at(["10.9.0.1:50051"])?, Duration::from_secs(5));
    /// # Ok::<(), tonic_fleet::Error>(())
    /// ```
    fn or<R: Resolve>(self, second: R, patience: Duration) -> Or<Self, R>
    where
        Self: Sized,
    {
        Or::new(self, second, patience)
    }

    /// Each instance as this makes it: another weight, an address by which it is reached from here.
    ///
    /// ```
    /// use tonic_fleet::{Memory, resolve::Resolve};
    ///
    /// let equal = Memory::named("").map(|instance| instance.weight(1));
    /// ```
    fn map(self, map: impl Fn(Instance) -> Instance + Send + Sync + 'static) -> Shaped<Self>
    where
        Self: Sized,
    {
        Shaped::map(self, map)
    }

    /// Those instances alone for which this is true. One that changes and does not pass any more has left.
    ///
    /// ```
    /// use tonic_fleet::{Memory, resolve::Resolve};
    ///
    /// let new = Memory::named("").filter(|instance| instance.version.as_deref() == Some("2"));
    /// ```
    fn filter(self, keep: impl Fn(&Instance) -> bool + Send + Sync + 'static) -> Shaped<Self>
    where
        Self: Sized,
    {
        Shaped::filter(self, keep)
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
