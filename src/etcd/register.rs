//! How an instance stands in etcd for as long as its registration lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    ask::Granted,
    claim::{Claim, Entry},
    client::Etcd,
    guard::Guard,
    layout::Layout,
    mirror::{Mirror, Standing},
    registry::Registry,
    session::{Pulse, Session},
};
use crate::{
    Backoff, Error, ErrorKind, Instance, Result, ServiceName,
    register::{Keeper, Register, Registering, Wish, keep},
};

impl Register for Registry {
    /// Puts the instance into etcd on a lease of its own, and keeps it there: the lease is renewed, one that is
    /// lost is replaced, and a key that somebody deletes or overwrites is put back.
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        let key = self.way().key(service, &instance);
        let kept = keep(service, instance, key);
        Box::pin(async {
            let (registration, keeper) = kept?;
            let layout = Arc::clone(self.way());
            let task = Task::new(self.etcd().clone(), layout, self.lease());
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
    layout: Arc<dyn Layout>,
    ttl: Duration,
    claim: Claim,
    session: Option<Session>,
    pulse: Option<watch::Receiver<Pulse>>,
    /// Whether what stood there is gone, or may be.
    lost: bool,
    /// The last lease, which may live on in etcd when it is over by our own clock.
    before: Option<Granted>,
    /// What we wrote on the session's lease, by key.
    held: BTreeMap<String, Held>,
    mirror: Mirror,
    guard: Guard,
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
    value: Vec<u8>,
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

impl Task {
    fn new(etcd: Etcd, layout: Arc<dyn Layout>, ttl: Duration) -> Self {
        Self {
            claim: Claim::new(etcd.clone()),
            etcd,
            layout,
            ttl,
            session: None,
            pulse: None,
            lost: false,
            before: None,
            held: BTreeMap::new(),
            mirror: Mirror::default(),
            guard: Guard::default(),
        }
    }

    async fn run(mut self, mut keeper: Keeper) {
        let mut pace = Pace::within(self.ttl / 3);
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
                    self.lost = false;
                    keeper.reached();
                    None
                }
                Err(error) => {
                    let again = pace.next(&error, began);
                    keeper.failed(self.or_lost(error));
                    Some(again)
                }
            };
            self.rest(&mut keeper, again).await;
        }
    }

