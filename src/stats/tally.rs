//! What calls of one method came to, in as many parts as threads count at once.

use std::{
    array,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Past, Unseen,
    bounds::{RETRIES, TRANSPARENT},
    ends::{Buckets, ByCode, Ends, Weighed, Why, add, wrapped},
    norm::{self, Norm},
    recent::{self, BUCKETS, Recent},
    ring::{Counted, Last, Ring, tick},
    seat::{PLACES, Seat},
};
use crate::moment::Moment;

/// The calls of one method.
#[derive(Debug)]
pub(crate) struct Tally {
    path: Box<str>,
    since: Moment,
    ring: Ring,
    /// What its calls usually take, and those of all methods of the channel.
    norm: Norm,
    all: Arc<Norm>,
    parts: [OnceLock<Box<Part>>; PLACES],
}

/// What is counted at one [`Seat`]. Of a size that no two of them lie side by side.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Part {
    pub(super) started: AtomicU64,
    pub(super) attempts_started: AtomicU64,
    /// Of calls that were sent once, and at once: how they ended, and so the one attempt at each.
    pub(super) once: ByCode<Weighed>,
    /// Of all other calls, and all other attempts.
    pub(super) calls: ByCode<Ends>,
    pub(super) attempts: ByCode<Weighed>,
    pub(super) again: [AtomicU64; 3],
    pub(super) unseen: [AtomicU64; 2],
    /// How many calls were sent again how often, for which reason; those that were not are not counted.
    pub(super) often: [Buckets<{ TRANSPARENT.len() + 1 }>; 3],
    recent: Recent,
}

impl Tally {
    pub(super) fn new(path: &str, since: Instant, all: &Arc<Norm>) -> Self {
        Self {
            path: path.into(),
            since: Moment::at(since),
            ring: Ring::new(),
            norm: Norm::default(),
            all: Arc::clone(all),
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
        let epoch = recent::epoch(Moment::at(now).nanos_since(self.since));
        let mut sums = [0; BUCKETS];
        for part in self.parts() {
            part.recent.add_to(&mut sums, epoch);
        }
        shares.map(|share| recent::percentile(&sums, share))
    }

    /// How long a call of a usual method would have taken, where one of this took so long.
    #[inline]
    pub(crate) fn leveled(&self, time: Duration) -> Duration {
        self.norm.known().leveled(self.all.known(), time)
    }

    /// Whether it is known what its calls take.
    pub(crate) fn is_known(&self) -> bool {
        self.norm.known().is_known()
    }

    /// Whether a server that is slow to answer its calls need not be slow.
    #[inline]
    pub(crate) fn takes_long(&self) -> bool {
        self.norm.known().takes_long(self.all.known())
    }

    /// An attempt got the head of a good answer in this time.
    #[inline]
    pub(crate) fn took(&self, time: Duration) {
        norm::learn(&self.norm, &self.all, time);
    }

    /// The part that is counted at this seat.
    #[inline]
    fn part(&self, seat: Seat) -> &Part {
        self.parts[seat.place()].get_or_init(|| Box::new(Part::new()))
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts
            .iter()
            .filter_map(|part| part.get())
            .map(|part| &**part)
    }

    #[inline]
    pub(super) fn begins(&self) {
        let seat = Seat::here();
        seat.add(&self.part(seat).started, 1);
    }

    /// A call got the head of its answer, after so many nanoseconds.
    #[inline]
    pub(super) fn answered(&self, took: u64, now: Moment) {
        let (seat, epoch) = (Seat::here(), recent::epoch(now.nanos_since(self.since)));
        self.part(seat).recent.heard(seat, took, epoch);
    }

    /// A call ended, after it had been sent again so often.
    pub(super) fn ended(&self, past: &Past, again: [u16; 3]) {
        let seat = Seat::here();
        let age = past.at.nanos_since(self.since);
        self.ring.turn(tick(age), || self.counted());
        let part = self.part(seat);
        let ends = part.calls.at(past.code);
        ends.count(seat, past.code, past.ending, past.took);
        if again != [0; 3] {
            part.sent_again(seat, again);
        }
    }

    /// A call ended that was sent once, and at once; and with it the attempt that it was.
    pub(super) fn ended_at_once(&self, past: &Past) {
        let seat = Seat::here();
        let age = past.at.nanos_since(self.since);
        self.ring.turn(tick(age), || self.counted());
        self.part(seat).once.at(past.code).count(seat, past);
    }

    #[inline]
    pub(crate) fn attempt_begins(&self, again: Option<Why>) {
        let seat = Seat::here();
        let part = self.part(seat);
        seat.add(&part.attempts_started, 1);
        if let Some(why) = again {
            seat.add(&part.again[why as usize], 1);
        }
    }

    pub(crate) fn attempt_ended(&self, past: &Past) {
        let seat = Seat::here();
        self.part(seat).attempts.at(past.code).count(seat, past);
    }

    pub(crate) fn attempt_unseen(&self, how: Unseen) {
        let seat = Seat::here();
        seat.add(&self.part(seat).unseen[how as usize], 1);
    }

    /// How many calls ended in each way.
    pub(super) fn counted_calls(&self) -> [u64; 4] {
        let mut all = [0; 4];
        for part in self.parts() {
            add(&mut all, part.once.counted());
            add(&mut all, part.calls.counted());
        }
        all
    }

    fn counted(&self) -> Counted {
        wrapped(self.counted_calls())
    }

    pub(super) fn within(&self, last: Last, now: Instant) -> (Counted, Duration) {
        let age = Moment::at(now).since(self.since);
        self.ring.within(last, age, self.counted())
    }
}

impl Part {
    fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            attempts_started: AtomicU64::new(0),
            once: ByCode::new(),
            calls: ByCode::new(),
            attempts: ByCode::new(),
            again: array::from_fn(|_| AtomicU64::new(0)),
            unseen: array::from_fn(|_| AtomicU64::new(0)),
            often: array::from_fn(|_| Buckets::default()),
            recent: Recent::new(),
        }
    }

    #[cold]
    fn sent_again(&self, seat: Seat, again: [u16; 3]) {
        let bounds = [&TRANSPARENT[..], &RETRIES, &RETRIES];
        for ((often, n), bounds) in self.often.iter().zip(again).zip(bounds) {
            if n > 0 {
                often.hear(seat, bounds, n.into());
            }
        }
    }
}
