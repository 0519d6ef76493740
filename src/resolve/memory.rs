//! A registry in this process.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Change, Publisher, Resolve, Update, Updates, publish};
use crate::{
    Backoff, Error, ErrorKind, Instance, InstanceId, Result, ServiceName,
    backoff::countable,
    lock::locked,
    register::{Keeper, Register, Registering, Wish, keep},
};

/// A registry in this process, with leases, and with everything that can befall one on demand.
///
/// For tests, demonstrations, and servers and clients that share a process. Clones are the same registry;
/// so are those of one [name](Self::named), and `memory://` is the one whose name is empty. It runs on tokio's clock, so a scenario of minutes takes
/// microseconds in paused time:
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::{Instance, Memory, Register, ServiceName};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> tonic_fleet::Result<()> {
/// let registry = Memory::default();
/// let greeter: ServiceName = "greeter".parse()?;
/// let a = Instance::at("10.0.0.5:50051")?.id("a")?;
/// let _registration = registry.register(&greeter, a.clone()).await?;
/// assert_eq!(registry.instances(&greeter).len(), 1);
///
/// registry.freeze(&greeter, &a.id);
/// tokio::time::sleep(Duration::from_secs(11)).await; // the lease is 10 s
/// assert_eq!(registry.instances(&greeter).len(), 0);
///
/// registry.thaw(&greeter, &a.id);
/// tokio::time::sleep(Duration::from_secs(1)).await;
/// assert_eq!(registry.instances(&greeter).len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    ttl: Duration,
}

/// How long a lease lives unless it is renewed.
const TTL: Duration = Duration::from_secs(10);

/// The registries that have a name, while anybody uses them.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Shared>>>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when something happens that keepers must look at.
    stir: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    services: BTreeMap<ServiceName, Service>,
    frozen: HashSet<(ServiceName, InstanceId)>,
    outage: bool,
    leases: u64,
}

#[derive(Default)]
struct Service {
    records: BTreeMap<InstanceId, Record>,
    readers: Vec<Reader>,
    /// What changed while nobody could be told.
    untold: Vec<Change>,
}

struct Record {
    instance: Arc<Instance>,
    /// Whose it is; nobody's when it was put there by hand.
    lease: Option<u64>,
}

struct Reader {
    publisher: Publisher,
    /// Whether it had the whole set.
    begun: bool,
}

impl Memory {
    /// The registry of this name: one for all in the process, while anybody uses it.
    ///
    /// A handle, a registration and a stream of updates each use it.
    pub fn named(name: impl AsRef<str>) -> Self {
        let mut named = locked(&NAMED);
        named.retain(|_, registry| registry.strong_count() > 0);
        let known = named.get(name.as_ref()).and_then(Weak::upgrade);
        let shared = known.unwrap_or_else(|| {
            let shared = Arc::default();
            named.insert(name.as_ref().to_owned(), Arc::downgrade(&shared));
            shared
        });
        Self { shared, ttl: TTL }
    }

    /// How long the leases of those who register through this handle live unless they are renewed. Ten
    /// seconds, unless set; at least 10 ms.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = countable(ttl).max(Duration::from_millis(10));
        self
    }

    /// The instances of a service, by id.
    pub fn instances(&self, service: &ServiceName) -> Vec<Arc<Instance>> {
        let state = self.shared.state();
        let records = state.services.get(service).into_iter();
        let records = records.flat_map(|s| s.records.values());
        records.map(|r| Arc::clone(&r.instance)).collect()
    }

    /// Writes an instance that is nobody's: it stays until it is removed.
    pub fn put(&self, service: &ServiceName, instance: Instance) {
        self.shared.state().put(service, &Arc::new(instance), None);
        self.shared.stir();
    }

    /// Deletes an instance as one that left on purpose. Whoever keeps it puts it back at once.
    pub fn remove(&self, service: &ServiceName, id: &InstanceId) {
        self.shared.state().delete(service, id, Change::Remove);
        self.shared.stir();
    }

    /// Deletes an instance with no mark, as the end of a lease does. Whoever keeps it puts it back at once.
    pub fn vanish(&self, service: &ServiceName, id: &InstanceId) {
        self.shared.state().delete(service, id, Change::Vanish);
        self.shared.stir();
    }

    /// Stops the one who keeps an instance, as SIGSTOP does, or SIGKILL if it is never thawed: it vanishes
    /// when its lease ends.
    pub fn freeze(&self, service: &ServiceName, id: &InstanceId) {
        let who = (service.clone(), id.clone());
        self.shared.state().frozen.insert(who);
        self.shared.stir();
    }

    /// Lets the one who keeps an instance go on.
    pub fn thaw(&self, service: &ServiceName, id: &InstanceId) {
        let who = (service.clone(), id.clone());
        self.shared.state().frozen.remove(&who);
        self.shared.stir();
    }

    /// Begins or ends an outage: the registry answers nobody, and no lease ends meanwhile.
    pub fn outage(&self, outage: bool) {
        self.shared.state().outage(outage);
        self.shared.stir();
    }
}

