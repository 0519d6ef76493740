//! Where a thread counts: with nobody else, while there are few.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// A place to count at.
///
/// Each of the first threads has one of its own, and gives it back when it ends. What nobody else writes
/// needs no locked instruction to be added to, and those who read see whole words in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seat(u8);

/// How many threads have seats of their own at a time.
pub(super) const OWN: usize = 8;
/// So many places there are: those of their own, and one for all the others.
pub(super) const PLACES: usize = OWN + 1;

/// The seats that are taken, a bit each.
struct Seats(AtomicU32);

static SEATS: Seats = Seats(AtomicU32::new(0));

thread_local! {
    static HERE: Cell<Option<Seat>> = const { Cell::new(None) };
    /// Its end is the thread's.
    static LEAVING: Leaving = const { Leaving(Cell::new(None)) };
}

/// Gives a seat back when its thread ends.
struct Leaving(Cell<Option<Seat>>);

impl Seat {
    /// Of all who have none of their own. What is added there is added by several at once.
    pub(super) const SHARED: Self = Self(OWN as u8);

    /// This thread's.
    #[inline]
    pub(super) fn here() -> Self {
        match HERE.get() {
            Some(seat) => seat,
            None => Self::take(),
        }
    }

    #[cold]
    fn take() -> Self {
        let mut seat = SEATS.take();
        // A thread that is about to end could not give it back.
        if LEAVING
            .try_with(|leaving| leaving.0.set(Some(seat)))
            .is_err()
        {
            SEATS.give_back(seat);
            seat = Self::SHARED;
        }
        HERE.set(Some(seat));
        seat
    }

    /// Which of the [`PLACES`] it is.
    #[inline]
    pub(super) fn place(self) -> usize {
        usize::from(self.0)
    }

    /// Adds to a counter of this place.
    #[inline]
    pub(super) fn add(self, counter: &AtomicU64, n: u64) {
        if self == Self::SHARED {
            counter.fetch_add(n, Ordering::Relaxed);
        } else {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(n);
            counter.store(sum, Ordering::Relaxed);
        }
    }

    /// Adds one to a small counter of this place.
    #[inline]
    pub(super) fn add_small(self, counter: &AtomicU32) {
        if self == Self::SHARED {
            counter.fetch_add(1, Ordering::Relaxed);
        } else {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(1);
            counter.store(sum, Ordering::Relaxed);
        }
    }
}

impl Seats {
    fn take(&self) -> Seat {
        let free = |taken: u32| (!taken).trailing_zeros();
        let take = |taken| (free(taken) < OWN as u32).then(|| taken | 1 << free(taken));
        // Whoever had it before has written all that it ever will.
        let taken = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.map_or(Seat::SHARED, |before| Seat(free(before) as u8))
    }

    fn give_back(&self, seat: Seat) {
        if seat != Seat::SHARED {
            self.0.fetch_and(!(1 << seat.0), Ordering::Release);
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(seat) = self.0.take() {
            // What ends after this may still count.
            HERE.set(Some(Seat::SHARED));
            SEATS.give_back(seat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Barrier, Mutex},
        thread,
    };

    use super::*;

    #[test]
    fn threads_that_count_at_once_lose_nothing_and_share_no_seat_of_their_own() {
        const THREADS: usize = 2 * OWN;
        let counters: [AtomicU64; PLACES] = std::array::from_fn(|_| AtomicU64::new(0));
        let (all, seats) = (Barrier::new(THREADS), Mutex::new(Vec::new()));

        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let seat = Seat::here();
                    seats.lock().unwrap().push(seat.place());
                    // Nobody gives his back before all have one.
                    all.wait();
                    for _ in 0..10_000 {
                        seat.add(&counters[seat.place()], 1);
                    }
                });
            }
        });

        let sum: u64 = counters.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, THREADS as u64 * 10_000);
        let mut own = seats.into_inner().unwrap();
        own.retain(|&place| place < OWN);
        own.sort_unstable();
        assert!(own.windows(2).all(|two| two[0] != two[1]), "{own:?}");
    }

    #[test]
    fn a_seat_that_is_given_back_is_the_next_ones() {
        let seats = Seats(AtomicU32::new(0));
        let taken: Vec<_> = (0..OWN).map(|_| seats.take()).collect();
        assert_eq!(seats.take(), Seat::SHARED);

        seats.give_back(Seat::SHARED);
        seats.give_back(taken[3]);

        assert_eq!([seats.take(), seats.take()], [taken[3], Seat::SHARED]);
    }

    #[test]
    fn a_thread_keeps_its_seat() {
        thread::spawn(|| assert_eq!(Seat::here(), Seat::here()))
            .join()
            .unwrap();
    }
}
