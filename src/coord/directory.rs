//! The registry as plain calls, for those who do not balance.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::{
    StreamExt,
    future::{join_all, ready},
    stream,
};
use tokio::{sync::OwnedMutexGuard, time::timeout};

use super::{
    hub::{Change, Hubs},
    leases::{Leases, PARTING, closed},
};
use crate::{
    Error, ErrorKind, Instance, InstanceId, Register, Registration, Result, ServiceName,
    etcd::{
        Layout, Registry,
        kv::{Kv, Span},
    },
    lock::locked,
};

/// The services in the coordinator's cluster, as plain calls; clones are the same one.
///
/// It stands in the same layout as those who balance write and read, so that both see each other.
///
/// ```no_run
/// # async fn example() -> tonic_fleet::Result<()> {
/// use tonic_fleet::{Instance, coord::Coordinator};
///
/// let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
/// let registry = coordinator.registry()?;
///
/// let a = Instance::at("10.0.0.1:50051")?.id("a")?;
/// registry.register("greeter", a).await?;              // and kept, until it is unregistered or closed
/// for instance in registry.discover("greeter").await? {
///     println!("{instance:?}");
/// }
/// registry.unregister("greeter", "a").await?;
/// # Ok(())
/// # }
/// ```
///
/// # What it guarantees
/// What is registered stays in the registry through outages, restarts and deletions by others, on the very same
/// terms as a [`Registration`], until it is ended here. [`discover`](Self::discover) sees every registration that was
/// acknowledged before, and [`watch`](Self::watch) tells who is there and then what happens, in order.
///
/// # And what not
/// That somebody is in the registry is no proof that he lives, nor that he is gone from it that he is dead: a
/// [`Channel`](crate::Channel) finds that out, and this does not. Of what etcd compacted before it was heard, the
/// outcome is told. Records that cannot be read are passed over.
#[derive(Clone)]
pub struct Directory {
    registry: Registry,
    leases: Arc<Leases>,
    hubs: Arc<Hubs>,
    kept: Arc<Kept>,
    root: Arc<str>,
}

/// The registrations that live until they are ended; none once it is closed.
#[derive(Debug)]
pub(super) struct Kept(Mutex<Option<HashMap<Name, Slot>>>);

type Name = (ServiceName, InstanceId);

/// Held by who changes it: others who want the same wait for their turn.
type Slot = Arc<tokio::sync::Mutex<Option<Registration>>>;

/// Something happened to an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To whose instance, by the name that was watched.
    pub service: ServiceName,
    /// The instance as it is or, after a deletion, as it was last.
    pub instance: Instance,
    /// The revision at which it happened.
    pub at: i64,
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// It is there, or is otherwise than it was.
    Put,
    /// It is gone from the registry, which is no proof that it is dead: see the table of the crate's
    /// documentation on what happens when etcd stands still.
    Delete,
}

/// Who is there, and then what happens, in order; a stream, which ends when the coordinator is closed.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Events(Pin<Box<dyn Stream<Item = Event> + Send>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }
}

impl Kept {
    /// Withdraws all of them, at once, and those that are under way when they are there.
    pub(super) async fn close(&self) -> Result<()> {
        let all = locked(&self.0).take().unwrap_or_default();
        let close = |slot: Slot| async move {
            let registration = slot.lock().await.take();
            match registration {
                Some(registration) => registration.close().await,
                None => Ok(()),
            }
        };
        let closed = timeout(PARTING, join_all(all.into_values().map(close))).await;
        closed.map_or_else(
            |late| {
                Err(Error::new(ErrorKind::Timeout, "withdraw what was registered").because(late))
            },
            |closed| closed.into_iter().collect(),
        )
    }

    fn is_closed(&self) -> bool {
        locked(&self.0).is_none()
    }

    /// The place of a registration, in turn.
    async fn slot(&self, name: &Name) -> Option<OwnedMutexGuard<Option<Registration>>> {
        let slot = {
            let mut all = locked(&self.0);
            Arc::clone(all.as_mut()?.entry(name.clone()).or_default())
        };
        Some(slot.lock_owned().await)
    }

