//! Several registries as one.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time;

use super::{
    Change, Publisher, Resolve, Update, Updates,
    heard::{Heard, Known},
    publish,
};
use crate::{Error, Instance, InstanceId, ServiceName};

/// The instances of several registries; [`merge`] makes one.
#[derive(Clone)]
pub struct Merge(Arc<[Arc<dyn Resolve>]>);

/// All instances of all these registries, as one set: for a fleet that moves from one to another.
///
/// Who is in several of them by the same id counts once, as the first of them says. The first set is told
/// when all have spoken, or when one has and the others have had a second. It is stale when no registry is
/// in reach, and not while one of several is.
///
/// ```
/// use tonic_fleet::resolve::{self, Fixed};
///
/// let (old, new) = (Fixed::at(["10.0.0.1:50051"])?, Fixed::at(["10.0.0.2:50051"])?);
/// let both = resolve::merge([old, new]);
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
pub fn merge<I>(registries: I) -> Merge
where
    I: IntoIterator,
    I::Item: Resolve,
{
    let one = |registry: I::Item| Arc::new(registry) as Arc<dyn Resolve>;
    Merge(registries.into_iter().map(one).collect())
}

/// How long a registry may keep the others' set waiting.
const PATIENCE: Duration = Duration::from_secs(1);

impl Resolve for Merge {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let all: Vec<_> = self.0.iter().map(|one| one.resolve(service)).collect();
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = relay(all, &publisher) => {}
            }
        });
        updates
    }
}

async fn relay(all: Vec<Updates>, publisher: &Publisher) {
    let mut union = Union {
        heard: all.iter().map(|_| Heard::default()).collect(),
        shown: BTreeMap::new(),
        begun: false,
        stale: None,
        publisher,
    };
    // The end of one is an update, too.
    let tagged = all.into_iter().enumerate().map(|(nth, updates)| {
        let updates = updates.map(Some).chain(stream::iter([None]));
        updates.map(move |update| (nth, update)).boxed()
    });
    let mut updates = stream::select_all(tagged);
    let mut patience = std::pin::pin!(time::sleep(PATIENCE));
    loop {
        let waits = !union.begun && !patience.is_elapsed();
        tokio::select! {
            update = updates.next() => match update {
                None => return,
                Some((nth, update)) => union.take(nth, update, !waits),
            },
            () = &mut patience, if waits => union.tell(Vec::new(), true),
        }
    }
}

struct Union<'a> {
    heard: Vec<Heard>,
    shown: BTreeMap<InstanceId, Known>,
    begun: bool,
    /// Why, in words, when nobody is in reach.
    stale: Option<String>,
    publisher: &'a Publisher,
}

impl Union<'_> {
    /// One of them says this, or nothing any more; `late` if the others need not be waited for.
    fn take(&mut self, nth: usize, update: Option<Update>, late: bool) {
        let heard = &mut self.heard[nth];
        let skips = matches!(update, Some(Update::Skipped(_)));
        let about = match update {
            Some(update) => heard.take(update),
            None => {
                heard.ended = true;
                Vec::new()
            }
        };
        self.tell(about, late);
        if skips {
            let skipped = self.heard.iter().flat_map(|heard| &heard.skipped);
            self.publisher.skipped(skipped.cloned().collect());
        }
    }

    fn tell(&mut self, about: Vec<InstanceId>, late: bool) {
        let listed = self.heard.iter().any(|heard| heard.listed);
        if self.begun {
            self.show(about);
        } else if listed && (late || self.heard.iter().all(Heard::has_spoken)) {
            self.begun = true;
            self.publisher.reset(Vec::<Arc<Instance>>::new());
            let ids = self.heard.iter().flat_map(Heard::ids).cloned();
            self.show(ids.collect());
        }
        self.tell_whether_stale();
    }

    fn show(&mut self, about: Vec<InstanceId>) {
        let mut changes = Vec::new();
        for id in about {
            let now = self.best(&id).cloned();
            let before = self.shown.get(&id);
            if now.as_ref() == before {
                continue;
            }
            match now {
                None => {
                    self.shown.remove(&id);
                    changes.push(Change::Remove(id));
                }
                Some(now) => {
                    if before
                        .is_none_or(|before| before.instance != now.instance || before.vanished)
                    {
                        changes.push(Change::Put(Arc::clone(&now.instance)));
                    }
                    if now.vanished {
                        changes.push(Change::Vanish(id.clone()));
                    }
                    self.shown.insert(id, now);
                }
            }
        }
        if !changes.is_empty() {
            self.publisher.delta(changes);
        }
    }

    /// What the first says who has it; one who has it still, before one whom it vanished from.
    fn best(&self, id: &InstanceId) -> Option<&Known> {
        let known = || self.heard.iter().filter_map(|heard| heard.get(id));
        known()
            .find(|known| !known.vanished)
            .or_else(|| known().next())
    }

    fn tell_whether_stale(&mut self) {
        let in_reach = self.heard.iter().any(Heard::is_in_reach);
        let why = self.heard.iter().find_map(|heard| heard.stale.clone());
        let why = why.filter(|_| !in_reach);
        let words = why.as_ref().map(Error::chain);
        if words == self.stale {
            return;
        }
        self.stale = words;
        match why {
            Some(why) => self.publisher.stale(why),
            None if in_reach => self.publisher.delta([]),
            None => {}
        }
    }
}

