//! How long an endpoint takes at its worst, of late.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Tick;
use crate::moment::Moment;

/// An average of latencies that goes up at once and comes down in time, as in Finagle and tower.
///
/// The estimate and when it was made are one word, so that callers read and write it without a lock. As there,
/// to read it is to let it decay.
#[derive(Debug)]
pub(crate) struct Peak {
    since: Tick,
    /// Seconds as a float, and [when](Self::moment) they were so.
    word: AtomicU64,
    /// Seconds as a float: after so long, a third is left.
    decay: AtomicU32,
}

impl Peak {
    /// Of one that nothing is known of.
    pub(crate) fn new(assumed: Duration, now: Moment) -> Self {
        Self {
            since: Tick::of(now),
            word: AtomicU64::new(pack(assumed.as_secs_f32(), 0)),
            decay: AtomicU32::new(f32::to_bits(1.0)),
        }
    }

    /// From now on.
    pub(crate) fn decays_in(&self, decay: Duration) {
        // Never in no time, for which there is no share to be had.
        let decay = decay.as_secs_f32().max(1e-9);
        self.decay.store(decay.to_bits(), Relaxed);
    }

    /// Seconds, as far as they have not decayed.
    pub(crate) fn read(&self, now: Tick) -> f32 {
        let word = self.word.load(Relaxed);
        let (known, then) = unpack(word);
        let now = self.moment(now);
        let age = age(now, then);
        if age == 0.0 {
            return known;
        }
        let left = self.after(known, 0.0, age);
        // Whoever else was here meanwhile has seen to it.
        let _ = self
            .word
            .compare_exchange(word, pack(left, now), Relaxed, Relaxed);
        left
    }

    /// A call took so long.
    pub(crate) fn took(&self, time: Duration, now: Moment) {
        let (took, now) = (time.as_secs_f32(), self.moment(Tick::of(now)));
        let with = |word| {
            let (known, then) = unpack(word);
            let age = age(now, then);
            let average = match known < took {
                true => took,
                false if age > 0.0 => self.after(known, took, age),
                false => known,
            };
            Some(pack(average, if age > 0.0 { now } else { then }))
        };
        // It never declines, so it never fails.
        let _ = self.word.fetch_update(Relaxed, Relaxed, with);
    }

    /// Counted from when it was made: the same calls lead to the same averages, whenever they begin.
    fn moment(&self, now: Tick) -> u32 {
        now.word_since(self.since)
    }

    /// What was known is on its way to this for so many seconds.
    fn after(&self, known: f32, this: f32, seconds: f32) -> f32 {
        let decay = f32::from_bits(self.decay.load(Relaxed));
        let left = (-seconds / decay).exp();
        known * left + this * (1.0 - left)
    }
}

/// Seconds from then on; none, where another thread read the clock later and was here before.
fn age(now: u32, then: u32) -> f32 {
    let words = (now.wrapping_sub(then) as i32).max(0);
    words as f32 * 65_536e-9
}

fn pack(seconds: f32, word: u32) -> u64 {
    u64::from(seconds.to_bits()) << 32 | u64::from(word)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        task::{Context, Poll},
    };

    use tokio::time::{Instant, advance};
    use tower::{
        Service,
        load::{CompleteOnResponse, Load, PeakEwma},
    };

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const DECAY: Duration = Duration::from_secs(10);

    /// A service whose answer is there when it is asked for.
    struct Ready;

    impl Service<()> for Ready {
        type Response = ();
        type Error = Infallible;
        type Future = std::future::Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_up_and_down_as_towers_does() {
        let decay = DECAY.as_nanos() as f64;
        let complete = CompleteOnResponse::default();
        let mut theirs = PeakEwma::new(Ready, Duration::from_secs(1), decay, complete);
        let ours = Peak::new(Duration::from_secs(1), Moment::at(Instant::now()));
        ours.decays_in(DECAY);

        for (wait, took) in [(0, 20), (500, 400), (4_000, 30), (1, 2_500), (9_000, 5)] {
            advance(MILLI * wait).await;
            let began = Instant::now();
            let call = theirs.call(());
            advance(MILLI * took).await;
            call.await.unwrap();
            let now = Instant::now();
            ours.took(now - began, Moment::at(now));

            // Their cost is a type that can only be compared and printed.
            let cost = format!("{:?}", theirs.load());
            let cost: f64 = cost["Cost(".len()..cost.len() - 1].parse().unwrap();
            let ours = f64::from(ours.read(Tick::at(now)));
            assert!((ours * 1e9 / cost - 1.0).abs() < 1e-3, "{ours} {cost}");
        }
    }

    #[test]
    fn a_clock_that_was_read_earlier_and_comes_later_changes_nothing() {
        let now = Instant::now();
        let peak = Peak::new(MILLI * 100, Moment::at(now + MILLI * 50));
        peak.decays_in(MILLI);

        let read = peak.read(Tick::at(now));
        peak.took(MILLI, Moment::at(now));

        assert_eq!((read, peak.read(Tick::at(now))), (0.1, 0.1));
    }

    #[test]
    fn without_time_to_decay_only_the_last_answer_counts() {
        let now = Instant::now();
        let peak = Peak::new(MILLI * 100, Moment::at(now));
        peak.decays_in(Duration::ZERO);

        peak.took(MILLI * 5, Moment::at(now + MILLI));

        assert_eq!(peak.read(Tick::at(now + MILLI)), 0.005);
    }
}
