//! How long to wait before trying again.

use std::time::Duration;

use rand::RngExt;

/// Growing waits with jitter: each is the one before times a factor, up to a maximum, spread at random.
///
/// A plain value with no clock of its own: whoever waits, waits. [`reset`](Self::reset) after a success.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::Backoff;
///
/// let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));
/// let first = backoff.next();
/// assert!(first >= Duration::from_millis(80) && first <= Duration::from_millis(120));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    factor: f64,
    jitter: f64,
    failures: u32,
}

/// As good as for ever, where a clock must be able to count it: `Duration::MAX` ends beyond the end of time.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A time limit of a user's, which may be any, so that it can be added to the time.
pub(crate) fn countable(limit: Duration) -> Duration {
    limit.min(FOREVER)
}

impl Backoff {
    /// From `first` to `most`, growing by 1.6, with a jitter of a fifth either way. A wait of less than a
    /// millisecond is none, and counts as one.
    pub fn between(first: Duration, most: Duration) -> Self {
        let first = countable(first).max(Duration::from_millis(1));
        Self {
            first,
            most: countable(most).max(first),
            factor: 1.6,
            jitter: 0.2,
            failures: 0,
        }
    }

    /// Sets how much each wait grows. 1.6, unless set; less than 1 counts as 1.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = if factor.is_finite() {
            factor.max(1.0)
        } else {
            1.6
        };
        self
    }

    /// Sets the share by which a wait may be shorter or longer. A fifth, unless set; from 0 to 1.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = if jitter.is_finite() {
            jitter.clamp(0.0, 1.0)
        } else {
            0.2
        };
        self
    }

    /// The next wait; never more than the maximum.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so an iterator's loop would not either"
    )]
    pub fn next(&mut self) -> Duration {
        let wait = self.after(self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// The wait after so many, for whoever counts them himself.
    pub(crate) fn after(&self, waits: u32) -> Duration {
        let grown = self.first.as_secs_f64() * self.factor.powi(waits.min(1024) as i32);
        let base = grown.min(self.most.as_secs_f64());
        let spread = rand::rng().random_range(-self.jitter..=self.jitter);
        Duration::from_secs_f64((base * (1.0 + spread)).min(self.most.as_secs_f64()))
    }

    /// Starts again from the first wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many waits were asked for since the start.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_never_exceeds_its_maximum_and_never_shrinks_below_the_jitter() {
        let most = Duration::from_secs(3);
        let mut backoff = Backoff::between(Duration::from_millis(10), most);

        for _ in 0..5_000 {
            let wait = backoff.next();
            assert!(wait <= most && wait >= Duration::from_millis(8), "{wait:?}");
        }
    }

    #[test]
    fn waits_grow_by_the_factor_without_jitter() {
        let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(1))
            .factor(2.0)
            .jitter(0.0);

        let waits = [(); 6].map(|()| backoff.next().as_millis());

        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_reset_starts_again() {
        let mut backoff =
            Backoff::between(Duration::from_millis(100), Duration::from_secs(1)).jitter(0.0);
        backoff.next();
        backoff.next();

        backoff.reset();

        assert_eq!(backoff.next(), Duration::from_millis(100));
    }

    #[test]
    fn for_ever_can_be_counted() {
        let mut backoff = Backoff::between(Duration::MAX, Duration::MAX);

        let until = tokio::time::Instant::now() + backoff.next() + countable(Duration::MAX);

        assert!(until > tokio::time::Instant::now());
    }

    #[test]
    fn nonsense_is_put_right() {
        let mut backoff = Backoff::between(Duration::from_secs(2), Duration::from_secs(1))
            .factor(f64::NAN)
            .jitter(f64::INFINITY);

        assert!(backoff.next() <= Duration::from_secs(2));
    }
}
