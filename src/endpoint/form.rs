//! In what form an endpoint is: how soon it answers, whether it answers at all just now, and how old that news is.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::Verdict;
use crate::moment::Moment;

/// What a policy weighs an endpoint by, and what it makes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form<'a> {
    facts: &'a Facts,
    verdict: &'a Verdict,
}

/// A few words side by side.
///
/// Each is written by itself: of two calls that end at once one may lose its word, and the next will do.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// A moving average of the time to the head of a good response, in microseconds as a float; 0 while
    /// nothing is known.
    latency: AtomicU32,
    /// When something was last learnt about it, were it that it is there.
    heard: AtomicU64,
    /// Calls of which nothing has been heard, but should be soon.
    waiting: AtomicU32,
    /// When the server was last heard of, or when the first of them began after that; 0 where all that wait have
    /// been overtaken: it is they that take long, and not the server.
    moved: AtomicU64,
    /// One over the number of answers that the average is worth, as a float; 0 while nothing is known.
    doubt: AtomicU32,
    /// For how long it had better be left alone: see [`Rests`].
    rests: AtomicU32,
}

/// For how many seconds an endpoint had better be left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rests {
    /// After its last failure.
    failing: f32,
    /// Since it turned out to be much slower than before; below 0 when that is over and not yet forgotten.
    slow: f32,
}

/// A moment, in nanoseconds: exact, so that an age does not depend on when this process began to count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tick(u64);

