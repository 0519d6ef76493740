//! When a lease is to be renewed, and when it is over, by our own clock.

use std::time::Duration;

use tokio::time::Instant;

/// The term of a lease.
///
/// etcd may start its clock at any moment between our asking and its answer, so ours starts when we asked:
/// a lease is then over here before it is over there, and before anybody else can have what hung on it.
#[derive(Clone, Debug)]
pub(super) struct Term {
    ttl: Duration,
    until: Instant,
    ask_at: Instant,
    /// How long after an answer to ask again: short after trouble, a third of the lease in peace.
    pace: Duration,
    troubled: bool,
}

/// A cluster that thaws answers first and deletes leases a few milliseconds later, so that after trouble it
/// is asked again at once, and then less and less often.
const FIRST_PACE: Duration = Duration::from_millis(25);

/// There is no use in asking more often than this, however little time is left.
const LEAST_WAIT: Duration = Duration::from_millis(50);

impl Term {
    /// A lease was asked for then, and granted for so long.
    pub(super) fn granted(asked: Instant, ttl: Duration) -> Self {
        Self {
            ttl,
            until: asked + ttl,
            ask_at: asked + ttl / 3,
            pace: ttl / 3,
            troubled: false,
        }
    }

    /// The same, after an outage.
    pub(super) fn resumed(asked: Instant, ttl: Duration) -> Self {
        let mut term = Self::granted(asked, ttl);
        term.troubled = true;
        term.renewed(asked, ttl);
        term
    }

    /// When it is over, unless it is renewed before.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// When to ask for its renewal.
    pub(super) fn ask_at(&self) -> Instant {
        self.ask_at
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// What was asked then was answered: so long from then on.
    pub(super) fn renewed(&mut self, asked: Instant, left: Duration) {
        self.until = self.until.max(asked + left);
        let peace = self.ttl.min(left) / 3;
        self.pace = if std::mem::take(&mut self.troubled) {
            FIRST_PACE
        } else {
            self.pace * 2
        }
        .min(peace);
        self.ask_at = asked + self.pace;
    }

    /// What was asked was not answered: ask again after the wait, or when half the time left is gone.
    pub(super) fn missed(&mut self, now: Instant, wait: Duration) {
        self.troubled = true;
        let half = (self.until.saturating_duration_since(now) / 2).max(LEAST_WAIT);
        self.ask_at = (now + wait.min(half)).min(self.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(9);

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_lease_is_renewed_every_third_and_counted_from_when_it_was_asked_for() {
        let start = Instant::now();
        let mut term = Term::granted(start, TTL);
        assert_eq!(term.ask_at(), start + s(3.0));

        term.renewed(start + s(3.0), TTL);

        assert_eq!(term.until(), start + s(12.0));
        assert_eq!(term.ask_at(), start + s(6.0));
        assert!(!term.is_over(start + s(11.9)) && term.is_over(start + s(12.0)));
    }

    #[test]
    fn without_an_answer_it_is_asked_at_half_of_what_is_left_and_ends_in_time() {
        let start = Instant::now();
        let mut term = Term::granted(start, TTL);
        let mut asked = Vec::new();

        while !term.is_over(term.ask_at()) {
            asked.push(term.ask_at() - start);
            term.missed(term.ask_at(), s(60.0));
        }

        assert_eq!(asked[..4], [s(3.0), s(6.0), s(7.5), s(8.25)]);
        assert!(asked.len() < 20, "{asked:?}");
        assert_eq!(term.ask_at(), start + TTL);
    }

    #[test]
    fn a_quick_refusal_is_asked_again_soon() {
        let start = Instant::now();
        let mut term = Term::granted(start, TTL);

        term.missed(start + s(3.0), s(0.1));

        assert_eq!(term.ask_at(), start + s(3.1));
    }

    #[test]
    fn after_trouble_it_is_asked_again_at_once_and_then_less_and_less() {
        let start = Instant::now();
        let mut term = Term::granted(start, TTL);
        term.missed(start + s(3.0), s(0.1));
        let mut gaps = Vec::new();

        for _ in 0..9 {
            let asked = term.ask_at();
            term.renewed(asked, TTL);
            gaps.push((term.ask_at() - asked).as_millis());
        }

        assert_eq!(gaps, [25, 50, 100, 200, 400, 800, 1600, 3000, 3000]);
    }

    #[test]
    fn an_answer_that_grants_less_shortens_nothing_that_was_granted() {
        let start = Instant::now();
        let mut term = Term::granted(start, TTL);

        term.renewed(start + s(3.0), s(3.0));

        assert_eq!(term.until(), start + TTL);
        assert_eq!(term.ask_at(), start + s(4.0));
    }
}
