//! Counters of how calls ended: written by all callers at once, without a lock.

use std::{
    array,
    borrow::Borrow,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tonic::Code;

use super::{
    Past,
    bounds::{SIZES, TIMES, bucket, size_bucket},
    ring::Counted,
    seat::Seat,
};
use crate::moment::Moment;

/// How a call, or an attempt at one, ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// With an answer, were it that the caller made a mistake.
    Succeeded,
    Failed,
    /// Its deadline came first.
    TimedOut,
    /// Its caller did not wait for the end.
    Cancelled,
}

/// Why an attempt is made that is not the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Why {
    /// The one before was not processed by any server.
    Transparent,
    /// The method's retry policy says so.
    Configured,
    /// The one before takes long.
    Hedged,
}

/// How long something took, and where that belongs in histograms: looked up once, and counted thrice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    pub(crate) nanos: u64,
    bucket: u8,
}

impl Took {
    #[inline]
    pub(crate) fn between(began: Moment, ended: Moment) -> Self {
        let nanos = ended.nanos_since(began);
        Self {
            nanos,
            bucket: bucket(&TIMES, nanos) as u8,
        }
    }
}

/// Something for each status code, made when it is first needed: most methods see two or three.
#[derive(Debug)]
pub(super) struct ByCode<T>([OnceLock<Box<T>>; CODES]);

const CODES: usize = 17;

impl<T: Default> ByCode<T> {
    pub(super) fn new() -> Self {
        Self(array::from_fn(|_| OnceLock::new()))
    }

    #[inline]
    pub(super) fn at(&self, code: Code) -> &T {
        self.0[code as usize % CODES].get_or_init(Box::default)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Code, &T)> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(code, made)| Some((Code::from_i32(code as i32), &**made.get()?)))
    }
}

/// The ends that bear one code.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) took: Buckets<{ TIMES.len() + 1 }>,
    /// Those that did not end as most with this code do.
    unusual: [AtomicU64; 4],
}

/// The ends that bear one code, and how much had been sent and received by then.
#[derive(Debug, Default)]
pub(super) struct Weighed {
    pub(super) ends: Ends,
    pub(super) sizes: Sizes,
}

/// Bytes of the messages of those that bear one code.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) sent: Buckets<{ SIZES.len() + 1 }>,
    pub(super) received: Buckets<{ SIZES.len() + 1 }>,
}

/// How many fell in each bucket of a histogram, and what they come to.
#[derive(Debug)]
pub(super) struct Buckets<const N: usize> {
    counts: [AtomicU64; N],
    sum: AtomicU64,
}

impl Ends {
    #[inline]
    pub(super) fn count(&self, seat: Seat, code: Code, ending: Ending, took: Took) {
        self.took.count(seat, took.bucket.into(), took.nanos);
        if ending != usual(code) {
            seat.add(&self.unusual[ending as usize], 1);
        }
    }

    /// How many ended in each way.
    fn counted(&self, code: Code) -> [u64; 4] {
        let mut counted = self.unusual.each_ref().map(|n| n.load(Ordering::Relaxed));
        // Between the two counts of one end there is a moment.
        let unusual = counted.iter().sum();
        counted[usual(code) as usize] += self.took.count_all().saturating_sub(unusual);
        counted
    }
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            took: Buckets::default(),
            unusual: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl<T: Default + Borrow<Ends>> ByCode<T> {
    /// How many ended in each way, in the order of [`Ending`].
    pub(super) fn counted(&self) -> [u64; 4] {
        let mut all = [0; 4];
        for (code, counted) in self.iter() {
            add(&mut all, counted.borrow().counted(code));
        }
        all
    }
}

impl Weighed {
    #[inline]
    pub(super) fn count(&self, seat: Seat, past: &Past) {
        self.ends.count(seat, past.code, past.ending, past.took);
        self.sizes.count(seat, past.sent, past.received);
    }
}

impl Borrow<Ends> for Weighed {
    fn borrow(&self) -> &Ends {
        &self.ends
    }
}

impl Sizes {
    #[inline]
    fn count(&self, seat: Seat, sent: u64, received: u64) {
        self.sent.count(seat, size_bucket(sent), sent);
        self.received
            .count(seat, bucket(&SIZES, received), received);
    }
}

impl<const N: usize> Buckets<N> {
    #[inline]
    fn count(&self, seat: Seat, bucket: usize, value: u64) {
        seat.add(&self.counts[bucket], 1);
        seat.add(&self.sum, value);
    }

    /// Under these bounds.
    pub(super) fn hear(&self, seat: Seat, bounds: &[u64], value: u64) {
        self.count(seat, bucket(bounds, value), value);
    }

    fn count_all(&self) -> u64 {
        self.counts().sum()
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.counts.iter().map(|n| n.load(Ordering::Relaxed))
    }

    pub(super) fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }
}

/// How those that end with this code are counted, unless something else is known of them.
pub(crate) fn usual(code: Code) -> Ending {
    match code {
        Code::Unavailable
        | Code::Internal
        | Code::Unknown
        | Code::DataLoss
        | Code::ResourceExhausted => Ending::Failed,
        Code::DeadlineExceeded => Ending::TimedOut,
        Code::Cancelled => Ending::Cancelled,
        _ => Ending::Succeeded,
    }
}

pub(super) fn add(all: &mut [u64; 4], some: [u64; 4]) {
    for (all, some) in all.iter_mut().zip(some) {
        *all += some;
    }
}

/// As windows count, which look at differences only.
pub(super) fn wrapped(counted: [u64; 4]) -> Counted {
    counted.map(|n| n as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Ended, EndedBy, Outcome};

    #[test]
    fn each_end_is_counted_once_under_its_code_and_its_way() {
        let ends = ByCode::<Ends>::new();
        let took = Took::default();
        let count = |code, ending| ends.at(code).count(Seat::SHARED, code, ending, took);

        count(Code::Ok, Ending::Succeeded);
        count(Code::NotFound, Ending::Succeeded);
        count(Code::NotFound, Ending::Failed);
        count(Code::Unavailable, Ending::Cancelled);

        assert_eq!(ends.counted(), [2, 1, 0, 1]);
        let codes: Vec<_> = ends
            .iter()
            .map(|(code, e)| (code, e.took.count_all()))
            .collect();
        let counted = [(Code::Ok, 1), (Code::NotFound, 2), (Code::Unavailable, 1)];
        assert_eq!(codes, counted);
    }

    #[test]
    fn what_is_usual_agrees_with_what_calls_show_about_servers() {
        for code in (0..17).map(Code::from_i32) {
            let outcome = Ended::without_status(code, EndedBy::Status).usual();
            let ending = usual(code);
            match outcome {
                Outcome::Success => assert_eq!(ending, Ending::Succeeded, "{code:?}"),
                Outcome::Ignore => assert_eq!(ending, Ending::Cancelled, "{code:?}"),
                Outcome::Failure if code == Code::DeadlineExceeded => {
                    assert_eq!(ending, Ending::TimedOut);
                }
                Outcome::Failure | Outcome::Overload => {
                    assert_eq!(ending, Ending::Failed, "{code:?}");
                }
            }
        }
    }
}
