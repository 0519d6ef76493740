//! The layout of kratos (`contrib/registry/etcd`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{
    Layout, called, described, description, go, refused, reserved, root::Root, usable, weighing,
    writable,
};
use crate::{Address, Instance, Result, ServiceName};

/// `/microservices/{service}/{id}` holds a kratos service instance as JSON: id, name, version, metadata and
/// endpoints such as `grpc://10.0.0.5:9000`.
///
/// Weight, zone and the mark of a server that leaves are metadata, as tags are. **A weight is 100 there
/// unless it is given**, and so an instance that says nothing, whose weight is 1, is written without, as
/// one of 100 is, and read as 100. Endpoints that are not gRPC are kept in the tag `endpoints`, and written
/// before ours. Server names are not written.
///
/// A reader of kratos stops at a value that it cannot read, and its prefix has no `/` at its end: nothing
/// but such values may stand under `/microservices/`.
#[derive(Clone, Debug)]
pub struct Kratos {
    root: Root,
    secure: bool,
}

/// In the order of Go's struct.
#[derive(Serialize)]
struct Service<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
    metadata: BTreeMap<&'a str, String>,
    endpoints: Vec<String>,
}

/// What kratos takes an instance for that gives no weight.
const WEIGHT: u32 = 100;

/// What the metadata's fields of these names are for.
const OURS: [&str; 3] = ["weight", "zone", "serving"];

/// The tag for endpoints that are not gRPC.
const OTHERS: &str = "endpoints";

impl Kratos {
    /// In this namespace; `/microservices` is the default.
    pub fn under(namespace: &str) -> Self {
        Self {
            root: Root::new(namespace),
            secure: false,
        }
    }

    /// Servers offer TLS: they are written as `grpcs://`, and where one offers both, that one is read.
    /// Clients of kratos pass over `grpc://` unless they are told to be insecure.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "grpcs" } else { "grpc" }
    }

    fn read(&self, service: &ServiceName, name: &str, value: &[u8]) -> Result<Instance, String> {
        let mut record = go::Object::read(value)?;
        let theirs = record.text("name")?;
        if theirs != service.as_str() {
            return Err(format!("it is of a service {theirs:?}"));
        }
        let (ours, others) = self.sort(record.list("endpoints")?)?;
        let mut addresses = ours.into_iter();
        let first = addresses.next().ok_or("it has no grpc:// endpoint")?;
        let instance = Instance::at(first).map_err(|error| error.to_string())?;
        let mut instance = called(instance, Some(&record.text("id")?), name)?;
        instance.addresses.extend(addresses);
        let version = record.text("version")?;
        instance.version = (!version.is_empty()).then(|| version.into());
        let mut metadata = record.texts("metadata")?;
        let weight = metadata.remove("weight");
        instance.weight = weight.as_deref().and_then(weighing).unwrap_or(WEIGHT);
        if !others.is_empty() {
            metadata.insert(OTHERS.to_owned(), others.join(" "));
        }
        Ok(described(instance, metadata))
    }

    /// The addresses that speak gRPC, and the endpoints that do not.
    fn sort(&self, endpoints: Vec<Value>) -> Result<(Vec<Address>, Vec<String>), String> {
        let mut found = [Vec::new(), Vec::new()];
        let mut others = Vec::new();
        for endpoint in endpoints {
            let Value::String(endpoint) = endpoint else {
                return Err("one of its endpoints is no string".into());
            };
            let which = match endpoint.split_once("://") {
                Some(("grpc", rest)) => Some((0, rest)),
                Some(("grpcs", rest)) => Some((1, rest)),
                _ => None,
            };
            let Some((which, rest)) = which else {
                others.push(endpoint);
                continue;
            };
            // Older ones say whether they are secure behind a `?`.
            let host = rest.split_once(['?', '#']).map_or(rest, |(host, _)| host);
            let address = host.trim_end_matches('/').parse();
            found[which].push(address.map_err(|error: crate::Error| error.to_string())?);
        }
        let [plain, secure] = found;
        let ours = match (self.secure, plain.is_empty(), secure.is_empty()) {
            (true, _, false) | (false, true, _) => secure,
            _ => plain,
        };
        Ok((ours, others))
    }
}

impl Default for Kratos {
    fn default() -> Self {
        Self::under("/microservices/")
    }
}

