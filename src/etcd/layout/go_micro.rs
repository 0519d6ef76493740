//! The layout of go-micro (`registry/etcd`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Layout, called, described, description, go, refused, reserved, root::Root, take_weight, usable,
    writable,
};
use crate::{Instance, Result, ServiceName};

/// `/micro/registry/{service}/{id}` holds a go-micro service of one node as JSON.
///
/// A `/` in the service is a `-` in the key. What has no field of its own is the node's metadata: `weight`,
/// `zone` and `serving`, as tags are; and the version is `latest` unless it is given. What go-micro says of
/// its own gRPC servers there (`protocol`, `server`, `transport` …) is written when no tag says otherwise,
/// and not read; a node of another protocol is passed over. Of several addresses the first is written;
/// server names are not.
#[derive(Clone, Debug)]
pub struct GoMicro {
    root: Root,
}

/// In the order of Go's struct.
#[derive(Serialize)]
struct Service<'a> {
    name: &'a str,
    version: &'a str,
    metadata: (),
    endpoints: [(); 0],
    nodes: [Node<'a>; 1],
}

#[derive(Serialize)]
struct Node<'a> {
    metadata: BTreeMap<&'a str, String>,
    id: &'a str,
    address: &'a str,
}

/// What a gRPC server of go-micro says of itself.
const USUAL: [(&str, &str); 5] = [
    ("broker", "http"),
    ("protocol", "grpc"),
    ("registry", "etcd"),
    ("server", "grpc"),
    ("transport", "grpc"),
];

/// What the metadata's fields of these names are for.
const OURS: [&str; 3] = ["weight", "zone", "serving"];

const VERSION: &str = "latest";

impl GoMicro {
    /// With this before the service; `/micro/registry/` is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for GoMicro {
    fn default() -> Self {
        Self::under("/micro/registry/")
    }
}

impl Layout for GoMicro {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(dashed(service))
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.segment(dashed(service), key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        format!("{}{}", self.prefix(service), instance.id)
    }

    fn encode(&self, service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        let address = writable(instance)?.to_string();
        reserved(instance, &OURS)?;
        let mut metadata = description(instance);
        for (name, value) in USUAL {
            metadata.entry(name).or_insert_with(|| value.to_owned());
        }
        if instance.weight != 1 {
            metadata.insert("weight", instance.weight.to_string());
        }
        let service = Service {
            name: service.as_str(),
            version: instance.version.as_deref().unwrap_or(VERSION),
            metadata: (),
            endpoints: [],
            nodes: [Node {
                metadata,
                id: instance.id.as_str(),
                address: &address,
            }],
        };
        go::write(&service).map_err(|error| refused(instance, error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.segment(dashed(service), key).unwrap_or(key);
        usable(key, read(service, name, value))
    }
}

/// A service as it stands in keys.
fn dashed(service: &ServiceName) -> String {
    service.as_str().replace('/', "-")
}

fn read(service: &ServiceName, name: &str, value: &[u8]) -> Result<Instance, String> {
    let mut record = go::Object::read(value)?;
    let theirs = record.text("name")?;
    // Two names may have one key between them.
    if theirs != service.as_str() {
        return Err(format!("it is of a service {theirs:?}"));
    }
    let version = record.text("version")?;
    let nodes = record.list("nodes")?.into_iter().map(go::Object::of);
    let nodes: Option<Vec<_>> = nodes.collect();
    let mut node = match nodes {
        Some(nodes) if nodes.len() == 1 => nodes.into_iter().next(),
        Some(nodes) => return Err(format!("it has {} nodes instead of one", nodes.len())),
        None => None,
    }
    .ok_or("its node is no JSON object")?;
    let instance = Instance::at(node.text("address")?).map_err(|error| error.to_string())?;
    let mut instance = called(instance, Some(&node.text("id")?), name)?;
    let mut metadata = node.texts("metadata")?;
    if let Some(protocol) = metadata.get("protocol").filter(|text| *text != "grpc") {
        return Err(format!("it speaks {protocol:?}, not \"grpc\""));
    }
    metadata.retain(|name, value| !USUAL.contains(&(name.as_str(), value.as_str())));
    let told = ![VERSION, ""].contains(&version.as_str());
    instance.version = told.then(|| version.into());
    instance.weight = take_weight(&mut metadata).unwrap_or(1);
    Ok(described(instance, metadata))
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

    const KEY: &str = "/micro/registry/greeter/greeter-3f1c";
    const VALUE: &str = r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"metadata":{"broker":"http","protocol":"grpc","registry":"etcd","server":"grpc","transport":"grpc"},"id":"greeter-3f1c","address":"10.0.0.5:9090"}]}"#;

    #[test]
    fn what_go_micro_writes_is_read_and_written_alike() {
        let layout = GoMicro::default();
        let server = Instance::at("10.0.0.5:9090").unwrap();
        let server = server.id("greeter-3f1c").unwrap();

        let read = layout.decode(&greeter(), KEY, VALUE.as_bytes());

        assert_eq!(read.unwrap(), server);
        assert_eq!(layout.key(&greeter(), &server), KEY);
        let written = layout.encode(&greeter(), &server).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), VALUE);
    }

    #[test]
    fn the_order_of_older_versions_is_read_too() {
        let value = r#"{"name":"greeter","version":"2","endpoints":[{"name":"Say","request":null}],"nodes":[{"id":"greeter-3f1c","address":"10.0.0.5:9090","metadata":{"weight":"7"}}]}"#;

        let read = GoMicro::default().decode(&greeter(), KEY, value.as_bytes());

        let read = read.unwrap();
        assert_eq!((read.weight, read.version.as_deref()), (7, Some("2")));
    }

    #[test]
    fn a_slash_is_a_dash_in_the_key() {
        let cart = "shop/cart".parse().unwrap();
        let layout = GoMicro::default();

        assert_eq!(layout.prefix(&cart), "/micro/registry/shop-cart/");
        assert!(layout.owns(&cart, "/micro/registry/shop-cart/a"));
        assert!(!layout.owns(&cart, "/micro/registry/shop-cart-2/a"));
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_the_reason() {
        for (from, to, why) in [
            ("\"protocol\":\"grpc\"", "\"protocol\":\"mucp\"", "\"mucp\""),
            ("\"name\":\"greeter\"", "\"name\":\"shop\"", "\"shop\""),
            ("10.0.0.5:9090", "10.0.0.5", "port is missing"),
            ("[{\"metadata\"", "[{},{\"metadata\"", "2 nodes"),
            ("\"etcd\"", "7", "map of strings"),
        ] {
            let value = VALUE.replace(from, to);

            let error = GoMicro::default().decode(&greeter(), KEY, value.as_bytes());

            let error = error.unwrap_err().chain();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let mut instance = instance;
            instance.addresses.truncate(1);
            instance.server_name = None;
            round_trip(&GoMicro::default(), &instance)?;
        }
    }
}
