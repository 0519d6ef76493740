//! How an instance stands in etcd for as long as its registration lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    claim::{Claim, Entry},
    client::Etcd,
    guard::Guard,
    layout::{Layout, clash},
    mirror::{Mirror, Standing},
    number::{Numbers, Whose},
    pace::Pace,
    registry::Registry,
    session::Pulse,
    tenure::{Lease, Tenure},
};
use crate::{
    Error, ErrorKind, Instance, Result, ServiceName,
    register::{Keeper, Register, Registering, Wish, keep},
    stage::ORDINAL,
};

impl Register for Registry {
    /// Puts the instance into etcd on a lease of its own, and keeps it there: the lease is renewed, one that is
    /// lost is replaced, and a key that somebody deletes or overwrites is put back.
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        let checked = fits(self.layouts(), service, &instance);
        let keys = self.layouts().iter().map(|l| l.key(service, &instance));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let kept = keep(service, instance, keys);
        let numbered = service.clone();
        Box::pin(async move {
            let (registration, keeper) = kept?;
            checked?;
            let layouts = Arc::clone(self.layouts());
            let mut task = Task::new(self.etcd().clone(), layouts, self.lease());
            if self.gives_ordinals() {
                task.numbers = Some(Numbers::of(self.etcd(), Whose::Servers, &numbered));
            }
            tokio::spawn(task.run(keeper));
            registration.begun().await
        })
    }

    fn toward(&self) -> Option<String> {
        Some(self.etcd().member().to_string())
    }
}

/// Makes the wishes of one registration come true.
struct Task {
    etcd: Etcd,
    /// In each of which it is to stand.
    layouts: Arc<[Arc<dyn Layout>]>,
    claim: Claim,
    tenure: Tenure,
    /// What we wrote on the session's lease, by key.
    held: BTreeMap<String, Held>,
    mirror: Mirror,
    guard: Guard,
    /// Gives it a number among all of its service, if it is to have one.
    numbers: Option<Numbers>,
}

/// A key as we wrote it.
#[derive(Debug)]
struct Held {
    value: Vec<u8>,
    revision: i64,
}

/// A key that is to stand.
struct Wanted {
    service: ServiceName,
    layout: Arc<dyn Layout>,
    /// What it cannot be written as stays as it is.
    value: Result<Vec<u8>>,
}

/// Why the task looks again.
enum Stir {
    Wish,
    /// The session is as it was not before.
    Pulse(Pulse),
    /// A key is not as we wrote it.
    Taken,
    /// It is time to try again.
    Time,
}

/// Leaving takes no longer than this; what then stands ends with its lease.
const PARTING: Duration = Duration::from_secs(2);
/// The mark may take so much of it.
const MARKING: Duration = Duration::from_millis(1500);

/// What no retry would cure is found before anything is written.
fn fits(layouts: &[Arc<dyn Layout>], service: &ServiceName, instance: &Instance) -> Result<()> {
    clash(layouts, service, instance)?;
    let mut written = layouts.iter().map(|l| l.encode(service, instance));
    written.try_for_each(|value| value.map(drop))
}

impl Task {
    fn new(etcd: Etcd, layouts: Arc<[Arc<dyn Layout>]>, ttl: Duration) -> Self {
        Self {
            claim: Claim::new(etcd.clone()),
            tenure: Tenure::new(etcd.clone(), ttl),
            etcd,
            layouts,
            held: BTreeMap::new(),
            mirror: Mirror::default(),
            guard: Guard::default(),
            numbers: None,
        }
    }

    async fn run(mut self, mut keeper: Keeper) {
        let mut pace = Pace::within(self.tenure.ttl() / 3);
        loop {
            let wish = keeper.wish();
            if wish.gone {
                return self.leave(&keeper, &wish).await;
            }
            let began = Instant::now();
            let done = tokio::select! {
                biased;
                () = keeper.leaving() => continue,
                done = self.converge(&wish) => done,
            };
            let again = match done {
                Ok(()) => {
                    pace.reset();
                    self.tenure.settled();
                    keeper.reached();
                    None
                }
                Err(error) => {
                    let again = pace.next(&error, began);
                    let error = self.tenure.or_lost(error);
                    // What stands is none the worse for what does not.
                    if self.held.is_empty() {
                        keeper.failed(error);
                    } else {
                        keeper.partly(error);
                    }
                    Some(again)
                }
            };
            self.rest(&mut keeper, again).await;
        }
    }