impl Layout for Kratos {
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
        writable(instance)?;
        reserved(instance, &OURS)?;
        if let Some(address) = instance.addresses.iter().find(|a| a.port().is_none()) {
            let why = format!("kratos has no endpoints such as {address}");
            return Err(refused(instance, why));
        }
        let mut metadata = description(instance);
        if ![1, WEIGHT].contains(&instance.weight) {
            metadata.insert("weight", instance.weight.to_string());
        }
        let others = metadata.remove(OTHERS).unwrap_or_default();
        let ours = |address: &Address| format!("{}://{address}", self.scheme());
        let endpoints = others.split_whitespace().map(str::to_owned);
        let service = Service {
            id: instance.id.as_str(),
            name: service.as_str(),
            version: instance.version.as_deref().unwrap_or_default(),
            metadata,
            endpoints: endpoints
                .chain(instance.addresses.iter().map(ours))
                .collect(),
        };
        go::write(&service).map_err(|error| refused(instance, error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.segment(service, key).unwrap_or(key);
        usable(key, self.read(service, name, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{Fixture, any_instance, fixture, round_trip},
        *,
    };

    fn echo() -> ServiceName {
        "echo".parse().unwrap()
    }

    #[test]
    fn what_kratos_wrote_is_read_and_written_alike() {
        let at = |id| Instance::at("127.0.0.1:9000").unwrap().id(id).unwrap();
        let weighted = at("0b5c6f4e-0002").weight(20).zone("a");
        let cases = [
            ("kratos-grpc", at("0b5c6f4e-0001").weight(100)),
            (
                "kratos-http-grpc-weight",
                weighted.tag("endpoints", "http://127.0.0.1:8000"),
            ),
        ];
        for (name, instance) in cases {
            let Fixture { key, value } = fixture(name);
            let instance = instance.version("v1.2.3");
            let layout = Kratos::default();

            let read = layout.decode(&echo(), &key, value.as_bytes()).unwrap();

            assert_eq!(read, instance);
            assert_eq!(layout.key(&echo(), &read), key);
            let written = layout.encode(&echo(), &read).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), value);
        }
    }

    #[test]
    fn one_who_gives_no_weight_has_that_of_kratos() {
        let silent = Instance::at("10.0.0.5:9000").unwrap().id("a").unwrap();
        let layout = Kratos::default();

        let value = layout.encode(&echo(), &silent).unwrap();
        let read = layout.decode(&echo(), "/microservices/echo/a", &value);

        assert_eq!(read.unwrap(), silent.weight(100));
    }

    #[test]
    fn secure_endpoints_are_told_from_others() {
        let value = |endpoints| format!(r#"{{"ID":"a","Name":"echo","Endpoints":{endpoints}}}"#);
        let both = value(r#"["grpc://10.0.0.5:1?isSecure=false","grpcs://10.0.0.5:2"]"#);
        let read = |layout: Kratos, value: &str| {
            let read = layout.decode(&echo(), "/microservices/echo/a", value.as_bytes());
            read.map(|instance| instance.addresses[0].to_string())
        };

        assert_eq!(read(Kratos::default(), &both).unwrap(), "10.0.0.5:1");
        assert_eq!(
            read(Kratos::default().secure(), &both).unwrap(),
            "10.0.0.5:2"
        );
        let secure = value(r#"["grpcs://10.0.0.5:2/"]"#);
        assert_eq!(read(Kratos::default(), &secure).unwrap(), "10.0.0.5:2");
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_the_reason() {
        for (value, why) in [
            (
                r#"{"id":"0","name":"echo","version":"","metadata":null,"endpoints":null}"#,
                "no grpc:// endpoint",
            ),
            (
                r#"{"id":"0","name":"echo-2","endpoints":["grpc://10.0.0.5:1"]}"#,
                "of a service \"echo-2\"",
            ),
            (
                r#"{"id":"0","name":"echo","endpoints":["http://10.0.0.5:1"]}"#,
                "no grpc:// endpoint",
            ),
            (
                r#"{"id":"0","name":"echo","endpoints":["grpc://u:p@10.0.0.5:1"]}"#,
                "no user in an address",
            ),
            (r#"{"id":"0","name":"echo","endpoints":[7]}"#, "no string"),
            ("10.0.0.5:9000", "trailing characters"),
        ] {
            let read = Kratos::default().decode(&echo(), "/microservices/echo/0", value.as_bytes());

            let error = read.unwrap_err().chain();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_weight_that_is_none_is_theirs() {
        for weight in ["NaN", "-1", "1e9", "99999999999999999999", ""] {
            let value = format!(
                r#"{{"id":"a","name":"echo","metadata":{{"weight":"{weight}"}},"endpoints":["grpc://h:1"]}}"#
            );

            let read = Kratos::default().decode(&echo(), "/microservices/echo/a", value.as_bytes());

            assert_eq!(read.unwrap().weight, 100, "{weight}");
        }
    }

    #[test]
    fn what_kratos_could_not_read_is_not_written() {
        let unix = Instance::at("unix:/run/echo.sock").unwrap();
        let doubled = Instance::at("10.0.0.5:1").unwrap().tag("weight", "7");

        for (instance, why) in [(unix, "unix:/run/echo.sock"), (doubled, "\"weight\"")] {
            let error = Kratos::default().encode(&echo(), &instance).unwrap_err();
            assert!(error.chain().contains(why), "{}", error.chain());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let mut instance = instance;
            instance.server_name = None;
            instance.addresses.retain(|address| address.port().is_some());
            prop_assume!(!instance.addresses.is_empty() && instance.weight != 1);
            round_trip(&Kratos::default(), &instance)?;
            round_trip(&Kratos::default().secure(), &instance)?;
        }
    }
}
