//! The layout of kitex (`kitex-contrib/registry-etcd`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Layout, called, described, description, go, refused, reserved, root::Root, usable, writable,
};
use crate::{Address, Instance, Result, ServiceName};

/// `kitex/registry-etcd/{service}/{address}` holds
/// `{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}`.
///
/// **A weight is 10 there unless it is given**, or not above 0, and so an instance that says nothing, whose
/// weight is 1, is written with 10. What has no field of its own is a tag there: `id`, if it is not the
/// address, `zone`, `version` and `serving`. Of several addresses the first is written; server names are
/// not. A service is one segment. `Kitex::under("/")` is the layout of its constructors with passwords.
#[derive(Clone, Debug)]
pub struct Kitex {
    root: Root,
}

/// In the order of Go's struct.
#[derive(Serialize)]
struct Record<'a> {
    network: &'a str,
    address: &'a str,
    weight: u32,
    tags: Option<BTreeMap<&'a str, String>>,
}

/// What kitex takes an instance for that gives no weight.
const WEIGHT: u32 = 10;

/// What the tags of these names are for.
const OURS: [&str; 4] = ["id", "zone", "version", "serving"];

impl Kitex {
    /// With this before the service; `kitex/registry-etcd/` is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for Kitex {
    fn default() -> Self {
        Self::under("kitex/registry-etcd/")
    }
}

impl Layout for Kitex {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.below(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        let address = instance.addresses.first().map(|address| place(address).1);
        let name = address.unwrap_or_else(|| instance.id.to_string());
        format!("{}{name}", self.prefix(service))
    }

    fn encode(&self, service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        let (network, address) = place(writable(instance)?);
        reserved(instance, &OURS)?;
        if service.as_str().contains('/') {
            let why = format!("kitex has no service {service:?}: its names have no `/`");
            return Err(refused(instance, why));
        }
        if instance.weight == 0 && instance.serving {
            let why = "kitex takes a weight of 0 for 10: mark it as not serving instead";
            return Err(refused(instance, why));
        }
        let mut tags = description(instance);
        if instance.id.as_str() != super::segment(&address) {
            tags.insert("id", instance.id.to_string());
        }
        if let Some(version) = &instance.version {
            tags.insert("version", version.to_string());
        }
        let record = Record {
            network,
            address: &address,
            weight: if instance.weight <= 1 {
                WEIGHT
            } else {
                instance.weight
            },
            tags: (!tags.is_empty()).then_some(tags),
        };
        go::write(&record).map_err(|error| refused(instance, error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.below(service, key).unwrap_or(key);
        usable(key, read(name, value))
    }
}

fn read(name: &str, value: &[u8]) -> Result<Instance, String> {
    let mut record = go::Object::read(value)?;
    let address = record.text("address")?;
    let address = match record.text("network")?.as_str() {
        "unix" => format!("unix:{address}"),
        "" | "tcp" | "tcp4" | "tcp6" => address,
        other => return Err(format!("its network is {other:?}")),
    };
    let instance = Instance::at(address).map_err(|error| error.to_string())?;
    let mut tags = record.texts("tags")?;
    let mut instance = called(instance, tags.remove("id").as_deref(), name)?;
    instance.weight = match record.number("weight")? {
        ..=0 => WEIGHT,
        weight => u32::try_from(weight).map_err(|_| format!("its weight is {weight}"))?,
    };
    instance.version = tags.remove("version").map(Into::into);
    Ok(described(instance, tags))
}

/// Network and address, as Go tells them apart.
fn place(address: &Address) -> (&'static str, String) {
    match address {
        Address::Unix(path) => ("unix", path.display().to_string()),
        other => ("tcp", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{any_instance, round_trip},
        *,
    };

    fn item() -> ServiceName {
        "example.shop.item".parse().unwrap()
    }

    const KEY: &str = "kitex/registry-etcd/example.shop.item/10.0.0.5:8888";

    #[test]
    fn what_kitex_writes_is_read_and_written_alike() {
        let at = Instance::at("10.0.0.5:8888").unwrap().id("10.0.0.5:8888");
        let at = at.unwrap().weight(10);
        for (value, instance) in [
            (
                r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}"#,
                at.clone(),
            ),
            (
                r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":{"env":"prod","zone":"a"}}"#,
                at.zone("a").tag("env", "prod"),
            ),
        ] {
            let layout = Kitex::default();

            let read = layout.decode(&item(), KEY, value.as_bytes()).unwrap();

            assert_eq!(read, instance);
            assert_eq!(layout.key(&item(), &read), KEY);
            let written = layout.encode(&item(), &read).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), value);
        }
    }

    #[test]
    fn no_weight_is_ten() {
        for weight in ["", r#","weight":0"#, r#","weight":-5"#, r#","weight":null"#] {
            let value = format!(r#"{{"Network":"tcp","Address":"10.0.0.5:8888"{weight}}}"#);

            let read = Kitex::default().decode(&item(), KEY, value.as_bytes());

            assert_eq!(read.unwrap().weight, 10, "{weight}");
        }
    }

    #[test]
    fn a_socket_has_its_network() {
        let socket = Instance::at("unix:/run/echo.sock")
            .unwrap()
            .id("a")
            .unwrap();
        let layout = Kitex::default();

        let value = layout.encode(&item(), &socket).unwrap();

        let value = String::from_utf8(value).unwrap();
        assert!(
            value.starts_with(r#"{"network":"unix","address":"/run/echo.sock","#),
            "{value}"
        );
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_the_reason() {
        for (value, why) in [
            (r#"{"network":"udp","address":"10.0.0.5:1"}"#, "\"udp\""),
            (r#"{"network":"tcp","address":""}"#, "port is missing"),
            (
                r#"{"address":"10.0.0.5:1","weight":1.5}"#,
                "no whole number",
            ),
            (r#"{"address":"10.0.0.5:1","weight":99999999999}"#, "weight"),
            (r#"{"address":"10.0.0.5:1","tags":[]}"#, "map of strings"),
        ] {
            let error = Kitex::default().decode(&item(), KEY, value.as_bytes());

            let error = error.unwrap_err().chain();
            assert!(error.contains(why), "{why}: {error}");
        }
        let here = Instance::at("10.0.0.5:1").unwrap();
        let error = Kitex::default().encode(&"shop/item".parse().unwrap(), &here);
        assert!(error.unwrap_err().chain().contains("no `/`"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let mut instance = instance;
            instance.addresses.truncate(1);
            instance.server_name = None;
            instance.weight = instance.weight.max(2);
            round_trip(&Kitex::default(), &instance)?;
        }
    }
}