    /// Waits until there is something to do.
    async fn rest(&mut self, keeper: &mut Keeper, again: Option<Instant>) {
        loop {
            match self.stir(keeper, again).await {
                Stir::Wish | Stir::Time => return,
                Stir::Pulse(Pulse::Alive) if again.is_none() => keeper.reached(),
                Stir::Pulse(Pulse::Alive) => {}
                Stir::Pulse(Pulse::Missed(why)) if again.is_none() => keeper.failed(why),
                Stir::Pulse(Pulse::Missed(_)) => {}
                Stir::Pulse(Pulse::Lost(why)) => {
                    keeper.failed(why);
                    self.lose();
                    return;
                }
                Stir::Taken => return self.yield_to_others(keeper).await,
            }
        }
    }

    async fn stir(&mut self, keeper: &mut Keeper, again: Option<Instant>) -> Stir {
        if let Some(why) = self.tenure.is_lost() {
            return Stir::Pulse(Pulse::Lost(why));
        }
        // What fails is tried again when that is due.
        let numbers = self.numbers.as_ref().filter(|_| again.is_none());
        let tidy = numbers.and_then(Numbers::due);
        loop {
            if self.is_disturbed() {
                return Stir::Taken;
            }
            tokio::select! {
                () = keeper.changed() => return Stir::Wish,
                pulse = self.tenure.beat() => return Stir::Pulse(pulse),
                () = self.mirror.changed() => {}
                () = until(again) => return Stir::Time,
                () = until(tidy) => return Stir::Time,
            }
        }
    }

    /// A key was taken away: waits a while if that goes on and on.
    async fn yield_to_others(&mut self, keeper: &mut Keeper) {
        let now = Instant::now();
        let wait = self.guard.disturbed(now);
        if self.guard.is_fight(now) {
            let keys = self.held.keys().map(String::as_str).collect::<Vec<_>>();
            let doing = format!("keep {}: somebody keeps taking it away", keys.join(", "));
            keeper.failed(Error::new(ErrorKind::Conflict, doing));
        }
        tokio::select! {
            () = keeper.leaving() => {}
            () = sleep_until(now + wait) => {}
        }
        let taken =
            |(key, held): &(&String, &Held)| held.is_taken(self.mirror.standing(key), self.lease());
        let taken = self.held.iter().filter(taken).map(|(key, _)| key.clone());
        for key in taken.collect::<Vec<_>>() {
            tracing::info!(key, "putting back what was taken away");
            self.held.remove(&key);
        }
    }

    fn is_disturbed(&self) -> bool {
        let lease = self.lease();
        let mut held = self.held.iter();
        held.any(|(key, held)| held.is_taken(self.mirror.standing(key), lease))
    }

    fn lease(&self) -> i64 {
        self.tenure.lease()
    }

    /// The session is over; what was written is to be written again.
    fn lose(&mut self) {
        self.tenure.lose();
        self.held.clear();
    }