impl Default for Memory {
    /// A registry of its own.
    fn default() -> Self {
        Self {
            shared: Arc::default(),
            ttl: TTL,
        }
    }
}

impl Resolve for Memory {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        self.shared.state().read(service, publisher);
        Box::pin(Reading {
            updates,
            _registry: Arc::clone(&self.shared),
        })
    }
}

impl Register for Memory {
    fn register(&self, service: &ServiceName, instance: Instance) -> Registering<'_> {
        let key = format!("memory:{service}/{}", instance.id);
        let kept = keep(service, instance, key);
        Box::pin(async {
            let (registration, keeper) = kept?;
            let lease = Lease::on(&self.shared, self.ttl);
            tokio::spawn(lease.keep(keeper));
            registration.begun().await
        })
    }

    fn toward(&self) -> Option<String> {
        Some("127.0.0.1:9".into())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        let counts = state.services.iter().map(|(n, s)| (n, s.records.len()));
        f.debug_struct("Memory")
            .field("outage", &state.outage)
            .field("instances", &counts.collect::<BTreeMap<_, _>>())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn stir(&self) {
        self.stir.send_replace(());
    }
}

impl State {
    fn service(&mut self, name: &ServiceName) -> &mut Service {
        self.services.entry(name.clone()).or_default()
    }

    fn put(&mut self, service: &ServiceName, instance: &Arc<Instance>, lease: Option<u64>) {
        let outage = self.outage;
        let service = self.service(service);
        let record = Record {
            instance: Arc::clone(instance),
            lease,
        };
        let before = service.records.insert(instance.id.clone(), record);
        if before.is_none_or(|before| before.instance != *instance) {
            service.tell(Change::Put(Arc::clone(instance)), outage);
        }
    }

    fn delete(&mut self, service: &ServiceName, id: &InstanceId, why: fn(InstanceId) -> Change) {
        let outage = self.outage;
        let service = self.service(service);
        let Some(record) = service.records.remove(id) else {
            return;
        };
        // What was marked left on purpose, however it was deleted.
        let why = if record.instance.is_draining() {
            Change::Remove
        } else {
            why
        };
        service.tell(why(id.clone()), outage);
    }

    /// Deletes what stands on a lease, with no mark.
    fn end(&mut self, lease: u64) {
        for name in self.services.keys().cloned().collect::<Vec<_>>() {
            let records = &self.service(&name).records;
            let on_it = records.iter().filter(|(_, r)| r.lease == Some(lease));
            for id in on_it.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                self.delete(&name, &id, Change::Vanish);
            }
        }
    }

    fn read(&mut self, service: &ServiceName, publisher: Publisher) {
        let outage = self.outage;
        let service = self.service(service);
        service.readers.retain(|r| !r.publisher.is_closed());
        if outage {
            publisher.stale(out_of_reach("resolve"));
        } else {
            publisher.reset(service.whole());
        }
        service.readers.push(Reader {
            publisher,
            begun: !outage,
        });
    }

    fn outage(&mut self, outage: bool) {
        if std::mem::replace(&mut self.outage, outage) == outage {
            return;
        }
        for service in self.services.values_mut() {
            if outage {
                let why = out_of_reach("resolve");
                service.update(|reader| reader.stale(why.clone()));
                continue;
            }
            let whole = service.whole();
            let untold = std::mem::take(&mut service.untold);
            for reader in &mut service.readers {
                if std::mem::replace(&mut reader.begun, true) {
                    reader.publisher.delta(untold.clone());
                } else {
                    reader.publisher.reset(whole.clone());
                }
            }
        }
    }

    /// Makes what stands there what one keeper wishes.
    fn grant(&mut self, wish: &Wish, lease: u64) -> Result<()> {
        let id = &wish.instance.id;
        if self.outage {
            return Err(out_of_reach("register"));
        }
        for service in &wish.services {
            let held = self.service(service).records.get(id);
            let ours = held.is_some_and(|r| r.lease == Some(lease));
            if wish.gone && ours {
                self.delete(service, id, Change::Remove);
            } else if wish.gone {
                continue;
            } else if let Some(stranger) = held.filter(|r| !ours && r.holds()) {
                let address = &stranger.instance.addresses[0];
                let doing = format!("register {service}/{id}: {address} has this id, and is alive");
                return Err(Error::new(ErrorKind::Conflict, doing));
            } else {
                self.put(service, &wish.instance, Some(lease));
            }
        }
        Ok(())
    }
}

