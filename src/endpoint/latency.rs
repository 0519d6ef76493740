//! How soon a server answers, for those who compare.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A moving average of the time to the head of a response, in microseconds; 0 while nothing is known.
///
/// Only answers and calls given up count, so that a server that fails at once does not look fast. What
/// loses comparisons fades, and is tried again one call at a time: a server that was slow once is not
/// shunned for ever.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    heard: AtomicU32,
    faded: AtomicU32,
}

/// Each lost comparison takes away this part: a hundredfold is tried again after some 800 of them.
const FADE: u32 = 256;

impl Latency {
    /// A call was answered, or given up, after so long.
    pub(crate) fn heard(&self, time: Duration) {
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        let known = self.heard.load(Ordering::Relaxed);
        // Two calls that end at once may lose one of their words; the next will do.
        let average = if known == 0 {
            time
        } else {
            known / 2 + time / 2
        }
        .max(1);
        self.heard.store(average, Ordering::Relaxed);
        self.faded.store(average, Ordering::Relaxed);
    }

    /// What to compare by.
    pub(crate) fn now(&self) -> u32 {
        self.faded.load(Ordering::Relaxed)
    }

    /// It lost a comparison.
    pub(crate) fn lost(&self) {
        let now = self.now();
        self.faded.store(
            now - now.div_ceil(FADE).min(now.saturating_sub(1)),
            Ordering::Relaxed,
        );
    }

    /// A call goes to it: until that is answered, what was heard before counts in full.
    pub(super) fn is_tried(&self) {
        let heard = self.heard.load(Ordering::Relaxed);
        if self.now() != heard {
            self.faded.store(heard, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_fades_until_it_is_tried_and_is_believed_when_it_answers() {
        let latency = Latency::default();
        assert_eq!(latency.now(), 0);

        latency.heard(Duration::from_millis(100));
        for _ in 0..1_000 {
            latency.lost();
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
        let latency = Latency::default();
        latency.lost();
        assert_eq!(latency.now(), 0);

        latency.heard(Duration::ZERO);
        for _ in 0..100 {
            latency.lost();
        }

        assert_eq!(latency.now(), 1);
    }
}
