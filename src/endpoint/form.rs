//! In what form an endpoint is: how soon it answers, whether it answers at all just now, and how old that news is.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What a policy weighs an endpoint by, in four words side by side.
///
/// Each is written by itself: of two calls that end at once one may lose its word, and the next will do.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// A moving average of the time to the head of a good response, in microseconds as a float; 0 while
    /// nothing is known.
    latency: AtomicU32,
    /// When something was last learnt about it.
    heard: AtomicU32,
    /// Calls of which nothing has been heard.
    waiting: AtomicU32,
    /// When one of them was last heard of; or when the first of them began.
    moved: AtomicU32,
}

/// A moment in 16,384ths of a second, of which a word holds three days: enough to tell ages, and differences
/// come out right when it wraps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tick(u32);

/// So many ticks are a second.
const SECOND: u32 = 1 << 14;
/// Fifty calls, or twenty seconds, count for most of the average.
const LEAST: f32 = 0.02;
const MEMORY: f32 = 20.0;
/// Failures that are older than so many seconds count for little: in sight of them a server that is well again
/// is tried before ten seconds are over.
pub(crate) const OLD_FAILURES: f32 = 4.5;

impl Tick {
    pub(crate) fn at(now: Instant) -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let first = *FIRST.get_or_init(|| now);
        let ticks = |time: Duration| {
            let part = time.subsec_nanos() / (1_000_000_000_u32).div_ceil(SECOND);
            (time.as_secs() as u32)
                .wrapping_mul(SECOND)
                .wrapping_add(part)
        };
        // Clocks of tests begin when they like.
        Self(match now.checked_duration_since(first) {
            Some(after) => ticks(after),
            None => 0_u32.wrapping_sub(ticks(first.saturating_duration_since(now))),
        })
    }

    pub(super) fn word(self) -> u32 {
        self.0
    }

    pub(super) fn of_word(word: u32) -> Self {
        Self(word)
    }

    /// Seconds from then to now.
    #[inline]
    pub(crate) fn since(self, then: Self) -> f32 {
        self.0.wrapping_sub(then.0) as f32 * (1.0 / SECOND as f32)
    }
}

impl Form {
    /// A call goes to it; for how many seconds nothing was heard before.
    #[inline]
    pub(super) fn begins(&self, now: Instant) -> f32 {
        let now = Tick::at(now);
        if self.waiting.fetch_add(1, Relaxed) == 0 {
            self.moved.store(now.0, Relaxed);
        }
        self.silent(now)
    }

