//! Whether a channel may send more than its callers asked for.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use tokio::time::Instant;

use crate::method::{Budget, Throttle};

/// What stands between a call and another attempt of it.
///
/// Both are a channel's, whatever the method: an overload is the servers', and not one method's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates {
    pub(crate) throttle: Option<Arc<Tokens>>,
    pub(crate) budget: Option<Arc<Spent>>,
}

/// gRPC's tokens: a failure takes one, a success brings a part of one; more than half must be there.
///
/// Counted in thousandths.
#[derive(Debug)]
pub(crate) struct Tokens {
    most: u32,
    ratio: u32,
    count: AtomicU32,
}

/// How much of what was sent in the last seconds was sent again.
#[derive(Debug)]
pub(crate) struct Spent {
    /// Attempts beyond the first that each thousand calls may have.
    per_thousand: u64,
    /// So many a second are allowed however few calls there are.
    floor: u64,
    began: Instant,
    seconds: [AtomicU64; SECONDS],
}

/// The second it is of, its calls and their further attempts, in one word so that they fit together.
#[derive(Clone, Copy, Debug)]
struct Second {
    number: u64,
    calls: u64,
    again: u64,
}

/// A share of the calls of so many seconds. More lets more failures come at once, and later.
const SECONDS: usize = 10;
const THOUSAND: u32 = 1000;
/// Bits for each count of a [`Second`].
const BITS: u32 = 20;
const FULL: u64 = (1 << BITS) - 1;
/// The last number that a second can have; half a year is more of them.
const LAST: u64 = u64::MAX >> (2 * BITS);

impl Gates {
    /// A call begins.
    pub(super) fn begun(&self) {
        if let Some(budget) = &self.budget {
            budget.note_call(Instant::now());
        }
    }

    pub(super) fn succeeded(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.succeeded();
        }
    }

    /// An attempt failed in a way that counts.
    pub(super) fn failed(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.failed();
        }
    }

    /// Whether another attempt may be made, which is counted as made then.
    pub(super) fn let_through(&self) -> bool {
        self.throttle.as_ref().is_none_or(|tokens| tokens.is_open())
            && (self.budget.as_ref()).is_none_or(|budget| budget.spend(Instant::now()))
    }
}

impl Tokens {
    /// As many as there may be.
    pub(crate) fn of(throttle: &Throttle) -> Self {
        let most = throttle.max_milli;
        Self {
            most,
            ratio: throttle.ratio_milli,
            count: AtomicU32::new(most),
        }
    }

    /// Filled as far as those that these replace.
    pub(crate) fn filled_like(self, old: &Self) -> Self {
        let share = f64::from(old.count.load(Relaxed)) / f64::from(old.most.max(1));
        let count = (f64::from(self.most) * share) as u32;
        Self {
            count: AtomicU32::new(count.min(self.most)),
            ..self
        }
    }

    fn succeeded(&self) {
        // Nearly always it is full, and then nobody writes where all read.
        if self.count.load(Relaxed) < self.most {
            let more = |count: u32| Some(count.saturating_add(self.ratio).min(self.most));
            let _ = self.count.fetch_update(Relaxed, Relaxed, more);
        }
    }

    fn failed(&self) {
        let fewer = |count: u32| Some(count.saturating_sub(THOUSAND));
        let _ = self.count.fetch_update(Relaxed, Relaxed, fewer);
    }

    fn is_open(&self) -> bool {
        u64::from(self.count.load(Relaxed)) * 2 > u64::from(self.most)
    }
}

impl Spent {
    pub(crate) fn of(budget: &Budget) -> Self {
        Self {
            per_thousand: (budget.share * f64::from(THOUSAND)).round() as u64,
            floor: u64::from(budget.floor),
            began: Instant::now(),
            seconds: [const { AtomicU64::new(0) }; SECONDS],
        }
    }

    fn note_call(&self, now: Instant) {
        self.in_second(self.second(now), |second| Second {
            calls: (second.calls + 1).min(FULL),
            ..second
        });
    }

    fn spend(&self, now: Instant) -> bool {
        let now = self.second(now);
        // Counted before it is compared, so that two who ask at once cannot both have the last one.
        let full = self.in_second(now, |second| Second {
            again: second.again + 1,
            ..second
        });
        let (calls, again) = self.counted(now);
        let share = calls * self.per_thousand / u64::from(THOUSAND);
        let is_allowed = !full && again <= share.max(self.floor * SECONDS as u64);
        if !is_allowed && !full {
            self.in_second(now, |second| Second {
                again: second.again.saturating_sub(1),
                ..second
            });
        }
        is_allowed
    }

    /// The calls of the last seconds, and their further attempts.
    fn counted(&self, now: u64) -> (u64, u64) {
        let all = self
            .seconds
            .iter()
            .map(|word| Second::of(word.load(Relaxed)));
        let recent = all.filter(|second| since(second.number, now) < SECONDS as u64);
        recent.fold((0, 0), |(calls, again), second| {
            (calls + second.calls, again + second.again)
        })
    }

