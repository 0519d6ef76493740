//! How an endpoint that is new, or was away, comes to its full weight.

use std::time::Duration;

use crate::Error;

/// How an endpoint that joins a set under load, or returns to it, comes to its full weight.
///
/// Its share begins at a tenth and grows for ten seconds, evenly, unless set otherwise. One that was away
/// for less has cooled down less, and grows for as long as it was away. Nobody ramps when a whole set
/// starts: where all are new there is nobody to spare them.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::health::SlowStart;
///
/// // Servers that compile their code as they go.
/// let gently = SlowStart::over(Duration::from_secs(60)).aggression(0.5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    window: Duration,
    aggression: f64,
    floor: u8,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self::over(Duration::from_secs(10))
    }
}

impl SlowStart {
    /// Full weight after so long. From 100 ms to an hour.
    pub fn over(window: Duration) -> Self {
        Self {
            window,
            aggression: 1.0,
            floor: 10,
        }
    }

    /// Full weight at once.
    pub fn off() -> Self {
        Self::over(Duration::ZERO)
    }

    /// How the share grows with time `t`: as `t^(1/aggression)`. 1, unless set: evenly. More gives more
    /// early, less gives more late. From 0.1 to 10.
    #[must_use]
    pub fn aggression(mut self, aggression: f64) -> Self {
        self.aggression = aggression;
        self
    }

    /// The share to begin with, in percent. 10, unless set. From 1 to 100.
    #[must_use]
    pub fn floor(mut self, percent: u8) -> Self {
        self.floor = percent;
        self
    }

    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// The share in percent after this time of a ramp that lasts so long.
    pub(crate) fn share(&self, after: Duration, lasts: Duration) -> u8 {
        if after >= lasts {
            return 100;
        }
        let part = after.as_secs_f64() / lasts.as_secs_f64();
        let share = (100.0 * part.powf(1.0 / self.aggression)) as u8;
        share.clamp(self.floor, 100)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::config(format!("slow_start: {what}")));
        if !self.window.is_zero()
            && !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.window)
        {
            return refuse(format!(
                "window is {:?}: it is from 100 ms to an hour, or none at all",
                self.window
            ));
        }
        if !(0.1..=10.0).contains(&self.aggression) {
            return refuse(format!(
                "aggression is {}: it is from 0.1 to 10",
                self.aggression
            ));
        }
        if !(1..=100).contains(&self.floor) {
            return refuse(format!(
                "floor is {}: it is from 1 to 100 percent",
                self.floor
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn the_share_grows_evenly_from_a_tenth_to_all() {
        let ramp = SlowStart::default();

        let shares = [0, 500, 2_000, 5_000, 9_990, 10_000, 60_000]
            .map(|ms| ramp.share(Duration::from_millis(ms), WINDOW));

        assert_eq!(shares, [10, 10, 20, 50, 99, 100, 100]);
    }

    #[test]
    fn aggression_gives_more_early_or_late() {
        let at_half = |aggression| {
            let ramp = SlowStart::default().aggression(aggression);
            ramp.share(WINDOW / 2, WINDOW)
        };

        assert_eq!([at_half(2.0), at_half(1.0), at_half(0.5)], [70, 50, 25]);
    }

    #[test]
    fn none_is_full_at_once() {
        assert_eq!(SlowStart::off().share(Duration::ZERO, Duration::ZERO), 100);
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let second = Duration::from_secs(1);
        for (ramp, name) in [
            (SlowStart::over(Duration::from_millis(99)), "window"),
            (SlowStart::over(Duration::from_secs(3601)), "window"),
            (SlowStart::over(second).aggression(0.0), "aggression"),
            (SlowStart::over(second).aggression(f64::NAN), "aggression"),
            (SlowStart::over(second).floor(0), "floor"),
            (SlowStart::over(second).floor(101), "floor"),
        ] {
            let refused = ramp.check().unwrap_err().to_string();
            assert!(
                refused.contains(name) && refused.contains("from"),
                "{refused}"
            );
        }
        SlowStart::off().check().unwrap();
        SlowStart::default().check().unwrap();
    }
}
