//! What is registered with an agent: the definition of a service.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{check::Check, entry::Service};
use crate::{Address, Error, Instance, Result, ServiceName};

/// The names in a service's metadata that have a meaning here.
pub(super) const WEIGHT: &str = "weight";
pub(super) const ZONE: &str = "zone";
pub(super) const VERSION: &str = "version";
pub(super) const SERVER_NAME: &str = "server-name";
pub(super) const SERVING: &str = "serving";
pub(super) const ADDRESSES: &str = "addresses";
/// Which registration wrote it.
pub(super) const OWNER: &str = "fleet-owner";

/// What begins the tag that holds an instance as JSON, for those who fit into nothing else.
pub(super) const WHOLE: &str = "instance=";

/// What does not change with the instance.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) ttl: Duration,
    /// How long a server may be critical before the agent forgets it.
    pub(super) forget: Option<Duration>,
    /// Tags that every service gets.
    pub(super) tags: Vec<String>,
    pub(super) checks: Vec<Check>,
}

/// What a TTL check says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Passing,
    Warning,
    Critical,
}

impl Status {
    /// Of weight 0, it is not ill; who only asks for those who pass calls it no more.
    pub(super) fn of(instance: &Instance) -> Self {
        match (instance.serving, instance.weight) {
            (false, _) => Self::Critical,
            (true, 0) => Self::Warning,
            (true, _) => Self::Passing,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Definition<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    tags: Vec<String>,
    port: u16,
    address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<&'a str, Place>,
    meta: BTreeMap<&'a str, String>,
    weights: Weights,
    checks: Vec<serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Place {
    address: String,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ttl {
    #[serde(rename = "CheckID")]
    id: String,
    name: &'static str,
    #[serde(rename = "TTL")]
    ttl: String,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    deregister_critical_service_after: Option<String>,
}

/// The id of an instance among all services of an agent.
pub(super) fn id(service: &ServiceName, instance: &Instance) -> String {
    format!("{service}/{}", instance.id)
}

/// The id of its TTL check.
pub(super) fn check_id(id: &str) -> String {
    format!("service:{id}")
}

/// The definition of an instance, as JSON; its fields are those that kratos writes, and weights.
///
/// What Consul has a place for stands there. An instance that would not be read back as it is stands whole,
/// as JSON, in one more tag.
pub(super) fn write(
    service: &ServiceName,
    instance: &Instance,
    owner: &str,
    rules: &Rules,
) -> Result<Vec<u8>> {
    let plain = written(service, instance, owner, rules, None)?;
    let read = serde_json::from_slice::<Service>(&plain);
    let mut read = read.map_err(|error| refused(instance, error))?;
    read.without_tags(&rules.tags);
    let same = read.instance(service, "").map(|mut same| {
        if Status::of(instance) == Status::Warning {
            same.weight = 0;
        }
        same == *instance
    });
    match same {
        Ok(true) if fits(instance) => Ok(plain),
        _ => written(service, instance, owner, rules, Some(instance)),
    }
}

/// What Consul takes as metadata.
fn fits(instance: &Instance) -> bool {
    let value = |value: &str| value.len() <= LONGEST_VALUE;
    let plain = [&instance.zone, &instance.server_name];
    let mut plain = plain.into_iter().flatten();
    let addresses: usize = instance
        .addresses
        .iter()
        .map(|a| a.to_string().len() + 1)
        .sum();
    instance.tags.len() <= MOST
        && addresses <= LONGEST_VALUE
        && plain.all(|text| value(text))
        && instance
            .tags
            .iter()
            .all(|(name, text)| is_name(name) && value(text))
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(fits)
        && !name.starts_with("consul-")
}

/// Consul's limits on metadata: 64 pairs, of which some are ours.
const MOST: usize = 56;
const LONGEST_NAME: usize = 128;
const LONGEST_VALUE: usize = 512;
/// Consul's limit on weights.
const HEAVIEST: u32 = 65_535;

fn written(
    service: &ServiceName,
    instance: &Instance,
    owner: &str,
    rules: &Rules,
    whole: Option<&Instance>,
) -> Result<Vec<u8>> {
    let id = id(service, instance);
    let first = instance.addresses.iter().find(|a| a.port().is_some());
    let port = first.and_then(Address::port).unwrap_or(0);
    let address = first.map(Address::host).unwrap_or_default();
    let mut tags = rules.tags.clone();
    if let Some(version) = &instance.version {
        tags.push(format!("{VERSION}={version}"));
    }
    if let Some(whole) = whole {
        let json = serde_json::to_string(whole).map_err(|error| refused(instance, error))?;
        tags.push(format!("{WHOLE}{json}"));
    }
    let mut checks = vec![ttl(&id, instance, rules)];
    let others = rules.checks.iter().enumerate();
    if let Some(address) = first {
        checks.extend(others.map(|(at, check)| {
            let id = format!("{}:{at}", check_id(&id));
            check.definition(&id, address, rules.forget)
        }));
    }
    let definition = Definition {
        id: &id,
        name: service.as_str(),
        tags,
        port,
        address,
        tagged_addresses: first.map(grpc).into_iter().collect(),
        meta: meta(instance, owner, whole.is_none()),
        weights: Weights {
            passing: instance.weight.clamp(1, HEAVIEST),
            warning: instance.weight.min(1),
        },
        checks,
    };
    serde_json::to_vec(&definition).map_err(|error| refused(instance, error))
}

/// Where kratos looks for it.
fn grpc(address: &Address) -> (&'static str, Place) {
    let place = Place {
        address: format!("grpc://{address}"),
        port: address.port().unwrap_or(0),
    };
    ("grpc", place)
}

fn meta<'a>(instance: &'a Instance, owner: &str, all: bool) -> BTreeMap<&'a str, String> {
    let mut meta = BTreeMap::from([(OWNER, owner.to_owned())]);
    if instance.weight > 1 {
        meta.insert(WEIGHT, instance.weight.to_string());
    }
    if !instance.serving {
        meta.insert(SERVING, "false".into());
    }
    if !all {
        return meta;
    }
    let others = instance.addresses.iter().skip(1).map(Address::to_string);
    let others: Vec<_> = others.collect();
    if !others.is_empty() {
        meta.insert(ADDRESSES, others.join(","));
    }
    for (name, value) in [(ZONE, &instance.zone), (SERVER_NAME, &instance.server_name)] {
        if let Some(value) = value {
            meta.insert(name, value.to_string());
        }
    }
    for (name, value) in &instance.tags {
        meta.entry(name).or_insert_with(|| value.clone());
    }
    meta
}

fn ttl(id: &str, instance: &Instance, rules: &Rules) -> serde_json::Value {
    let ttl = Ttl {
        id: check_id(id),
        name: "tonic-fleet",
        ttl: duration(rules.ttl),
        status: Status::of(instance),
        deregister_critical_service_after: rules.forget.map(duration),
    };
    serde_json::json!(ttl)
}

/// As Go reads it.
pub(super) fn duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn refused(instance: &Instance, error: serde_json::Error) -> Error {
    Error::config(format!("write instance {} for Consul", instance.id)).because(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::consul::entry::{Entry, Health};

    fn shop() -> ServiceName {
        "shop/cart".parse().unwrap()
    }

    fn rules() -> Rules {
        Rules {
            ttl: Duration::from_secs(10),
            forget: Some(Duration::from_secs(600)),
            tags: vec!["primary".into()],
            checks: vec![Check::tcp()],
        }
    }

    fn base() -> Instance {
        Instance::at("10.0.0.5:9000").unwrap().id("8a5f").unwrap()
    }

    fn definition(instance: &Instance) -> Value {
        let written = write(&shop(), instance, "me", &rules()).unwrap();
        serde_json::from_slice(&written).unwrap()
    }

    /// As Consul would list what was registered, with the status that its check has.
    fn listed(instance: &Instance) -> Instance {
        let mut service = definition(instance);
        let tags = service["Tags"].as_array_mut().unwrap();
        tags.retain(|tag| tag != "primary");
        let status = json!(Status::of(instance));
        let entry = json!({
            "Node": { "Node": "n", "Address": "10.9.9.9" },
            "Service": service,
            "Checks": [{ "CheckID": "serfHealth", "Status": "passing" }, { "Status": status }],
        });
        let entry: Entry = serde_json::from_value(entry).unwrap();
        let read = entry.read(&shop(), false).unwrap();
        assert_eq!(read.health, Health::Well);
        read.instance
    }

    #[test]
    fn it_is_written_where_kratos_and_consul_look_for_it() {
        let instance = base().weight(10).version("v1.0.0").zone("eu").tag("k", "v");

        let written = definition(&instance);

        let wanted = json!({
            "ID": "shop/cart/8a5f", "Name": "shop/cart",
            "Tags": ["primary", "version=v1.0.0"],
            "Port": 9000, "Address": "10.0.0.5",
            "TaggedAddresses": { "grpc": { "Address": "grpc://10.0.0.5:9000", "Port": 9000 } },
            "Meta": { "fleet-owner": "me", "k": "v", "weight": "10", "zone": "eu" },
            "Weights": { "Passing": 10, "Warning": 1 },
            "Checks": [
                {
                    "CheckID": "service:shop/cart/8a5f", "Name": "tonic-fleet", "TTL": "10000ms",
                    "Status": "passing", "DeregisterCriticalServiceAfter": "600000ms"
                },
                {
                    "CheckID": "service:shop/cart/8a5f:0", "Name": "tcp", "TCP": "10.0.0.5:9000",
                    "Interval": "10000ms", "Timeout": "5000ms", "Status": "passing",
                    "DeregisterCriticalServiceAfter": "600000ms"
                }
            ]
        });
        assert_eq!(written, wanted);
    }

    #[test]
    fn who_serves_passes_who_weighs_nothing_warns_and_who_drains_is_critical() {
        assert_eq!(Status::of(&base()), Status::Passing);
        assert_eq!(Status::of(&base().weight(0)), Status::Warning);
        assert_eq!(Status::of(&base().serving(false)), Status::Critical);
        assert_eq!(
            definition(&base().serving(false))["Meta"]["serving"],
            "false"
        );
    }

    #[test]
    fn whole_instances_stand_in_a_tag_only_when_there_is_no_other_place() {
        let whole = |instance: &Instance| {
            let tags = definition(instance)["Tags"].to_string();
            tags.contains(WHOLE)
        };

        for plain in [
            base(),
            base().weight(0),
            base().weight(65_535).serving(false),
            base().also_at("[::1]:1").unwrap().also_at("h:2").unwrap(),
            base().also_at("unix:/run/cart.sock").unwrap(),
            base().server_name("cart.internal").tag("a-b_1", ""),
        ] {
            assert!(!whole(&plain), "{plain:?}");
            assert_eq!(listed(&plain), plain);
        }
        for odd in [
            base().weight(65_536),
            base().weight(0).serving(false),
            base().tag("a.b", "c"),
            base().tag("weight", "7"),
            base().tag("consul-x", "y"),
            base().tag("long", "x".repeat(513)),
            base().also_at("unix:/run/a,b.sock").unwrap(),
            base().version(""),
            Instance::at("unix:/run/cart.sock").unwrap(),
        ] {
            assert!(whole(&odd), "{odd:?}");
            assert_eq!(listed(&odd), odd);
        }
    }

    prop_compose! {
        fn any_instance()(
            id in "[a-z0-9:.%@\u{e9}]{1,20}",
            addresses in prop::collection::vec("10\\.0\\.0\\.[1-9]:[1-9][0-9]{0,3}|unix:/[a-z]{1,5}|h[a-z]{0,5}:[1-9]", 1..4),
            weight in 0..=Instance::GREATEST_WEIGHT,
            small in 0..4_u32,
            texts in prop::array::uniform3(prop::option::of("[a-zA-Z0-9 =,<&\u{fc}]{0,12}")),
            tags in prop::collection::btree_map("[a-z=. -]{0,8}", "[ -~]{0,12}", 0..5),
            serving: bool,
            few: bool,
        ) -> Option<Instance> {
            let mut instance = Instance::at(addresses[0].as_str()).ok()?.id(id).ok()?;
            for address in &addresses[1..] {
                instance = instance.also_at(address.as_str()).ok()?;
            }
            let [zone, version, server_name] = texts.map(|text| text.map(Into::into));
            instance.zone = zone;
            instance.version = version;
            instance.server_name = server_name;
            instance.tags = tags;
            Some(instance.weight(if few { small } else { weight }).serving(serving))
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let Some(instance) = instance.filter(|instance| instance.check().is_ok()) else {
                return Ok(());
            };
            prop_assert_eq!(listed(&instance), instance);
        }
    }
}
