//! One entry of `/v1/health/service`, read as an instance.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer};

use super::definition::{ADDRESSES, OWNER, SERVER_NAME, SERVING, VERSION, WEIGHT, WHOLE, ZONE};
use crate::{Address, Error, ErrorKind, Instance, InstanceId, Result, ServiceName};

/// A service on a node, and the checks on both.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    #[serde(default)]
    node: Node,
    pub(super) service: Service,
    #[serde(default, deserialize_with = "or_null")]
    checks: Vec<Check>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    #[serde(deserialize_with = "or_null")]
    node: String,
    #[serde(deserialize_with = "or_null")]
    address: String,
    #[serde(deserialize_with = "or_null")]
    meta: BTreeMap<String, String>,
}

/// What was registered; `/v1/agent/service/` says it in the same words.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Service {
    #[serde(rename = "ID", deserialize_with = "or_null")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_null")]
    tags: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    pub(super) meta: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_null")]
    address: String,
    #[serde(deserialize_with = "or_null")]
    port: i64,
    #[serde(deserialize_with = "or_null")]
    tagged_addresses: BTreeMap<String, Tagged>,
    weights: Option<Weights>,
    create_index: u64,
}

/// Some versions write these in lower case.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tagged {
    #[serde(alias = "Address", deserialize_with = "or_null")]
    address: String,
    #[serde(alias = "Port", deserialize_with = "or_null")]
    port: i64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct Weights {
    passing: i64,
    warning: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Check {
    #[serde(rename = "CheckID", deserialize_with = "or_null")]
    id: String,
    #[serde(deserialize_with = "or_null")]
    status: String,
}

/// What the worst of the checks says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Worst {
    Passing,
    Warning,
    /// The agent of its node does not answer the others; what it said last was better than critical.
    Unheard,
    Critical,
    /// Somebody wants it to get no calls.
    Maintenance,
}

/// An entry as it was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) instance: Instance,
    pub(super) health: Health,
    /// Which came first, when two have one id.
    pub(super) since: u64,
    /// The node, which makes the second one's id another.
    pub(super) node: String,
}

/// How an instance is, by its checks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Health {
    /// It may be called, or said itself that it wants no calls.
    Well,
    /// Nobody can say: the agent of its node is gone, and it may well live.
    Unheard,
    /// Its checks say that it is not well, and nobody said that it was to be so.
    Ill,
}

/// In Go, `null` is an empty list, map or string.
fn or_null<'de, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(value).map(Option::unwrap_or_default)
}

impl Entry {
    /// What a person finds it by.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.node.node, self.service.id)
    }

    /// The instance, or why there is none. When it must be `passing`, a warning is as bad as worse.
    pub(super) fn read(&self, service: &ServiceName, passing: bool) -> Result<Read> {
        let refuse =
            |why: Error| Error::new(ErrorKind::Decode, format!("read {}", self.key())).because(why);
        let mut instance = self.instance(service).map_err(refuse)?;
        let worst = self.worst();
        if worst == Worst::Warning {
            instance.weight = self.service.warned(instance.weight);
        }
        instance.serving &= worst != Worst::Maintenance;
        let health = match worst {
            // One who leaves said so before.
            _ if !instance.serving => Health::Well,
            Worst::Passing | Worst::Maintenance => Health::Well,
            Worst::Warning if passing && !instance.is_draining() => Health::Ill,
            Worst::Warning => Health::Well,
            Worst::Unheard => Health::Unheard,
            Worst::Critical => Health::Ill,
        };
        instance.check().map_err(refuse)?;
        Ok(Read {
            instance,
            health,
            since: self.service.create_index,
            node: self.node.node.clone(),
        })
    }

    fn instance(&self, service: &ServiceName) -> Result<Instance> {
        let mut instance = self.service.instance(service, &self.node.address)?;
        if instance.zone.is_none() {
            let zone = self.node.meta.get(ZONE).filter(|zone| !zone.is_empty());
            instance.zone = zone.map(|zone| zone.as_str().into());
        }
        // Whoever gives no id has that of the service, on every node.
        if self.service.id == service.as_str() {
            instance.id = beside(&instance.id, &self.node.node)?;
        }
        Ok(instance)
    }

    fn worst(&self) -> Worst {
        let each = self.checks.iter().map(|check| {
            let maintained = check.id == "_node_maintenance"
                || check.id.starts_with("_service_maintenance:")
                || check.status == "maintenance";
            match check.status.as_str() {
                "passing" => Worst::Passing,
                "warning" => Worst::Warning,
                _ if maintained => Worst::Maintenance,
                _ if check.id == "serfHealth" => Worst::Unheard,
                _ => Worst::Critical,
            }
        });
        each.max().unwrap_or(Worst::Passing)
    }
}

