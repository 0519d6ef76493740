//! Our resolver and registrar on a real etcd, alone and combined, held to the suite for all.
#![cfg(all(feature = "etcd", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/proxy.rs"]
mod proxy;

use std::{collections::HashMap, sync::Arc, time::Duration};

use etcd::Etcd;
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use proxy::{Mode, Proxy};
use tonic_fleet::{
    Instance, InstanceId, Register, RegistryUrl, ServiceName,
    etcd::layout::{self, Layout},
    register,
    resolve::{self, Resolve},
    testing::{Backend, Case, Done, Stop, Verdict, conform},
};

/// How an outage comes about.
enum Line {
    /// The way to the registry is cut.
    Through(Proxy),
    /// The registry is killed, and started again.
    Straight(Box<Etcd>),
}

struct OnEtcd {
    line: Line,
    url: RegistryUrl,
    resolver: Arc<dyn Resolve>,
    /// The test's own, past the proxy.
    client: Client,
    layout: Arc<dyn Layout>,
    written: HashMap<(ServiceName, InstanceId), Instance>,
    down: bool,
}

impl OnEtcd {
    /// Before this etcd, with something before our resolver.
    async fn before(etcd: &Etcd, seen: impl FnOnce(Arc<dyn Resolve>) -> Arc<dyn Resolve>) -> Self {
        let proxy = Proxy::before(&etcd.address()).await;
        let address = proxy.address();
        let client = etcd.client().await;
        Self::on(Line::Through(proxy), &address, client, seen)
    }

    /// Before this etcd, where servers stand as another system has them.
    async fn laid_out(etcd: &Etcd, layout: &str) -> Self {
        let ours = Self::before(etcd, |all| all).await;
        let url: RegistryUrl = format!("{}&layout={layout}", ours.url).parse().unwrap();
        Self {
            resolver: resolve::open(&url.service("any").unwrap()).unwrap(),
            url,
            layout: layout::named(Some(layout), None).unwrap(),
            ..ours
        }
    }

    /// An etcd of its own.
    async fn alone() -> Self {
        let etcd = Etcd::start().await;
        let (address, client) = (etcd.address(), etcd.client().await);
        Self::on(Line::Straight(Box::new(etcd)), &address, client, |all| all)
    }

    fn on(
        line: Line,
        address: &str,
        client: Client,
        seen: impl FnOnce(Arc<dyn Resolve>) -> Arc<dyn Resolve>,
    ) -> Self {
        let url: RegistryUrl = format!("etcd://{address}?ttl=5s").parse().unwrap();
        let resolver = resolve::open(&url.service("any").unwrap()).unwrap();
        Self {
            line,
            url,
            resolver: seen(resolver),
            client,
            layout: layout::named(None, None).unwrap(),
            written: HashMap::new(),
            down: false,
        }
    }

    /// In transactions as large as etcd allows.
    async fn write(&mut self, writes: Vec<TxnOp>) -> Done {
        if self.down {
            return Err(Stop::cannot("nobody writes to an etcd that is dead"));
        }
        for writes in writes.chunks(128) {
            let txn = Txn::new().and_then(writes.to_vec());
            self.client.txn(txn).await.unwrap();
        }
        Ok(())
    }
}

fn key(service: &ServiceName, id: &InstanceId) -> String {
    format!("/services/{service}/{id}")
}

fn write(service: &ServiceName, instance: &Instance) -> TxnOp {
    let value = serde_json::to_vec(instance).unwrap();
    TxnOp::put(key(service, &instance.id), value, None)
}

impl Backend for OnEtcd {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::clone(&self.resolver)
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Ok(register::open(&self.url)?)
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        for instance in instances {
            let place = (service.clone(), instance.id.clone());
            self.written.insert(place, instance.clone());
        }
        let writes = instances.iter().map(|instance| write(service, instance));
        self.write(writes.collect()).await
    }

    async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        let left = ids.iter().map(|id| {
            let instance = self.written.remove(&(service.clone(), id.clone()));
            write(service, &instance.unwrap().serving(false))
        });
        let marks = left.collect();
        self.write(marks).await?;
        self.vanish(service, ids).await
    }

    async fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        let deletes = ids.iter().map(|id| TxnOp::delete(key(service, id), None));
        self.write(deletes.collect()).await
    }

    async fn cut(&mut self) -> Done {
        match &mut self.line {
            Line::Through(proxy) => proxy.set(Mode::Reset),
            Line::Straight(etcd) => {
                etcd.kill();
                self.down = true;
            }
        }
        Ok(())
    }

    async fn heal(&mut self) -> Done {
        match &mut self.line {
            Line::Through(proxy) => proxy.set(Mode::Pass),
            Line::Straight(etcd) => {
                etcd.restart().await;
                self.client = etcd.client().await;
                self.down = false;
            }
        }
        Ok(())
    }

    async fn expire(&mut self, service: &ServiceName, _: &InstanceId) -> Done {
        let all = Some(GetOptions::new().with_prefix());
        let prefix = self.layout.prefix(service);
        let got = self.client.get(prefix, all).await.unwrap();
        let lease = got.kvs()[0].lease();
        self.client.lease_revoke(lease).await.unwrap();
        Ok(())
    }
}

#[tokio::test]
async fn a_registry_on_etcd_keeps_its_word() {
    let etcd = Etcd::start().await;

    let report = conform(async || OnEtcd::before(&etcd, |all| all).await).await;

    report.assert_held_but(&[]);
}

#[tokio::test]
async fn combinations_over_etcd_keep_its_word() {
    let etcd = Etcd::start().await;
    let home = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let all = |registry: Arc<dyn Resolve>| {
        let seen = registry.map(|instance| instance).filter(|_| true);
        let both = resolve::merge([seen.clone(), seen]);
        let nobody = resolve::Fixed::new([] as [Instance; 0]);
        let files = tempfile::tempdir_in(home.path()).unwrap().keep();
        Arc::new(both.or(nobody, hour).snapshot(files, hour)) as Arc<dyn Resolve>
    };

    let report = conform(async || OnEtcd::before(&etcd, all).await).await;

    report.assert_held_but(&[]);
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_started_again_is_no_other_registry() {
    let mut backend = OnEtcd::alone().await;
    for case in [
        Case::Outage,
        Case::QuietCut,
        Case::StartInAnOutage,
        Case::UpdateInACut,
        Case::BegunInACut,
    ] {
        let verdict = case.hold(&mut backend).await;

        assert_eq!(verdict, Verdict::Held, "{case}");
    }
}

#[tokio::test]
async fn who_registers_as_another_systems_server_keeps_its_word() {
    let etcd = Etcd::start().await;
    // Those that have room for a mark, and for what the suite says of its servers.
    for layout in [
        "etcd-naming",
        "kratos",
        "kitex",
        "go-micro",
        "rpcx",
        "gochat",
    ] {
        for case in [
            Case::Registered,
            Case::Dropped,
            Case::RegistrationUpdate,
            Case::DrainingMark,
            Case::SeveralServices,
            Case::OddRegistrations,
            Case::LostSession,
            Case::Conflict,
        ] {
            // Where the key is the address, two with one id have two keys.
            let by_address = ["etcd-naming", "kitex", "rpcx"].contains(&layout);
            if by_address && case == Case::Conflict {
                continue;
            }
            let verdict = case.hold(&mut OnEtcd::laid_out(&etcd, layout).await).await;

            assert_eq!(verdict, Verdict::Held, "{layout}: {case}");
        }
    }
}
