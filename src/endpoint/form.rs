//! In what form an endpoint is: how soon it answers, whether it answers at all just now, and how old that news is.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::moment::Moment;

/// What a policy weighs an endpoint by, in a few words side by side.
///
/// Each is written by itself: of two calls that end at once one may lose its word, and the next will do.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// A moving average of the time to the head of a good response, in microseconds as a float; 0 while
    /// nothing is known.
    latency: AtomicU32,
    /// When something was last learnt about it, were it that it is there.
    heard: AtomicU64,
    /// Calls of which nothing has been heard.
    waiting: AtomicU32,
    /// When one of them was last heard of; or when the first of them began.
    moved: AtomicU64,
    /// One over the number of answers that the average is worth, as a float; 0 while nothing is known.
    doubt: AtomicU32,
    /// For so many seconds it had better be left alone after its last failure, as a float.
    rest: AtomicU32,
}

/// A moment, in nanoseconds: exact, so that an age does not depend on when this process began to count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tick(u64);

/// Fifty calls, or twenty seconds, count for most of the average.
const LEAST: f32 = 0.02;
const MEMORY: f32 = 20.0;
/// After a first failure, and at most; each failure after a rest makes the next twice as long.
const REST: f32 = 9.0;
const LONGEST_REST: f32 = 36.0;
/// A server of which so many seconds nothing was heard, and which then answers twice as soon, is another by now.
pub(super) const OTHER: f32 = 1.0;
/// Failures that are older than so many seconds count for little: in sight of them a server that is well again
/// is tried before ten seconds are over.
pub(crate) const OLD_FAILURES: f32 = 4.5;

impl Tick {
    pub(crate) fn at(now: Instant) -> Self {
        Self::of(Moment::at(now))
    }

    #[inline]
    pub(crate) fn of(moment: Moment) -> Self {
        Self(moment.nanos())
    }

    /// From then to now in units of 65,536 nanoseconds, of which a word holds three days: differences come out
    /// right when it wraps.
    pub(super) fn word_since(self, then: Self) -> u32 {
        ((self.0.wrapping_sub(then.0) as i64).max(0) >> 16) as u32
    }

    /// Seconds from then to now; none if that is yet to come, as for two who read the clock at once.
    #[inline]
    pub(crate) fn since(self, then: Self) -> f32 {
        (self.0.wrapping_sub(then.0) as i64).max(0) as f32 * 1e-9
    }
}

impl Form {
    /// A call goes to it; for how many seconds nothing was heard before.
    #[inline]
    pub(super) fn begins(&self, now: Moment) -> f32 {
        let now = Tick::of(now);
        if self.waiting.fetch_add(1, Relaxed) == 0 {
            self.moved.store(now.0, Relaxed);
        }
        self.silent(now)
    }

