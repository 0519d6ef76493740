//! A client's number among all clients.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::DropGuard;

/// The number of a client among the clients of a service, from 0 and without gaps; see
/// [`Subset::seat`](super::Subset::seat).
///
/// [`etcd::Registry::seat`] takes the smallest that is free, and gives it back when the last clone of what it
/// returned is dropped.
///
/// [`etcd::Registry::seat`]: https://docs.rs/tonic-fleet/latest/tonic_fleet/etcd/struct.Registry.html#method.seat
#[derive(Clone, Debug)]
pub struct Seat {
    number: watch::Receiver<u32>,
    /// Whoever keeps the number ends with this.
    _kept: Option<Arc<DropGuard>>,
}

impl Seat {
    /// A number that somebody else takes care of: the ordinal of a pod in a Kubernetes StatefulSet.
    pub fn fixed(number: u32) -> Self {
        let (_, number) = watch::channel(number);
        let _kept = None;
        Self { number, _kept }
    }

    /// One that is kept until the last clone is dropped.
    #[cfg(feature = "etcd")]
    pub(crate) fn kept(number: watch::Receiver<u32>, keeper: DropGuard) -> Self {
        let _kept = Some(Arc::new(keeper));
        Self { number, _kept }
    }

    /// The number it has now: another one when its lease was lost, and somebody took the number before it could
    /// be taken again, or when one became free that leaves fewer gaps.
    pub fn number(&self) -> u32 {
        *self.number.borrow()
    }

    /// Returns when it has another number than when this was last called, or never.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        if self.number.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
