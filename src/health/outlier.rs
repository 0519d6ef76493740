//! Which endpoints fail so much more than the others that they should be left out: gRFC A50.

use std::time::Duration;

use super::ranged;
use crate::Error;

/// Ejection of endpoints that fail more than the others, as gRFC A50 has it: its names, its numbers, its
/// algorithm. Neither of the two ways is on unless chosen.
///
/// Every interval, the calls of that interval are counted. It needs traffic: with fewer calls than its
/// `request_volume` in an interval an endpoint is not looked at, where failures in a row are seen at any rate.
///
/// ```
/// use tonic_fleet::health::{FailurePercentage, Outliers, SuccessRate};
///
/// let outliers = Outliers::default()
///     .success_rate(SuccessRate::default())
///     .failure_percentage(FailurePercentage::default().threshold(50));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Outliers {
    pub(super) interval: Duration,
    pub(super) base_ejection_time: Duration,
    pub(super) max_ejection_time: Duration,
    max_ejection_percent: u32,
    success_rate: Option<SuccessRate>,
    failure_percentage: Option<FailurePercentage>,
}

/// Ejects whose rate of success is far below the mean of all.
#[derive(Clone, Debug, PartialEq)]
pub struct SuccessRate {
    stdev_factor: u32,
    enforcement: Enforcement,
}

/// Ejects who fails more than so many calls of a hundred.
#[derive(Clone, Debug, PartialEq)]
pub struct FailurePercentage {
    threshold: u32,
    enforcement: Enforcement,
}

#[derive(Clone, Debug, PartialEq)]
struct Enforcement {
    percentage: u32,
    minimum_hosts: u32,
    request_volume: u32,
}

/// The calls of one endpoint, in an interval or since ever.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
}

/// What stood out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finding {
    /// The rate of success, and the least that would have passed.
    SuccessRate { is: f64, least: f64 },
    /// The percentage of failures, and the greatest that would have passed.
    FailurePercentage { is: f64, most: u32 },
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
            success_rate: None,
            failure_percentage: None,
        }
    }
}

impl Outliers {
    /// How often the calls are counted. Every 10 s, unless set. From 100 ms to an hour.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long the first ejection lasts; the n-th lasts n times as long. 30 s, unless set. From 100 ms to
    /// an hour.
    #[must_use]
    pub fn base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time;
        self
    }

    /// How long an ejection lasts at most. 300 s, unless set. From 100 ms to a day.
    #[must_use]
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// Which part of the endpoints is ejected in this way, in percent, but always one if need be. 10,
    /// unless set. Up to 50; 0 is nobody.
    #[must_use]
    pub fn max_ejection_percent(mut self, percent: u32) -> Self {
        self.max_ejection_percent = percent;
        self
    }

    /// Ejects by the rate of success.
    #[must_use]
    pub fn success_rate(mut self, by: SuccessRate) -> Self {
        self.success_rate = Some(by);
        self
    }

    /// Ejects by the percentage of failures.
    #[must_use]
    pub fn failure_percentage(mut self, by: FailurePercentage) -> Self {
        self.failure_percentage = Some(by);
        self
    }

    /// Who of these is to be ejected now, and why, given who is out already. `dice` gives 0 to 99.
    pub(super) fn find(
        &self,
        all: &[(Counts, bool)],
        mut dice: impl FnMut() -> u32,
    ) -> Vec<(usize, Finding)> {
        let mut room = Room {
            out: all.iter().filter(|(_, out)| *out).count(),
            all: all.len(),
            most: self.max_ejection_percent,
        };
        let mut found: Vec<(usize, Finding)> = Vec::new();
        let by_rate = self.success_rate.iter().flat_map(|by| by.find(all));
        let by_percentage = self.failure_percentage.iter().flat_map(|by| by.find(all));
        for (place, finding, enforced) in by_rate.chain(by_percentage) {
            if room.is_full() {
                break;
            }
            let already = found.iter().any(|(there, _)| *there == place);
            if !already && dice() < enforced {
                found.push((place, finding));
                room.out += 1;
            }
        }
        found
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let (tenth, hour) = (Duration::from_millis(100), Duration::from_secs(3600));
        ranged("outliers: interval", self.interval, tenth, hour)?;
        let base = self.base_ejection_time;
        ranged("outliers: base_ejection_time", base, tenth, hour)?;
        let max = self.max_ejection_time;
        ranged("outliers: max_ejection_time", max, tenth, hour * 24)?;
        let percent = self.max_ejection_percent;
        ranged("outliers: max_ejection_percent", percent, 0, 50)?;
        if let Some(by) = &self.success_rate {
            ranged("success_rate: stdev_factor", by.stdev_factor, 0, 100_000)?;
            by.enforcement.check("success_rate")?;
        }
        if let Some(by) = &self.failure_percentage {
            ranged("failure_percentage: threshold", by.threshold, 0, 100)?;
            by.enforcement.check("failure_percentage")?;
        }
        Ok(())
    }
}