    /// The server says something for the first time on a call.
    pub(super) fn speaks(&self, now: Instant) {
        let now = Tick::at(now).0;
        self.moved.store(now, Relaxed);
        self.heard.store(now, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// A call is over of which nothing was heard.
    pub(super) fn is_left(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// What a call showed is news of this moment.
    pub(super) fn is_news(&self, now: Instant) {
        self.heard.store(Tick::at(now).0, Relaxed);
    }

    /// A good answer took so long. To be told before [`Form::speaks`], as it weighs the more the longer
    /// nothing was heard.
    pub(super) fn took(&self, time: Duration, now: Instant) {
        let took = micros(time);
        let known = self.latency();
        let average = if known == 0.0 {
            took
        } else {
            let silent = Tick::at(now).since(Tick(self.heard.load(Relaxed)));
            known + (1.0 - fade(silent / MEMORY)).max(LEAST) * (took - known)
        };
        self.latency.store(average.to_bits(), Relaxed);
    }

    /// Somebody waited for so long in vain.
    pub(super) fn kept_waiting(&self, time: Duration) {
        let waited = micros(time);
        if waited > self.latency() {
            self.latency.store(waited.to_bits(), Relaxed);
        }
    }

    /// Nothing is known of how soon it answers.
    pub(super) fn forget(&self) {
        self.latency.store(0, Relaxed);
    }

    /// Microseconds to the head of a response; 0 while nothing is known.
    #[inline]
    pub(crate) fn latency(&self) -> f32 {
        f32::from_bits(self.latency.load(Relaxed))
    }

    /// For how many seconds nothing has been learnt about it.
    #[inline]
    pub(crate) fn silent(&self, now: Tick) -> f32 {
        now.since(Tick(self.heard.load(Relaxed)))
    }

    /// For how many microseconds all calls that wait have waited in vain, if any do.
    #[inline]
    pub(crate) fn stalled(&self, now: Tick) -> f32 {
        if self.waiting.load(Relaxed) == 0 {
            return 0.0;
        }
        let then = self.moved.load(Relaxed);
        // The moment is rounded down, as is now; and now may have been read first.
        let ticks = (now.0.wrapping_sub(then) as i32).saturating_sub(1).max(0);
        ticks as f32 * (1e6 / SECOND as f32)
    }
}

/// About e^-x, for x from 0: within two in a hundred of all.
#[inline]
pub(crate) fn fade(x: f32) -> f32 {
    let root = 1.0 / (1.0 + x * (1.0 / 16.0));
    let fourth = (root * root) * (root * root);
    (fourth * fourth) * (fourth * fourth)
}

/// Never none, which would be to know nothing.
fn micros(time: Duration) -> f32 {
    (time.as_secs_f32() * 1e6).max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn ages_come_out_right_before_and_after_the_first_moment_and_when_the_word_wraps() {
        let now = Instant::now();
        let day = Duration::from_secs(86_400);
        for start in [now, now + day, now + 3 * day, now + 40 * day] {
            for age in [
                Duration::ZERO,
                MILLI,
                90 * MILLI,
                Duration::from_secs(60),
                day,
            ] {
                let told = Tick::at(start + age).since(Tick::at(start));

                assert!(
                    (told - age.as_secs_f32()).abs() < 0.02,
                    "{told} for {age:?}"
                );
            }
        }
        let before = now.checked_sub(MILLI * 500).map(Tick::at);
        let before = before.map(|before| Tick::at(now).since(before));
        assert!(
            before.is_none_or(|age| (age - 0.5).abs() < 0.001),
            "{before:?}"
        );
    }

    #[test]
    fn an_average_follows_the_answers_and_believes_the_first_after_a_silence() {
        let (form, mut now) = (Form::default(), Instant::now());
        let mut hears = |ms: u32, silence: Duration| {
            now += silence;
            form.begins(now);
            form.took(MILLI * ms, now);
            form.speaks(now);
            form.latency() / 1000.0
        };

        assert_eq!(hears(100, MILLI), 100.0);
        assert!((97.9..98.1).contains(&hears(0, MILLI)));
        let after = hears(0, Duration::from_secs(60));

        assert!(after < 7.0, "{after}");
    }

    #[test]
    fn it_stalls_while_calls_wait_and_none_is_heard_of() {
        let (form, now) = (Form::default(), Instant::now());
        let stalled = |after: Duration| form.stalled(Tick::at(now + after)) / 1000.0;
        assert_eq!(stalled(MILLI * 100), 0.0);

        form.begins(now);
        form.begins(now + MILLI * 50);
        assert!((99.0..=100.0).contains(&stalled(MILLI * 100)));
        form.speaks(now + MILLI * 100);
        assert!(stalled(MILLI * 110) < 10.1);
        form.is_left();

        assert_eq!(stalled(MILLI * 500), 0.0);
    }

    #[test]
    fn who_waits_in_vain_says_that_it_takes_longer_than_that_and_no_more() {
        let form = Form::default();

        form.kept_waiting(MILLI * 20);
        form.kept_waiting(MILLI * 10);

        assert_eq!(form.latency(), 20_000.0);
    }

    #[test]
    fn to_fade_is_about_an_exponential() {
        for tenths in 0_u16..100 {
            let x = f32::from(tenths) / 10.0;

            assert!((fade(x) - (-x).exp()).abs() < 0.02, "{x}");
        }
    }
}
