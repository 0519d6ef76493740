//! When a server is asked, and how many answers make a verdict.

use std::{error::Error as StdError, fmt, time::Duration};

use rand::RngExt;

use super::ranged;
use crate::{Error, Result};

/// How a server is asked.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// From the end of one question to the next, but for the jitter.
    pub(super) every: Duration,
    /// How long an answer may take.
    pub(super) timeout: Duration,
    /// So many good answers in a row make a server well that was not.
    pub(super) rise: u32,
    /// So many bad ones make it unwell.
    pub(super) fall: u32,
    /// How many are asked at the same time.
    pub(super) at_once: usize,
}

/// What the answers of one server come to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Nobody knows before the first answer, which counts alone.
    well: Option<bool>,
    /// How many in a row have said otherwise.
    against: u32,
}

/// The share by which a wait may be shorter or longer, so that those which began together part.
const JITTER: f64 = 0.1;

impl Default for Rule {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            at_once: 64,
        }
    }
}

impl Rule {
    pub(super) fn check(&self) -> Result<()> {
        let hour = Duration::from_secs(3600);
        ranged(
            "health checks: every",
            self.every,
            Duration::from_millis(10),
            hour,
        )?;
        ranged(
            "health checks: timeout",
            self.timeout,
            Duration::from_millis(1),
            hour,
        )?;
        ranged("health checks: rise", self.rise, 1, 1_000)?;
        ranged("health checks: fall", self.fall, 1, 1_000)?;
        ranged("health checks: at_once", self.at_once, 1, 100_000)
    }

    /// How long to wait after the first question: at random, so that a fleet which connected in one moment
    /// is not asked in one moment ever after.
    pub(super) fn first_wait(&self) -> Duration {
        self.every.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    pub(super) fn wait(&self) -> Duration {
        let spread = rand::rng().random_range(-JITTER..=JITTER);
        self.every.mul_f64(1.0 + spread)
    }
}

impl Tally {
    /// Takes an answer; `true` when the verdict is another one now, which is then what the answer says.
    pub(super) fn hear(&mut self, answer: &Result<()>, rule: &Rule) -> bool {
        let well = answer.is_ok();
        if self.well == Some(well) {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = match answer {
            Ok(()) => rule.rise,
            Err(why) if Said::is_why(why) => 1,
            Err(_) => rule.fall,
        };
        if self.well.is_some() && self.against < enough {
            return false;
        }
        self.well = Some(well);
        self.against = 0;
        true
    }
}

/// The server itself said that it is unwell, which is no fluke: once is enough.
#[derive(Debug)]
pub(super) struct Said(pub(super) String);

impl Said {
    fn is_why(error: &Error) -> bool {
        error.source().is_some_and(|cause| cause.is::<Self>())
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it says {}", self.0)
    }
}

impl StdError for Said {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn answer(well: bool) -> Result<()> {
        let silence = || Error::new(ErrorKind::Timeout, "no answer");
        if well { Ok(()) } else { Err(silence()) }
    }

    fn verdicts(answers: &[bool]) -> Vec<usize> {
        let mut tally = Tally::default();
        let rule = Rule::default();
        let mut heard = answers.iter().map(|&well| tally.hear(&answer(well), &rule));
        let changes = heard.by_ref().enumerate().filter(|(_, changed)| *changed);
        changes.map(|(nth, _)| nth).collect()
    }

    #[test]
    fn the_first_answer_counts_alone() {
        assert_eq!(verdicts(&[true]), [0]);
        assert_eq!(verdicts(&[false]), [0]);
    }

    #[test]
    fn three_bad_answers_in_a_row_make_a_server_unwell_and_two_good_ones_well() {
        assert_eq!(
            verdicts(&[true, false, false, true, false, false, false]),
            [0, 6]
        );
        assert_eq!(verdicts(&[false, true, false, true, true]), [0, 4]);
    }

    #[test]
    fn a_server_that_says_that_it_is_unwell_is_believed_at_once() {
        let (mut tally, rule) = (Tally::default(), Rule::default());
        let says = Error::new(ErrorKind::Unavailable, "health").because(Said("503".into()));
        tally.hear(&answer(true), &rule);

        assert!(tally.hear(&Err(says.clone()), &rule));

        assert!(!tally.hear(&answer(true), &rule));
        assert!(!tally.hear(&Err(says), &rule));
        assert!(!tally.hear(&answer(true), &rule));
        assert!(tally.hear(&answer(true), &rule));
    }

    #[test]
    fn those_who_began_together_part() {
        let rule = Rule::default();
        let mut firsts: Vec<_> = (0..1000).map(|_| rule.first_wait()).collect();
        firsts.sort();

        for (tenth, chunk) in firsts.chunks(100).enumerate() {
            let middle = chunk[50].as_secs_f64() / rule.every.as_secs_f64();
            let expected = 0.05 + 0.1 * tenth as f64;
            assert!((middle - expected).abs() < 0.1, "{middle} for {expected}");
        }
        assert!((0..1000).all(|_| rule.wait() >= rule.every.mul_f64(0.89)));
        assert!((0..1000).all(|_| rule.wait() <= rule.every.mul_f64(1.11)));
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_its_name_and_limits() {
        let fine = Rule::default();
        assert!(fine.check().is_ok());
        for (rule, said) in [
            (
                Rule {
                    every: Duration::ZERO,
                    ..fine.clone()
                },
                "every is 0ns: it is from 10ms to 3600s",
            ),
            (
                Rule {
                    timeout: Duration::MAX,
                    ..fine.clone()
                },
                "it is from 1ms to 3600s",
            ),
            (
                Rule {
                    rise: 0,
                    ..fine.clone()
                },
                "rise is 0: it is from 1 to 1000",
            ),
            (
                Rule {
                    fall: 1_001,
                    ..fine.clone()
                },
                "fall is 1001: it is from 1 to 1000",
            ),
            (
                Rule { at_once: 0, ..fine },
                "at_once is 0: it is from 1 to 100000",
            ),
        ] {
            let refused = rule.check().unwrap_err().to_string();
            assert!(refused.ends_with(said), "{refused}");
        }
    }
}