/// The id of one who has the same as another, on this node.
pub(super) fn beside(id: &InstanceId, node: &str) -> Result<InstanceId> {
    InstanceId::new(named(&format!("{id}@{node}")))
}

/// What a name needs to be an id.
fn named(name: &str) -> String {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "?#\\/".contains(c);
    let fit = |c| if odd(c) { '_' } else { c };
    name.chars().map(fit).collect()
}

impl Service {
    /// The instance that was registered, as it is while its checks pass.
    pub(super) fn instance(&self, service: &ServiceName, node: &str) -> Result<Instance> {
        let whole = self.tags.iter().find_map(|tag| tag.strip_prefix(WHOLE));
        if let Some(whole) = whole.filter(|_| self.meta.contains_key(OWNER)) {
            let refuse = |error| Error::new(ErrorKind::Decode, "its tag `instance`").because(error);
            return serde_json::from_str(whole).map_err(refuse);
        }
        let ours = self.id.strip_prefix(service.as_str());
        let ours = ours.and_then(|id| id.strip_prefix('/'));
        let id = ours.unwrap_or(&self.id);
        let mut instance = Instance::at(self.address(node)?)?.id(named(id))?;
        instance.weight = self.weight();
        self.describe(&mut instance)?;
        Ok(instance)
    }

    /// Takes away the tags that all have.
    pub(super) fn without_tags(&mut self, tags: &[String]) {
        self.tags.retain(|tag| !tags.contains(tag));
    }

    /// A gRPC address of its own where there is one, as kratos writes them; else the service's, or the node's.
    fn address(&self, node: &str) -> Result<Address> {
        let tagged = ["grpc", "grpcs"].iter();
        let mut tagged = tagged.filter_map(|name| self.tagged_addresses.get(*name));
        if let Some(tagged) = tagged.next() {
            let place = tagged.address.split_once("://");
            return match place {
                Some((_, place)) => place.split(['/', '?']).next().unwrap_or(place).parse(),
                None => joined(&tagged.address, tagged.port),
            };
        }
        let host = if self.address.is_empty() {
            node
        } else {
            &self.address
        };
        joined(host, self.port)
    }

    fn weight(&self) -> u32 {
        match self.weights {
            // What Consul says for those who say nothing.
            None | Some(PLAIN) => {
                let given = self.meta.get(WEIGHT).and_then(|weight| weight.parse().ok());
                given.map_or(1, clamp)
            }
            Some(weights) => clamp(weights.passing),
        }
    }

    fn warned(&self, passing: u32) -> u32 {
        match self.weights {
            None | Some(PLAIN) => passing,
            Some(weights) => clamp(weights.warning),
        }
    }

    fn describe(&self, instance: &mut Instance) -> Result<()> {
        for tag in &self.tags {
            match tag.split_once('=') {
                Some((VERSION, version)) => instance.version = text(version),
                Some((name, value)) => drop(instance.tags.insert(name.into(), value.into())),
                None => drop(instance.tags.insert(tag.clone(), String::new())),
            }
        }
        for (name, value) in &self.meta {
            match name.as_str() {
                OWNER | WEIGHT => {}
                ZONE => instance.zone = text(value),
                VERSION => instance.version = text(value),
                SERVER_NAME => instance.server_name = text(value),
                SERVING => instance.serving = value != "false",
                ADDRESSES => {
                    for address in value.split(',') {
                        instance.addresses.push(address.parse()?);
                    }
                }
                _ => drop(instance.tags.insert(name.clone(), value.clone())),
            }
        }
        Ok(())
    }
}

const PLAIN: Weights = Weights {
    passing: 1,
    warning: 1,
};

fn text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn clamp(weight: i64) -> u32 {
    let most = i64::from(Instance::GREATEST_WEIGHT);
    u32::try_from(weight.clamp(0, most)).unwrap_or(1)
}

