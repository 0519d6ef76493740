//! How long calls of a method usually take, beside a channel's other calls.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{balance, endpoint::micros};

/// How long some calls usually take to the head of a good answer: the mean of the logarithms, so that a few which
/// take a thousand times as long do not speak for the rest.
#[derive(Debug, Default)]
pub(super) struct Norm(AtomicU64);

/// What is usual, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    /// A binary logarithm of microseconds.
    log: f32,
    /// Of so many answers, or of the last about so many.
    answers: u16,
}

/// So many answers are the mean's.
const MEMORY: u16 = 128;
/// When there are so many, one in so many is learnt from: threads need not wait for each other.
const LEARNS: usize = 4;
/// By so many answers a method is half known.
const HALF: f32 = 3.0;
/// By fewer of its own it is not known to answer soon, where so many of others' are known.
const FEW: u16 = 3;
const MANY: u16 = 16;
/// Calls of a method that takes so many times (as a logarithm) what is usual of all take long.
const LONG: f32 = 2.0;
/// A century: calls that take longer are none.
const LONGEST: f32 = 51.5;

impl Norm {
    #[inline]
    pub(super) fn known(&self) -> Known {
        let word = self.0.load(Relaxed);
        Known {
            log: f32::from_bits((word >> 32) as u32),
            answers: word as u16,
        }
    }

    /// Of two who learn at once one may be lost; the next will do.
    fn learn(&self, log: f32) {
        let known = self.known();
        let answers = (known.answers + 1).min(MEMORY);
        let log = known.log + (log - known.log) / f32::from(answers);
        let word = u64::from(log.to_bits()) << 32 | u64::from(answers);
        self.0.store(word, Relaxed);
    }
}

/// A call of a method that takes `own` was answered in this time, and so was one of all that take `all`.
#[inline]
pub(super) fn learn(own: &Norm, all: &Norm, time: Duration) {
    if own.known().answers < MEMORY || balance::below(LEARNS) == 0 {
        let log = log(time);
        own.learn(log);
        all.learn(log);
    }
}

impl Known {
    /// How long a call would have taken that took this time, were its method as quick as all usually are: as much
    /// longer or shorter as it was for its own.
    #[inline]
    pub(super) fn leveled(self, all: Self, time: Duration) -> Duration {
        if self == all || all.answers == 0 {
            return time;
        }
        let sure = f32::from(self.answers) / (f32::from(self.answers) + HALF);
        let log = all.log + (log(time) - self.log) * sure;
        Duration::from_secs_f32(log.min(LONGEST).exp2() * 1e-6)
    }

    /// Whether it is known well enough to say that a call has had its time.
    #[inline]
    pub(super) fn is_known(self) -> bool {
        self.answers >= FEW
    }

    /// Whether one that waits for its answer longer than others do shows nothing.
    #[inline]
    pub(super) fn takes_long(self, all: Self) -> bool {
        match self.is_known() {
            true => self.log > all.log + LONG,
            false => all.answers >= MANY,
        }
    }
}

fn log(time: Duration) -> f32 {
    micros(time).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn heard(own: &Norm, all: &Norm, time: Duration, times: usize) {
        (0..times).for_each(|_| learn(own, all, time));
    }

    #[test]
    fn of_the_only_method_nothing_is_leveled() {
        let [own, all] = [0; 2].map(|_| Norm::default());

        for ms in (0..5_000).map(|n| n * n % 97) {
            let time = MILLI * ms;
            assert_eq!(own.known().leveled(all.known(), time), time);
            assert!(!own.known().takes_long(all.known()) || ms == 0);
            learn(&own, &all, time);
        }
    }

    #[test]
    fn what_is_usual_of_each_method_is_the_same_for_all_and_so_is_twice_as_much() {
        let [quick, slow, all] = [0; 3].map(|_| Norm::default());
        for _ in 0..1_000 {
            heard(&quick, &all, MILLI, 3);
            heard(&slow, &all, MILLI * 2_000, 1);
        }

        let leveled = |own: &Norm, ms: u32| own.known().leveled(all.known(), MILLI * ms);
        let close = |a: Duration, b: Duration| a < b * 21 / 20 && b < a * 21 / 20;

        let usual = leveled(&quick, 1);
        assert!(usual > MILLI && usual < MILLI * 100, "{usual:?}");
        assert!(close(leveled(&slow, 2_000), usual));
        assert!(close(leveled(&slow, 4_000), usual * 2));
        assert!(close(leveled(&quick, 2), usual * 2));
        assert!(slow.known().takes_long(all.known()));
        assert!(!quick.known().takes_long(all.known()));
    }

    #[test]
    fn the_first_answer_of_another_method_shows_nothing() {
        let [known, new, all] = [0; 3].map(|_| Norm::default());
        heard(&known, &all, MILLI, 50);

        let first = new.known().leveled(all.known(), MILLI * 30_000);

        assert_eq!(first.as_micros(), 1_000);
        assert!(new.known().takes_long(all.known()));
    }

    #[test]
    fn no_time_is_too_short_or_too_long() {
        let [known, new, all] = [0; 3].map(|_| Norm::default());
        heard(&known, &all, Duration::MAX, 200);
        heard(&new, &all, Duration::ZERO, 200);

        for own in [&known, &new] {
            for time in [Duration::ZERO, MILLI, Duration::MAX] {
                own.known().leveled(all.known(), time);
            }
        }
    }
}
