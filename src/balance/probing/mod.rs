//! By asking before calling.

mod ask;
mod pool;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Adaptive, Call, Pick, Policy};
use crate::{Endpoint, Endpoints, orca::Load};

use pool::{Known, Pool};

/// The least busy of those that were asked lately: servers are asked how busy they are, one for each call, and calls
/// go by the answers of the last second.
///
/// Opt-in: servers must have the layer of an [`orca::Recorder`](crate::orca::Recorder), which answers. A question costs
/// a call without a message, over the same connection; nobody waits for its answer, which is for the calls that come
/// later.
///
/// What counts is C3's: what the latency that a server reports exceeds its service time by, and the service time
/// times the third power of its calls in flight and one, our own since it was asked included. A server that is five calls
/// behind is left alone, were it twice as fast.
///
/// - **Failures** count as for [`Adaptive`]. One that fails at once has nothing in flight, and would be given most
///   calls: after two failures in a row nobody goes by what it says.
/// - **Weights**, and the [share](Endpoint::share) of one that is new, say how often it is asked, and how many calls
///   in flight are usual for it.
/// - Where fewer than two answers are fresh, [`Adaptive`] chooses.
/// - **It switches itself off**, and has [`Adaptive`] choose, where answers are old news when they come: where a
///   question takes longer than servers take for a call. And where there are fewer than four endpoints. One question in
///   sixty-four goes on being asked, to see whether that is still so.
///
/// A pick takes no lock and allocates nothing, and looks at no more than eight answers. That they are some by chance,
/// and not all, is what keeps clients that ask the same servers from all finding the same one.
///
/// # Limits
///
/// In simulated fleets it is ahead of [`PeakEwma`](super::PeakEwma) where neighbours are bad or servers pause, and never
/// ahead of [`Adaptive`] by much; near saturation, with a hundred servers and as many clients, it is far behind both.
/// [`Adaptive`] needs no word over the wire. What a server says is believed. Each client's questions add a call to the server for each
/// call of its own, of a few microseconds each.
///
/// ```
/// use tonic_fleet::{Channel, balance::Probing};
///
/// # fn example() -> Result<(), tonic_fleet::Error> {
/// let target = "static://10.0.0.1:50051,10.0.0.2:50051".parse()?;
/// let builder = Channel::builder(target).policy(Probing::default());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Probing {
    known: Arc<Known>,
    otherwise: Adaptive,
    by_hand: bool,
    /// For those who ask by hand.
    last: Arc<Mutex<Weak<Pool>>>,
}

/// A question that is to be asked: see [`Probing::by_hand`]. Dropped, it was not answered.
pub struct Question {
    pool: Arc<Pool>,
    place: usize,
    began: Instant,
}

#[derive(Debug)]
struct Asking {
    pool: Arc<Pool>,
    otherwise: Box<dyn Pick>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Probing {
    /// Asks nobody by itself: for simulations, and for those who have other ways to ask. See [`Self::question`].
    pub fn by_hand() -> Self {
        Self {
            by_hand: true,
            ..Self::default()
        }
    }

    /// What is to be asked next by who asks by hand, if anything is.
    ///
    /// Of the set of endpoints that the policy was given last: a policy that is asked by hand is for one channel.
    pub fn question(&self) -> Option<Question> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = last.upgrade()?;
        drop(last);
        Question::of(&pool)
    }
}

impl Policy for Probing {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let pool = Arc::new(Pool::of(ready, &self.known));
        let task = match Handle::try_current() {
            Ok(runtime) if !self.by_hand && pool.is_worth_asking() => {
                let asking = ask::all(Arc::clone(&pool));
                Some(AbortOnDropHandle::new(runtime.spawn(asking)))
            }
            _ => None,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&pool);
        Box::new(Asking {
            pool,
            otherwise: self.otherwise.over(ready),
            _task: task,
        })
    }
}

impl Pick for Asking {
    fn pick(&self, call: &Call<'_>) -> usize {
        let best = self.pool.best(Instant::now());
        best.unwrap_or_else(|| self.otherwise.pick(call))
    }
}

impl Question {
    /// The next that is wanted, if any is.
    fn of(pool: &Arc<Pool>) -> Option<Self> {
        let place = pool.wanted()?;
        Some(Self {
            pool: Arc::clone(pool),
            place,
            began: Instant::now(),
        })
    }

    /// Whom to ask.
    pub fn endpoint(&self) -> &Endpoint {
        self.pool.endpoint(self.place)
    }

    /// This is the answer, which came now.
    pub fn answered(self, load: &Load) {
        self.pool
            .heard(self.place, load, self.began, Instant::now());
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.pool.is_done(self.place);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Question").field(self.endpoint()).finish()
    }
}

#[cfg(test)]
mod tests;
