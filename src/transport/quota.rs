//! How many streams may be open on a connection at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// The streams a peer allows at once, and those that are open; whoever finds none left queues.
///
/// h2 would queue streams by itself, but a stream queued there counts as sent, and cannot go to
/// another connection any more.
#[derive(Debug)]
pub(super) struct Quota {
    free: Semaphore,
    open: AtomicUsize,
    /// Only the driver changes it.
    limit: AtomicUsize,
    /// How many streams too many were open when the limit was lowered: their places lapse.
    surplus: AtomicUsize,
}

/// Stands for no limit; short of the semaphore's own, which must not be passed.
const MOST: usize = Semaphore::MAX_PERMITS / 2;

impl Quota {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(MOST);
        Self {
            free: Semaphore::new(limit),
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            surplus: AtomicUsize::new(0),
        }
    }

    /// Takes a place, if there is one now.
    pub(super) fn try_take(&self) -> bool {
        let place = self.free.try_acquire();
        place.is_ok_and(|place| self.taken(place))
    }

    /// Takes a place, in turn; `false` if the connection takes no more streams.
    pub(super) async fn take(&self) -> bool {
        if self.try_take() {
            return true;
        }
        let place = self.free.acquire().await;
        place.is_ok_and(|place| self.taken(place))
    }

    fn taken(&self, place: SemaphorePermit<'_>) -> bool {
        place.forget();
        self.open.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Gives a place back; the answer is how many are still taken.
    pub(super) fn put(&self) -> usize {
        let lapsed = self
            .surplus
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |surplus| {
                surplus.checked_sub(1)
            });
        if lapsed.is_err() {
            self.free.add_permits(1);
        }
        self.open.fetch_sub(1, Ordering::AcqRel) - 1
    }

    /// Sets the limit; the answer is whether it is another one.
    pub(super) fn allow(&self, limit: usize) -> bool {
        let limit = limit.min(MOST);
        let before = self.limit.swap(limit, Ordering::AcqRel);
        if limit > before {
            let mut more = limit - before;
            // Places that would have lapsed stay instead.
            let kept = self
                .surplus
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |surplus| {
                    Some(surplus.saturating_sub(more))
                });
            more -= kept.unwrap_or(0).min(more);
            self.free.add_permits(more);
        } else if limit < before {
            let fewer = before - limit;
            let gone = self.free.forget_permits(fewer);
            self.surplus.fetch_add(fewer - gone, Ordering::AcqRel);
        }
        limit != before
    }

    /// Lets nobody in any more, and sends those who wait away.
    pub(super) fn close(&self) {
        self.free.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.free.is_closed()
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        if self.is_closed() {
            0
        } else {
            self.free.available_permits()
        }
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_waits_for_a_stream_to_end() {
        let quota = Quota::new(1);
        assert!(quota.take().await);

        let mut second = pin!(quota.take());
        assert_eq!(poll!(&mut second), Poll::Pending);
        assert_eq!(quota.put(), 0);

        assert_eq!(poll!(&mut second), Poll::Ready(true));
        assert_eq!((quota.open(), quota.room()), (1, 0));
    }

    #[tokio::test]
    async fn a_lower_limit_lets_surplus_places_lapse() {
        let quota = Quota::new(3);
        for _ in 0..3 {
            assert!(quota.take().await);
        }

        quota.allow(1);
        quota.put();
        quota.put();

        assert_eq!((quota.open(), quota.room()), (1, 0));
        quota.put();
        assert_eq!((quota.open(), quota.room()), (0, 1));
    }

    #[tokio::test]
    async fn a_limit_that_goes_down_and_up_again_is_as_before() {
        let quota = Quota::new(3);
        assert!(quota.take().await);
        assert!(quota.take().await);

        quota.allow(0);
        quota.allow(5);

        assert_eq!((quota.open(), quota.room()), (2, 3));
        quota.put();
        quota.put();
        assert_eq!((quota.open(), quota.room()), (0, 5));
    }

    #[tokio::test]
    async fn a_closed_quota_sends_waiters_away() {
        let quota = Quota::new(0);
        let mut waiting = pin!(quota.take());
        assert_eq!(poll!(&mut waiting), Poll::Pending);

        quota.close();

        assert_eq!(poll!(&mut waiting), Poll::Ready(false));
        assert_eq!(quota.room(), 0);
    }
}
