//! The resolver on a real etcd, held to what every resolver owes.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "conform/cases.rs"]
#[macro_use]
mod cases;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/reader.rs"]
mod reader;

use std::sync::Arc;

use cases::{Backend, service};
use etcd_client::{Txn, TxnOp};
use tonic_fleet::{
    Instance, Target,
    resolve::{self, Resolve},
};

struct OnEtcd {
    etcd: etcd::Etcd,
    resolver: Arc<dyn Resolve>,
    known: Vec<Instance>,
}

impl OnEtcd {
    async fn start() -> Self {
        let etcd = etcd::Etcd::start().await;
        let target: Target = format!("{}/{}", etcd.url(), service()).parse().unwrap();
        let resolver = resolve::open(&target).unwrap();
        Self {
            etcd,
            resolver,
            known: Vec::new(),
        }
    }

    /// In transactions as large as etcd allows.
    async fn write(&self, writes: Vec<TxnOp>) {
        let mut client = self.etcd.client().await;
        for writes in writes.chunks(128) {
            client
                .txn(Txn::new().and_then(writes.to_vec()))
                .await
                .unwrap();
        }
    }
}

fn key(instance: &Instance) -> String {
    format!("/services/{}/{}", service(), instance.id)
}

fn put(instance: &Instance) -> TxnOp {
    TxnOp::put(key(instance), serde_json::to_vec(instance).unwrap(), None)
}

impl Backend for OnEtcd {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::clone(&self.resolver)
    }

    async fn set(&mut self, instances: &[Instance]) {
        let left = self
            .known
            .iter()
            .filter(|known| instances.iter().all(|i| i.id != known.id));
        let left: Vec<_> = left.cloned().collect();
        let marks = left.iter().map(|i| put(&i.clone().serving(false)));
        self.write(marks.chain(instances.iter().map(put)).collect())
            .await;
        self.write(left.iter().map(|i| TxnOp::delete(key(i), None)).collect())
            .await;
        self.known = instances.to_vec();
    }

    async fn fail(&mut self) {
        self.etcd.kill();
    }

    async fn mend(&mut self) {
        self.etcd.restart().await;
    }
}

conform!(
    on_etcd,
    OnEtcd::start(),
    #[tokio::test],
    the_first_word_is_the_whole_set,
    nobody_is_an_empty_set_and_no_silence,
    what_comes_changes_and_leaves_is_told,
    any_series_of_sets_ends_where_the_registry_is,
    every_reader_learns_the_same,
    an_outage_keeps_the_set_and_its_end_is_told,
    a_start_in_an_outage_is_stale_until_it_ends,
    a_thousand_instances_are_one_set,
    odd_names_and_values_arrive_as_they_are,
    nothing_runs_when_nobody_reads,
);
