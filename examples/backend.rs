//! A registry of one's own in thirty lines, held to the suite that our own are held to:
//!
//! ```console
//! $ cargo run --example backend --features testing
//! ```
//!
//! Here a control plane pushes to this program who serves what, as a table, and says so when it has lost its
//! own sources. [`Pushed`] makes a resolver of that; a channel would take it as
//! `Channel::over(service, Pushed(table))`.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use tokio::sync::watch;
use tonic_fleet::{
    Error, ErrorKind, Instance, InstanceId, Register, ServiceName,
    resolve::{Publisher, Resolve, Updates, publish},
    testing::{Backend, Done, Stop, conform},
};

/// Who serves what, as the control plane pushed it last.
#[derive(Clone, Default)]
struct Table {
    services: BTreeMap<ServiceName, BTreeMap<InstanceId, Instance>>,
    /// Whether the control plane cannot say just now.
    blind: bool,
}

/// The resolver: every table that is pushed is one update for who reads about a service.
struct Pushed(watch::Receiver<Table>);

impl Resolve for Pushed {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let (service, table) = (service.clone(), self.0.clone());
        tokio::spawn(async move {
            tokio::select! {
                // Nobody reads any more: nothing is left running.
                () = publisher.closed() => {}
                () = follow(table, &service, &publisher) => {}
            }
        });
        updates
    }
}

async fn follow(mut table: watch::Receiver<Table>, service: &ServiceName, publisher: &Publisher) {
    let mut told = None;
    loop {
        let now = table.borrow_and_update().clone();
        let set = now.services.get(service).cloned().unwrap_or_default();
        match &told {
            // What was told before stays, and serves.
            _ if now.blind => {
                publisher.stale(Error::new(ErrorKind::Unavailable, "ask the control plane"));
            }
            Some(before) if *before == set => publisher.delta([]),
            _ => {
                publisher.reset(set.values().cloned());
                told = Some(set);
            }
        }
        if table.changed().await.is_err() {
            // It will never change again; readers keep what they have.
            return;
        }
    }
}

/// The control plane, in the hands of the suite.
#[derive(Default)]
struct ControlPlane(watch::Sender<Table>);

impl ControlPlane {
    fn push(&self, change: impl FnOnce(&mut Table)) -> Done {
        self.0.send_modify(change);
        Ok(())
    }
}

impl Backend for ControlPlane {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(Pushed(self.0.subscribe()))
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Err(Stop::cannot("the control plane starts the servers itself"))
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        self.push(|table| {
            let set = table.services.entry(service.clone()).or_default();
            set.extend(instances.iter().map(|i| (i.id.clone(), i.clone())));
        })
    }

    async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        self.push(|table| {
            let set = table.services.entry(service.clone()).or_default();
            set.retain(|id, _| !ids.contains(id));
        })
    }

    async fn vanish(&mut self, _: &ServiceName, _: &[InstanceId]) -> Done {
        Err(Stop::cannot("who is in no table was taken out on purpose"))
    }

    async fn cut(&mut self) -> Done {
        self.push(|table| table.blind = true)
    }

    async fn heal(&mut self) -> Done {
        self.push(|table| table.blind = false)
    }

    async fn expire(&mut self, _: &ServiceName, _: &InstanceId) -> Done {
        Err(Stop::cannot("nobody registers, so there are no sessions"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let report = conform(async || ControlPlane::default()).await;

    println!("{report}");
    match report.failed().count() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_keeps_its_word_as_far_as_it_goes() {
        let report = conform(async || ControlPlane::default()).await;

        assert_eq!(report.failed().count(), 0, "{report}");
        assert_eq!(report.skipped().count(), 12, "{report}");
    }
}