/// How many more may be ejected. gRFC A50 looks before it ejects, so that one always may where any may.
struct Room {
    out: usize,
    all: usize,
    most: u32,
}

impl Room {
    fn is_full(&self) -> bool {
        self.out * 100 >= self.all * self.most as usize
    }
}

/// A place, what was found there, and in how many of a hundred cases it is acted upon.
type Found = (usize, Finding, u32);

impl SuccessRate {
    /// How many thousandths of a standard deviation below the mean is too low. 1,900, unless set. Up to
    /// 100,000.
    #[must_use]
    pub fn stdev_factor(mut self, thousandths: u32) -> Self {
        self.stdev_factor = thousandths;
        self
    }

    fn find(&self, all: &[(Counts, bool)]) -> Vec<Found> {
        let Some(among) = self.enforcement.among(all) else {
            return Vec::new();
        };
        let rates: Vec<f64> = among
            .iter()
            .map(|&place| all[place].0.success_rate())
            .collect();
        let n = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / n;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / n;
        let least = mean - variance.sqrt() * (f64::from(self.stdev_factor) / 1000.0);
        let low = among.into_iter().zip(rates).filter(|(_, is)| *is < least);
        low.filter(|(place, _)| !all[*place].1)
            .map(|(place, is)| {
                let finding = Finding::SuccessRate { is, least };
                (place, finding, self.enforcement.percentage)
            })
            .collect()
    }
}

impl FailurePercentage {
    /// More failures of a hundred calls than this are too many. 85, unless set. Up to 100.
    #[must_use]
    pub fn threshold(mut self, percent: u32) -> Self {
        self.threshold = percent;
        self
    }

    fn find(&self, all: &[(Counts, bool)]) -> Vec<Found> {
        let among = self.enforcement.among(all).unwrap_or_default();
        let failing = among.into_iter().filter_map(|place| {
            let (counts, out) = &all[place];
            let is = 100.0 * counts.failed as f64 / counts.volume() as f64;
            let most = self.threshold;
            let finding = Finding::FailurePercentage { is, most };
            (is > f64::from(most) && !out).then_some((place, finding, self.enforcement.percentage))
        });
        failing.collect()
    }
}

impl Enforcement {
    fn new(request_volume: u32) -> Self {
        Self {
            percentage: 100,
            minimum_hosts: 5,
            request_volume,
        }
    }

    /// Those with enough calls to be judged by; none if they are too few.
    fn among(&self, all: &[(Counts, bool)]) -> Option<Vec<usize>> {
        let volume = u64::from(self.request_volume);
        let among: Vec<usize> = (0..all.len())
            .filter(|&place| all[place].0.volume() >= volume.max(1))
            .collect();
        let enough = !among.is_empty() && among.len() >= self.minimum_hosts as usize;
        enough.then_some(among)
    }

    fn check(&self, whose: &str) -> Result<(), Error> {
        let percentage = self.percentage;
        ranged(
            &format!("{whose}: enforcement_percentage"),
            percentage,
            0,
            100,
        )?;
        let hosts = self.minimum_hosts;
        ranged(&format!("{whose}: minimum_hosts"), hosts, 0, 1_000_000)?;
        let volume = self.request_volume;
        ranged(
            &format!("{whose}: request_volume"),
            volume,
            0,
            1_000_000_000,
        )
    }
}

impl Counts {
    fn volume(self) -> u64 {
        self.succeeded + self.failed
    }

    fn success_rate(self) -> f64 {
        self.succeeded as f64 / self.volume() as f64
    }

    /// What has been added to these.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            succeeded: self.succeeded.saturating_sub(before.succeeded),
            failed: self.failed.saturating_sub(before.failed),
        }
    }
}

