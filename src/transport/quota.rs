//! How many streams may be open on a connection at once.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Semaphore;

/// The streams a peer allows at once, and those that are open; whoever finds none left queues.
///
/// h2 would queue streams by itself, but a stream queued there counts as sent, and cannot go to
/// another connection any more.
pub(super) struct Quota {
    /// A [`State`] in one word, so that its parts always fit together.
    state: AtomicU64,
    /// How many queue and have no place yet. Whoever holds it may begin and end the queue.
    queued: Mutex<usize>,
    /// Places handed to those who queue, in turn; each is open already.
    handed: Semaphore,
}

#[derive(Clone, Copy, Debug)]
struct State {
    open: u32,
    limit: u32,
    /// Somebody queues: nobody else may take a place that is free.
    queued: bool,
    closed: bool,
}

/// A turn in the queue, given up when it is dropped.
struct Turn<'a> {
    quota: &'a Quota,
    over: bool,
}

/// Stands for no limit: more streams than this do not fit on a connection.
const MOST: u32 = u32::MAX >> 1;

impl Quota {
    pub(super) fn new(limit: usize) -> Self {
        let state = State {
            open: 0,
            limit: capped(limit),
            queued: false,
            closed: false,
        };
        Self {
            state: AtomicU64::new(state.word()),
            queued: Mutex::new(0),
            handed: Semaphore::new(0),
        }
    }

    /// Takes a place, if there is one now.
    pub(super) fn try_take(&self) -> bool {
        let taken = self.change(|state| state.has_room().then(|| state.more(1)));
        taken.is_ok()
    }

    /// Takes a place, in turn; `false` if the connection takes no more streams.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the turn; a place that it got already goes to the next.
    pub(super) async fn take(&self) -> bool {
        loop {
            if self.try_take() {
                return true;
            }
            if self.is_closed() {
                return false;
            }
            if let Some(turn) = self.queue() {
                return turn.comes().await;
            }
        }
    }

    /// A turn in the queue; none if there is room after all, or never will be.
    fn queue(&self) -> Option<Turn<'_>> {
        let mut queued = self.queued();
        let joined = self.change(|state| {
            let full = !state.closed && !state.has_room();
            full.then_some(State {
                queued: true,
                ..state
            })
        });
        joined.ok()?;
        *queued += 1;
        Some(Turn {
            quota: self,
            over: false,
        })
    }

    /// Gives a place back; the answer is how many are still taken.
    pub(super) fn put(&self) -> usize {
        let put = self.change(|state| (!state.queued).then(|| state.fewer()));
        match put {
            Ok(after) => after.open as usize,
            Err(_) => self.hand_out(&mut self.queued(), State::fewer),
        }
    }

    /// Sets the limit; the answer is whether it is another one. Only the driver does.
    pub(super) fn allow(&self, limit: usize) -> bool {
        let limit = capped(limit);
        if self.state().limit == limit {
            return false;
        }
        self.hand_out(&mut self.queued(), |state| State { limit, ..state });
        true
    }

    /// Makes this change, and gives the places that are free then to those who queue; the answer is how
    /// many are taken.
    fn hand_out(&self, queued: &mut usize, change: impl Fn(State) -> State) -> usize {
        let mut handed = 0;
        let changed = self.change(|state| {
            let state = change(state);
            handed = state.room().min(u32::try_from(*queued).unwrap_or(MOST));
            Some(State {
                queued: *queued > handed as usize,
                ..state.more(handed)
            })
        });
        *queued -= handed as usize;
        self.handed.add_permits(handed as usize);
        changed.map_or(0, |after| after.open as usize)
    }

    /// Lets nobody in any more, and sends those who wait away.
    pub(super) fn close(&self) {
        let close = |state| State {
            closed: true,
            ..state
        };
        let _ = self.change(|state| Some(close(state)));
        self.handed.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.state().room() as usize
    }

    pub(super) fn open(&self) -> usize {
        self.state().open as usize
    }

    fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    /// What this makes of the state; or the state, if it makes nothing of it.
    fn change(&self, mut change: impl FnMut(State) -> Option<State>) -> Result<State, State> {
        let mut word = self.state.load(Ordering::Acquire);
        loop {
            let Some(next) = change(State::of(word)) else {
                return Err(State::of(word));
            };
            let changed = self.state.compare_exchange_weak(
                word,
                next.word(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match changed {
                Ok(_) => return Ok(next),
                Err(newer) => word = newer,
            }
        }
    }

    fn queued(&self) -> MutexGuard<'_, usize> {
        self.queued
            .lock()
            .expect("no code here panics with the lock held")
    }
}

impl State {
    fn of(word: u64) -> Self {
        let low = |word: u64| (word & u64::from(MOST)) as u32;
        Self {
            open: low(word),
            limit: low(word >> 31),
            queued: word >> 62 & 1 == 1,
            closed: word >> 63 == 1,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.open)
            | u64::from(self.limit) << 31
            | u64::from(self.queued) << 62
            | u64::from(self.closed) << 63
    }

