//! How often to put a key back that others take away.

use std::time::Duration;

use tokio::time::Instant;

use crate::Backoff;

/// Lets the first few go at once, and slows down whoever fights over a key.
#[derive(Debug)]
pub(crate) struct Guard {
    backoff: Backoff,
    last: Option<Instant>,
    count: u32,
}

/// A mistake by hand, or a cluster that deletes leases by mistake, is put right without a wait.
const FREE: u32 = 3;
/// Nobody does that by mistake so often.
const FIGHT: u32 = 8;
/// After so long without a disturbance, the next is the first.
const CALM: Duration = Duration::from_secs(10);

impl Default for Guard {
    fn default() -> Self {
        Self {
            backoff: Backoff::between(Duration::from_millis(20), Duration::from_secs(5))
                .factor(2.0),
            last: None,
            count: 0,
        }
    }
}

impl Guard {
    /// A key was taken away: how long to wait before it is put back.
    pub(crate) fn disturbed(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now >= last + CALM) {
            self.backoff.reset();
            self.count = 0;
        }
        self.last = Some(now);
        self.count += 1;
        if self.count <= FREE {
            Duration::ZERO
        } else {
            self.backoff.next()
        }
    }

    /// Whether somebody will not stop taking it away.
    pub(crate) fn is_fight(&self, now: Instant) -> bool {
        self.count >= FIGHT && self.last.is_some_and(|last| now < last + CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_disturbances_cost_no_wait_and_a_fight_costs_more_and_more() {
        let (mut guard, mut now) = (Guard::default(), Instant::now());
        let mut waits = Vec::new();

        for _ in 0..20 {
            let wait = guard.disturbed(now);
            now += wait;
            waits.push(wait);
        }

        assert_eq!(waits[..3], [Duration::ZERO; 3]);
        assert!(waits[3] > Duration::ZERO && waits[3] < Duration::from_millis(30));
        assert!(waits[19] >= Duration::from_secs(4), "{waits:?}");
        assert!(guard.is_fight(now));
    }

    #[test]
    fn calm_makes_the_next_disturbance_the_first() {
        let (mut guard, mut now) = (Guard::default(), Instant::now());
        for _ in 0..20 {
            now += guard.disturbed(now);
        }

        now += CALM;

        assert!(!guard.is_fight(now));
        assert_eq!(guard.disturbed(now), Duration::ZERO);
    }
}
