//! A list that serves until the registry has spoken.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time;

use super::{Fixed, Publisher, Resolve, Update, Updates, publish};
use crate::{Error, ErrorKind, Instance, ServiceName};

/// Serves a fixed list while another resolver has not told its first set; see [`Resolve::fallback`].
#[derive(Clone, Debug)]
pub struct Fallback<R> {
    inner: Arc<R>,
    list: Fixed,
}

/// How long a registry may be silent before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(1);

impl<R: Resolve> Fallback<R> {
    pub(super) fn over(inner: R, list: Fixed) -> Self {
        Self {
            inner: Arc::new(inner),
            list,
        }
    }
}

impl<R: Resolve> Resolve for Fallback<R> {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let inner = self.inner.resolve(service);
        let list = self.list.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = relay(inner, list, &publisher) => {}
            }
        });
        updates
    }
}

async fn relay(mut inner: Updates, list: Fixed, publisher: &Publisher) {
    let list = async { Some(list.instances().to_vec()) };
    let Some(set) = first_set(&mut inner, publisher, list).await else {
        return;
    };
    publisher.reset(set);
    while let Some(update) = inner.next().await {
        publisher.update(update);
    }
}

/// The first set that a resolver tells; until it comes, what stands by is served, and is stale.
///
/// Nothing, if the resolver ends without a set: what stood by stays, then.
pub(super) async fn first_set(
    inner: &mut Updates,
    publisher: &Publisher,
    standby: impl Future<Output = Option<Vec<Arc<Instance>>>>,
) -> Option<Vec<Arc<Instance>>> {
    let mut standby = pin!(standby);
    let mut silence = pin!(time::sleep(PATIENCE));
    // Why what stands by is wanted, until it is there.
    let mut wanted = None;
    let mut is_served = false;
    loop {
        // The registry is heard meanwhile: a disk that hangs must not keep its set from anybody.
        tokio::select! {
            biased;
            set = &mut standby, if wanted.is_some() => {
                is_served = true;
                if let Some(why) = wanted.take() {
                    serve(set, why, publisher);
                }
            }
            update = inner.next() => match update {
                Some(Update::Reset(set)) => return Some(set),
                Some(Update::Stale(why)) if !is_served => wanted = Some(why),
                Some(other) => publisher.update(other),
                None => {
                    let set = if is_served { None } else { standby.await };
                    serve(set, silent("the resolver ended without a set"), publisher);
                    return None;
                }
            },
            () = &mut silence, if !is_served && wanted.is_none() => {
                wanted = Some(silent("no word from the registry yet"));
            }
        }
    }
}

fn serve(set: Option<Vec<Arc<Instance>>>, why: Error, publisher: &Publisher) {
    if let Some(set) = set {
        tracing::warn!(instances = set.len(), error = %why.chain(), "serving what stood by");
        publisher.reset(set);
    }
    publisher.stale(why);
}

fn silent(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::resolve::testing::{Scripted, words};

    fn list() -> Fixed {
        Fixed::at(["10.0.0.9:1"]).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_serves_while_the_registry_is_out_of_reach_and_no_longer() {
        let (registry, tell) = Scripted::new();
        let mut updates = registry
            .fallback(list().instances().iter().cloned())
            .resolve(&"greeter".parse().unwrap());

        tell.stale(silent("connection refused"));
        assert_eq!(words(&mut updates).await, "reset 10.0.0.9:1");
        assert_eq!(words(&mut updates).await, "stale connection refused");
        tell.stale(silent("still refused"));
        assert_eq!(words(&mut updates).await, "stale still refused");
        tell.reset(
            Fixed::at(["10.0.0.1:1"])
                .unwrap()
                .instances()
                .iter()
                .cloned(),
        );
        assert_eq!(words(&mut updates).await, "reset 10.0.0.1:1");
        tell.stale(silent("again"));

        assert_eq!(words(&mut updates).await, "stale again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_answers_is_not_spoken_for() {
        let (registry, tell) = Scripted::new();
        let mut updates = registry
            .fallback(list().instances().iter().cloned())
            .resolve(&"greeter".parse().unwrap());

        tell.reset(Vec::<Instance>::new());

        assert_eq!(words(&mut updates).await, "reset ");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_as_out_of_reach_after_a_second() {
        let (registry, tell) = Scripted::new();
        let began = Instant::now();
        let mut updates = registry
            .fallback(list().instances().iter().cloned())
            .resolve(&"greeter".parse().unwrap());

        assert_eq!(words(&mut updates).await, "reset 10.0.0.9:1");

        assert_eq!(Instant::now() - began, PATIENCE);
        assert_eq!(
            words(&mut updates).await,
            "stale no word from the registry yet"
        );
        drop(tell);
        assert_eq!(
            words(&mut updates).await,
            "stale the resolver ended without a set"
        );
        assert_eq!(words(&mut updates).await, "end");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_by_and_never_comes_keeps_no_set_of_the_registrys_away() {
        let (registry, tell) = Scripted::new();
        let mut inner = registry.resolve(&"greeter".parse().unwrap());
        let (publisher, _updates) = publish();
        let first = first_set(&mut inner, &publisher, std::future::pending());

        tell.stale(silent("connection refused"));
        let told = async {
            time::sleep(PATIENCE * 2).await;
            tell.reset(list().instances().iter().cloned());
        };
        let both = async { tokio::join!(first, told).0 };
        let first = time::timeout(PATIENCE * 3, both).await.unwrap();

        assert_eq!(first.unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_is_let_go_when_nobody_reads() {
        let (registry, tell) = Scripted::new();
        let updates = registry
            .fallback(Vec::<Instance>::new())
            .resolve(&"greeter".parse().unwrap());

        drop(updates);

        tell.closed().await;
    }
}
