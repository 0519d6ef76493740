//! What a registry says, put otherwise, or in part.

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures_util::StreamExt;

use super::{Change, Resolve, Update, Updates};
use crate::{Instance, InstanceId, ServiceName};

/// Shows instances otherwise, or some of them not at all; see [`Resolve::map`] and [`Resolve::filter`].
#[derive(Clone)]
pub struct Shaped<R> {
    inner: R,
    shape: Shape,
}

type Shape = Arc<dyn Fn(Arc<Instance>) -> Option<Arc<Instance>> + Send + Sync>;

impl<R: Resolve> Shaped<R> {
    pub(super) fn map(
        inner: R,
        map: impl Fn(Instance) -> Instance + Send + Sync + 'static,
    ) -> Self {
        let shape = move |instance| Some(Arc::new(map(Arc::unwrap_or_clone(instance))));
        let shape = Arc::new(shape);
        Self { inner, shape }
    }

    pub(super) fn filter(
        inner: R,
        keep: impl Fn(&Instance) -> bool + Send + Sync + 'static,
    ) -> Self {
        let shape = Arc::new(move |instance: Arc<Instance>| keep(&instance).then_some(instance));
        Self { inner, shape }
    }
}

impl<R: Resolve> Resolve for Shaped<R> {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let mut view = View {
            shape: Arc::clone(&self.shape),
            shown: HashMap::new(),
        };
        let updates = self.inner.resolve(service);
        Box::pin(updates.map(move |update| view.of(update)))
    }
}

struct View {
    shape: Shape,
    /// By the id that the registry gives it, the one that is shown.
    shown: HashMap<InstanceId, InstanceId>,
}

impl View {
    fn of(&mut self, update: Update) -> Update {
        match update {
            Update::Reset(set) => {
                self.shown.clear();
                let set = set.into_iter().filter_map(|instance| self.show(instance));
                Update::Reset(set.collect())
            }
            Update::Delta(changes) => {
                let changes = changes.into_iter().flat_map(|change| self.change(change));
                Update::Delta(changes.collect())
            }
            other => other,
        }
    }

    fn show(&mut self, instance: Arc<Instance>) -> Option<Arc<Instance>> {
        let id = instance.id.clone();
        // A closure that panics must not take along the channel that listens.
        let shaped = catch_unwind(AssertUnwindSafe(|| (self.shape)(instance)));
        let Ok(shaped) = shaped else {
            tracing::error!(%id, "the closure of `map` or `filter` panicked; this instance is left out");
            return None;
        };
        let shaped = shaped?;
        if let Err(why) = shaped.check() {
            tracing::warn!(%id, why = why.chain(), "what an instance was made into cannot be used");
            return None;
        }
        self.shown.insert(id, shaped.id.clone());
        Some(shaped)
    }

    fn change(&mut self, change: Change) -> Vec<Change> {
        match change {
            Change::Put(instance) => {
                let before = self.shown.remove(&instance.id);
                let now = self.show(instance);
                let same = |id: &InstanceId| now.as_ref().is_some_and(|now| now.id == *id);
                let gone = before.filter(|before| !same(before)).map(Change::Remove);
                gone.into_iter().chain(now.map(Change::Put)).collect()
            }
            Change::Remove(id) => {
                let gone = self.shown.remove(&id).map(Change::Remove);
                gone.into_iter().collect()
            }
            Change::Vanish(id) => {
                let gone = self.shown.get(&id).cloned().map(Change::Vanish);
                gone.into_iter().collect()
            }
        }
    }
}

impl<R: fmt::Debug> fmt::Debug for Shaped<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shaped")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::{
        Publisher,
        testing::{Scripted, words},
    };

    fn instance(id: &str, zone: &str) -> Arc<Instance> {
        let instance = Instance::at("10.0.0.1:1").unwrap();
        Arc::new(instance.id(id).unwrap().zone(zone))
    }

    fn id(id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    fn told(tell: &Publisher, changes: impl IntoIterator<Item = Change>) {
        tell.delta(changes);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_do_not_pass_are_not_there_and_leave_when_they_change() {
        let (registry, tell) = Scripted::new();
        let here = registry.filter(|instance| instance.zone.as_deref() == Some("a"));
        let mut updates = here.resolve(&"greeter".parse().unwrap());

        tell.reset([instance("x", "a"), instance("y", "b")]);
        assert_eq!(words(&mut updates).await, "reset x");
        told(
            &tell,
            [Change::Put(instance("y", "a")), Change::Vanish(id("x"))],
        );
        assert_eq!(words(&mut updates).await, "delta +y ?x");
        told(
            &tell,
            [Change::Put(instance("y", "b")), Change::Remove(id("x"))],
        );

        assert_eq!(words(&mut updates).await, "delta -x -y");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_gets_another_name_goes_by_it() {
        let (registry, tell) = Scripted::new();
        let renamed = registry.map(|instance| {
            let id = format!(
                "{}-{}",
                instance.zone.as_deref().unwrap_or("?"),
                instance.id
            );
            instance.id(id).unwrap()
        });
        let mut updates = renamed.resolve(&"greeter".parse().unwrap());

        tell.reset([instance("x", "a")]);
        assert_eq!(words(&mut updates).await, "reset a-x");
        told(&tell, [Change::Put(instance("x", "b"))]);
        assert_eq!(words(&mut updates).await, "delta -a-x +b-x");
        told(
            &tell,
            [Change::Vanish(id("x")), Change::Vanish(id("unknown"))],
        );
        assert_eq!(words(&mut updates).await, "delta ?b-x");
        told(&tell, [Change::Remove(id("x"))]);

        assert_eq!(words(&mut updates).await, "delta -b-x");
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_of_no_use_is_not_shown() {
        let (registry, tell) = Scripted::new();
        let broken = registry.map(|mut instance| {
            instance.addresses.clear();
            instance
        });
        let mut updates = broken.resolve(&"greeter".parse().unwrap());

        tell.reset([instance("x", "a")]);

        assert_eq!(words(&mut updates).await, "reset ");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closure_that_panics_costs_one_instance_and_not_the_others() {
        let (registry, tell) = Scripted::new();
        let picky = registry.filter(|instance| {
            instance.zone.as_deref() == Some("a") || panic!("who set up this instance?")
        });
        let mut updates = picky.resolve(&"greeter".parse().unwrap());

        tell.reset([instance("x", "a"), instance("y", "b")]);
        assert_eq!(words(&mut updates).await, "reset x");
        told(&tell, [Change::Put(instance("x", "b"))]);

        assert_eq!(words(&mut updates).await, "delta -x");
    }
}
