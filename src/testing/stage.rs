//! Where a case plays: a backend, and services that are the case's own.

use std::sync::Arc;

use super::{Backend, Done, Stop, reader::Reader};
use crate::{Instance, InstanceId, Register, Registration, Result, ServiceName, resolve::Resolve};

/// A backend, and the service that most of a case is about.
pub(super) struct Stage<'a, B> {
    pub(super) backend: &'a mut B,
    pub(super) service: ServiceName,
    /// Whether the registry is out of reach.
    down: &'a mut bool,
}

impl<'a, B: Backend> Stage<'a, B> {
    pub(super) fn new(backend: &'a mut B, case: &str, down: &'a mut bool) -> Result<Self> {
        let service = ServiceName::new(format!("suite-{}", case.replace('_', "-")))?;
        Ok(Self {
            backend,
            service,
            down,
        })
    }

    pub(super) async fn cut(&mut self) -> Done {
        *self.down = true;
        self.backend.cut().await
    }

    pub(super) async fn heal(&mut self) -> Done {
        self.backend.heal().await?;
        *self.down = false;
        Ok(())
    }

    /// Another service of this case.
    pub(super) fn beside(&self, ending: &str) -> Result<ServiceName> {
        ServiceName::new(format!("{}{ending}", self.service))
    }

    pub(super) async fn put(&mut self, instances: &[Instance]) -> Done {
        self.backend.put(&self.service, instances).await
    }

    pub(super) async fn remove(&mut self, ids: &[&str]) -> Done {
        self.backend.remove(&self.service, &self::ids(ids)?).await
    }

    pub(super) async fn vanish(&mut self, ids: &[&str]) -> Done {
        self.backend.vanish(&self.service, &self::ids(ids)?).await
    }

    /// Makes this the whole set, where that was the set before.
    pub(super) async fn turn(&mut self, before: &[Instance], set: &[Instance]) -> Done {
        let left = before.iter().filter(|b| set.iter().all(|i| i.id != b.id));
        let left: Vec<_> = left.map(|instance| instance.id.clone()).collect();
        let new = set.iter().filter(|i| !before.contains(i));
        let new: Vec<_> = new.cloned().collect();
        if !left.is_empty() {
            self.backend.remove(&self.service, &left).await?;
        }
        if !new.is_empty() {
            self.put(&new).await?;
        }
        Ok(())
    }

    pub(super) fn read(&self) -> Reader {
        self.read_of(&self.service)
    }

    pub(super) fn read_of(&self, service: &ServiceName) -> Reader {
        let resolver: Arc<dyn Resolve> = self.backend.resolver();
        Reader::of(resolver.resolve(service))
    }

    pub(super) async fn register(&self, instance: Instance) -> Result<Registration, Stop> {
        let registrar: Arc<dyn Register> = self.backend.registrar()?;
        Ok(registrar.register(&self.service, instance).await?)
    }
}

/// An instance of this id, like all others.
pub(super) fn instance(id: &str) -> Result<Instance> {
    Instance::at("10.0.0.1:50051")?.id(id)
}

/// One for each of these ids.
pub(super) fn instances(ids: &[&str]) -> Result<Vec<Instance>> {
    ids.iter().map(|id| instance(id)).collect()
}

fn ids(ids: &[&str]) -> Result<Vec<InstanceId>> {
    ids.iter().map(InstanceId::new).collect()
}

/// What is not so ends the case.
pub(super) fn ensure(is: bool, what: impl FnOnce() -> String) -> Done {
    if is {
        Ok(())
    } else {
        Err(Stop::failed(what()))
    }
}