impl Service {
    fn whole(&self) -> Vec<Arc<Instance>> {
        let records = self.records.values();
        records.map(|r| Arc::clone(&r.instance)).collect()
    }

    fn tell(&mut self, change: Change, outage: bool) {
        if outage {
            self.untold.push(change);
        } else {
            self.update(|reader| reader.delta([change.clone()]));
        }
    }

    fn update(&mut self, what: impl Fn(&Publisher)) {
        self.readers.retain(|reader| !reader.publisher.is_closed());
        self.readers.iter().for_each(|r| what(&r.publisher));
    }
}

impl Record {
    /// Whether it keeps others out: it has an owner, who is not about to leave.
    fn holds(&self) -> bool {
        self.lease.is_some() && !self.instance.is_draining()
    }
}

/// One keeper's lease. What stands on it vanishes when this is dropped, as when its runtime goes.
struct Lease {
    registry: Arc<Shared>,
    id: u64,
    ttl: Duration,
}

impl Lease {
    fn on(registry: &Arc<Shared>, ttl: Duration) -> Self {
        let mut state = registry.state();
        state.leases += 1;
        Self {
            registry: Arc::clone(registry),
            id: state.leases,
            ttl,
        }
    }

    /// Makes the wishes of one registration come true until the last of them.
    async fn keep(self, mut keeper: Keeper) {
        let mut stirred = self.registry.stir.subscribe();
        let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));
        let mut renewed = Instant::now();
        loop {
            let mut wish = keeper.wish();
            if self.is_frozen(&wish) {
                if self.stay_frozen(&mut keeper, &wish, &mut stirred).await {
                    return;
                }
                wish = keeper.wish();
            }
            let granted = self.registry.state().grant(&wish, self.id);
            let wait = match granted {
                Ok(()) => {
                    keeper.reached();
                    backoff.reset();
                    renewed = Instant::now();
                    self.ttl / 3
                }
                Err(error) => {
                    keeper.failed(self.or_lost(error, renewed));
                    backoff.next()
                }
            };
            if wish.gone {
                return;
            }
            tokio::select! {
                () = keeper.changed() => {}
                // The sender is in the registry, which this holds.
                _ = stirred.changed() => {}
                () = sleep_until(Instant::now() + wait) => {}
            }
        }
    }

    /// What is known by our own clock: without an answer, a lease is over when its time is.
    fn or_lost(&self, error: Error, renewed: Instant) -> Error {
        if error.is_transient() && Instant::now() >= renewed + self.ttl {
            return Error::new(ErrorKind::Lost, "renew a lease in memory").because(error);
        }
        error
    }

    fn is_frozen(&self, wish: &Wish) -> bool {
        let state = self.registry.state();
        let mut who = wish.services.iter();
        who.any(|s| {
            state
                .frozen
                .contains(&(s.clone(), wish.instance.id.clone()))
        })
    }

    /// Does nothing until the thaw. `true` when the lease is over and the registration is dropped.
    async fn stay_frozen(
        &self,
        keeper: &mut Keeper,
        wish: &Wish,
        stirred: &mut watch::Receiver<()>,
    ) -> bool {
        let until = Instant::now() + self.ttl;
        let mut over = false;
        while self.is_frozen(wish) {
            let ends = !over && !self.registry.state().outage;
            tokio::select! {
                _ = stirred.changed() => {}
                () = keeper.changed(), if over => if keeper.wish().gone { return true },
                () = sleep_until(until), if ends => {
                    self.registry.state().end(self.id);
                    over = true;
                }
            }
        }
        false
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry.state().end(self.id);
    }
}

/// A stream of updates that keeps its registry.
struct Reading {
    updates: Updates,
    _registry: Arc<Shared>,
}

impl Stream for Reading {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.as_mut().poll_next(cx)
    }
}

fn out_of_reach(doing: &str) -> Error {
    let doing = format!("{doing} in memory: an outage was asked for");
    Error::new(ErrorKind::Unavailable, doing)
}