/// The moment that stands for none: all calls that wait have been overtaken.
const OVERTAKEN: u64 = 0;
/// Fifty calls, or twenty seconds, count for most of the average.
const LEAST: f32 = 0.02;
const MEMORY: f32 = 20.0;
/// After a first failure, and at most; each failure after a rest makes the next twice as long.
const REST: f32 = 8.5;
const LONGEST_REST: f32 = 36.0;
/// An answer that takes so many times what is usual of its server is the first of a slow spell: it is left alone
/// for so many seconds, and twice as long each time that it is found slow again. By as much of that answer it counts
/// as slow at once, and by so much of its rest is forgotten with each good answer.
const SPELL: f32 = 8.0;
/// In microseconds: what takes no longer is a hiccup, as those who answer in less than milliseconds have them all
/// the time. It counts no more than the first of a spell would have to take.
const HICCUP: f32 = 100_000.0;
const SLOW_REST: f32 = 7.0;
const COUNTS_AT_ONCE: f32 = 0.2;
const FORGOTTEN: f32 = 0.01;
/// A server of which so many seconds nothing was heard, and which then answers so many times as soon, is another by
/// now. Where it answers not quite as soon, which may be chance, what is known is worth no more than a few answers.
pub(super) const OTHER: f32 = 1.0;
const MUCH_SOONER: f32 = 4.0;
const SOONER: f32 = 2.0;
/// One that has rested and is well again has nothing to do: it counts as so much faster than it answered, and that
/// for as much as these many answers. Those who found out first so make up for those who have not.
const WELCOME: f32 = 0.3;
const WELCOMED_FOR: f32 = 1.0 / 0.15;
/// What is usual is known well enough to say so when it is worth a handful of answers.
const SURE: f32 = 0.3;
/// Of the first three answers the soonest counts: a server's first are often late, and if that were believed there
/// would be no others. Of whom more is known, it is never worth less than these.
const FEW: f32 = 0.4;
/// Of a slow spell that would mean a rest of so many seconds nothing is remembered.
const FORGIVEN: f32 = 2.0;
/// Rests are kept in two thousandths of a second: two fit into a word.
const A_SECOND: f32 = 500.0;
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

    pub(super) fn nanos(self) -> u64 {
        self.0
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

impl<'a> Form<'a> {
    /// What is known of it, and what a policy makes of that and of its calls' ends.
    #[inline]
    pub(super) fn of(facts: &'a Facts, verdict: &'a Verdict) -> Self {
        Self { facts, verdict }
    }

    /// A call goes to it; for how many seconds nothing was heard before.
    #[inline]
    pub(super) fn begins(self, now: Moment) -> f32 {
        let now = Tick::of(now);
        let is_first = self.facts.waiting.fetch_add(1, Relaxed) == 0;
        if is_first || self.facts.moved.load(Relaxed) == OVERTAKEN {
            self.facts.moved.store(now.0, Relaxed);
            self.verdict.is_over();
        }
        self.silent(now)
    }

    /// The server says something for the first time on a call, after which others began, or none did.
    pub(super) fn speaks(self, now: Moment, others_began: bool) {
        let now = Tick::of(now).0;
        let moved = if others_began { now } else { OVERTAKEN };
        self.facts.moved.store(moved, Relaxed);
        self.facts.heard.store(now, Relaxed);
        self.verdict.is_over();
    }

    /// A call need not be waited for any more.
    pub(super) fn is_left(self) {
        self.facts.waiting.fetch_sub(1, Relaxed);
        self.verdict.is_over();
    }

    /// A call to it failed.
    pub(super) fn failed(self, now: Moment) {
        let now = Tick::of(now);
        let rests = self.rests();
        // Those that fail together are one failure; one that was tried after a rest is another.
        let failing = match rests.failing {
            0.0 => REST,
            rest if self.silent(now) > rest * 0.5 => longer(rest),
            rest => rest,
        };
        self.facts
            .rests
            .store(Rests { failing, ..rests }.pack(), Relaxed);
        self.facts.heard.store(now.0, Relaxed);
        self.verdict.is_over();
    }

    /// A call to it went well.
    #[inline]
    pub(super) fn succeeded(self) {
        let rests = self.rests();
        if rests.failing > 0.0 {
            let half = rests.failing * 0.5;
            let failing = if rests.failing > REST { half } else { 0.0 };
            self.facts
                .rests
                .store(Rests { failing, ..rests }.pack(), Relaxed);
        }
    }

    /// For how many seconds it had better be left alone.
    #[inline]
    pub(crate) fn rest(self) -> f32 {
        let rests = self.rests();
        rests.failing.max(rests.slow)
    }

    #[inline]
    fn rests(self) -> Rests {
        Rests::unpack(self.facts.rests.load(Relaxed))
    }

    /// A good answer took so long. To be told before [`Form::speaks`], as it weighs the more the longer
    /// nothing was heard.
    ///
    /// One that others have overtaken says little about the server.
    pub(super) fn took(self, time: Duration, now: Moment, is_overtaken: bool) {
        let took = micros(time);
        let (known, doubt) = (self.latency(), self.doubt());
        let silent = Tick::of(now).since(Tick(self.facts.heard.load(Relaxed)));
        let rests = self.rests();
        let is_news = silent > OTHER.max(rests.slow * 0.5);
        let is_other = is_news && took * MUCH_SOONER < known;
        if known == 0.0 || is_other || rests.failing > 0.0 && silent > rests.failing * 0.5 {
            let welcome = known > 0.0 && rests != Rests::default();
            let (part, doubt) = match welcome {
                true => (WELCOME, 1.0 / WELCOMED_FOR),
                false if known > 0.0 => (1.0, FEW),
                false => (1.0, 1.0),
            };
            self.facts.rests.store(rests.is_well().pack(), Relaxed);
            self.facts.doubt.store(doubt.to_bits(), Relaxed);
            self.facts.latency.store((took * part).to_bits(), Relaxed);
            self.verdict.is_over();
            return;
        }
        let is_doubtful = is_news && took * SOONER < known;
        let doubt = if is_doubtful { doubt.max(FEW) } else { doubt };
        let is_odd = took > SPELL * known;
        let turns_slow = is_odd && took > HICCUP && doubt < SURE && !is_overtaken;
        let after = rests.after(took, known, silent, turns_slow);
        if after != rests {
            self.facts.rests.store(after.pack(), Relaxed);
        }
        let part = (1.0 - fade(silent / MEMORY))
            .max(doubt / (1.0 + doubt))
            .max(LEAST);
        let kept = 1.0 - part;
        let at_once = if turns_slow { COUNTS_AT_ONCE } else { 0.0 };
        let told = if is_odd && (is_overtaken || took <= HICCUP && silent < OTHER) {
            SPELL * known
        } else {
            took
        };
        let average = if doubt > FEW && silent < OTHER {
            known.min(took)
        } else {
            (known + part * (told - known)).max(took * at_once)
        };
        let doubt = (kept * kept * doubt + part * part).min(doubt.max(FEW));
        self.facts.doubt.store(doubt.to_bits(), Relaxed);
        self.facts.latency.store(average.to_bits(), Relaxed);
        self.verdict.is_over();
    }

    /// Somebody waited for so long in vain.
    pub(super) fn kept_waiting(self, time: Duration) {
        let waited = micros(time);
        if waited > self.latency() {
            self.facts.latency.store(waited.to_bits(), Relaxed);
            self.verdict.is_over();
        }
    }

    /// It is another's, of whom nothing is known until now.
    pub(super) fn begin_anew(self, now: Moment) {
        self.forget();
        self.facts.heard.store(Tick::of(now).0, Relaxed);
        self.facts.waiting.store(0, Relaxed);
        self.facts.moved.store(0, Relaxed);
        self.verdict.begin_anew();
    }

    /// What it did before does not count from now on.
    pub(super) fn forget(self) {
        self.facts.latency.store(0, Relaxed);
        self.facts.doubt.store(0, Relaxed);
        self.facts.rests.store(0, Relaxed);
        self.verdict.is_over();
    }

    /// Its calls' ends are to be seen in another light.
    #[inline]
    pub(super) fn is_to_be_judged_anew(self) {
        self.verdict.is_over();
    }

    /// Microseconds to the head of a response; 0 while nothing is known.
    #[inline]
    pub(crate) fn latency(self) -> f32 {
        f32::from_bits(self.facts.latency.load(Relaxed))
    }

    /// One over the number of answers that this is worth.
    #[inline]
    pub(crate) fn doubt(self) -> f32 {
        f32::from_bits(self.facts.doubt.load(Relaxed))
    }

    /// For how many seconds nothing has been learnt about it.
    #[inline]
    pub(crate) fn silent(self, now: Tick) -> f32 {
        now.since(Tick(self.facts.heard.load(Relaxed)))
    }

    /// In so many seconds without news, two thirds of its failures are forgotten.
    #[inline]
    pub(crate) fn forgives(self) -> f32 {
        match self.rests().failing {
            rest if rest > REST => rest,
            _ => OLD_FAILURES,
        }
    }

    /// Whether there is a call of which nothing has been heard.
    #[inline]
    pub(crate) fn waits(self) -> bool {
        self.waiting() > 0
    }

    /// How many calls there are of which nothing has been heard.
    #[inline]
    pub(crate) fn waiting(self) -> u32 {
        self.facts.waiting.load(Relaxed)
    }

    /// For how many microseconds all calls that wait have waited in vain, if any do that no other has overtaken.
    #[inline]
    pub(crate) fn stalled(self, now: Tick) -> f32 {
        match self.facts.moved.load(Relaxed) {
            OVERTAKEN => 0.0,
            _ if !self.waits() => 0.0,
            moved => now.since(Tick(moved)) * 1e6,
        }
    }
}

impl Rests {
    #[inline]
    fn pack(self) -> u32 {
        let failing = (self.failing * A_SECOND) as u16;
        let slow = (self.slow * A_SECOND) as i16;
        u32::from(failing) | u32::from(slow as u16) << 16
    }

    #[inline]
    fn unpack(word: u32) -> Self {
        Self {
            failing: f32::from(word as u16) / A_SECOND,
            slow: f32::from((word >> 16) as i16) / A_SECOND,
        }
    }

    /// It was tried, and is no longer slow.
    fn is_well(self) -> Self {
        Self {
            slow: -self.slow.abs(),
            ..self
        }
    }

    /// A good answer, but not one of a server that is another by now, took so long where that is known.
    fn after(self, took: f32, known: f32, silent: f32, turns_slow: bool) -> Self {
        let slow = if self.slow > 0.0 && silent > self.slow * 0.5 {
            longer(self.slow)
        } else if turns_slow && self.slow <= 0.0 {
            longer(-self.slow).max(SLOW_REST)
        } else if took < 2.0 * known && self.slow.abs() > FORGIVEN {
            self.slow * (1.0 - FORGOTTEN)
        } else if took < 2.0 * known {
            0.0
        } else {
            self.slow
        };
        Self { slow, ..self }
    }
}

fn longer(rest: f32) -> f32 {
    (rest * 2.0).min(LONGEST_REST)
}

/// About e^-x, for x from 0: within two in a hundred of all.
#[inline]
pub(crate) fn fade(x: f32) -> f32 {
    let root = 1.0 / (1.0 + x * (1.0 / 16.0));
    let fourth = (root * root) * (root * root);
    (fourth * fourth) * (fourth * fourth)
}

/// Never none, which would be to know nothing.
pub(crate) fn micros(time: Duration) -> f32 {
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
        let (facts, verdict, mut now) = (Facts::default(), Verdict::default(), Instant::now());
        let form = Form::of(&facts, &verdict);
        let hears = |&(ms, silence): &(u32, Duration)| {
            now += silence;
            let now = Moment::at(now);
            form.begins(now);
            form.took(MILLI * ms, now, false);
            form.speaks(now, false);
            form.is_left();
            form.latency() / 1000.0
        };
        times.iter().map(hears).collect()
    }

    #[test]
    fn of_the_first_answers_the_soonest_counts_and_then_it_follows_the_last_fifty() {
        let mut times = vec![(100, MILLI), (50, MILLI), (60, MILLI)];
        times.extend([(70, MILLI); 1000]);
        times.push((170, MILLI));

        let heard = hearing(&times);

        assert_eq!(heard[..3], [100.0, 50.0, 50.0]);
        assert!((54.0..56.0).contains(&heard[3]), "{}", heard[3]);
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
    fn after_a_silence_one_that_is_soon_by_chance_is_believed_in_part() {
        let mut times = vec![(100, MILLI); 100];
        times.extend([(40, Duration::from_secs(2)), (100, MILLI), (100, MILLI)]);
        let mut long_silent = times.clone();
        long_silent[100].1 = Duration::from_secs(60);

        let [heard, long_silent] = [&times, &long_silent].map(|times| hearing(times));

        assert!((82.0..84.0).contains(&heard[100]), "{}", heard[100]);
        // The next ones are no first ones, of which the soonest would count.
        assert!(heard[101] > heard[100] && heard[102] > heard[101]);
        assert!((40.0..45.0).contains(&long_silent[100]));
        assert!(long_silent[101] > long_silent[100]);
    }

    #[test]
    fn it_stalls_while_calls_wait_and_none_is_heard_of() {
        let (facts, verdict, now) = (Facts::default(), Verdict::default(), Instant::now());
        let form = Form::of(&facts, &verdict);
        let stalled = |after: Duration| form.stalled(Tick::at(now + after)) / 1000.0;
        assert_eq!(stalled(MILLI * 100), 0.0);

        form.begins(Moment::at(now));
        form.begins(Moment::at(now + MILLI * 50));
        assert!((99.0..=100.0).contains(&stalled(MILLI * 100)));
        form.speaks(Moment::at(now + MILLI * 100), true);
        form.is_left();
        assert!(stalled(MILLI * 110) < 10.1);
        form.is_left();

        assert_eq!(stalled(MILLI * 500), 0.0);
    }

    #[test]
    fn who_waits_in_vain_says_that_it_takes_longer_than_that_and_no_more() {
        let (facts, verdict) = (Facts::default(), Verdict::default());
        let form = Form::of(&facts, &verdict);

        form.kept_waiting(MILLI * 20);
        form.kept_waiting(MILLI * 10);

        assert_eq!(form.latency(), 20_000.0);
    }

    #[test]
    fn failures_together_are_one_and_each_after_a_rest_makes_the_next_twice_as_long() {
        let (facts, verdict, began) = (Facts::default(), Verdict::default(), Instant::now());
        let form = Form::of(&facts, &verdict);
        let fails = |seconds: f32| {
            form.failed(Moment::at(began + Duration::from_secs_f32(seconds)));
            form.rest()
        };

        let rests = [0.0, 0.1, 0.2, 9.0, 27.0, 27.1, 62.0, 99.0].map(fails);
        form.succeeded();
        let after_one = form.rest();
        (0..3).for_each(|_| form.succeeded());

        assert_eq!(rests, [8.5, 8.5, 8.5, 17.0, 34.0, 34.0, 36.0, 36.0]);
        assert_eq!((after_one, form.rest()), (18.0, 0.0));
    }

    #[test]
    fn one_that_turns_slow_rests_twice_as_long_each_time_and_is_welcome_when_it_is_well() {
        let (facts, verdict, mut now) = (Facts::default(), Verdict::default(), Instant::now());
        let form = Form::of(&facts, &verdict);
        let mut hears = |ms: u32, after: f32| {
            now += Duration::from_secs_f32(after);
            form.took(MILLI * ms, Moment::at(now), false);
            form.facts.heard.store(Tick::at(now).0, Relaxed);
            (form.rest().round(), form.latency() / 1000.0)
        };
        for _ in 0..100 {
            hears(10, 0.1);
        }

        let (turned, turned_to) = hears(400, 0.1);
        let (together, _) = hears(400, 0.1);
        let (still, _) = hears(400, 8.0);
        let (well, welcome) = hears(10, 15.0);
        for _ in 0..60 {
            hears(10, 0.1);
        }
        let (relapsed, _) = hears(400, 0.1);

        assert_eq!((turned, together, still), (7.0, 7.0, 14.0));
        assert!((79.0..81.0).contains(&turned_to), "{turned_to}");
        assert_eq!((well, welcome.round()), (0.0, 3.0));
        assert!((14.0..28.0).contains(&relapsed), "{relapsed}");
    }

    #[test]
    fn rests_of_both_kinds_fit_into_a_word() {
        for (failing, slow) in [(0.0, 0.0), (8.5, 7.0), (36.0, -36.0), (0.0, 36.0)] {
            let rests = Rests { failing, slow };

            assert_eq!(Rests::unpack(rests.pack()), rests);
        }
    }

    #[test]
    fn to_fade_is_about_an_exponential() {
        for tenths in 0_u16..100 {
            let x = f32::from(tenths) / 10.0;

            assert!((fade(x) - (-x).exp()).abs() < 0.02, "{x}");
        }
    }
}
