//! Which servers are asked, how, and by whom: once for all who want to know.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use super::{Grpc, Probe, Tell, Verdict, Watchdog, over::Over, poll::poll, rule::Rule};
use crate::{Address, Error, ErrorKind, Instance, InstanceId, Result, transport::Connection};

/// How servers are asked whether they are well.
///
/// Clones share what they ask: channels with clones of the same checks put each question to a server once.
/// What goes over a channel's own connection, [`Grpc`], is asked on each. Set what is to be set first: with
/// another setting they are other checks.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::health::{Checks, Http};
///
/// let checks = Checks::new(Http::get("/health"))
///     .every(Duration::from_secs(10))
///     .timeout(Duration::from_secs(1))
///     .rise(1);
/// ```
#[derive(Clone)]
pub struct Checks(Arc<Inner>);

/// One way of asking, and what is known by it.
pub(super) struct Inner {
    way: Way,
    rule: Rule,
    gate: Semaphore,
    said: Once,
    asked: Mutex<Asked>,
}

#[derive(Clone)]
pub(super) enum Way {
    Grpc(Grpc),
    Probe(Arc<dyn Probe>),
    Watchdog(Watchdog),
}

/// The servers that are being asked, each by one task.
#[derive(Default)]
struct Asked {
    /// With the number of the task.
    places: HashMap<Place, (u64, watch::Sender<Verdict>)>,
    tasks: u64,
}

/// What makes two endpoints one server.
#[derive(Clone, Eq, Hash, PartialEq)]
struct Place {
    id: InstanceId,
    addresses: Vec<Address>,
    server_name: Option<Arc<str>>,
}

impl Checks {
    /// These checks: [`Grpc`], [`Http`](super::Http), [`Tcp`](super::Tcp), a [`Probe`] of your own.
    pub fn new(checks: impl Into<Self>) -> Self {
        checks.into()
    }

    pub(super) fn by(way: Way) -> Self {
        Self::with(way, Rule::default())
    }

    fn with(way: Way, rule: Rule) -> Self {
        Self(Arc::new(Inner {
            way,
            gate: Semaphore::new(rule.at_once.min(Semaphore::MAX_PERMITS)),
            rule,
            said: Once::new(),
            asked: Mutex::default(),
        }))
    }

    /// How often a server is asked. Every five seconds, unless set; a tenth more or less, so that those who
    /// began together part. From 10 ms to an hour.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        self.rule(|rule| rule.every = every)
    }

    /// How long an answer may take, and the first one on a stream. Two seconds, unless set. From 1 ms to an
    /// hour.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.rule(|rule| rule.timeout = timeout)
    }

    /// How many good answers in a row make a server well that was not. Two, unless set; from 1 to 1,000. The
    /// very first answer counts alone, and so does each on a stream.
    #[must_use]
    pub fn rise(self, answers: u32) -> Self {
        self.rule(|rule| rule.rise = answers)
    }

    /// How many bad answers in a row make a server unwell. Three, unless set; from 1 to 1,000. The very
    /// first answer counts alone, and so does each on a stream, and what a server says itself of its health,
    /// by `NOT_SERVING` or an HTTP status: this is for silence, and for probes of your own.
    #[must_use]
    pub fn fall(self, answers: u32) -> Self {
        self.rule(|rule| rule.fall = answers)
    }

    /// How many servers are asked at the same time; others wait their turn. 64, unless set; from 1 to
    /// 100,000. Streams are not counted.
    #[must_use]
    pub fn at_once(self, servers: usize) -> Self {
        self.rule(|rule| rule.at_once = servers)
    }

    /// Another rule has other answers, so nothing is shared with those before.
    fn rule(self, change: impl FnOnce(&mut Rule)) -> Self {
        let mut rule = self.0.rule.clone();
        change(&mut rule);
        Self::with(self.0.way.clone(), rule)
    }

    /// Refuses what is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.rule.check()?;
        match &self.0.way {
            Way::Watchdog(watchdog) => watchdog.check(),
            Way::Probe(probe) => probe.check(),
            Way::Grpc(_) => Ok(()),
        }
    }

    /// Judges this server, over this connection if it is asked over one, for as long as it is polled. A
    /// verdict is told when it is another than before.
    async fn follow(&self, instance: &Arc<Instance>, over: Over, tell: &Tell<'_>) {
        match &self.0.way {
            Way::Grpc(grpc) => grpc.follow(&self.0, over, tell).await,
            Way::Watchdog(watchdog) => watchdog.follow(tell).await,
            Way::Probe(probe) => self.share(probe, instance, tell).await,
        }
    }

    /// Hears what all hear who ask this server.
    async fn share(&self, probe: &Arc<dyn Probe>, instance: &Arc<Instance>, tell: &Tell<'_>) {
        loop {
            let mut heard = self.join(probe, instance);
            heard.mark_changed();
            while heard.changed().await.is_ok() {
                let verdict = heard.borrow_and_update().clone();
                if !matches!(verdict, Verdict::Unknown) {
                    tell(verdict);
                }
            }
            let what = format!(
                "the health check of {} panicked, or its runtime is gone",
                instance.id
            );
            tell(Verdict::Unhealthy(Error::new(ErrorKind::Unavailable, what)));
            sleep(self.0.rule.every).await;
        }
    }

    fn join(&self, probe: &Arc<dyn Probe>, instance: &Arc<Instance>) -> watch::Receiver<Verdict> {
        let place = Place::of(instance);
        let mut asked = self.0.asked();
        if let Some((_, told)) = asked.places.get(&place) {
            return told.subscribe();
        }
        asked.tasks += 1;
        let number = asked.tasks;
        let (told, heard) = watch::channel(Verdict::Unknown);
        asked.places.insert(place.clone(), (number, told.clone()));
        let task = Task {
            inner: Arc::clone(&self.0),
            place,
            number,
        };
        drop(asked);
        tokio::spawn(task.run(Arc::clone(probe), Arc::clone(instance), told));
        heard
    }
}