fn joined(host: &str, port: i64) -> Result<Address> {
    if port <= 0 {
        return Err(Error::config(format!("{host:?} has no port")));
    }
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}").parse(),
        Err(_) => format!("{host}:{port}").parse(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn redis() -> ServiceName {
        "redis".parse().unwrap()
    }

    fn read(entry: Value) -> Result<Read> {
        let entry: Entry = serde_json::from_value(entry).unwrap();
        entry.read(&redis(), false)
    }

    /// The sample of Consul's documentation.
    fn sample() -> Value {
        json!({
            "Node": {
                "ID": "40e4a748-2192-161a-0510-9bf59fe950b5", "Node": "foobar",
                "Address": "10.1.10.12", "Datacenter": "dc1",
                "TaggedAddresses": { "lan": "10.1.10.12", "wan": "10.1.10.12" },
                "Meta": { "instance_type": "t2.medium" }
            },
            "Service": {
                "ID": "redis-1", "Service": "redis", "Tags": ["primary"], "Address": "10.1.10.12",
                "TaggedAddresses": {
                    "lan": { "address": "10.1.10.12", "port": 8000 },
                    "wan": { "address": "198.18.1.2", "port": 80 }
                },
                "Meta": { "redis_version": "4.0" }, "Port": 8000,
                "Weights": { "Passing": 10, "Warning": 1 }, "Namespace": "default"
            },
            "Checks": [
                { "Node": "foobar", "CheckID": "service:redis", "Status": "passing" },
                { "Node": "foobar", "CheckID": "serfHealth", "Status": "passing" }
            ]
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Read {
        let mut entry = sample();
        change(&mut entry);
        read(entry).unwrap()
    }

    #[test]
    fn the_sample_of_the_documentation_is_read() {
        let read = read(sample()).unwrap();

        let wanted = Instance::at("10.1.10.12:8000")
            .unwrap()
            .id("redis-1")
            .unwrap();
        let wanted = wanted
            .weight(10)
            .tag("primary", "")
            .tag("redis_version", "4.0");
        assert_eq!(read.instance, wanted);
        assert_eq!(read.health, Health::Well);
    }

    #[test]
    fn an_address_is_the_services_or_the_nodes_or_the_one_for_grpc() {
        for (address, tagged, wanted) in [
            (json!("10.0.0.7"), json!(null), "10.0.0.7:8000"),
            (json!(""), json!({}), "10.1.10.12:8000"),
            (json!(null), json!({}), "10.1.10.12:8000"),
            (json!("fd00::1"), json!({}), "[fd00::1]:8000"),
            (json!("redis.internal"), json!({}), "redis.internal:8000"),
            (
                json!("10.0.0.7"),
                json!({ "grpc": { "Address": "grpc://10.0.0.8:9000", "Port": 9000 } }),
                "10.0.0.8:9000",
            ),
            (
                json!("10.0.0.7"),
                json!({ "grpc": { "address": "10.0.0.8", "port": 9001 } }),
                "10.0.0.8:9001",
            ),
        ] {
            let read = with(|entry| {
                entry["Service"]["Address"] = address;
                entry["Service"]["TaggedAddresses"] = tagged;
            });
            assert_eq!(read.instance.addresses[0].to_string(), wanted);
        }
    }

    #[test]
    fn the_worst_check_decides_on_weight_and_health() {
        for (status, weight, health) in [
            ("passing", 10, Health::Well),
            ("warning", 3, Health::Well),
            ("critical", 10, Health::Ill),
            ("unheard-of", 10, Health::Ill),
        ] {
            let read = with(|entry| {
                entry["Service"]["Weights"]["Warning"] = json!(3);
                entry["Checks"][0]["Status"] = json!(status);
            });
            assert_eq!(
                (read.instance.weight, read.health),
                (weight, health),
                "{status}"
            );
            assert!(read.instance.serving);
        }
        let mut warning = sample();
        warning["Checks"][1]["Status"] = json!("warning");
        let warning: Entry = serde_json::from_value(warning).unwrap();
        assert_eq!(warning.read(&redis(), true).unwrap().health, Health::Ill);
        let unchecked = with(|entry| entry["Checks"] = json!(null));
        assert_eq!(unchecked.health, Health::Well);
    }

    #[test]
    fn one_whose_agent_is_gone_is_unheard_unless_it_was_ill_before() {
        let status = |agent: &str, own: &str| {
            let read = with(|entry| {
                entry["Checks"][0]["Status"] = json!(own);
                entry["Checks"][1]["Status"] = json!(agent);
            });
            read.health
        };

        assert_eq!(status("critical", "passing"), Health::Unheard);
        assert_eq!(status("critical", "warning"), Health::Unheard);
        assert_eq!(status("critical", "critical"), Health::Ill);
        assert_eq!(status("passing", "critical"), Health::Ill);
    }

    #[test]
    fn maintenance_is_a_mark_and_no_illness() {
        for id in ["_node_maintenance", "_service_maintenance:redis-1"] {
            let read = with(|entry| {
                entry["Checks"][1] = json!({ "CheckID": id, "Status": "critical" });
            });
            assert!(!read.instance.serving, "{id}");
            assert_eq!(read.health, Health::Well, "{id}");
        }
        // Critical for another reason, too, it is still on purpose.
        let both = with(|entry| {
            entry["Checks"][0]["Status"] = json!("critical");
            entry["Checks"][1] = json!({ "CheckID": "_node_maintenance", "Status": "critical" });
        });
        assert_eq!((both.health, both.instance.serving), (Health::Well, false));
    }

    #[test]
    fn a_weight_in_the_metadata_counts_for_those_without_weights() {
        for (weights, meta, weight) in [
            (json!({ "Passing": 1, "Warning": 1 }), "10", 10),
            (json!(null), "10", 10),
            (json!({ "Passing": 5, "Warning": 1 }), "10", 5),
            (json!(null), "NaN", 1),
            (json!(null), "-1", 0),
            (json!(null), "99999999999", 1_000_000),
        ] {
            let read = with(|entry| {
                entry["Service"]["Weights"] = weights;
                entry["Service"]["Meta"] = json!({ "weight": meta });
            });
            assert_eq!(read.instance.weight, weight, "{meta}");
        }
    }

    #[test]
    fn a_version_and_a_zone_are_found_where_others_write_them() {
        let read = with(|entry| {
            entry["Service"]["Tags"] = json!(["version=v1.0.0", "a=b=c"]);
            entry["Node"]["Meta"] = json!({ "zone": "eu-1" });
        });

        assert_eq!(read.instance.version.as_deref(), Some("v1.0.0"));
        assert_eq!(read.instance.zone.as_deref(), Some("eu-1"));
        assert_eq!(read.instance.tags["a"], "b=c");
    }

    #[test]
    fn an_id_is_one_among_all_nodes() {
        let id = |id: &str| with(|entry| entry["Service"]["ID"] = json!(id)).instance.id;

        assert_eq!(id("redis-1").as_str(), "redis-1");
        assert_eq!(id("redis").as_str(), "redis@foobar");
        assert_eq!(id("redis/a").as_str(), "a");
        assert_eq!(id("_nomad task/a b").as_str(), "_nomad_task_a_b");
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_where_and_why() {
        for (name, value, why) in [
            ("Port", json!(0), "no port"),
            ("Port", json!(-1), "no port"),
            ("Port", json!(70_000), "the port"),
            ("Address", json!("0.0.0.0"), "nobody can connect"),
            (
                "Address",
                json!("user:pw@10.0.0.1"),
                "no user in an address",
            ),
            ("Address", json!("file://x"), "has a scheme"),
            ("Address", json!("a\r\nhost: b"), "brackets"),
            ("ID", json!(""), "empty"),
            ("Meta", json!({ "zone": "a\nb" }), "control character"),
            ("Meta", json!({ "k": "x".repeat(1 << 20) }), "at most"),
            (
                "Meta",
                json!({ "addresses": "nonsense" }),
                "port is missing",
            ),
        ] {
            let mut entry = sample();
            entry["Service"][name] = value;

            let error = read(entry).unwrap_err();

            let said = error.chain();
            assert!(said.starts_with("read foobar/"), "{said}");
            assert!(said.contains(why), "{why}: {said}");
            assert!(!said.contains("pw"), "{said}");
        }
    }

    #[test]
    fn a_tag_that_looks_like_ours_is_a_tag_when_it_is_not_ours() {
        let read = with(|entry| entry["Service"]["Tags"] = json!(["instance=7"]));

        assert_eq!(read.instance.tags["instance"], "7");
    }
}
