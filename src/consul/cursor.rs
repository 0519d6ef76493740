//! What to ask a blocking query next, and when.

use std::time::Duration;

use tokio::time::Instant;

/// How far a service was read, by Consul's rules for the index of a blocking query.
#[derive(Debug)]
pub(super) struct Cursor {
    index: Option<u64>,
    pace: Pace,
}

impl Cursor {
    pub(super) fn new() -> Self {
        Self {
            index: None,
            pace: Pace::default(),
        }
    }

    /// After which index to ask; none, for an answer at once.
    pub(super) fn after(&self) -> Option<u64> {
        self.index
    }

    /// When the next question may be asked.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        self.pace.turn(now)
    }

    /// An answer had this index.
    pub(super) fn answered(&mut self, index: Option<u64>, now: Instant) {
        self.index = match (self.index, index) {
            // It started anew, from a snapshot or from nothing: so do we.
            (Some(before), Some(index)) if index < before => None,
            (_, Some(index)) => Some(index),
            // To wait after none at all would be a busy loop; after 1 it is none, but for old agents that
            // always have none.
            (_, None) => {
                self.pace.slow(now);
                Some(1)
            }
        };
    }

    /// A question failed: an index of the time before would wait for as long as `wait` in an agent that has
    /// lost its data.
    pub(super) fn failed(&mut self) {
        self.index = None;
    }
}

/// A few questions at once, and then so many a second: what changes faster is told together.
#[derive(Debug, Default)]
struct Pace {
    /// When there would be no more in the bucket than there is room for one.
    full: Option<Instant>,
}

const EVERY: Duration = Duration::from_millis(200);
const BURST: u32 = 5;
const SLOW: Duration = Duration::from_secs(1);

impl Pace {
    fn turn(&mut self, now: Instant) -> Instant {
        let full = self.full.map_or(now, |full| full.max(now)) + EVERY;
        self.full = Some(full);
        let room = EVERY * BURST;
        let at = now.checked_add(full - now).unwrap_or(now);
        at.checked_sub(room).map_or(now, |at| at.max(now))
    }

    /// The next question is not asked before a second is over.
    fn slow(&mut self, now: Instant) {
        self.full = Some(now + SLOW + EVERY * (BURST - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_index_is_followed_and_starts_anew_when_it_goes_backwards() {
        let now = Instant::now();
        let mut cursor = Cursor::new();
        assert_eq!(cursor.after(), None);

        cursor.answered(Some(7), now);
        assert_eq!(cursor.after(), Some(7));
        cursor.answered(Some(7), now);
        assert_eq!(cursor.after(), Some(7));
        cursor.answered(Some(3), now);
        assert_eq!(cursor.after(), None);
        cursor.answered(Some(3), now);
        assert_eq!(cursor.after(), Some(3));
        cursor.failed();

        assert_eq!(cursor.after(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_index_it_is_asked_once_a_second() {
        let now = Instant::now();
        let mut cursor = Cursor::new();
        cursor.turn(now);

        cursor.answered(None, now);

        assert_eq!(cursor.after(), Some(1));
        assert_eq!(cursor.turn(now), now + SLOW);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_a_storm_is_not() {
        let now = Instant::now();
        let mut pace = Pace::default();

        let turns = [(); 8].map(|()| pace.turn(now) - now);

        let millis = turns.map(|turn| turn.as_millis());
        assert_eq!(millis, [0, 0, 0, 0, 0, 200, 400, 600]);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.turn(later), later);
    }
}
