//! What calls of one method came to, in as many parts as threads count at once.

use std::{
    array,
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Past, Unseen,
    bounds::{RETRIES, TRANSPARENT},
    ends::{Buckets, ByCode, Ends, Sizes, Why, add, wrapped},
    recent::{self, BUCKETS, Recent},
    ring::{Counted, Last, Ring, tick},
};

/// The calls of one method.
#[derive(Debug)]
pub(crate) struct Tally {
    path: Box<str>,
    since: Instant,
    ring: Ring,
    parts: [OnceLock<Box<Part>>; PARTS],
}

/// Threads beyond that share.
const PARTS: usize = 8;

/// What some of the threads count. Of a size that no two of them lie side by side.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Part {
    pub(super) started: AtomicU64,
    pub(super) attempts_started: AtomicU64,
    pub(super) calls: ByCode<Ends>,
    pub(super) attempts: ByCode<Ends>,
    pub(super) sizes: ByCode<Sizes>,
    pub(super) again: [AtomicU64; 3],
    pub(super) unseen: [AtomicU64; 2],
    /// How many calls were sent again how often, for which reason; those that were not are not counted.
    pub(super) often: [Buckets<{ TRANSPARENT.len() + 1 }>; 3],
    recent: Recent,
}

impl Tally {
    pub(super) fn new(path: &str, since: Instant) -> Self {
        Self {
            path: path.into(),
            since,
            ring: Ring::new(),
            parts: array::from_fn(|_| OnceLock::new()),
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// These shares of the calls that were answered lately, between 0 and 1, were answered within this: the time
    /// from the call's beginning to the head of the answer.
    ///
    /// Rounded up, by an eighth at most. None while there have been too few to tell: twenty for 0.95.
    pub(super) fn percentiles<const N: usize>(
        &self,
        shares: [f64; N],
        now: Instant,
    ) -> [Option<Duration>; N] {
        let epoch = recent::epoch(now.saturating_duration_since(self.since));
        let mut sums = [0; BUCKETS];
        for part in self.parts() {
            part.recent.add_to(&mut sums, epoch);
        }
        shares.map(|share| recent::percentile(&sums, share))
    }

    /// The part that this thread counts in.
    #[inline]
    fn part(&self) -> &Part {
        let nth = NTH.with(Cell::get);
        let nth = if nth == usize::MAX { numbered() } else { nth };
        self.parts[nth % PARTS].get_or_init(|| Box::new(Part::new()))
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts
            .iter()
            .filter_map(|part| part.get())
            .map(|part| &**part)
    }

    #[inline]
    pub(super) fn begins(&self) {
        self.part().started.fetch_add(1, Ordering::Relaxed);
    }

    /// A call got the head of its answer.
    #[inline]
    pub(super) fn answered(&self, took: Duration, now: Instant) {
        let epoch = recent::epoch(now.saturating_duration_since(self.since));
        self.part().recent.heard(took, epoch);
    }

    /// A call ended, after it had been sent again so often.
    pub(super) fn ended(&self, past: &Past, again: [u16; 3]) {
        let age = past.at.saturating_duration_since(self.since);
        self.ring.turn(tick(age), || self.counted());
        let part = self.part();
        part.calls
            .at(past.code)
            .count(past.code, past.ending, past.took);
        if again != [0; 3] {
            part.sent_again(again);
        }
    }

    #[inline]
    pub(crate) fn attempt_begins(&self, again: Option<Why>) {
        let part = self.part();
        part.attempts_started.fetch_add(1, Ordering::Relaxed);
        if let Some(why) = again {
            part.again[why as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn attempt_ended(&self, past: &Past) {
        let part = self.part();
        part.attempts
            .at(past.code)
            .count(past.code, past.ending, past.took);
        part.sizes.at(past.code).count(past.sent, past.received);
    }

    pub(crate) fn attempt_unseen(&self, how: Unseen) {
        self.part().unseen[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls ended in each way.
    pub(super) fn counted_calls(&self) -> [u64; 4] {
        let mut all = [0; 4];
        for part in self.parts() {
            add(&mut all, part.calls.counted());
        }
        all
    }

    fn counted(&self) -> Counted {
        wrapped(self.counted_calls())
    }

    pub(super) fn within(&self, last: Last, now: Instant) -> (Counted, Duration) {
        let age = now.saturating_duration_since(self.since);
        self.ring.within(last, age, self.counted())
    }
}

impl Part {
    fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            attempts_started: AtomicU64::new(0),
            calls: ByCode::new(),
            attempts: ByCode::new(),
            sizes: ByCode::new(),
            again: array::from_fn(|_| AtomicU64::new(0)),
            unseen: array::from_fn(|_| AtomicU64::new(0)),
            often: array::from_fn(|_| Buckets::default()),
            recent: Recent::new(),
        }
    }

    #[cold]
    fn sent_again(&self, again: [u16; 3]) {
        let bounds = [&TRANSPARENT[..], &RETRIES, &RETRIES];
        for ((often, n), bounds) in self.often.iter().zip(again).zip(bounds) {
            if n > 0 {
                often.hear(bounds, n.into());
            }
        }
    }
}

thread_local! {
    /// Which of the threads that ever counted this one is.
    static NTH: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[cold]
fn numbered() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let nth = NEXT.fetch_add(1, Ordering::Relaxed) % PARTS;
    NTH.set(nth);
    nth
}