    /// Forgets places that nobody has and nobody waits for.
    fn tidy(&self) {
        if let Some(all) = &mut *locked(&self.0) {
            all.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|slot| slot.is_some())
            });
        }
    }
}

impl Directory {
    pub(super) fn new(
        registry: Registry,
        leases: &Arc<Leases>,
        hubs: &Arc<Hubs>,
        kept: &Arc<Kept>,
        root: &Arc<str>,
    ) -> Self {
        Self {
            registry,
            leases: Arc::clone(leases),
            hubs: Arc::clone(hubs),
            kept: Arc::clone(kept),
            root: Arc::clone(root),
        }
    }

    /// Puts an instance into the registry, and keeps it there until it is [unregistered](Self::unregister) or
    /// the coordinator is closed. One of the same id that was registered here becomes this one; of several at once
    /// the last counts.
    ///
    /// # Errors
    /// `Conflict` when a living server has the id. When etcd cannot be asked, it is registered as soon as it
    /// can be, and this returns all the same.
    pub async fn register(&self, service: impl AsRef<str>, instance: Instance) -> Result<()> {
        self.leases.check()?;
        let service = self.service(service.as_ref())?;
        let name = (service.clone(), instance.id.clone());
        let Some(mut slot) = self.kept.slot(&name).await else {
            return Err(closed());
        };
        let done = match &*slot {
            Some(known) => known.update(|_| instance).await,
            None => {
                let registered = self.registry.register(&service, instance).await;
                registered.map(|registration| *slot = Some(registration))
            }
        };
        if self.kept.is_closed() {
            // It may not have waited for us.
            if let Some(late) = slot.take() {
                late.close().await?;
            }
            return Err(closed());
        }
        drop(slot);
        self.kept.tidy();
        done
    }

    /// Takes out an instance that was registered here: marks it as draining, and withdraws it. Says whether
    /// it was.
    ///
    /// # Errors
    /// When etcd cannot be asked: it is gone when its lease ends.
    pub async fn unregister(&self, service: impl AsRef<str>, id: impl AsRef<str>) -> Result<bool> {
        let name = (
            self.service(service.as_ref())?,
            InstanceId::new(id.as_ref())?,
        );
        let Some(mut slot) = self.kept.slot(&name).await else {
            return Ok(false);
        };
        let known = slot.take();
        let done = match known {
            Some(known) => known.close().await.map(|()| true),
            None => Ok(false),
        };
        drop(slot);
        self.kept.tidy();
        done
    }

