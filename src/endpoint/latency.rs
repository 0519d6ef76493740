//! How soon a server answers, for those who compare.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::moment::Moment;

/// A moving average of the time to the head of a response, in microseconds; 0 while nothing is known.
///
/// Only answers and calls given up count, so that a server that fails at once does not look fast. What
/// loses comparisons fades, and is tried again one call at a time: a server that was slow once is not
/// shunned for ever.
#[derive(Debug)]
pub(crate) struct Latency {
    heard: AtomicU32,
    faded: AtomicU32,
    /// When it last faded for the time that has passed, or came to be known, in nanoseconds.
    faded_at: AtomicU64,
}

/// Each lost comparison takes away this part: a hundredfold is tried again after some 800 of them.
const FADE: u32 = 256;
/// So many nanoseconds with lost comparisons take away a quarter, were they few: a hundredfold is tried again
/// after some four seconds.
const WHILE: i64 = 250_000_000;

impl Latency {
    pub(crate) fn new() -> Self {
        Self {
            heard: AtomicU32::new(0),
            faded: AtomicU32::new(0),
            faded_at: AtomicU64::new(0),
        }
    }

    /// It is another's.
    pub(super) fn begin_anew(&self, now: Moment) {
        self.heard.store(0, Ordering::Relaxed);
        self.faded.store(0, Ordering::Relaxed);
        self.faded_at.store(now.nanos(), Ordering::Relaxed);
    }

    /// A call was answered, or given up, after so long.
    pub(crate) fn heard(&self, time: Duration) {
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        let known = self.heard.load(Ordering::Relaxed);
        // Two calls that end at once may lose one of their words; the next will do.
        let average = if known == 0 {
            time
        } else {
            // A much better answer is half believed, too: three of them make up for a hundredfold.
            (known / 2 + time / 2).min((known / 4).max(time.saturating_mul(4)))
        }
        .max(1);
        self.heard.store(average, Ordering::Relaxed);
        self.faded.store(average, Ordering::Relaxed);
    }

    /// What to compare by.
    pub(crate) fn now(&self) -> u32 {
        self.faded.load(Ordering::Relaxed)
    }

    /// How long it usually takes, as far as is known.
    pub(crate) fn usual(&self) -> Duration {
        Duration::from_micros(self.heard.load(Ordering::Relaxed).into())
    }

    /// It lost a comparison. Whether it did so for a while.
    pub(super) fn lost(&self, now: Moment) -> bool {
        let now = now.nanos();
        let since = now.wrapping_sub(self.faded_at.load(Ordering::Relaxed));
        let a_while = since as i64 >= WHILE;
        if a_while {
            self.faded_at.store(now, Ordering::Relaxed);
        }
        let now = self.now();
        let part = now.div_ceil(if a_while { 4 } else { FADE });
        let left = now - part.min(now.saturating_sub(1));
        self.faded.store(left, Ordering::Relaxed);
        a_while
    }

    /// A call goes to it: until that is answered, what was heard before counts in full. Whether it did not.
    pub(super) fn is_tried(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let had_faded = self.now() != heard;
        if had_faded {
            self.faded.store(heard, Ordering::Relaxed);
        }
        had_faded
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn known() -> Latency {
        let latency = Latency::new();
        latency.begin_anew(Moment::now());
        latency
    }

    #[test]
    fn what_loses_fades_until_it_is_tried_and_is_believed_when_it_answers() {
        let (latency, now) = (known(), Moment::now());
        assert_eq!(latency.now(), 0);

        latency.heard(Duration::from_millis(100));
        for _ in 0..1_000 {
            latency.lost(now);
        }
        assert!(latency.now() < 2_500, "{}", latency.now());
        latency.is_tried();
        assert_eq!(latency.now(), 100_000);
        for _ in 0..10 {
            latency.heard(Duration::from_millis(1));
        }

        assert!(latency.now() < 1_200, "{}", latency.now());
    }

    #[test]
    fn nothing_heard_stays_nothing_and_something_never_becomes_nothing() {
        let (latency, now) = (known(), Moment::now());
        latency.lost(now);
        assert_eq!(latency.now(), 0);

        latency.heard(Duration::ZERO);
        for _ in 0..100 {
            latency.lost(now);
        }

        assert_eq!(latency.now(), 1);
    }

    #[test]
    fn where_comparisons_are_few_time_fades_it_and_a_few_answers_are_believed() {
        let (latency, mut now) = (known(), Instant::now());
        let mut fade = || {
            let mut lost = 0;
            while latency.now() > 4_000 {
                now += Duration::from_millis(50);
                latency.lost(Moment::at(now));
                lost += 1;
            }
            lost
        };
        latency.heard(Duration::from_millis(200));

        let mut lost = fade();
        while latency.usual() > Duration::from_millis(4) {
            latency.is_tried();
            latency.heard(Duration::from_millis(1));
            lost += fade();
        }

        assert!(lost < 9 * 20, "{} ms", lost * 50);
    }
}