macro_rules! enforced {
    ($($by:ident, $volume:literal;)*) => {$(
        impl $by {
            /// In how many of a hundred cases an outlier is ejected. 100, unless set; 0 only looks.
            #[must_use]
            pub fn enforcement_percentage(mut self, percent: u32) -> Self {
                self.enforcement.percentage = percent;
                self
            }

            /// So many endpoints must have enough calls, or nobody is ejected. 5, unless set. Up to a
            /// million.
            #[must_use]
            pub fn minimum_hosts(mut self, hosts: u32) -> Self {
                self.enforcement.minimum_hosts = hosts;
                self
            }

            #[doc = concat!(
                "So many calls in an interval are enough to judge by. ", $volume, ", unless set. Up to a billion.",
            )]
            #[must_use]
            pub fn request_volume(mut self, calls: u32) -> Self {
                self.enforcement.request_volume = calls;
                self
            }
        }
    )*};
}

enforced! {
    SuccessRate, 100;
    FailurePercentage, 50;
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            stdev_factor: 1900,
            enforcement: Enforcement::new(100),
        }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self {
            threshold: 85,
            enforcement: Enforcement::new(50),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Endpoints with so many calls each, of which so many failed; nobody is out.
    fn fleet(calls: u64, failed: &[u64]) -> Vec<(Counts, bool)> {
        let counts = |&failed| Counts {
            succeeded: calls - failed,
            failed,
        };
        failed.iter().map(|f| (counts(f), false)).collect()
    }

    fn found(outliers: &Outliers, all: &[(Counts, bool)]) -> Vec<usize> {
        let found = outliers.find(all, || 99);
        found.into_iter().map(|(place, _)| place).collect()
    }

    fn by_rate() -> Outliers {
        Outliers::default().success_rate(SuccessRate::default())
    }

    fn by_percentage() -> Outliers {
        Outliers::default().failure_percentage(FailurePercentage::default())
    }

    #[test]
    fn neither_way_is_on_unless_chosen() {
        assert!(found(&Outliers::default(), &fleet(1000, &[1000, 0, 0, 0, 0])).is_empty());
    }

    #[test]
    fn whose_success_is_far_below_the_mean_is_found() {
        let all = fleet(100, &[2, 0, 1, 40, 0, 3]);

        assert_eq!(found(&by_rate(), &all), [3]);
    }

    #[test]
    fn success_below_the_mean_by_little_is_no_outlier() {
        assert!(found(&by_rate(), &fleet(100, &[20, 25, 22, 28, 24, 21])).is_empty());
    }

    #[test]
    fn a_percentage_must_be_more_than_the_threshold() {
        let all = |failed| fleet(100, &[failed, 0, 0, 0, 0]);

        assert!(found(&by_percentage(), &all(85)).is_empty());
        assert_eq!(found(&by_percentage(), &all(86)), [0]);
    }

    #[test]
    fn too_few_calls_or_too_few_endpoints_say_nothing() {
        assert!(found(&by_percentage(), &fleet(49, &[49, 0, 0, 0, 0])).is_empty());
        assert!(found(&by_percentage(), &fleet(50, &[50, 0, 0, 0])).is_empty());
        assert!(found(&by_rate(), &fleet(99, &[99, 0, 0, 0, 0])).is_empty());
        let nobody_called = Outliers::default().failure_percentage(
            FailurePercentage::default()
                .request_volume(0)
                .minimum_hosts(0),
        );
        assert!(found(&nobody_called, &fleet(0, &[0; 5])).is_empty());
    }

    #[test]
    fn one_is_always_found_and_then_no_more_than_the_share_which_may_be_none() {
        let bad = fleet(100, &[100; 10]);
        let at_most = |percent| by_percentage().max_ejection_percent(percent);

        let numbers = [0, 9, 10, 11, 20, 50].map(|percent| found(&at_most(percent), &bad).len());

        assert_eq!(numbers, [0, 1, 1, 2, 2, 5]);
    }

    #[test]
    fn who_is_out_counts_and_is_not_found_again() {
        let mut all = fleet(100, &[100, 100, 0, 0, 0]);
        all[0].1 = true;

        assert!(found(&by_percentage(), &all).is_empty());
        assert_eq!(found(&by_percentage().max_ejection_percent(40), &all), [1]);
    }

    #[test]
    fn enforcement_is_by_chance() {
        let half = Outliers::default()
            .failure_percentage(FailurePercentage::default().enforcement_percentage(50));
        let all = fleet(100, &[100, 0, 0, 0, 0]);

        assert_eq!(half.find(&all, || 49).len(), 1);
        assert_eq!(half.find(&all, || 50).len(), 0);
    }
}
