//! A service in Consul's catalog, for the suite that all registries are held to.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;
use tonic_fleet::{
    Instance, InstanceId, Register, ServiceName,
    consul::Registry,
    resolve::Resolve,
    testing::{Backend, Done, Stop},
};

use crate::{
    consul::Consul,
    proxy::{Mode, Proxy},
};

/// Servers that somebody else enters into the catalog, seen through a line that can be cut.
pub struct Entered {
    consul: Arc<Consul>,
    line: Proxy,
    /// How a registry is opened there.
    open: fn(&str) -> Registry,
    written: HashMap<(ServiceName, InstanceId), Instance>,
}

/// Long enough for a reader to see a mark.
const NOTICED: Duration = Duration::from_secs(1);

impl Entered {
    pub async fn before(consul: &Arc<Consul>, open: fn(&str) -> Registry) -> Self {
        Self {
            line: Proxy::before(&consul.address()).await,
            consul: Arc::clone(consul),
            open,
            written: HashMap::new(),
        }
    }

    /// In transactions as large as Consul allows.
    async fn write(&self, verb: &str, services: Vec<Value>) {
        let change = |service: Value| json!({ "Service": { "Verb": verb, "Node": "else", "Service": service } });
        let changes: Vec<_> = services.into_iter().map(change).collect();
        for changes in changes.chunks(64) {
            self.consul.put("/v1/txn", &json!(changes)).await;
        }
    }

    async fn enter(&self, service: &ServiceName, instances: &[Instance]) {
        // Another node than the agent's, which would put its own services right.
        let node = json!({ "Node": "else", "Address": "10.0.0.9" });
        self.consul.put("/v1/catalog/register", &node).await;
        let entry = |instance: &Instance| {
            let whole = serde_json::to_string(instance).unwrap();
            json!({
                "ID": format!("{service}/{}", instance.id),
                "Service": service.as_str(),
                "Tags": [format!("instance={whole}")],
                "Meta": { "fleet-owner": "somebody" },
                "Weights": { "Passing": 1, "Warning": 1 },
            })
        };
        self.write("set", instances.iter().map(entry).collect())
            .await;
    }
}

impl Backend for Entered {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new((self.open)(&self.line.address()))
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Ok(Arc::new((self.open)(&self.line.address())))
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        for instance in instances {
            let place = (service.clone(), instance.id.clone());
            self.written.insert(place, instance.clone());
        }
        self.enter(service, instances).await;
        Ok(())
    }

    async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        let left = ids.iter().map(|id| {
            let instance = self.written.remove(&(service.clone(), id.clone()));
            instance.unwrap().serving(false)
        });
        let marked: Vec<_> = left.collect();
        self.enter(service, &marked).await;
        sleep(NOTICED).await;
        self.vanish(service, ids).await
    }

    async fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        let gone = ids
            .iter()
            .map(|id| json!({ "ID": format!("{service}/{id}"), "Service": service.as_str() }));
        self.write("delete", gone.collect()).await;
        Ok(())
    }

    async fn cut(&mut self) -> Done {
        self.line.set(Mode::Reset);
        Ok(())
    }

    async fn heal(&mut self) -> Done {
        self.line.set(Mode::Pass);
        Ok(())
    }

    async fn expire(&mut self, service: &ServiceName, id: &InstanceId) -> Done {
        let path = format!("/v1/agent/service/deregister/{service}/{id}");
        self.consul.put(&path, &Value::Null).await;
        Ok(())
    }
}