    /// Makes what stands in etcd what is wished.
    async fn converge(&mut self, wish: &Wish) -> Result<()> {
        let wanted = self.wanted(wish, &wish.instance);
        if wanted.values().all(|wanted| wanted.value.is_err())
            && let Some(Wanted {
                value: Err(error), ..
            }) = wanted.values().next()
        {
            return Err(error.clone());
        }
        let lease = self.lease_or_new().await?;
        self.claim.own(lease);
        // Without a number it is found all the same.
        let mut failed = match &mut self.numbers {
            Some(numbers) => numbers.hold(lease).await.err(),
            None => None,
        };
        if let Some(error) = failed.take_if(|error| error.kind() == ErrorKind::Lost) {
            self.tenure.lose_for_good();
            self.held.clear();
            return Err(error);
        }
        let wanted = self.wanted(wish, &wish.instance);
        self.mirror.follow(&self.etcd, wanted.keys().cloned());
        for (key, wanted) in &wanted {
            match self.write(wish, key, wanted, lease).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.tenure.lose_for_good();
                    self.held.clear();
                    return Err(error);
                }
                // The others are none the worse for it.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let unwanted = self.held.keys().filter(|key| !wanted.contains_key(*key));
        for key in unwanted.cloned().collect::<Vec<_>>() {
            self.claim.delete(&key, lease).await?;
            self.held.remove(&key);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes one key what is wished.
    async fn write(&mut self, wish: &Wish, key: &str, wanted: &Wanted, lease: i64) -> Result<()> {
        let value = wanted.value.as_ref().map_err(Clone::clone)?;
        let held = self.held.get(key);
        if held.is_some_and(|held| held.value == *value) {
            return Ok(());
        }
        let entry = Entry {
            service: &wanted.service,
            layout: &*wanted.layout,
            key,
            value,
            instance: &wish.instance,
        };
        let expect = held.map_or(0, |held| held.revision);
        let revision = self.claim.put(entry, lease, expect).await?;
        let held = Held {
            value: value.clone(),
            revision,
        };
        self.held.insert(key.to_owned(), held);
        Ok(())
    }

    /// What is to stand, by key. What a layout has no word for is not to stand there.
    fn wanted(&self, wish: &Wish, instance: &Instance) -> BTreeMap<String, Wanted> {
        let lease = self.tenure.last_lease().unwrap_or_default();
        let number = self.numbers.as_ref().and_then(|numbers| numbers.on(lease));
        let numbered = number.map(|number| instance.clone().tag(ORDINAL, number.to_string()));
        let instance = numbered.as_ref().unwrap_or(instance);
        let entry = |service: &ServiceName, layout: &Arc<dyn Layout>| {
            let key = layout.key(service, instance);
            let value = layout.encode(service, instance);
            // Read back by others as one that takes calls, it says more by not being there.
            let read = |value: &Vec<u8>| layout.decode(service, &key, value);
            let read = value.as_ref().ok().map(read);
            let misread = matches!(read, Some(Ok(read)) if !read.is_draining());
            if instance.is_draining() && misread {
                return None;
            }
            let wanted = Wanted {
                service: service.clone(),
                layout: Arc::clone(layout),
                value,
            };
            Some((key, wanted))
        };
        let services = wish.services.iter();
        services
            .flat_map(|service| self.layouts.iter().map(move |layout| (service, layout)))
            .filter_map(|(service, layout)| entry(service, layout))
            .collect()
    }

    async fn lease_or_new(&mut self) -> Result<i64> {
        match self.tenure.lease_or_new().await? {
            Lease::Same(lease) => Ok(lease),
            Lease::New(lease) => {
                self.held.clear();
                // What was told before says nothing of a cluster whose revisions went back.
                self.mirror.forget();
                Ok(lease)
            }
        }
    }

    /// Marks, withdraws, and says how it went; within a time limit.
    async fn leave(mut self, keeper: &Keeper, wish: &Wish) {
        self.mirror = Mirror::default();
        let left = match timeout(PARTING, self.withdraw(wish)).await {
            Ok(left) => left,
            Err(late) => {
                let doing = format!("withdraw {} of {}", wish.instance.id, wish.services[0]);
                Err(Error::new(ErrorKind::Timeout, doing).because(late))
            }
        };
        match left {
            Ok(()) => keeper.reached(),
            Err(error) => keeper.failed(error),
        }
    }

    async fn withdraw(&mut self, wish: &Wish) -> Result<()> {
        let Some(lease) = self.tenure.last_lease() else {
            return Ok(());
        };
        // Without the mark, leaving looks like a failure until clients have confirmed it; it is no reason
        // to stay.
        drop(timeout(MARKING, self.mark(wish, lease)).await);
        self.tenure.end().await
    }

    async fn mark(&self, wish: &Wish, lease: i64) -> Result<()> {
        let draining = (*wish.instance).clone().serving(false);
        let mut failed = None;
        for (key, wanted) in self.wanted(wish, &draining) {
            let held = self.held.get(&key);
            let marked = match wanted.value {
                Ok(value) if held.is_none_or(|held| held.value != value) => {
                    self.claim.mark(&key, &value, lease).await
                }
                value => value.map(drop),
            };
            failed = failed.or_else(|| marked.err());
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Held {
    /// Whether something else stands there since we wrote it.
    fn is_taken(&self, standing: Option<Standing>, lease: i64) -> bool {
        let Some(standing) = standing.filter(|standing| standing.revision > self.revision) else {
            return false;
        };
        let Some((value, on)) = standing.value else {
            return true;
        };
        *value != self.value || on != lease
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn held() -> Held {
        Held {
            value: b"a".into(),
            revision: 5,
        }
    }

    fn told(revision: i64, value: Option<(&'static str, i64)>) -> Option<Standing> {
        let value = value.map(|(value, lease)| (Bytes::from_static(value.as_bytes()), lease));
        Some(Standing { revision, value })
    }

    #[test]
    fn a_key_is_taken_when_it_is_gone_or_says_something_else_or_hangs_on_another_lease() {
        for taken in [None, Some(("b", 7)), Some(("a", 8)), Some(("a", 0))] {
            assert!(held().is_taken(told(6, taken), 7), "{taken:?}");
        }
        assert!(!held().is_taken(told(6, Some(("a", 7))), 7));
    }

    #[test]
    fn what_a_watch_tells_of_the_time_before_we_wrote_is_passed_over() {
        assert!(!held().is_taken(None, 7));
        assert!(!held().is_taken(told(4, None), 7));
        assert!(!held().is_taken(told(5, Some(("a", 7))), 7));
    }
}
