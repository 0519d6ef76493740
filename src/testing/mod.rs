//! Whether a registry of one's own keeps what a resolver and a registrar promise.
//!
//! Tell the suite how your registry is changed and broken, as a [`Backend`], and it runs every [`Case`]
//! against your resolver: the whole set first, order, nothing lost or told twice across cuts, what is stale
//! and what is fresh, who leaves and who vanishes, odd names, a thousand instances; and against your
//! registrar, if there is one: found and gone in order, lost sessions, owners in conflict.
//!
//! ```
//! use std::sync::Arc;
//! use tonic_fleet::{
//!     Instance, InstanceId, Memory, Register, ServiceName,
//!     resolve::Resolve,
//!     testing::{Backend, Done, Stop, conform},
//! };
//!
//! /// The registry in this process, as those see it who only read it.
//! #[derive(Default)]
//! struct Mine(Memory);
//!
//! impl Backend for Mine {
//!     fn resolver(&self) -> Arc<dyn Resolve> {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
//!         Err(Stop::cannot("servers are entered by hand"))
//!     }
//!
//!     async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
//!         for instance in instances {
//!             self.0.put(service, instance.clone());
//!         }
//!         Ok(())
//!     }
//!
//!     async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
//!         ids.iter().for_each(|id| self.0.remove(service, id));
//!         Ok(())
//!     }
//!
//!     async fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
//!         ids.iter().for_each(|id| self.0.vanish(service, id));
//!         Ok(())
//!     }
//!
//!     async fn cut(&mut self) -> Done {
//!         self.0.outage(true);
//!         Ok(())
//!     }
//!
//!     async fn heal(&mut self) -> Done {
//!         self.0.outage(false);
//!         Ok(())
//!     }
//!
//!     async fn expire(&mut self, _: &ServiceName, _: &InstanceId) -> Done {
//!         Err(Stop::cannot("nobody registers, so there are no sessions"))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let report = conform(async || Mine::default()).await;
//! println!("{report}"); // each case: held, skipped and why, or FAILED and why
//! assert_eq!(report.failed().count(), 0);
//! assert!(report.skipped().all(|(_, why)| why.contains("by hand")));
//! # }
//! ```
//!
//! Nothing is skipped in silence: what a backend cannot do it refuses with [`Stop::cannot`], and the report
//! repeats the reason. What the suite shows is what readers can rely on, not how fast it is, nor what happens
//! inside a registry that loses its data.

mod case;
mod cuts;
mod reader;
mod reading;
mod registering;
mod report;
mod stage;

use std::{future::Future, sync::Arc};

pub use case::Case;
pub use report::{Report, Verdict};

use crate::{Error, Instance, InstanceId, Register, ServiceName, resolve::Resolve};

/// A registry that the suite changes, breaks and looks at.
///
/// What it does has been done when it returns, in the registry; what readers learn of it, and when, is
/// what the suite finds out. What it cannot do it refuses with [`Stop::cannot`]. It may panic: the case
/// has failed then.
pub trait Backend {
    /// The resolver that is held to the suite. It is asked for more than once.
    fn resolver(&self) -> Arc<dyn Resolve>;

    /// The registrar that is held to the suite, as another server would open it each time.
    fn registrar(&self) -> Result<Arc<dyn Register>, Stop>;

    /// Writes these instances, each of them new or in the place of the one with its id.
    fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> impl Future<Output = Done>;

    /// Takes these instances out as ones that leave on purpose: with the mark, if there is one.
    fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> impl Future<Output = Done>;

    /// Takes these instances out unannounced, all at once, as the end of their leases does.
    fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> impl Future<Output = Done>;

    /// Puts the registry out of reach of resolvers and registrars, until [`heal`](Self::heal).
    ///
    /// Where it can be changed behind their backs meanwhile, [`put`](Self::put) and
    /// [`remove`](Self::remove) do so; where not, they refuse.
    fn cut(&mut self) -> impl Future<Output = Done>;

    /// Puts the registry back in reach.
    fn heal(&mut self) -> impl Future<Output = Done>;

    /// Ends the session on which this instance was registered, as an operator or the registry may: its
    /// owner lives, and has not been asked.
    fn expire(&mut self, service: &ServiceName, id: &InstanceId) -> impl Future<Output = Done>;
}

/// What [`Backend`]'s methods give.
pub type Done = Result<(), Stop>;

/// Why a case does not go on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stop(Why);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Why {
    Cannot(String),
    Failed(String),
}

impl Stop {
    /// The backend cannot do this, for this reason: the case is skipped.
    pub fn cannot(why: impl Into<String>) -> Self {
        Self(Why::Cannot(why.into()))
    }

    /// This went wrong: the case has failed.
    pub fn failed(what: impl Into<String>) -> Self {
        Self(Why::Failed(what.into()))
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::failed(error.chain())
    }
}

/// Holds a backend to every case, one after the other, each on a new one; `make` makes them.
///
/// Those that `make` gives may be different ways to one and the same registry: each case has services of
/// its own, whose names begin with `suite-`, and leaves them as they are. A case waits up to half a minute,
/// on tokio's clock, for what it expects; with a backend that needs no real time, paused time makes all of
/// it take moments.
pub async fn conform<B: Backend>(make: impl AsyncFn() -> B) -> Report {
    let mut report = Report::default();
    for &case in Case::ALL {
        let mut backend = make().await;
        report.add(case, case.hold(&mut backend).await);
    }
    report
}

#[cfg(test)]
mod tests;
