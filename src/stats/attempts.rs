//! What an endpoint's calls came to: made when it is first called, and kept as long as it is known.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    Past, Unseen,
    ends::{ByCode, Ends, Why, wrapped},
    ring::{Counted, Last, Ring, tick},
    seat::Seat,
};

/// The attempts at calls that went to one endpoint.
#[derive(Debug)]
pub(crate) struct Attempted {
    ends: ByCode<Ends>,
    /// Judged to be the server's failures, and judged to say nothing.
    failures: AtomicU64,
    unjudged: AtomicU64,
    unseen: [AtomicU64; 2],
    again: [AtomicU64; 3],
    sent: AtomicU64,
    received: AtomicU64,
    ring: Ring,
}

impl Attempted {
    pub(crate) fn new() -> Self {
        Self {
            ends: ByCode::new(),
            failures: AtomicU64::new(0),
            unjudged: AtomicU64::new(0),
            unseen: array::from_fn(|_| AtomicU64::new(0)),
            again: array::from_fn(|_| AtomicU64::new(0)),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            ring: Ring::new(),
        }
    }

    /// It is made for this reason.
    pub(crate) fn made_again(&self, why: Why) {
        self.again[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One ended; the endpoint has been known for so many nanoseconds.
    pub(crate) fn ended(&self, past: &Past, age: u64) {
        self.ring.turn(tick(age), || self.counted());
        let ends = self.ends.at(past.code);
        ends.count(Seat::SHARED, past.code, past.ending, past.took);
        for (all, bytes) in [(&self.sent, past.sent), (&self.received, past.received)] {
            if bytes > 0 {
                all.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// One came to nothing: no server has looked at it.
    pub(crate) fn unseen(&self, how: Unseen) {
        self.unseen[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn showed_nothing(&self) {
        self.unjudged.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unjudged(&self) -> u64 {
        self.unjudged.load(Ordering::Relaxed)
    }

    /// Those that never left.
    pub(crate) fn not_sent(&self) -> u64 {
        self.unseen[Unseen::NotSent as usize].load(Ordering::Relaxed)
    }

    fn counted(&self) -> Counted {
        wrapped(self.ends.counted())
    }

    pub(super) fn ends(&self) -> &ByCode<Ends> {
        &self.ends
    }

    pub(super) fn within(&self, last: Last, age: Duration) -> (Counted, Duration) {
        self.ring.within(last, age, self.counted())
    }

    pub(super) fn unseen_so_far(&self) -> [u64; 2] {
        self.unseen.each_ref().map(|n| n.load(Ordering::Relaxed))
    }

    pub(super) fn again_so_far(&self) -> [u64; 3] {
        self.again.each_ref().map(|n| n.load(Ordering::Relaxed))
    }

    /// Bytes of messages, sent and received.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [&self.sent, &self.received].map(|n| n.load(Ordering::Relaxed))
    }
}
