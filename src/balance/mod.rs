//! Which endpoint the next call goes to.
//!
//! A [`Policy`] is asked when the set of ready endpoints changes and gives a [`Pick`], which is asked once
//! a call. What must outlive a change, such as whose turn it is, lives in the policy.
//!
//! # A policy of your own
//!
//! Two traits, a method each:
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
//! use tonic_fleet::{Endpoint, Endpoints, balance::{Call, Pick, Policy}};
//!
//! /// The less busy of two in turn.
//! #[derive(Debug, Default)]
//! struct BestOfTwo(Arc<AtomicUsize>);
//!
//! #[derive(Debug)]
//! struct Among(Endpoints, Arc<AtomicUsize>);
//!
//! impl Policy for BestOfTwo {
//!     fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
//!         Box::new(Among(ready.clone(), Arc::clone(&self.0)))
//!     }
//! }
//!
//! impl Pick for Among {
//!     fn pick(&self, _: &Call<'_>) -> usize {
//!         let turn = self.1.fetch_add(1, Relaxed);
//!         let [a, b] = [turn, turn.wrapping_add(1)].map(|turn| turn % self.0.len());
//!         let busy = |place| self.0.get(place).map(Endpoint::in_flight);
//!         if busy(b) < busy(a) { b } else { a }
//!     }
//! }
//!
//! // On a channel:
//! # fn example() -> Result<(), tonic_fleet::Error> {
//! # use tonic_fleet::Channel;
//! let target = "static://10.0.0.1:50051,10.0.0.2:50051".parse()?;
//! let builder = Channel::builder(target).policy(BestOfTwo::default());
//! # Ok(())
//! # }
//!
//! // And without one, call by call, on a clock that is moved by hand where tokio's is paused:
//! # use tonic_fleet::{Instance, balance::Rehearsal};
//! let mut rehearsal = Rehearsal::of(BestOfTwo::default());
//! for id in ["a", "b", "c"] {
//!     rehearsal.put(Instance::at("10.0.0.1:50051")?.id(id)?);
//! }
//! let calls: Vec<_> = (0..3).filter_map(|_| rehearsal.call()).collect();
//! let mut called: Vec<_> = calls.iter().map(|call| call.endpoint().id().as_str()).collect();
//! called.sort_unstable();
//! assert_eq!(called, ["a", "b", "c"]);
//! # Ok::<(), tonic_fleet::Error>(())
//! ```
//!
//! What a policy may go by:
//!
//! - of the call: its [path](Call::path), [headers](Call::headers), [key](Call::key), and whom it
//!   [tried](Call::tried);
//! - of an [endpoint](crate::Endpoint): [calls in flight](crate::Endpoint::in_flight), [calls](crate::Endpoint::calls) and
//!   [failures](crate::Endpoint::failures), and what the registry says: zone, version, tags, metadata;
//! - its [weight](crate::Endpoint::weight), which has in it how far one that is new has warmed up.
//!
//! What is done for every policy, so that none has to: endpoints that are not connected, unwell, ejected or
//! draining are not among those that it is given; one that a call has tried is passed over, and so is one that has
//! just lost its connection; one that was ejected is tried again with one call at a time.
//!
//! What it owes: a pick neither waits nor locks, for all calls of a channel go through it; tables are built in
//! [`Policy::over`]. One that compares costs must have failures in them: who fails at once has no calls in flight and looks
//! idle.
//!
//! In the repository, `examples/policy.rs` runs one of 39 lines in a rehearsal and on real servers, and `scripts/sim
//! --policies tower,best_of_three` runs the same file in simulated fleets, beside others. A call's header can decide too:
//!
//! ```
//! use tonic_fleet::{Endpoints, balance::{Call, Pick, Policy}};
//!
//! /// All calls of one user go to one endpoint, as long as it is ready.
//! #[derive(Debug)]
//! struct ByUser;
//!
//! #[derive(Debug)]
//! struct Among(usize);
//!
//! impl Policy for ByUser {
//!     fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
//!         Box::new(Among(ready.len()))
//!     }
//! }
//!
//! impl Pick for Among {
//!     fn pick(&self, call: &Call<'_>) -> usize {
//!         let user = call.headers().get("user").map_or(&[][..], |user| user.as_bytes());
//!         user.iter().map(|&byte| usize::from(byte)).sum::<usize>() % self.0
//!     }
//! }
//! ```