impl fmt::Debug for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge")
            .field("registries", &self.0.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        ErrorKind,
        resolve::testing::{Scripted, words},
    };

    fn instance(id: &str, port: u16) -> Arc<Instance> {
        let instance = Instance::at(format!("10.0.0.1:{port}").as_str()).unwrap();
        Arc::new(instance.id(id).unwrap())
    }

    fn two() -> (Updates, Publisher, Publisher) {
        let ((first, one), (second, other)) = (Scripted::new(), Scripted::new());
        let updates = merge([first, second]).resolve(&"greeter".parse().unwrap());
        (updates, one, other)
    }

    fn cut() -> Error {
        Error::new(ErrorKind::Unavailable, "cut")
    }

    #[tokio::test(start_paused = true)]
    async fn one_set_is_told_when_both_have_spoken() {
        let (mut updates, one, other) = two();

        one.reset([instance("a", 1), instance("b", 1)]);
        other.reset([instance("b", 2), instance("c", 2)]);

        assert_eq!(words(&mut updates).await, "reset a b c");
        other.delta([
            Change::Put(instance("d", 2)),
            Change::Remove("c".parse().unwrap()),
        ]);
        assert_eq!(words(&mut updates).await, "delta -c +d");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_both_is_as_the_first_says_and_leaves_when_it_left_both() {
        let (mut updates, one, other) = two();
        one.reset([instance("a", 1)]);
        other.reset([instance("a", 2)]);
        assert_eq!(words(&mut updates).await, "reset a");
        let id: InstanceId = "a".parse().unwrap();

        one.delta([Change::Vanish(id.clone())]);
        assert_eq!(words(&mut updates).await, "delta +a");
        other.delta([Change::Remove(id.clone())]);

        assert_eq!(words(&mut updates).await, "delta +a ?a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_one_is_waited_for_a_second() {
        let began = Instant::now();
        let (mut updates, one, other) = two();

        one.reset([instance("a", 1)]);

        assert_eq!(words(&mut updates).await, "reset a");
        assert_eq!(Instant::now() - began, PATIENCE);
        other.reset([instance("b", 2)]);
        assert_eq!(words(&mut updates).await, "delta +b");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_stale_when_nobody_is_in_reach_any_more() {
        let (mut updates, one, other) = two();
        one.reset([instance("a", 1)]);
        one.stale(cut());
        other.reset([instance("b", 2)]);
        assert_eq!(words(&mut updates).await, "reset a b");

        other.stale(cut());
        assert_eq!(words(&mut updates).await, "stale cut");
        one.delta([]);

        assert_eq!(words(&mut updates).await, "delta ");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_last_one() {
        let (mut updates, one, other) = two();
        one.reset([instance("a", 1)]);
        other.reset([instance("b", 2)]);

        drop((one, other));

        assert_eq!(words(&mut updates).await, "reset a b");
        assert_eq!(words(&mut updates).await, "end");
    }
}