impl Inner {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn gate(&self) -> &Semaphore {
        &self.gate
    }

    /// A server that cannot be asked is no news after the first.
    pub(super) fn say_once(&self, service: &str) {
        self.said.call_once(|| {
            tracing::warn!(
                service,
                "a server has no grpc.health.v1 and counts as healthy; others like it are not mentioned"
            );
        });
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        // Each change is whole.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn of(instance: &Instance) -> Self {
        Self {
            id: instance.id.clone(),
            addresses: instance.addresses.clone(),
            server_name: instance.server_name.clone(),
        }
    }
}

/// Asks one server until nobody wants to know any more.
struct Task {
    inner: Arc<Inner>,
    place: Place,
    number: u64,
}

impl Task {
    async fn run(
        self,
        probe: Arc<dyn Probe>,
        instance: Arc<Instance>,
        told: watch::Sender<Verdict>,
    ) {
        let tell = |verdict| drop(told.send_replace(verdict));
        let ask = || async { Some(probe.probe(&instance).await) };
        let asking = poll(&self.inner.rule, &self.inner.gate, &tell, ask);
        let unwanted = async {
            loop {
                told.closed().await;
                if self.leave() {
                    return;
                }
            }
        };
        tokio::select! {
            () = asking => {}
            () = unwanted => {}
        }
    }

    /// Whether nobody has joined meanwhile; nobody can after that.
    fn leave(&self) -> bool {
        let mut asked = self.inner.asked();
        let own = asked
            .places
            .get(&self.place)
            .filter(|(n, _)| *n == self.number);
        let left = own.is_none_or(|(_, told)| told.receiver_count() == 0);
        if left && own.is_some() {
            asked.places.remove(&self.place);
        }
        left
    }
}

impl Drop for Task {
    /// It may end by a panic of the probe, or with its runtime; then whoever asks next begins anew.
    fn drop(&mut self) {
        let mut asked = self.inner.asked();
        if asked
            .places
            .get(&self.place)
            .is_some_and(|(n, _)| *n == self.number)
        {
            asked.places.remove(&self.place);
        }
    }
}

/// Judges a server by all of these, for as long as it is polled: it is well when all say so, and unwell when
/// one does. A verdict is told when it is another than before.
pub(crate) async fn follow(
    checks: &[Checks],
    instance: &Arc<Instance>,
    over: Over,
    tell: &Tell<'_>,
) {
    let all = Mutex::new(vec![Verdict::Unknown; checks.len()]);
    let each = checks.iter().enumerate().map(|(nth, checks)| {
        let (over, all) = (over.clone(), &all);
        async move {
            let tell = |verdict| {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                let before = together(&all);
                all[nth] = verdict;
                let now = together(&all);
                if before.code() != now.code() {
                    // Under the lock, so that they are told in the order in which they came about.
                    tell(now);
                }
            };
            checks.follow(instance, over, &tell).await;
        }
    });
    let mut each: FuturesUnordered<_> = each.collect();
    while each.next().await.is_some() {}
    // All have said their last word.
    std::future::pending().await
}

/// As [`follow`], over the connection that calls take.
pub(crate) async fn follow_over(
    checks: &[Checks],
    instance: &Arc<Instance>,
    connection: Connection,
    tell: &Tell<'_>,
) {
    follow(checks, instance, Over::Connection(connection), tell).await;
}

/// As [`follow`], over a connection of its own, made when it is needed.
pub(crate) async fn follow_at(checks: &[Checks], instance: &Arc<Instance>, tell: &Tell<'_>) {
    follow(checks, instance, Over::line(Arc::clone(instance)), tell).await;
}