mod adaptive;
mod affinity;
mod alias;
mod dice;
mod least_loaded;
mod orca;
mod peak_ewma;
mod pick_first;
mod probing;
mod random;
mod rehearsal;
mod round_robin;
mod two;
mod weighted;

use std::{fmt, sync::Arc};

use http::HeaderMap;
use tokio::time::Instant;

pub use adaptive::Adaptive;
pub use affinity::{Affinity, Maglev, Rendezvous, RingHash};
pub use least_loaded::LeastLoaded;
pub use orca::Orca;
pub use peak_ewma::PeakEwma;
pub use pick_first::PickFirst;
pub use probing::{Probing, Question};
pub use random::{Random, WeightedRandom};
pub use rehearsal::{Rehearsal, Rehearsed};
pub use round_robin::RoundRobin;
pub use weighted::Weighted;

pub use dice::seed;

pub(crate) use dice::below;

use crate::{Endpoint, Endpoints, Error, InstanceId, moment::Moment};

/// How calls are shared out among the ready endpoints.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// A way to pick among these, until they change. There is at least one.
    ///
    /// Tables are built here, off the call path. The order of `ready` is that of the ids.
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick>;
}

/// Chooses for one call at a time, without a lock and without waiting.
pub trait Pick: fmt::Debug + Send + Sync + 'static {
    /// The place of the endpoint among those that the policy was given.
    ///
    /// A place beyond them counts as the first. An endpoint that this call has tried already, or that has
    /// just lost its connection, is passed over by the channel; the pick need not know.
    fn pick(&self, call: &Call<'_>) -> usize;
}

/// What a pick may look at.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) tried: &'a [InstanceId],
    pub(crate) key: Option<&'a [u8]>,
    /// When it is made, if that is known: to read the clock costs more than most picks.
    pub(crate) at: Option<Moment>,
}

impl<'a> Call<'a> {
    /// A call of this method with these headers, for trying out a policy.
    pub fn new(path: &'a str, headers: &'a HeaderMap) -> Self {
        Self {
            path,
            headers,
            tried: &[],
            key: None,
            at: None,
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(self, key: &'a [u8]) -> Self {
        let key = Some(key);
        Self { key, ..self }
    }

    /// The same, made at this time. A policy that goes by the time reads the clock where nobody says it, which
    /// costs more than most picks.
    #[must_use]
    pub fn made_at(self, now: Instant) -> Self {
        let at = Some(Moment::at(now));
        Self { at, ..self }
    }

    /// When it is made.
    #[inline]
    pub(crate) fn at(&self) -> Moment {
        self.at.unwrap_or_else(Moment::now)
    }

    /// The method: `/package.Service/Method`.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The headers that will be sent.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What its caller gave it a [key](crate::Direct::by_key) for: calls with the same one are to go to the
    /// same endpoint.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The endpoints that this call was given before and could not use.
    pub fn tried(&self) -> &'a [InstanceId] {
        self.tried
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        (**self).over(ready)
    }
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        (**self).over(ready)
    }
}

/// The names of all policies that [`named`] knows.
pub const NAMES: &[&str] = &[
    "adaptive",
    "round_robin",
    "random",
    "weighted",
    "weighted_random",
    "least_loaded",
    "orca",
    "peak_ewma",
    "probing",
    "pick_first",
    "ring_hash",
    "maglev",
    "rendezvous",
];

