//! Which cases held.

use std::fmt;

use super::Case;

/// What became of each case.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<(Case, Verdict)>);

/// What became of one case.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It holds.
    Held,
    /// The backend cannot be held to it, for this reason.
    Skipped(String),
    /// It does not hold; this is what was seen.
    Failed(String),
}

impl Report {
    pub(super) fn add(&mut self, case: Case, verdict: Verdict) {
        self.0.push((case, verdict));
    }

    /// Every case and what became of it.
    pub fn verdicts(&self) -> impl Iterator<Item = (Case, &Verdict)> {
        self.0.iter().map(|(case, verdict)| (*case, verdict))
    }

    /// Those that were skipped, and why.
    pub fn skipped(&self) -> impl Iterator<Item = (Case, &str)> {
        self.verdicts().filter_map(|(case, verdict)| match verdict {
            Verdict::Skipped(why) => Some((case, why.as_str())),
            _ => None,
        })
    }

    /// Those that do not hold, and what was seen.
    pub fn failed(&self) -> impl Iterator<Item = (Case, &str)> {
        self.verdicts().filter_map(|(case, verdict)| match verdict {
            Verdict::Failed(what) => Some((case, what.as_str())),
            _ => None,
        })
    }

    /// For tests: all cases held, but for these, which were skipped.
    ///
    /// # Panics
    /// With the whole report, when one failed, or others were skipped than expected.
    #[track_caller]
    pub fn assert_held_but(&self, skipped: &[Case]) {
        let wrong = self.verdicts().filter(|(case, verdict)| match verdict {
            Verdict::Held => skipped.contains(case),
            Verdict::Skipped(_) => !skipped.contains(case),
            Verdict::Failed(_) => true,
        });
        let wrong: Vec<_> = wrong.map(|(case, _)| case.code()).collect();
        assert!(
            wrong.is_empty(),
            "not as expected: {}\n{self}",
            wrong.join(", ")
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (case, verdict) in &self.0 {
            match verdict {
                Verdict::Held => writeln!(f, "held     {case}")?,
                Verdict::Skipped(why) => writeln!(f, "skipped  {case}: {why}")?,
                Verdict::Failed(what) => writeln!(f, "FAILED   {case}: {what}")?,
            }
        }
        let (skipped, failed) = (self.skipped().count(), self.failed().count());
        let held = self.0.len() - skipped - failed;
        write!(f, "{held} held, {skipped} skipped, {failed} failed")
    }
}
