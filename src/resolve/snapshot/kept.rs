//! Which set goes to disk, and when.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::super::{Change, Update};
use crate::{Instance, InstanceId, backoff::countable};

/// The last good set, and when it must be written.
#[derive(Debug)]
pub(super) struct Kept {
    set: BTreeMap<InstanceId, Entry>,
    /// Whether the registry stands by this set just now.
    fresh: bool,
    changed: bool,
    /// Not to be written before.
    earliest: Instant,
    /// A set that nobody changes is written again so that its age stays true.
    confirm: Duration,
    confirmed: Instant,
}

#[derive(Debug)]
struct Entry {
    instance: Arc<Instance>,
    vanished: Option<Instant>,
}

/// At most one write in this time.
const PAUSE: Duration = Duration::from_secs(1);

/// After a write that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// An instance that vanished without a word stays this long: an etcd that loses its leases looks so.
const HOLD: Duration = Duration::from_secs(60);

impl Kept {
    pub(super) fn new(max_age: Duration, now: Instant) -> Self {
        Self {
            set: BTreeMap::new(),
            fresh: false,
            changed: false,
            earliest: now,
            confirm: countable(max_age / 4).max(PAUSE),
            confirmed: now,
        }
    }

    /// Keeps what an update says.
    pub(super) fn apply(&mut self, update: &Update, now: Instant) {
        match update {
            Update::Reset(set) => self.reset(set),
            Update::Delta(changes) => {
                self.fresh = true;
                changes.iter().for_each(|change| self.change(change, now));
            }
            Update::Stale(_) => self.fresh = false,
            Update::Skipped(_) => {}
        }
    }

    pub(super) fn reset(&mut self, set: &[Arc<Instance>]) {
        let entry = |instance: &Arc<Instance>| (instance.id.clone(), Entry::of(instance));
        self.set = set.iter().map(entry).collect();
        self.fresh = true;
        self.changed = true;
    }

    fn change(&mut self, change: &Change, now: Instant) {
        match change {
            Change::Put(instance) => {
                self.set.insert(instance.id.clone(), Entry::of(instance));
                self.changed = true;
            }
            Change::Remove(id) => self.changed |= self.set.remove(id).is_some(),
            Change::Vanish(id) => {
                if let Some(entry) = self.set.get_mut(id) {
                    entry.vanished.get_or_insert(now);
                }
            }
        }
    }

    /// When [`take`](Self::take) should be called next. Never with an empty set: it would help nobody.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.set.is_empty() {
            return None;
        }
        if self.changed {
            return Some(self.earliest);
        }
        let vanished = self.set.values().filter_map(|entry| entry.vanished).min();
        let expiry = vanished.map(|at| at + HOLD);
        let confirm = self.fresh.then(|| self.confirmed + self.confirm);
        let next = expiry.into_iter().chain(confirm).min()?;
        Some(next.max(self.earliest))
    }

    /// The set to be written now; nothing, if it would be empty.
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<Arc<Instance>>> {
        self.set
            .retain(|_, entry| entry.vanished.is_none_or(|at| now < at + HOLD));
        self.changed = false;
        self.confirmed = now;
        self.earliest = now + PAUSE;
        // A reader of the file would refuse all for one that cannot be used.
        let set: Vec<_> = self
            .set
            .values()
            .filter(|entry| entry.instance.check().is_ok())
            .map(|entry| Arc::clone(&entry.instance))
            .collect();
        (!set.is_empty()).then_some(set)
    }

    /// What was taken could not be written: again, but not soon.
    pub(super) fn failed(&mut self, now: Instant) {
        self.changed = true;
        self.earliest = now + PAUSE_AFTER_FAILURE;
    }

    /// Whether there is something that the disk does not hold.
    pub(super) fn is_ahead(&self) -> bool {
        self.changed && !self.set.is_empty()
    }
}

impl Entry {
    fn of(instance: &Arc<Instance>) -> Self {
        Self {
            instance: Arc::clone(instance),
            vanished: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::fixed::named_after, *};
    use crate::{Error, ErrorKind};

    const HOUR: Duration = Duration::from_secs(3600);

    fn instance(host: &str) -> Arc<Instance> {
        Arc::new(named_after(format!("{host}:1").parse().unwrap()).unwrap())
    }

    fn vanish(host: &str) -> Update {
        Update::Delta(vec![Change::Vanish(instance(host).id.clone())])
    }

    fn hosts(set: Option<Vec<Arc<Instance>>>) -> Vec<String> {
        let host = |i: &Arc<Instance>| i.addresses[0].host();
        set.unwrap_or_default().iter().map(host).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_written_at_once_but_not_twice_in_a_second() {
        let now = Instant::now();
        let mut kept = Kept::new(HOUR, now);
        assert_eq!(kept.due(), None);

        kept.reset(&[instance("a"), instance("b")]);
        assert_eq!(kept.due(), Some(now));
        assert_eq!(hosts(kept.take(now)), ["a", "b"]);
        kept.apply(
            &Update::Delta(vec![Change::Remove(instance("a").id.clone())]),
            now,
        );

        assert_eq!(kept.due(), Some(now + PAUSE));
        assert_eq!(hosts(kept.take(now + PAUSE)), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_vanished_without_a_word_stays_a_minute() {
        let now = Instant::now();
        let mut kept = Kept::new(24 * HOUR, now);
        kept.reset(&[instance("a"), instance("b")]);
        kept.take(now);

        kept.apply(&vanish("a"), now);
        kept.apply(&vanish("a"), now + HOLD / 2);
        assert_eq!(kept.due(), Some(now + HOLD));
        kept.apply(&vanish("b"), now + HOLD / 2);
        kept.apply(
            &Update::Delta(vec![Change::Put(instance("b"))]),
            now + HOLD / 2,
        );

        assert_eq!(hosts(kept.take(now + HOLD)), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_set_is_never_written() {
        let now = Instant::now();
        let mut kept = Kept::new(HOUR, now);
        kept.reset(&[instance("a")]);
        kept.take(now);

        kept.apply(&vanish("a"), now);
        assert_eq!(kept.take(now + HOLD), None);
        kept.reset(&[]);

        assert_eq!((kept.due(), kept.is_ahead()), (None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_the_registry_stands_by_does_not_age() {
        let now = Instant::now();
        let mut kept = Kept::new(HOUR, now);
        kept.reset(&[instance("a")]);
        kept.take(now);
        assert_eq!(kept.due(), Some(now + HOUR / 4));

        kept.apply(&Update::Stale(Error::new(ErrorKind::Unavailable, "x")), now);
        assert_eq!(kept.due(), None);
        kept.apply(&Update::Delta(vec![]), now);

        assert_eq!(kept.due(), Some(now + HOUR / 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_may_be_of_any_age() {
        let now = Instant::now();
        let mut kept = Kept::new(Duration::MAX, now);
        kept.reset(&[instance("a")]);

        kept.take(now);

        assert!(kept.due().unwrap() > now + 24 * 365 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_failed_is_tried_again_later() {
        let now = Instant::now();
        let mut kept = Kept::new(HOUR, now);
        kept.reset(&[instance("a")]);
        kept.take(now);

        kept.failed(now);

        assert!(kept.is_ahead());
        assert_eq!(kept.due(), Some(now + PAUSE_AFTER_FAILURE));
    }
}
