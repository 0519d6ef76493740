//! Lists that no agent meant to write, and any history of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use tokio::time::Instant;

use super::{
    definition::{self, Rules},
    roster::{Listing, Roster, missing},
};
use crate::{
    Instance, InstanceId, ServiceName, fuzz,
    resolve::{Census, Change, Update},
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

#[test]
fn what_is_listed_can_be_used_and_is_written_as_it_is() {
    let good = [
        r#"[{"Node":{"Node":"n","Address":"10.0.0.9","Meta":{"zone":"eu"}},"Service":{"ID":"greeter/a","Service":"greeter","Tags":["version=v1","primary"],"Address":"10.0.0.5","Meta":{"weight":"3","fleet-owner":"x","addresses":"h:1,[::1]:2"},"Port":9000,"Weights":{"Passing":10,"Warning":1},"CreateIndex":7},"Checks":[{"CheckID":"serfHealth","Status":"passing"},{"CheckID":"service:a","Status":"warning"}]}]"#,
        r#"[{"Service":{"ID":"b","Tags":["instance={\"id\":\"b\",\"addresses\":[\"unix:/a\"],\"tags\":{\"k\":\"v\"}}"],"Meta":{"fleet-owner":"x"}},"Checks":[{"CheckID":"_node_maintenance","Status":"critical"}]},{"Service":{"ID":"c","Port":1,"Address":"h","TaggedAddresses":{"grpc":{"Address":"grpc://h:2","Port":2}},"Meta":null,"Tags":null},"Checks":null}]"#,
        "null",
        "[]",
    ];
    let words = [
        "null",
        "\"Meta\":",
        "\"serving\":\"false\"",
        "critical",
        "[[[[",
        "1e99",
        "-1",
        "\\u0000",
        "instance=",
        "/",
        "@",
    ];
    let rules = Rules {
        ttl: Duration::from_secs(10),
        forget: None,
        tags: Vec::new(),
        checks: Vec::new(),
    };
    fuzz::text(&good, &words, |input| {
        let Ok(listing) = Listing::read(&greeter(), input.as_bytes(), false) else {
            return false;
        };
        for (id, instance) in listing.here.iter().chain(&listing.ill) {
            assert!(instance.check().is_ok() && instance.id == *id);
            let written = definition::write(&greeter(), instance, "me", &rules).unwrap();
            let service: serde_json::Value = serde_json::from_slice(&written).unwrap();
            let status = match definition::Status::of(instance) {
                definition::Status::Passing => "passing",
                definition::Status::Warning => "warning",
                definition::Status::Critical => "critical",
            };
            let entry = serde_json::json!([{
                "Service": service, "Checks": [{ "Status": status }],
            }]);
            let again = Listing::read(&greeter(), entry.to_string().as_bytes(), false).unwrap();
            assert_eq!(again.here.values().next(), Some(instance));
        }
        true
    });
}

/// Somebody who reads.
#[derive(Debug, Default, PartialEq)]
struct Reader {
    known: BTreeMap<InstanceId, Arc<Instance>>,
    suspects: BTreeSet<InstanceId>,
}

impl Reader {
    fn take(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            match update {
                Update::Reset(all) => {
                    self.suspects.clear();
                    self.known = all.into_iter().map(|i| (i.id.clone(), i)).collect();
                }
                Update::Delta(changes) => {
                    changes.into_iter().for_each(|change| self.change(change));
                }
                Update::Skipped(_) | Update::Stale(_) => {}
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Put(instance) => {
                self.suspects.remove(&instance.id);
                self.known.insert(instance.id.clone(), instance);
            }
            Change::Remove(id) => {
                self.suspects.remove(&id);
                assert!(self.known.remove(&id).is_some(), "{id} was not known");
            }
            Change::Vanish(id) => {
                assert!(
                    !self.known[&id].is_draining(),
                    "{id} had said that it leaves"
                );
                assert!(self.suspects.insert(id), "told twice");
            }
        }
    }
}

/// A few of a few, each well, ill, draining or of another weight.
fn any_list(rng: &mut StdRng) -> Listing {
    let mut list = Listing::default();
    for id in ["a", "b", "c", "d"] {
        let instance = Instance::at("10.0.0.5:1").and_then(|i| i.id(id)).unwrap();
        let (into, instance) = match rng.random_range(0..6) {
            0 => (&mut list.here, instance),
            1 => (&mut list.here, instance.weight(rng.random_range(1..4))),
            2 => (&mut list.here, instance.serving(false)),
            3 => (&mut list.ill, instance),
            4 => {
                list.unheard.insert(instance.id.clone());
                (&mut list.ill, instance)
            }
            _ => continue,
        };
        into.insert(instance.id.clone(), Arc::new(instance));
    }
    list
}

#[test]
fn whatever_is_listed_readers_know_the_last_list_and_whom_they_miss() {
    const GRACE: Duration = Duration::from_secs(10);
    fuzz::rounds(|rng| {
        let mut now = Instant::now();
        let mut roster = Roster::new(greeter(), GRACE);
        let (mut early, mut last) = (Reader::default(), BTreeMap::new());
        for _ in 0..rng.random_range(1..20) {
            now += Duration::from_secs(rng.random_range(0..6));
            if rng.random_ratio(1, 4) {
                let suspects = missing(roster.vanished().suspects(now), &any_list(rng));
                early.take(roster.vanished_mut().gone(&suspects));
            } else {
                let list = any_list(rng);
                last = list.here.clone();
                early.take(roster.listed(list, now));
            }

            let mut late = Reader::default();
            late.take(roster.so_far());
            assert_eq!(late, early);
            let sure = early.known.iter();
            let sure = sure.filter(|(id, _)| !early.suspects.contains(*id));
            assert!(sure.eq(&last), "{early:?} and not {last:?}");
            assert!(roster.vanished().due().is_none() || !early.suspects.is_empty());
        }
    });
}