    /// Changes the counts of this second; the answer is whether that was too much for them.
    fn in_second(&self, number: u64, change: impl Fn(Second) -> Second) -> bool {
        let word = &self.seconds[number as usize % SECONDS];
        let changed = word.fetch_update(Relaxed, Relaxed, |word| {
            let mut second = Second::of(word);
            // Who comes late counts for the newer one that is there.
            if since(number, second.number) > SECONDS as u64 {
                second = Second {
                    number,
                    calls: 0,
                    again: 0,
                };
            }
            let changed = change(second);
            (changed.again <= FULL).then(|| changed.word())
        });
        changed.is_err()
    }

    /// Counted from one: in a cell of zeros is no second at all.
    fn second(&self, now: Instant) -> u64 {
        let second = now.saturating_duration_since(self.began).as_secs() + 1;
        second & LAST
    }
}

/// Seconds from the one to the other, of numbers that begin again after the last.
fn since(number: u64, now: u64) -> u64 {
    now.wrapping_sub(number) & LAST
}

impl Second {
    fn of(word: u64) -> Self {
        Self {
            number: word >> (2 * BITS),
            calls: word >> BITS & FULL,
            again: word & FULL,
        }
    }

    fn word(self) -> u64 {
        self.number << (2 * BITS) | self.calls << BITS | self.again
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn more_than_half_of_the_tokens_must_be_there() {
        let tokens = Tokens::of(&Throttle::new(10, 0.1));

        for _ in 0..4 {
            tokens.failed();
        }
        assert!(tokens.is_open());
        tokens.failed();

        assert!(!tokens.is_open());
        tokens.succeeded();
        assert!(tokens.is_open());
    }

    #[test]
    fn tokens_stay_between_none_and_the_most() {
        let tokens = Tokens::of(&Throttle::new(2, 0.5));

        (0..9).for_each(|_| tokens.failed());
        assert_eq!(tokens.count.load(Relaxed), 0);
        (0..9).for_each(|_| tokens.succeeded());

        assert_eq!(tokens.count.load(Relaxed), 2000);
    }

    #[test]
    fn a_token_has_three_decimals() {
        let tokens = Tokens::of(&Throttle::new(1, 0.0014));

        tokens.failed();
        tokens.succeeded();

        assert_eq!(tokens.count.load(Relaxed), 1);
    }

    #[test]
    fn new_tokens_are_as_full_as_the_old() {
        let old = Tokens::of(&Throttle::new(10, 0.1));
        (0..5).for_each(|_| old.failed());

        let new = Tokens::of(&Throttle::new(100, 0.1)).filled_like(&old);

        assert_eq!(new.count.load(Relaxed), 50_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_a_share_of_the_calls_of_the_last_seconds() {
        let budget = Spent::of(&Budget::share(0.2).floor(0));
        let now = Instant::now();
        (0..100).for_each(|_| budget.note_call(now));

        let spent = (0..100).filter(|_| budget.spend(now)).count();

        assert_eq!(spent, 20);
        let later = now + Duration::from_secs(SECONDS as u64);
        assert!(!budget.spend(later), "calls of long ago");
        (0..10).for_each(|_| budget.note_call(later));
        assert_eq!((0..100).filter(|_| budget.spend(later)).count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_holds_when_the_numbers_of_the_seconds_begin_again() {
        let budget = Spent::of(&Budget::share(0.2).floor(0));
        let last = Instant::now() + Duration::from_secs(LAST - 1);
        (0..100).for_each(|_| budget.note_call(last));

        let soon = last + Duration::from_secs(5);
        (0..50).for_each(|_| budget.note_call(soon));
        let spent_soon = (0..100).filter(|_| budget.spend(soon)).count();
        let later = soon + Duration::from_secs(SECONDS as u64);
        (0..10).for_each(|_| budget.note_call(later));
        let spent_later = (0..100).filter(|_| budget.spend(later)).count();

        assert_eq!([spent_soon, spent_later], [30, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_forgets_however_long_nobody_calls() {
        for days in [1, 97, 98, 193, 200, 1000] {
            let budget = Spent::of(&Budget::share(0.2).floor(0));
            let now = Instant::now();
            (0..100).for_each(|_| budget.note_call(now));
            (0..20).for_each(|_| assert!(budget.spend(now)));

            let later = now + Duration::from_secs(days * 24 * 3600);
            (0..10).for_each(|_| budget.note_call(later));
            let spent = (0..100).filter(|_| budget.spend(later)).count();

            assert_eq!(spent, 2, "after {days} days");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_has_a_floor_and_not_a_sum() {
        let budget = Spent::of(&Budget::share(0.2).floor(3));
        let now = Instant::now();
        (0..100).for_each(|_| budget.note_call(now));
        assert_eq!((0..100).filter(|_| budget.spend(now)).count(), 30);

        let busy = Spent::of(&Budget::share(0.2).floor(3));
        (0..1000).for_each(|_| busy.note_call(now));

        assert_eq!((0..1000).filter(|_| busy.spend(now)).count(), 200);
    }

    #[test]
    fn who_asks_at_once_does_not_get_more() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let budget = Spent::of(&Budget::share(0.1).floor(0));
        let now = Instant::now();
        (0..1000).for_each(|_| budget.note_call(now));

        let spent: usize = std::thread::scope(|scope| {
            let all = [0, 1, 2, 3]
                .map(|_| scope.spawn(|| (0..1000).filter(|_| budget.spend(now)).count()));
            all.map(|one| one.join().unwrap()).iter().sum()
        });

        assert!(spent <= 100, "{spent}");
        assert!(spent > 50, "{spent}");
    }
}