    /// While etcd is out of reach, what was lost stays lost.
    fn or_lost(&self, error: Error) -> Error {
        let out_of_reach = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        if self.lost && out_of_reach {
            return Error::new(ErrorKind::Lost, "replace a lost lease").because(error);
        }
        error
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
        if let Some(why) = self.session.as_ref().and_then(Session::is_lost) {
            return Stir::Pulse(Pulse::Lost(why));
        }
        loop {
            if self.is_disturbed() {
                return Stir::Taken;
            }
            tokio::select! {
                () = keeper.changed() => return Stir::Wish,
                pulse = beat(&mut self.pulse) => return Stir::Pulse(pulse),
                () = self.mirror.changed() => {}
                () = until(again) => return Stir::Time,
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
        self.session.as_ref().map_or(0, Session::lease)
    }

    /// The session is over; what was written is to be written again.
    fn lose(&mut self) {
        if let Some(session) = self.session.take() {
            self.before = Some(session.granted());
            self.lost = true;
        }
        self.held.clear();
    }

    /// Makes what stands in etcd what is wished.
    async fn converge(&mut self, wish: &Wish) -> Result<()> {
        let wanted = self.wanted(wish, &wish.instance)?;
        let lease = self.lease_or_new().await?;
        self.claim.own(lease);
        self.mirror.follow(&self.etcd, wanted.keys().cloned());
        let mut failed = None;
        for (key, wanted) in &wanted {
            match self.write(wish, key, wanted, lease).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.lose_for_good();
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
        let Wanted { service, value } = wanted;
        let held = self.held.get(key);
        if held.is_some_and(|held| held.value == *value) {
            return Ok(());
        }
        let entry = Entry {
            service,
            layout: &*self.layout,
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

    /// etcd says that the lease is gone: there is no use in asking for it again.
    fn lose_for_good(&mut self) {
        self.lose();
        self.before = None;
    }

    fn wanted(&self, wish: &Wish, instance: &Instance) -> Result<BTreeMap<String, Wanted>> {
        let entry = |service: &ServiceName| {
            let key = self.layout.key(service, instance);
            let value = self.layout.encode(service, instance)?;
            // Read back by others as one that takes calls, it says more by not being there.
            let read = |value| self.layout.decode(service, &key, value);
            if instance.is_draining() && read(&value).is_ok_and(|read| !read.is_draining()) {
                return Ok(None);
            }
            let service = service.clone();
            Ok(Some((key, Wanted { service, value })))
        };
        wish.services
            .iter()
            .filter_map(|s| entry(s).transpose())
            .collect()
    }

    /// The session's lease; the one before it, if etcd still has it; or a new one.
    async fn lease_or_new(&mut self) -> Result<i64> {
        if let Some(session) = &self.session {
            match session.is_lost() {
                None => return Ok(session.lease()),
                Some(_) => self.lose(),
            }
        }
        let session = match self.before {
            Some(granted) => match Session::resume(&self.etcd, granted).await {
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.before = None;
                    Session::open(&self.etcd, self.ttl).await?
                }
                resumed => resumed?,
            },
            None => Session::open(&self.etcd, self.ttl).await?,
        };
        let lease = session.lease();
        // What was told before says nothing of a cluster whose revisions went back.
        self.mirror.forget();
        self.pulse = Some(session.pulse());
        self.session = Some(session);
        Ok(lease)
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
        let session = self.session.take();
        let Some(lease) = session
            .as_ref()
            .map(Session::lease)
            .or_else(|| self.before.map(|granted| granted.lease))
        else {
            return Ok(());
        };
        // Without the mark, leaving looks like a failure until clients have confirmed it; it is no reason
        // to stay.
        drop(timeout(MARKING, self.mark(wish, lease)).await);
        match session {
            // What hangs on the lease goes with it, and nothing else does.
            Some(session) => session.close().await,
            None => self.etcd.lease_revoke(lease).await.map(drop),
        }
    }

    async fn mark(&self, wish: &Wish, lease: i64) -> Result<()> {
        let draining = (*wish.instance).clone().serving(false);
        for (key, wanted) in self.wanted(wish, &draining)? {
            let held = self.held.get(&key);
            if held.is_none_or(|held| held.value != wanted.value) {
                self.claim.mark(&key, &wanted.value, lease).await?;
            }
        }
        Ok(())
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

/// How long to wait before trying again.
#[derive(Debug)]
struct Pace {
    quick: Backoff,
    /// For what only a person can put right.
    slow: Backoff,
}

impl Pace {
    /// At least as often as this while etcd refuses connections: a lease that it still has when it is back
    /// must be renewed before it ends.
    fn within(most: Duration) -> Self {
        let quick = Backoff::between(Duration::from_millis(50), most.min(Duration::from_secs(10)));
        let slow = Backoff::between(Duration::from_secs(1), Duration::from_secs(30));
        Self {
            quick: quick.factor(2.0).jitter(0.5),
            slow: slow.factor(2.0),
        }
    }

    /// When to try again what was begun then and failed like this.
    fn next(&mut self, error: &Error, began: Instant) -> Instant {
        let now = Instant::now();
        match error.kind() {
            // The next attempt gets a new lease.
            ErrorKind::Lost if self.quick.failures() == 0 => {
                self.quick.next();
                now
            }
            ErrorKind::Lost | ErrorKind::Unavailable => now + self.quick.next(),
            // It has waited already; and an etcd that thaws should find a question waiting for it.
            ErrorKind::Timeout => now.max(began + Duration::from_secs(1)),
            ErrorKind::Conflict => now + self.slow.next().min(Duration::from_secs(5)),
            _ => now + self.slow.next(),
        }
    }

    fn reset(&mut self) {
        self.quick.reset();
        self.slow.reset();
    }
}

/// The next change of a session, if there is a session.
async fn beat(pulse: &mut Option<watch::Receiver<Pulse>>) -> Pulse {
    let Some(pulse) = pulse else {
        return std::future::pending().await;
    };
    match pulse.changed().await {
        Ok(()) => pulse.borrow_and_update().clone(),
        // Its last word was heard, or its runtime is gone.
        Err(_) => std::future::pending().await,
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

    fn failure(kind: ErrorKind) -> Error {
        Error::new(kind, "register /services/greeter/a")
    }

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

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_replaced_at_once_and_then_with_growing_waits() {
        let mut pace = Pace::within(Duration::from_secs(3));
        let now = Instant::now();
        let mut wait = |kind| pace.next(&failure(kind), now) - now;

        assert_eq!(wait(ErrorKind::Lost), Duration::ZERO);
        let waits = [(); 12].map(|()| wait(ErrorKind::Lost));

        assert!(waits[0] < Duration::from_millis(200), "{waits:?}");
        assert!(waits[11] >= Duration::from_millis(1_500), "{waits:?}");
        assert!(waits[11] <= Duration::from_secs(3), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_not_answered_has_waited_already() {
        let mut pace = Pace::within(Duration::from_secs(3));
        let began = Instant::now();

        let at_once = pace.next(&failure(ErrorKind::Timeout), began);
        tokio::time::advance(Duration::from_secs(2)).await;
        let later = pace.next(&failure(ErrorKind::Timeout), began);

        assert_eq!(at_once, began + Duration::from_secs(1));
        assert_eq!(later, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_a_person_can_put_right_is_tried_rarely() {
        for kind in [ErrorKind::Denied, ErrorKind::NoSpace, ErrorKind::Conflict] {
            let mut pace = Pace::within(Duration::from_secs(3));
            let now = Instant::now();

            let waits = [(); 8].map(|()| pace.next(&failure(kind), now) - now);

            assert!(waits[0] >= Duration::from_millis(800), "{waits:?}");
            assert!(waits[7] >= Duration::from_millis(4_000), "{waits:?}");
        }
    }
}
