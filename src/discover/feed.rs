//! Feeds the balancer that comes with tonic.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::StreamExt;
use tokio::sync::mpsc::Sender;
use tonic::transport::{Endpoint, channel::Change};

use crate::{
    Instance, InstanceId, ServiceName,
    resolve::{self, Resolve, Update},
};

/// Tells tonic's own balancer who there is, until it is dropped.
///
/// For those who stay with [`tonic::transport::Channel::balance_channel`]. It does not wait for
/// connections, does not know who is ready, and picks at random; [`Channel`](crate::Channel) is better in all
/// three. An instance that vanishes is kept until the registry is sure. `make` says how to reach an
/// instance; none passes it over.
///
/// ```no_run
/// # async fn example(resolver: impl tonic_fleet::resolve::Resolve) -> Result<(), tonic_fleet::Error> {
/// use tonic::transport::{Channel, Endpoint};
///
/// let (channel, changes) = Channel::balance_channel(64);
/// let service = "greeter".parse()?;
/// tokio::spawn(async move {
///     let make = |instance: &tonic_fleet::Instance| {
///         Endpoint::from_shared(format!("http://{}", instance.addresses.first()?)).ok()
///     };
///     tonic_fleet::discover::feed(&resolver, &service, changes, make).await;
/// });
/// # Ok(())
/// # }
/// ```
pub async fn feed<R, M>(
    resolve: &R,
    service: &ServiceName,
    to: Sender<Change<InstanceId, Endpoint>>,
    make: M,
) where
    R: Resolve + ?Sized,
    M: Fn(&Instance) -> Option<Endpoint>,
{
    let mut updates = resolve.resolve(service);
    let mut known = BTreeMap::new();
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            () = to.closed() => return,
        };
        let Some(update) = update else {
            // The end of the updates keeps the set, and the sender keeps the balancer.
            return to.closed().await;
        };
        for change in changes(&mut known, update, &make) {
            if to.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// Those that were told, as they were told.
type Known = BTreeMap<InstanceId, Arc<Instance>>;

fn changes(
    known: &mut Known,
    update: Update,
    make: impl Fn(&Instance) -> Option<Endpoint>,
) -> Vec<Change<InstanceId, Endpoint>> {
    let (puts, removes) = match update {
        Update::Reset(all) => {
            let there: BTreeSet<_> = all.iter().map(|instance| &instance.id).collect();
            let gone = known.keys().filter(|id| !there.contains(id));
            let gone = gone.cloned().collect();
            (all, gone)
        }
        Update::Delta(changes) => split(changes),
        Update::Stale(_) | Update::Skipped(_) => return Vec::new(),
    };
    let mut told = Vec::new();
    for instance in puts {
        let endpoint = Some(&instance)
            .filter(|instance| !instance.is_draining())
            .and_then(|i| make(i));
        let Some(endpoint) = endpoint else {
            told.extend(forget(known, &instance.id));
            continue;
        };
        let before = known.insert(instance.id.clone(), Arc::clone(&instance));
        if before.is_none_or(|before| before.addresses != instance.addresses) {
            told.push(Change::Insert(instance.id.clone(), endpoint));
        }
    }
    told.extend(removes.iter().filter_map(|id| forget(known, id)));
    told
}

fn split(changes: Vec<resolve::Change>) -> (Vec<Arc<Instance>>, Vec<InstanceId>) {
    let mut puts = Vec::new();
    let mut removes = Vec::new();
    for change in changes {
        match change {
            resolve::Change::Put(instance) => puts.push(instance),
            resolve::Change::Remove(id) => removes.push(id),
            resolve::Change::Vanish(_) => {}
        }
    }
    (puts, removes)
}

fn forget(known: &mut Known, id: &InstanceId) -> Option<Change<InstanceId, Endpoint>> {
    known.remove(id).map(|_| Change::Remove(id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, address: &str) -> Arc<Instance> {
        Arc::new(
            Instance::at(address)
                .and_then(|instance| instance.id(id))
                .unwrap(),
        )
    }

    fn told(known: &mut Known, update: Update) -> String {
        let make = |instance: &Instance| {
            Endpoint::from_shared(format!("http://{}", instance.addresses[0])).ok()
        };
        let words = changes(known, update, make)
            .into_iter()
            .map(|change| match change {
                Change::Insert(id, endpoint) => {
                    format!("+{id}@{}", endpoint.uri().port_u16().unwrap())
                }
                Change::Remove(id) => format!("-{id}"),
            });
        words.collect()
    }

    #[test]
    fn only_what_matters_to_a_connection_is_told() {
        let mut known = Known::new();
        let put = |instance| Update::Delta(vec![resolve::Change::Put(instance)]);

        let all = Update::Reset(vec![
            instance("a", "10.0.0.1:1"),
            instance("b", "10.0.0.1:2"),
        ]);
        assert_eq!(told(&mut known, all), "+a@1+b@2");
        let heavier = Arc::new((*instance("a", "10.0.0.1:1")).clone().weight(3));
        assert_eq!(told(&mut known, put(heavier)), "");
        assert_eq!(told(&mut known, put(instance("a", "10.0.0.1:9"))), "+a@9");
        let vanished = Update::Delta(vec![resolve::Change::Vanish("a".parse().unwrap())]);
        assert_eq!(told(&mut known, vanished), "");
        let drains = Arc::new((*instance("b", "10.0.0.1:2")).clone().serving(false));
        assert_eq!(told(&mut known, put(drains)), "-b");

        assert_eq!(told(&mut known, Update::Reset(vec![])), "-a");
    }
}
