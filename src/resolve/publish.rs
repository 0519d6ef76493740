//! How a resolver tells its updates: as state of which the latest wins, never as a queue.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::{Change, Skipped, Update, Updates};
use crate::{Error, Instance, InstanceId, lock::locked};

/// Two ends: what is told to the [`Publisher`] comes out of the [`Updates`].
///
/// A reader that is slow gets fewer, larger updates. What waits is at most two changes an instance.
pub fn publish() -> (Publisher, Updates) {
    let shared = Arc::new(Mutex::new(Pending::default()));
    let closed = tokio_util::sync::CancellationToken::new();
    let reader = Reader {
        shared: Arc::clone(&shared),
        _closed: closed.clone().drop_guard(),
    };
    (Publisher { shared, closed }, Box::pin(reader))
}

/// The end that tells; see [`publish`]. Nothing here waits. Dropping it ends the stream.
pub struct Publisher {
    shared: Arc<Mutex<Pending>>,
    closed: tokio_util::sync::CancellationToken,
}

struct Reader {
    shared: Arc<Mutex<Pending>>,
    _closed: tokio_util::sync::DropGuard,
}

/// What was told and not yet read.
#[derive(Default)]
struct Pending {
    /// A whole set, with the changes to it that need no word of their own.
    reset: Option<BTreeMap<InstanceId, Arc<Instance>>>,
    /// Who is new or different, or has left.
    changes: BTreeMap<InstanceId, Change>,
    /// Who vanished after that.
    vanished: BTreeSet<InstanceId>,
    link: Option<Link>,
    skipped: Option<Vec<Skipped>>,
    ended: bool,
    waker: Option<Waker>,
}

enum Link {
    Fresh,
    Stale(Error),
}

impl Publisher {
    /// This is the whole set.
    pub fn reset<I>(&self, instances: I)
    where
        I: IntoIterator,
        I::Item: Into<Arc<Instance>>,
    {
        // Whatever the caller's iterator does, it does not do it with the lock held.
        let instances = instances.into_iter().map(Into::into);
        let set = instances.map(|i: Arc<Instance>| (i.id.clone(), i));
        let set = set.collect();
        self.tell(|pending| {
            pending.reset = Some(set);
            pending.changes.clear();
            pending.vanished.clear();
            pending.link = None;
        });
    }

    /// These changed; with none of them, the registry is in reach again.
    pub fn delta(&self, changes: impl IntoIterator<Item = Change>) {
        let changes = changes.into_iter().collect::<Vec<_>>();
        self.tell(|pending| {
            if pending.reset.is_none() || matches!(pending.link, Some(Link::Stale(_))) {
                pending.link = Some(Link::Fresh);
            }
            for change in changes {
                pending.change(change);
            }
        });
    }

    /// The registry is out of reach.
    pub fn stale(&self, why: Error) {
        self.tell(|pending| pending.link = Some(Link::Stale(why)));
    }

    /// All the records that are passed over just now.
    pub fn skipped(&self, skipped: Vec<Skipped>) {
        self.tell(|pending| pending.skipped = Some(skipped));
    }