/// The policy of this name, one of [`NAMES`], as command lines and configuration files give it.
///
/// ```
/// use tonic_fleet::balance;
///
/// assert!(balance::named("least_loaded").is_ok());
/// assert!(balance::named("best").unwrap_err().to_string().contains("round_robin"));
/// ```
pub fn named(name: &str) -> Result<Arc<dyn Policy>, Error> {
    match name {
        "adaptive" => Ok(Arc::new(Adaptive::default())),
        "round_robin" => Ok(Arc::new(RoundRobin::default())),
        "random" => Ok(Arc::new(Random)),
        "weighted" => Ok(Arc::new(Weighted::default())),
        "weighted_random" => Ok(Arc::new(WeightedRandom)),
        "least_loaded" => Ok(Arc::new(LeastLoaded)),
        "orca" => Ok(Arc::new(Orca::default())),
        "peak_ewma" => Ok(Arc::new(PeakEwma::default())),
        "probing" => Ok(Arc::new(Probing::default())),
        "pick_first" => Ok(Arc::new(PickFirst::default())),
        "ring_hash" => Ok(Arc::new(RingHash::default())),
        "maglev" => Ok(Arc::new(Maglev::default())),
        "rendezvous" => Ok(Arc::new(Rendezvous::default())),
        _ => Err(Error::config(format!(
            "there is no policy {name:?}: it is one of {}",
            NAMES.join(", ")
        ))),
    }
}

/// What share each has, unless all have all of it.
fn shares(ready: &Endpoints) -> Option<Vec<u64>> {
    let share = |endpoint: &Endpoint| u64::from(endpoint.share());
    let partial = !ready.weights().whole;
    partial.then(|| ready.iter().map(share).collect())
}

/// What every policy owes, whoever wrote it.
#[cfg(test)]
pub(crate) mod conform {
    use super::*;
    use crate::Instance;

    /// Endpoints of these weights, and chance that is the same each time.
    pub(crate) fn endpoints(weights: &[u32]) -> Endpoints {
        seed(7);
        let make = |(place, &weight): (usize, &u32)| {
            let instance = Instance::at(format!("10.0.{}.{}:1", place / 250, place % 250 + 1))
                .and_then(|instance| instance.id(format!("i{place:05}")))
                .unwrap();
            Endpoint::idle(instance.weight(weight))
        };
        weights.iter().enumerate().map(make).collect()
    }

    /// How often each of these is picked in so many picks.
    pub(crate) fn counts(policy: &dyn Policy, weights: &[u32], picks: usize) -> Vec<usize> {
        picked(policy, &endpoints(weights), picks)
    }

    /// The same for equals with these shares.
    pub(crate) fn ramping(policy: &dyn Policy, shares: &[u8], picks: usize) -> Vec<usize> {
        let all = endpoints(&vec![1; shares.len()]);
        let given = all
            .iter()
            .zip(shares)
            .map(|(e, &share)| e.clone().given(share));
        picked(policy, &given.collect(), picks)
    }

    fn picked(policy: &dyn Policy, ready: &Endpoints, picks: usize) -> Vec<usize> {
        let headers = HeaderMap::new();
        let pick = policy.over(ready);
        let mut counts = vec![0; ready.len()];
        for _ in 0..picks {
            counts[pick.pick(&Call::new("/a.B/C", &headers))] += 1;
        }
        counts
    }

    /// All that there are, but for the one that keeps to one endpoint.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().copied().filter(|name| *name != "pick_first")
    }

    pub(crate) fn all() -> Vec<Arc<dyn Policy>> {
        names().map(|name| named(name).unwrap()).collect()
    }

    #[test]
    fn every_policy_stays_in_range_and_reaches_everybody() {
        for policy in all() {
            for weights in [
                vec![1],
                vec![1; 2],
                vec![5, 1, 1],
                vec![0; 3],
                vec![1; 100],
                vec![1_000_000, 1, 1],
            ] {
                let picks = 20_000;

                let counts = counts(&policy, &weights, picks);

                assert_eq!(counts.iter().sum::<usize>(), picks, "{policy:?}");
                if weights.iter().all(|weight| weight == &weights[0]) {
                    assert!(
                        counts.iter().all(|&count| count > 0),
                        "{policy:?} {weights:?}: {counts:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn weight_zero_is_not_picked_while_others_exist() {
        for policy in all() {
            if ["RoundRobin", "Random"]
                .iter()
                .any(|blind| format!("{policy:?}").starts_with(blind))
            {
                // These two are given no endpoint of weight 0 while there are others: the view sees to it.
                continue;
            }
            let counts = counts(&policy, &[0, 3, 0, 1], 10_000);
            assert_eq!((counts[0], counts[2]), (0, 0), "{policy:?}");
        }
    }
}
