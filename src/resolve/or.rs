//! A second registry, for when the first has nothing.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::{Publisher, Resolve, Update, Updates, heard::Heard, publish};
use crate::{ServiceName, backoff::countable};

/// Serves from a second registry while the first has had nothing for a while; see [`Resolve::or`].
#[derive(Clone, Debug)]
pub struct Or<A, B> {
    first: Arc<A>,
    second: Arc<B>,
    patience: Duration,
}

impl<A: Resolve, B: Resolve> Or<A, B> {
    pub(super) fn new(first: A, second: B, patience: Duration) -> Self {
        Self {
            first: Arc::new(first),
            second: Arc::new(second),
            patience: countable(patience),
        }
    }
}

impl<A: Resolve, B: Resolve> Resolve for Or<A, B> {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let first = self.first.resolve(service);
        let relay = Relay {
            first: Side::of(first),
            second: None,
            since: Some(Instant::now() + self.patience),
            patience: self.patience,
        };
        let (service, second) = (service.clone(), Arc::clone(&self.second));
        tokio::spawn(async move {
            let open = || second.resolve(&service);
            tokio::select! {
                () = publisher.closed() => {}
                () = relay.run(open, &publisher) => {}
            }
        });
        updates
    }
}

/// One registry, and what it has said.
struct Side {
    updates: Updates,
    heard: Heard,
}

impl Side {
    fn of(updates: Updates) -> Self {
        let heard = Heard::default();
        Self { updates, heard }
    }

    /// Its next word, and nothing ever after its last; what it knows stays then.
    async fn next(&mut self) -> Option<Update> {
        if self.heard.ended {
            pending::<()>().await;
        }
        self.updates.next().await
    }
}

struct Relay {
    first: Side,
    /// Only while the first has nothing.
    second: Option<Side>,
    /// When the first has had nothing for too long.
    since: Option<Instant>,
    patience: Duration,
}

impl Relay {
    async fn run(mut self, open: impl Fn() -> Updates, publisher: &Publisher) {
        loop {
            if self.is_over() {
                return;
            }
            let due = self.since;
            let second = async {
                match &mut self.second {
                    Some(side) => side.next().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                update = self.first.next() => self.first_says(update, publisher),
                update = second => self.second_says(update, publisher),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    tracing::warn!(after = ?self.patience, "nothing in the first registry: asking the second");
                    self.since = None;
                    self.second = Some(Side::of(open()));
                }
            }
        }
    }

    /// Whether nobody will say anything any more.
    fn is_over(&self) -> bool {
        let second = self.second.as_ref();
        self.first.heard.ended && self.since.is_none() && second.is_none_or(|side| side.heard.ended)
    }

    fn first_says(&mut self, update: Option<Update>, publisher: &Publisher) {
        let had_none = self.first.heard.is_empty();
        match &update {
            Some(update) => drop(self.first.heard.take(update.clone())),
            None => self.first.heard.ended = true,
        }
        let has_none = self.first.heard.is_empty();
        if !had_none && has_none {
            self.since = Some(Instant::now() + self.patience);
        }
        if has_none {
            // While the second serves, it is the second that is heard.
            if self.second.is_none()
                && let Some(update) = update
            {
                publisher.update(update);
            }
            return;
        }
        self.since = None;
        if self.second.take().is_some() {
            tracing::info!("the first registry has instances again");
            self.first.heard.tell(publisher);
        } else if let Some(update) = update {
            publisher.update(update);
        }
    }

    fn second_says(&mut self, update: Option<Update>, publisher: &Publisher) {
        let Some(side) = &mut self.second else {
            return;
        };
        match update {
            Some(update) => {
                side.heard.take(update.clone());
                publisher.update(update);
            }
            None => side.heard.ended = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, ErrorKind, Instance,
        resolve::{
            Change,
            testing::{Scripted, words},
        },
    };

    const WHILE: Duration = Duration::from_secs(3);

    fn instance(id: &str) -> Arc<Instance> {
        let instance = Instance::at("10.0.0.1:1").unwrap();
        Arc::new(instance.id(id).unwrap())
    }

    fn two() -> (Updates, Publisher, Publisher) {
        let ((first, one), (second, other)) = (Scripted::new(), Scripted::new());
        let updates = first.or(second, WHILE).resolve(&"greeter".parse().unwrap());
        (updates, one, other)
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_serves_when_the_first_is_empty_for_a_while_and_no_longer() {
        let (mut updates, one, other) = two();
        one.reset([instance("a")]);
        assert_eq!(words(&mut updates).await, "reset a");
        let began = Instant::now();

        one.delta([Change::Remove("a".parse().unwrap())]);
        other.reset([instance("b")]);
        assert_eq!(words(&mut updates).await, "delta -a");
        assert_eq!(words(&mut updates).await, "reset b");
        assert_eq!(Instant::now() - began, WHILE);
        one.delta([Change::Put(instance("a"))]);

        assert_eq!(words(&mut updates).await, "reset a");
        // Nobody reads the second any more.
        other.closed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_that_is_out_of_reach_keeps_its_set() {
        let (mut updates, one, other) = two();
        one.reset([instance("a")]);
        other.reset([instance("b")]);
        assert_eq!(words(&mut updates).await, "reset a");

        one.stale(Error::new(ErrorKind::Unavailable, "cut"));
        assert_eq!(words(&mut updates).await, "stale cut");
        tokio::time::sleep(WHILE * 10).await;
        one.delta([]);

        assert_eq!(words(&mut updates).await, "delta ");
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_that_never_says_anything_is_replaced() {
        let (mut updates, one, other) = two();

        other.reset([instance("b")]);
        assert_eq!(words(&mut updates).await, "reset b");
        one.stale(Error::new(ErrorKind::Unavailable, "cut"));
        other.delta([Change::Put(instance("c"))]);
        assert_eq!(words(&mut updates).await, "delta +c");
        one.reset([instance("a")]);

        assert_eq!(words(&mut updates).await, "reset a");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_both_have() {
        let (mut updates, one, other) = two();
        drop(one);
        other.reset([instance("b")]);
        assert_eq!(words(&mut updates).await, "reset b");

        drop(other);

        assert_eq!(words(&mut updates).await, "end");
    }
}
