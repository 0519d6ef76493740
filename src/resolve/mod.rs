//! Which instances a service has, as a stream of updates that never fails.

mod file;
mod fixed;
mod known;
mod open;
mod publish;

use std::{pin::Pin, sync::Arc};

use futures_core::Stream;

pub use file::File;
pub use fixed::Fixed;
pub use open::open;
pub use publish::{Publisher, publish};

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