fn together(verdicts: &[Verdict]) -> Verdict {
    let unwell = verdicts.iter().find(|v| matches!(v, Verdict::Unhealthy(_)));
    let unknown = verdicts.iter().find(|v| matches!(v, Verdict::Unknown));
    unwell.or(unknown).cloned().unwrap_or(Verdict::Healthy)
}

impl<P: Probe> From<P> for Checks {
    fn from(probe: P) -> Self {
        Self::by(Way::Probe(Arc::new(probe)))
    }
}

impl From<Grpc> for Checks {
    fn from(grpc: Grpc) -> Self {
        Self::by(Way::Grpc(grpc))
    }
}

impl From<Watchdog> for Checks {
    fn from(watchdog: Watchdog) -> Self {
        Self::by(Way::Watchdog(watchdog))
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way: &dyn fmt::Debug = match &self.0.way {
            Way::Grpc(grpc) => grpc,
            Way::Watchdog(watchdog) => watchdog,
            Way::Probe(_) => &"Probe",
        };
        f.debug_struct("Checks")
            .field("way", way)
            .field("rule", &self.0.rule)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::timeout;

    use super::*;
    use crate::health::{Probing, ask};

    fn instance(id: &str) -> Arc<Instance> {
        Arc::new(Instance::at("10.0.0.5:50051").unwrap().id(id).unwrap())
    }

    fn nowhere() -> Over {
        Over::line(instance("nowhere"))
    }

    /// Follows for so many seconds, and says what was told.
    async fn told(checks: &[Checks], instance: &Arc<Instance>, secs: u64) -> Vec<&'static str> {
        let told = Mutex::new(Vec::new());
        let tell = |verdict: Verdict| told.lock().unwrap().push(verdict.code());
        let following = follow(checks, instance, nowhere(), &tell);
        let _ = timeout(Duration::from_secs(secs), following).await;
        told.into_inner().unwrap()
    }

    struct Counted(Arc<AtomicUsize>);

    impl Probe for Counted {
        fn probe<'a>(&'a self, _: &'a Instance) -> Probing<'a> {
            self.0.fetch_add(1, SeqCst);
            Box::pin(async { Ok(()) })
        }
    }

    fn counted() -> (Checks, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        (Checks::new(Counted(Arc::clone(&asked))), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_asked_once_for_all_who_want_to_know() {
        let (checks, asked) = counted();
        let (a, b) = (instance("a"), instance("a"));
        let (one, other) = ([checks.clone()], [checks.clone()]);

        let both = tokio::join!(told(&one, &a, 100), told(&other, &b, 100));

        assert_eq!(both, (vec!["healthy"], vec!["healthy"]));
        let asked = asked.load(SeqCst);
        assert!((18..=23).contains(&asked), "{asked} times");
    }

    #[tokio::test(start_paused = true)]
    async fn another_server_is_asked_by_itself() {
        let (checks, asked) = counted();
        let (a, b) = (instance("a"), instance("b"));
        let checks = [checks];

        let _ = tokio::join!(told(&checks, &a, 1), told(&checks, &b, 1));

        assert!(asked.load(SeqCst) >= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_when_nobody_wants_to_know_any_more() {
        let (checks, asked) = counted();
        told(std::slice::from_ref(&checks), &instance("a"), 60).await;
        sleep(Duration::from_secs(1)).await;
        let by_then = asked.load(SeqCst);

        sleep(Duration::from_secs(60)).await;

        assert_eq!(asked.load(SeqCst), by_then);
        assert!(checks.0.asked().places.is_empty());
        assert_eq!(told(&[checks], &instance("a"), 1).await, ["healthy"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_comes_later_hears_at_once() {
        let (checks, _) = counted();
        let checks = [checks];
        let (a, b) = (instance("a"), instance("a"));
        let later = async {
            sleep(Duration::from_secs(10)).await;
            let asked_anew = told(&checks, &b, 1);
            asked_anew.await
        };

        let (_, later) = tokio::join!(told(&checks, &a, 20), later);

        assert_eq!(later, ["healthy"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_panics_makes_its_server_unwell_and_is_asked_again() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let checks = Checks::new(ask(move || {
            let nth = counter.fetch_add(1, SeqCst);
            async move {
                assert!(nth > 0, "the first question is one too many");
                Ok::<_, std::io::Error>(())
            }
        }));

        let told = told(&[checks], &instance("a"), 20).await;

        assert_eq!(told, ["unhealthy", "healthy"]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_must_say_so_and_one_is_enough_to_say_otherwise() {
        let well = || ask(|| async { Ok::<_, std::io::Error>(()) });
        let late = ask(|| async {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(())
        });
        let unwell = ask(|| async { Err(std::io::Error::other("no disk")) });
        let a = instance("a");

        let all = [well().into(), late.into()];
        assert_eq!(told(&all, &a, 10).await, ["healthy"]);
        let one = [well().into(), unwell.into(), well().into()];
        assert_eq!(told(&one, &a, 10).await, ["unhealthy"]);
    }
}
