//! The layout of gochat and its kin: host and port apart.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Layout, called, described, description, go, refused, reserved, root::Root, take_weight, usable,
    writable,
};
use crate::{Address, Instance, Result, ServiceName};

/// `/services/{service}/{id}` holds
/// `{"id":"a","name":"greeter","address":"10.0.0.5","port":50051,"metadata":{},"ttl":10}`.
///
/// Weight, zone, version and the mark of a server that leaves are metadata, as tags are. The time to live
/// is for people to read: what counts is the lease. Of several addresses the first is written, which cannot
/// be a Unix socket; server names are not.
#[derive(Clone, Debug)]
pub struct Gochat {
    root: Root,
    ttl: u64,
}

/// In the order of the fields there.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    name: &'a str,
    address: &'a str,
    port: u16,
    metadata: BTreeMap<&'a str, String>,
    ttl: u64,
}

/// What the metadata's fields of these names are for.
const OURS: [&str; 4] = ["serving", "version", "weight", "zone"];

impl Gochat {
    /// With this before the service; `/services/` is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
            ttl: 10,
        }
    }

    /// The time to live that is written, in seconds; 10 is the default.
    #[must_use]
    pub fn ttl(mut self, seconds: u64) -> Self {
        self.ttl = seconds;
        self
    }
}

impl Default for Gochat {
    fn default() -> Self {
        Self::under("/services/")
    }
}

impl Layout for Gochat {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.segment(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        format!("{}{}", self.prefix(service), instance.id)
    }

    fn encode(&self, service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        let address = writable(instance)?;
        reserved(instance, &OURS)?;
        let Some(port) = address.port() else {
            let why = format!("there is no port in {address}");
            return Err(refused(instance, why));
        };
        let mut metadata = description(instance);
        if let Some(version) = &instance.version {
            metadata.insert("version", version.to_string());
        }
        if instance.weight != 1 {
            metadata.insert("weight", instance.weight.to_string());
        }
        let record = Record {
            id: instance.id.as_str(),
            name: service.as_str(),
            address: &address.host(),
            port,
            metadata,
            ttl: self.ttl,
        };
        go::write(&record).map_err(|error| refused(instance, error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.segment(service, key).unwrap_or(key);
        usable(key, read(service, name, value))
    }
}

fn read(service: &ServiceName, name: &str, value: &[u8]) -> Result<Instance, String> {
    let mut record = go::Object::read(value)?;
    let theirs = record.text("name")?;
    if !theirs.is_empty() && theirs != service.as_str() {
        return Err(format!("it is of a service {theirs:?}"));
    }
    let (host, port) = (record.text("address")?, record.number("port")?);
    let instance = Instance::at(address(&host, port)?).map_err(|error| error.to_string())?;
    let mut instance = called(instance, Some(&record.text("id")?), name)?;
    let mut metadata = record.texts("metadata")?;
    instance.version = metadata.remove("version").map(Into::into);
    instance.weight = take_weight(&mut metadata).unwrap_or(1);
    Ok(described(instance, metadata))
}

/// An IPv6 address needs its brackets beside a port; one that has its port with it is taken at its word.
fn address(host: &str, port: i64) -> Result<Address, String> {
    let text = match port {
        0 => host.to_owned(),
        _ if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    };
    text.parse()
        .map_err(|error: crate::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{any_instance, round_trip},
        *,
    };

    fn greeter() -> ServiceName {
        "greeter".parse().unwrap()
    }

    const KEY: &str = "/services/greeter/a";

    #[test]
    fn it_is_read_and_written_alike() {
        let layout = Gochat::default();
        let value = r#"{"id":"a","name":"greeter","address":"10.0.0.5","port":50051,"metadata":{"k":"v"},"ttl":10}"#;
        let server = Instance::at("10.0.0.5:50051").unwrap().id("a").unwrap();
        let server = server.tag("k", "v");

        let read = layout.decode(&greeter(), KEY, value.as_bytes());

        assert_eq!(read.unwrap(), server);
        assert_eq!(layout.key(&greeter(), &server), KEY);
        let written = layout.encode(&greeter(), &server).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), value);
    }

    #[test]
    fn hosts_of_all_kinds_are_put_together_with_their_ports() {
        for (host, port, address) in [
            ("::1", 1, "[::1]:1"),
            ("[::1]", 1, "[::1]:1"),
            ("h.svc", 1, "h.svc:1"),
            ("10.0.0.5:7", 0, "10.0.0.5:7"),
        ] {
            let value = format!(r#"{{"Address":"{host}","Port":{port}}}"#);

            let read = Gochat::default().decode(&greeter(), KEY, value.as_bytes());

            assert_eq!(read.unwrap().addresses[0].to_string(), address);
        }
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_the_reason() {
        for (value, why) in [
            (r#"{"address":"10.0.0.5","port":70000}"#, "not a number"),
            (r#"{"address":"10.0.0.5","port":-1}"#, "not a number"),
            (r#"{"address":"10.0.0.5","port":"1"}"#, "no whole number"),
            (r#"{"address":"10.0.0.5"}"#, "port is missing"),
            (r#"{"address":"h","port":1,"name":"shop"}"#, "\"shop\""),
            (
                r#"{"address":"h","port":1,"metadata":{"a":[]}}"#,
                "map of strings",
            ),
        ] {
            let error = Gochat::default().decode(&greeter(), KEY, value.as_bytes());

            let error = error.unwrap_err().chain();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let mut instance = instance;
            instance.addresses.retain(|address| address.port().is_some());
            instance.addresses.truncate(1);
            instance.server_name = None;
            prop_assume!(!instance.addresses.is_empty());
            round_trip(&Gochat::default(), &instance)?;
        }
    }
}