    /// The server says something for the first time on a call.
    pub(super) fn speaks(&self, now: Moment) {
        let now = Tick::of(now).0;
        self.moved.store(now, Relaxed);
        self.heard.store(now, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// A call is over of which nothing was heard.
    pub(super) fn is_left(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// A call to it failed.
    pub(super) fn failed(&self, now: Moment) {
        let now = Tick::of(now);
        let rest = self.rest();
        // Those that fail together are one failure; one that was tried after a rest is another.
        if rest == 0.0 {
            self.rest.store(REST.to_bits(), Relaxed);
        } else if self.silent(now) > rest * 0.5 {
            self.rest
                .store((rest * 2.0).min(LONGEST_REST).to_bits(), Relaxed);
        }
        self.heard.store(now.0, Relaxed);
    }

    /// A call to it went well.
    #[inline]
    pub(super) fn succeeded(&self) {
        let rest = self.rest();
        if rest > 0.0 {
            let rest = if rest > REST { rest * 0.5 } else { 0.0 };
            self.rest.store(rest.to_bits(), Relaxed);
        }
    }

    /// For how many seconds it had better be left alone after its last failure.
    #[inline]
    pub(crate) fn rest(&self) -> f32 {
        f32::from_bits(self.rest.load(Relaxed))
    }

    /// A good answer took so long. To be told before [`Form::speaks`], as it weighs the more the longer
    /// nothing was heard.
    pub(super) fn took(&self, time: Duration, now: Moment) {
        let took = micros(time);
        let known = self.latency();
        let silent = Tick::of(now).since(Tick(self.heard.load(Relaxed)));
        let was_other = silent > OTHER && took * 2.0 < known;
        if known == 0.0 || was_other {
            self.doubt.store(1.0_f32.to_bits(), Relaxed);
            self.latency.store(took.to_bits(), Relaxed);
            return;
        }
        let doubt = self.doubt();
        let part = (1.0 - fade(silent / MEMORY))
            .max(doubt / (1.0 + doubt))
            .max(LEAST);
        let kept = 1.0 - part;
        let doubt = kept * kept * doubt + part * part;
        self.doubt.store(doubt.to_bits(), Relaxed);
        self.latency
            .store((known + part * (took - known)).to_bits(), Relaxed);
    }

    /// Somebody waited for so long in vain.
    pub(super) fn kept_waiting(&self, time: Duration) {
        let waited = micros(time);
        if waited > self.latency() {
            self.latency.store(waited.to_bits(), Relaxed);
        }
    }

    /// It is another's, of whom nothing is known until now.
    pub(super) fn begin_anew(&self, now: Moment) {
        self.forget();
        self.heard.store(Tick::of(now).0, Relaxed);
        self.waiting.store(0, Relaxed);
        self.moved.store(0, Relaxed);
    }

    /// What it did before does not count from now on.
    pub(super) fn forget(&self) {
        self.latency.store(0, Relaxed);
        self.doubt.store(0, Relaxed);
        self.rest.store(0, Relaxed);
    }

    /// Microseconds to the head of a response; 0 while nothing is known.
    #[inline]
    pub(crate) fn latency(&self) -> f32 {
        f32::from_bits(self.latency.load(Relaxed))
    }

    /// One over the number of answers that this is worth.
    #[inline]
    pub(crate) fn doubt(&self) -> f32 {
        f32::from_bits(self.doubt.load(Relaxed))
    }

    /// For how many seconds nothing has been learnt about it.
    #[inline]
    pub(crate) fn silent(&self, now: Tick) -> f32 {
        now.since(Tick(self.heard.load(Relaxed)))
    }

    /// In so many seconds without news, two thirds of its failures are forgotten.
    #[inline]
    pub(crate) fn forgives(&self) -> f32 {
        match self.rest() {
            rest if rest > REST => rest,
            _ => OLD_FAILURES,
        }
    }

    /// For how many microseconds all calls that wait have waited in vain, if any do.
    #[inline]
    pub(crate) fn stalled(&self, now: Tick) -> f32 {
        let waits = self.waiting.load(Relaxed) > 0;
        let unmoved = now.since(Tick(self.moved.load(Relaxed))) * 1e6;
        if waits { unmoved } else { 0.0 }
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
    fn ages_come_out_right_before_and_after_the_first_moment() {
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
                    (told - age.as_secs_f32()).abs() < 0.001,
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

    fn hearing(times: &[(u32, Duration)]) -> Vec<f32> {
        let (form, mut now) = (Form::default(), Instant::now());
        let hears = |&(ms, silence): &(u32, Duration)| {
            now += silence;
            let now = Moment::at(now);
            form.begins(now);
            form.took(MILLI * ms, now);
            form.speaks(now);
            form.latency() / 1000.0
        };
        times.iter().map(hears).collect()
    }

    #[test]
    fn the_first_answers_count_alike_and_then_it_follows_the_last_fifty() {
        let mut times = vec![(100, MILLI), (50, MILLI), (60, MILLI)];
        times.extend([(70, MILLI); 1000]);
        times.push((170, MILLI));

        let heard = hearing(&times);

        assert_eq!(heard[..2], [100.0, 75.0]);
        assert!((69.9..70.1).contains(&heard[2]), "{}", heard[2]);
        assert!((71.9..72.1).contains(&heard[1003]), "{}", heard[1003]);
    }

    #[test]
    fn after_a_silence_one_that_is_much_faster_is_believed_and_one_that_is_slower_nearly() {
        let mut times = vec![(100, MILLI); 100];
        times.extend([(10, Duration::from_secs(5)), (100, Duration::from_secs(60))]);

        let heard = hearing(&times);

        assert_eq!(heard[100], 10.0);
        assert!((90.0..100.0).contains(&heard[101]), "{}", heard[101]);
    }

    #[test]
    fn it_stalls_while_calls_wait_and_none_is_heard_of() {
        let (form, now) = (Form::default(), Instant::now());
        let stalled = |after: Duration| form.stalled(Tick::at(now + after)) / 1000.0;
        assert_eq!(stalled(MILLI * 100), 0.0);

        form.begins(Moment::at(now));
        form.begins(Moment::at(now + MILLI * 50));
        assert!((99.0..=100.0).contains(&stalled(MILLI * 100)));
        form.speaks(Moment::at(now + MILLI * 100));
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
    fn failures_together_are_one_and_each_after_a_rest_makes_the_next_twice_as_long() {
        let (form, began) = (Form::default(), Instant::now());
        let fails = |seconds: f32| {
            form.failed(Moment::at(began + Duration::from_secs_f32(seconds)));
            form.rest()
        };

        let rests = [0.0, 0.1, 0.2, 9.5, 28.0, 28.1, 65.0, 102.0].map(fails);
        form.succeeded();
        let after_one = form.rest();
        (0..2).for_each(|_| form.succeeded());

        assert_eq!(rests, [9.0, 9.0, 9.0, 18.0, 36.0, 36.0, 36.0, 36.0]);
        assert_eq!((after_one, form.rest()), (18.0, 0.0));
    }

    #[test]
    fn to_fade_is_about_an_exponential() {
        for tenths in 0_u16..100 {
            let x = f32::from(tenths) / 10.0;

            assert!((fade(x) - (-x).exp()).abs() < 0.02, "{x}");
        }
    }
}