    /// The instances of a service, as the cluster agrees on them; those that cannot be read are left out.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub async fn discover(&self, service: impl AsRef<str>) -> Result<Vec<Instance>> {
        let service = self.service(service.as_ref())?;
        let (mut found, mut ids) = (Vec::new(), HashSet::new());
        for layout in &**self.registry.layouts() {
            let listing = self.list(layout.prefix(&service)).await?;
            let instances = listing
                .iter()
                .filter_map(|kv| read(&**layout, &service, kv));
            // Who stands in several layouts is one.
            found.extend(instances.filter(|instance| ids.insert(instance.id.clone())));
        }
        Ok(found)
    }

    /// The names of all services that have an instance.
    ///
    /// # Errors
    /// `Config` when the layout has nothing before the names of services, so that they cannot be told from
    /// what else is in etcd; otherwise when etcd cannot be asked.
    pub async fn services(&self) -> Result<Vec<ServiceName>> {
        let mut services = BTreeSet::new();
        for layout in &**self.registry.layouts() {
            services.extend(self.services_in(&**layout).await?);
        }
        Ok(services.into_iter().collect())
    }

    async fn services_in(&self, layout: &dyn Layout) -> Result<BTreeSet<ServiceName>> {
        const MARK: &str = "tonic-fleet-mark";
        let marked = layout.prefix(&self.service(MARK)?);
        let before = marked.split_once(MARK).map_or("", |(before, _)| before);
        if before.is_empty() {
            let what = "list services: in this layout nothing stands before their names";
            return Err(Error::config(format!("{what}: give one with `?prefix=`")));
        }
        let mut services = BTreeSet::new();
        for kv in self.list(before.to_owned()).await? {
            let key = kv.name();
            let Some(rest) = key.strip_prefix(before) else {
                continue;
            };
            let ends = rest.match_indices('/').map(|(at, _)| &rest[..at]);
            let names = ends.filter_map(|name| ServiceName::new(name).ok());
            let owner = names.filter_map(|name| {
                let whole = self.service(name.as_str()).ok()?;
                read(layout, &whole, &kv).map(|_| name)
            });
            services.extend(owner.take(1));
        }
        Ok(services)
    }

    /// Who is in a service, each as a [`Put`](EventKind::Put), and then what happens.
    ///
    /// # Errors
    /// When the name cannot be one.
    pub fn watch(&self, service: impl AsRef<str>) -> Result<Events> {
        let name = ServiceName::new(service.as_ref())?;
        let service = self.service(name.as_str())?;
        let layouts = Arc::clone(self.registry.layouts());
        let read = layouts.iter().enumerate().map(|(nth, layout)| {
            let prefix = layout.prefix(&service).into();
            let reader = self.hubs.hub(self.registry.etcd(), &prefix);
            let reader = reader.read(&self.leases, None);
            Box::pin(stream::unfold(reader, move |mut reader| async move {
                let change = reader.next().await?;
                Some(((nth, change), reader))
            }))
        });
        let mut told = Standing {
            layouts: Arc::clone(&layouts),
            service: service.clone(),
            name,
            keys: HashMap::new(),
        };
        let changes = stream::select_all(read);
        let events = changes.filter_map(move |(nth, change)| ready(told.take(nth, change)));
        Ok(Events(Box::pin(events)))
    }

    async fn list(&self, prefix: String) -> Result<Vec<Kv>> {
        let listing = self.leases.asker.list(&Span::Prefix(prefix)).await;
        listing.map(|listing| listing.all)
    }

    fn service(&self, name: &str) -> Result<ServiceName> {
        ServiceName::new(format!("{}{name}", self.root))
    }
}

fn read(layout: &dyn Layout, service: &ServiceName, kv: &Kv) -> Option<Instance> {
    let key = std::str::from_utf8(&kv.key).ok()?;
    if !layout.owns(service, key) {
        return None;
    }
    let read = layout.decode(service, key, &kv.value);
    read.inspect_err(|why| tracing::debug!(key, why = why.chain(), "passed over"))
        .ok()
}

/// What events are made of: who stands in which layout, and under which key.
struct Standing {
    layouts: Arc<[Arc<dyn Layout>]>,
    /// Where it stands in etcd.
    service: ServiceName,
    /// As it is called here, without what the URL puts before it.
    name: ServiceName,
    keys: HashMap<(usize, Bytes), Instance>,
}

impl Standing {
    /// What a change in one of the layouts means for the service.
    fn take(&mut self, nth: usize, change: Change) -> Option<Event> {
        let (key, at, now) = match change {
            Change::Put(kv) => {
                let instance = read(&*self.layouts[nth], &self.service, &kv)?;
                (kv.key, kv.mod_revision, Some(instance))
            }
            Change::Gone(key, at) => (key, at, None),
            // Who is there counts, and that follows.
            Change::Skipped(..) => return None,
        };
        let before = match &now {
            Some(instance) => self.keys.insert((nth, key), instance.clone()),
            None => self.keys.remove(&(nth, key)),
        };
        let id = &now.as_ref().or(before.as_ref())?.id;
        // What the first layout says counts, and it is there while it stands in any.
        let elsewhere = self.keys.iter().filter(|((other, _), _)| *other != nth);
        let mut elsewhere = elsewhere.filter(|(_, instance)| instance.id == *id);
        let (kind, instance) = match now {
            Some(_) if elsewhere.any(|((other, _), _)| *other < nth) => return None,
            Some(instance) => (EventKind::Put, instance),
            None if elsewhere.next().is_some() => return None,
            None => (EventKind::Delete, before?),
        };
        Some(Event {
            kind,
            service: self.name.clone(),
            instance,
            at,
        })
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Directory").field(&self.registry).finish()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