    /// Tells an update as a whole, for those who pass on another's.
    pub fn update(&self, update: Update) {
        match update {
            Update::Reset(instances) => self.reset(instances),
            Update::Delta(changes) => self.delta(changes),
            Update::Stale(why) => self.stale(why),
            Update::Skipped(skipped) => self.skipped(skipped),
        }
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Returns when nobody reads any more: what works for the reader should stop then.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn tell(&self, what: impl FnOnce(&mut Pending)) {
        let mut pending = locked(&self.shared);
        what(&mut pending);
        let waker = pending.waker.take();
        drop(pending);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Pending {
    fn change(&mut self, change: Change) {
        match change {
            Change::Put(instance) => self.put(instance),
            Change::Remove(id) => self.remove(id),
            Change::Vanish(id) if self.left_on_purpose(&id) => self.remove(id),
            // What it was last stays to be told: a suspect is where it was last, not where it was before.
            Change::Vanish(id) => drop(self.vanished.insert(id)),
        }
    }

    fn put(&mut self, instance: Arc<Instance>) {
        let id = instance.id.clone();
        self.vanished.remove(&id);
        if let Some(set) = &mut self.reset {
            self.changes.remove(&id);
            set.insert(id, instance);
        } else {
            self.changes.insert(id, Change::Put(instance));
        }
    }

    fn remove(&mut self, id: InstanceId) {
        self.vanished.remove(&id);
        if let Some(set) = &mut self.reset {
            self.changes.remove(&id);
            set.remove(&id);
        } else {
            self.changes.insert(id.clone(), Change::Remove(id));
        }
    }

    /// Whether the last word on it, which the reader will not see, was a mark or a removal.
    fn left_on_purpose(&self, id: &InstanceId) -> bool {
        match (self.changes.get(id), &self.reset) {
            (Some(Change::Put(instance)), _) => instance.is_draining(),
            (Some(Change::Remove(_)), _) => true,
            (Some(Change::Vanish(_)), _) | (None, None) => false,
            (None, Some(set)) => set.get(id).is_none_or(|instance| instance.is_draining()),
        }
    }

    fn next(&mut self) -> Option<Update> {
        if let Some(set) = self.reset.take() {
            return Some(Update::Reset(set.into_values().collect()));
        }
        if !self.changes.is_empty() || !self.vanished.is_empty() {
            if matches!(self.link, Some(Link::Fresh)) {
                self.link = None;
            }
            let changes = std::mem::take(&mut self.changes).into_values();
            let vanished = std::mem::take(&mut self.vanished).into_iter();
            let changes = changes.chain(vanished.map(Change::Vanish));
            return Some(Update::Delta(changes.collect()));
        }
        if let Some(skipped) = self.skipped.take() {
            return Some(Update::Skipped(skipped));
        }
        match self.link.take()? {
            Link::Fresh => Some(Update::Delta(Vec::new())),
            Link::Stale(why) => Some(Update::Stale(why)),
        }
    }
}

impl Stream for Reader {
    type Item = Update;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let mut pending = locked(&self.shared);
        match pending.next() {
            Some(update) => Poll::Ready(Some(update)),
            None if pending.ended => Poll::Ready(None),
            None => {
                pending.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.tell(|pending| pending.ended = true);
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("closed", &self.is_closed())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::{super::testing::said, *};
    use crate::ErrorKind;

    fn instance(id: &str) -> Arc<Instance> {
        let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(id)).unwrap();
        Arc::new(instance)
    }

    fn id(id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    /// All that can be read now, in short words.
    fn read(updates: &mut Updates) -> Vec<String> {
        said(std::iter::from_fn(|| {
            updates.next().now_or_never().flatten()
        }))
    }

    #[test]
    fn a_slow_reader_gets_the_latest_state_and_not_the_history() {
        let (publisher, mut updates) = publish();
        publisher.reset([instance("a"), instance("b")]);
        publisher.delta([Change::Put(instance("c"))]);
        publisher.delta([Change::Remove(id("a"))]);
        assert_eq!(read(&mut updates), ["=bc"]);

        for _ in 0..1000 {
            publisher.delta([Change::Put(instance("b")), Change::Vanish(id("c"))]);
        }

        assert_eq!(read(&mut updates), ["~+b?c"]);
    }

    #[test]
    fn a_vanishing_after_a_mark_is_a_leaving_even_when_the_mark_was_not_read() {
        let (publisher, mut updates) = publish();
        publisher.reset([instance("a")]);
        read(&mut updates);

        let marked = Arc::new((*instance("a")).clone().serving(false));
        publisher.delta([Change::Put(marked)]);
        publisher.delta([Change::Vanish(id("a"))]);

        assert_eq!(read(&mut updates), ["~-a"]);
    }

    #[test]
    fn a_vanishing_from_a_set_that_is_still_unread_stays_a_suspicion() {
        let (publisher, mut updates) = publish();
        publisher.reset([instance("a"), instance("b")]);
        publisher.delta([Change::Vanish(id("a")), Change::Vanish(id("unknown"))]);

        assert_eq!(read(&mut updates), ["=ab", "~?a"]);
    }

    #[test]
    fn a_vanishing_that_is_taken_back_is_not_seen() {
        let (publisher, mut updates) = publish();
        publisher.reset([instance("a")]);
        read(&mut updates);

        publisher.delta([Change::Vanish(id("a"))]);
        publisher.delta([Change::Put(instance("a"))]);

        assert_eq!(read(&mut updates), ["~+a"]);
    }

    #[test]
    fn staleness_comes_after_what_was_known_and_ends_with_the_next_word() {
        let (publisher, mut updates) = publish();
        publisher.reset([instance("a")]);
        publisher.stale(Error::new(ErrorKind::Unavailable, "watch"));
        assert_eq!(read(&mut updates), ["=a", "stale"]);

        publisher.stale(Error::new(ErrorKind::Unavailable, "watch"));
        publisher.delta([]);

        assert_eq!(read(&mut updates), ["~"]);
    }

    #[test]
    fn the_two_ends_notice_each_other() {
        let (publisher, mut updates) = publish();
        drop(publisher);
        assert!(updates.next().now_or_never().flatten().is_none());

        let (publisher, updates) = publish();
        assert!(!publisher.is_closed());
        drop(updates);
        assert!(publisher.is_closed());
    }
}

#[cfg(test)]
mod fuzz {
    use futures_util::{FutureExt, StreamExt};
    use rand::{RngExt, rngs::StdRng};

    use super::*;

    /// Who is known, who of them drains, and who is suspected to be dead.
    #[derive(Debug, Default, Eq, PartialEq)]
    struct State {
        known: BTreeMap<InstanceId, bool>,
        suspects: BTreeSet<InstanceId>,
    }

    impl State {
        fn apply(&mut self, update: &Update) {
            match update {
                Update::Reset(set) => {
                    self.suspects.clear();
                    self.known = set
                        .iter()
                        .map(|i| (i.id.clone(), i.is_draining()))
                        .collect();
                }
                Update::Delta(changes) => changes.iter().for_each(|change| self.change(change)),
                Update::Stale(_) | Update::Skipped(_) => {}
            }
        }

        fn change(&mut self, change: &Change) {
            match change {
                Change::Put(instance) => {
                    self.suspects.remove(&instance.id);
                    self.known
                        .insert(instance.id.clone(), instance.is_draining());
                }
                // After the mark, a deletion is final.
                Change::Vanish(id) if self.known.get(id) == Some(&false) => {
                    self.suspects.insert(id.clone());
                }
                Change::Remove(id) | Change::Vanish(id) => {
                    self.suspects.remove(id);
                    self.known.remove(id);
                }
            }
        }
    }

    fn instance(rng: &mut StdRng) -> Arc<Instance> {
        let id = format!("i{}", rng.random_range(0..5));
        let instance = Instance::at("h:1").and_then(|i| i.id(id)).unwrap();
        Arc::new(instance.serving(rng.random()))
    }

    fn update(rng: &mut StdRng) -> Update {
        if rng.random_ratio(1, 6) {
            let mut set: Vec<_> = (0..rng.random_range(0..5)).map(|_| instance(rng)).collect();
            set.sort_by(|a, b| a.id.cmp(&b.id));
            set.dedup_by(|a, b| a.id == b.id);
            return Update::Reset(set);
        }
        let change = |rng: &mut StdRng| {
            let instance = instance(rng);
            match rng.random_range(0..3) {
                0 => Change::Put(instance),
                1 => Change::Remove(instance.id.clone()),
                _ => Change::Vanish(instance.id.clone()),
            }
        };
        Update::Delta((0..rng.random_range(0..3)).map(|_| change(rng)).collect())
    }

    #[test]
    fn whenever_it_is_read_the_reader_ends_where_the_teller_is() {
        crate::fuzz::rounds(|rng| {
            let (publisher, mut updates) = publish();
            let (mut told, mut read) = (State::default(), State::default());
            let mut history = Vec::new();
            for _ in 0..rng.random_range(1..30) {
                let update = update(rng);
                told.apply(&update);
                history.push(format!("{update:?}"));
                publisher.update(update);
                if rng.random_ratio(1, 3) {
                    while let Some(Some(update)) = updates.next().now_or_never() {
                        read.apply(&update);
                    }
                    assert_eq!(read, told, "after {history:#?}");
                }
            }
        });
    }
}