    fn has_room(self) -> bool {
        !self.queued && self.room() > 0
    }

    fn room(self) -> u32 {
        if self.closed {
            return 0;
        }
        self.limit.saturating_sub(self.open)
    }

    fn more(self, more: u32) -> Self {
        Self {
            open: self.open + more,
            ..self
        }
    }

    fn fewer(self) -> Self {
        Self {
            open: self.open.saturating_sub(1),
            ..self
        }
    }
}

impl Turn<'_> {
    /// Whether it has come; `false` if it never will.
    async fn comes(mut self) -> bool {
        let place = self.quota.handed.acquire().await;
        let Ok(place) = place else { return false };
        place.forget();
        self.over = true;
        true
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut queued = self.quota.queued();
        if *queued > 0 {
            *queued -= 1;
            self.quota.hand_out(&mut queued, |state| state);
        } else {
            // A place was handed to this turn, as it was to all others that are left.
            self.quota.handed.forget_permits(1);
            self.quota.hand_out(&mut queued, State::fewer);
        }
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quota").field(&self.state()).finish()
    }
}

fn capped(limit: usize) -> u32 {
    u32::try_from(limit).map_or(MOST, |limit| limit.min(MOST))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicBool, AtomicUsize},
        task::Poll,
        thread,
    };

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_waits_for_a_stream_to_end() {
        let quota = Quota::new(1);
        assert!(quota.take().await);

        let mut second = pin!(quota.take());
        assert_eq!(poll!(&mut second), Poll::Pending);
        // It is the second one's already.
        assert_eq!(quota.put(), 1);

        assert_eq!(poll!(&mut second), Poll::Ready(true));
        assert_eq!((quota.open(), quota.room()), (1, 0));
    }

    #[tokio::test]
    async fn who_comes_later_does_not_overtake_the_queue() {
        let quota = Quota::new(1);
        assert!(quota.take().await);
        let mut waiting = pin!(quota.take());
        assert_eq!(poll!(&mut waiting), Poll::Pending);

        quota.allow(2);
        quota.put();

        assert!(quota.try_take());
        assert!(!quota.try_take());
        assert_eq!(poll!(&mut waiting), Poll::Ready(true));
        assert_eq!((quota.open(), quota.room()), (2, 0));
    }

    #[tokio::test]
    async fn a_place_that_was_handed_to_one_who_left_goes_to_the_next() {
        let quota = Quota::new(1);
        assert!(quota.take().await);
        let mut first = Box::pin(quota.take());
        let mut second = pin!(quota.take());
        assert_eq!(poll!(&mut first), Poll::Pending);
        assert_eq!(poll!(&mut second), Poll::Pending);

        quota.put();
        drop(first);

        assert_eq!(poll!(&mut second), Poll::Ready(true));
        assert_eq!(quota.put(), 0);
        assert_eq!(quota.room(), 1);
    }

    #[tokio::test]
    async fn a_queue_that_all_have_left_leaves_nothing_behind() {
        let quota = Quota::new(1);
        assert!(quota.take().await);
        let mut first = Box::pin(quota.take());
        let mut second = Box::pin(quota.take());
        assert_eq!(poll!(&mut first), Poll::Pending);
        assert_eq!(poll!(&mut second), Poll::Pending);

        drop(second);
        quota.put();
        drop(first);

        assert_eq!((quota.open(), quota.room()), (0, 1));
        assert!(quota.try_take());
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
        assert_eq!((quota.open(), quota.room()), (0, 0));
    }

    #[tokio::test]
    async fn a_place_that_was_handed_before_the_close_is_not_lost_count_of() {
        let quota = Quota::new(1);
        assert!(quota.take().await);
        let mut waiting = Box::pin(quota.take());
        assert_eq!(poll!(&mut waiting), Poll::Pending);

        quota.put();
        quota.close();

        assert_eq!(poll!(&mut waiting), Poll::Ready(false));
        drop(waiting);
        assert_eq!(quota.open(), 0);
    }

    #[test]
    fn the_count_holds_however_places_and_limits_come_and_go() {
        const MOST: usize = 4;
        let quota = Quota::new(MOST);
        let (most, done) = (AtomicUsize::new(0), AtomicBool::new(false));

        thread::scope(|scope| {
            let callers = [0, 1, 2].map(|_| {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let mut taken = Box::pin(quota.take());
                        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                        // Who does not get a place at once gives up its turn.
                        if taken.as_mut().poll(&mut cx) == Poll::Ready(true) {
                            most.fetch_max(quota.open(), Ordering::Relaxed);
                            quota.put();
                        }
                    }
                })
            });
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for limit in [1, MOST, 2, 3] {
                        quota.allow(limit);
                    }
                }
            });
            for caller in callers {
                caller.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        quota.allow(MOST);

        assert!(most.into_inner() <= MOST);
        assert_eq!((quota.open(), quota.room()), (0, MOST));
    }
}
