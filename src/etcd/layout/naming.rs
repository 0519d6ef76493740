//! The layout of etcd's own gRPC naming (`client/v3/naming`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Layout, called, go, refused, reserved, root::Root, usable, weighing, writable};
use crate::{Instance, Result, ServiceName};

/// `{service}/{address}` holds `{"Op":0,"Addr":"10.0.0.5:50051","Metadata":…}`, as the endpoint manager of
/// etcd's Go client writes it, and etcd's `grpc-proxy`.
///
/// The service is the manager's whole target, `services/echo`, with nothing before it unless
/// [`under`](Self::under) says so. As there, whatever stands below the target belongs to it.
///
/// Go's readers look at the address alone. The metadata is ours to use: an object's `id`, `weight`, `zone`,
/// `version` and `serving` are what they are called, its other fields are tags, and a metadata that is a
/// text is the tag `metadata`. An instance that has none of it is written with `null`. Of several addresses
/// the first is written; server names are not.
#[derive(Clone, Debug)]
pub struct EtcdNaming {
    root: Root,
}

/// Go's struct has no names for JSON, so that they are capitalised.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Update<'a> {
    op: u8,
    addr: &'a str,
    metadata: Value,
}

impl EtcdNaming {
    /// With this before the service; nothing is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for EtcdNaming {
    fn default() -> Self {
        Self::under("")
    }
}

impl Layout for EtcdNaming {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.below(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        let address = instance.addresses.first().map(ToString::to_string);
        let name = address.unwrap_or_else(|| instance.id.to_string());
        format!("{}{name}", self.prefix(service))
    }

    fn encode(&self, _service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        let addr = writable(instance)?.to_string();
        reserved(instance, &OURS)?;
        let metadata = metadata(instance, &addr);
        let update = Update {
            op: 0,
            addr: &addr,
            metadata,
        };
        go::write(&update).map_err(|error| refused(instance, error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.below(service, key).unwrap_or(key);
        usable(key, read(name, value))
    }
}

/// What the metadata's fields of these names are for.
const OURS: [&str; 5] = ["id", "weight", "zone", "version", "serving"];

fn read(name: &str, value: &[u8]) -> Result<Instance, String> {
    let mut update = go::Object::read(value)?;
    let instance = Instance::at(update.text("Addr")?).map_err(|error| error.to_string())?;
    let mut fields = match update.take("Metadata") {
        Some(Value::Object(fields)) => fields,
        Some(other) => Map::from_iter([("metadata".to_owned(), other)]),
        None => Map::new(),
    };
    let mut instance = called(instance, text(&mut fields, "id").as_deref(), name)?;
    instance.zone = text(&mut fields, "zone").map(Into::into);
    instance.version = text(&mut fields, "version").map(Into::into);
    instance.serving = fields.remove("serving") != Some(Value::Bool(false));
    let weight = fields.get("weight").map(in_words);
    if let Some(weight) = weight.as_deref().and_then(weighing) {
        fields.remove("weight");
        instance.weight = weight;
    }
    let tag = |(name, value)| (name, in_words(&value));
    instance.tags = fields.into_iter().map(tag).collect();
    Ok(instance)
}

/// Takes a field out that is a text.
fn text(fields: &mut Map<String, Value>, name: &str) -> Option<String> {
    match fields.remove(name)? {
        Value::String(text) => Some(text),
        other => {
            fields.insert(name.to_owned(), other);
            None
        }
    }
}

/// What Go's readers leave to us.
fn metadata(instance: &Instance, addr: &str) -> Value {
    let name = super::segment(addr);
    let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, value) in &instance.tags {
        fields.insert(name, value.as_str().into());
    }
    let bare = |instance: &Instance| {
        instance.weight == 1
            && instance.serving
            && instance.zone.is_none()
            && instance.version.is_none()
            && instance.id.as_str() == name
    };
    if let (true, 1, Some(text)) = (bare(instance), fields.len(), fields.get("metadata")) {
        return text.clone();
    }
    if instance.id.as_str() != name {
        fields.insert("id", instance.id.as_str().into());
    }
    if instance.weight != 1 {
        fields.insert("weight", instance.weight.into());
    }
    for (name, text) in [("zone", &instance.zone), ("version", &instance.version)] {
        if let Some(text) = text {
            fields.insert(name, (**text).into());
        }
    }
    if !instance.serving {
        fields.insert("serving", false.into());
    }
    if fields.is_empty() {
        return Value::Null;
    }
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// A text as it is, anything else as JSON.
fn in_words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Fixture, fixture, round_trip},
        *,
    };
    use crate::etcd::layout::tests::any_instance;
    use proptest::prelude::*;

    fn echo() -> ServiceName {
        "services/echo".parse().unwrap()
    }

    #[test]
    fn what_go_wrote_is_read_and_written_alike() {
        let at = |port: u16| {
            let address = format!("127.0.0.1:{port}");
            Instance::at(address.as_str()).unwrap().id(address).unwrap()
        };
        let cases = [
            (fixture("etcd-endpoints-null-metadata"), at(50051)),
            (
                fixture("etcd-endpoints-string-metadata"),
                at(50052).tag("metadata", "zone-a"),
            ),
            (
                fixture("etcd-endpoints-object-metadata"),
                at(50054).id("i-1").unwrap().weight(3).zone("a"),
            ),
        ];
        for (Fixture { key, value }, instance) in cases {
            let layout = EtcdNaming::default();

            let read = layout.decode(&echo(), &key, value.as_bytes()).unwrap();

            assert_eq!(read, instance);
            assert_eq!(layout.key(&echo(), &read), key);
            let written = layout.encode(&echo(), &read).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), value);
        }
    }

    #[test]
    fn what_go_accepts_is_accepted() {
        for (value, tags) in [
            (
                r#"{"addr":"1.1.1.1:1","op":0,"metadata":{"k":1},"extra":true}"#,
                &[("k", "1")][..],
            ),
            (
                r#"{"Op":1,"Addr":"1.1.1.1:1","Metadata":"{\"name\":\"proxy-0\"}"}"#,
                &[("metadata", r#"{"name":"proxy-0"}"#)],
            ),
            (
                r#"{"Addr":"1.1.1.1:1","Metadata":{"weight":"NaN","id":7,"deep":{"a":[1]}}}"#,
                &[("weight", "NaN"), ("id", "7"), ("deep", r#"{"a":[1]}"#)],
            ),
        ] {
            let read =
                EtcdNaming::default().decode(&echo(), "services/echo/1.1.1.1:1", value.as_bytes());

            let read = read.unwrap();
            let expected = tags.iter().map(|(k, v)| (k.to_string(), v.to_string()));
            assert_eq!(read.tags, expected.collect());
            assert_eq!((read.id.as_str(), read.weight), ("1.1.1.1:1", 1));
        }
    }

    #[test]
    fn what_go_cannot_read_is_refused_with_the_key() {
        for value in [
            "10.0.0.5:50051",
            "\"10.0.0.5:50051\"",
            "{}",
            r#"{"Addr":5}"#,
            r#"{"Addr":"user:secret@10.0.0.5:1"}"#,
            r#"{"Addr":"file:///etc/passwd"}"#,
            r#"{"Addr":"h:1\r\nx: y"}"#,
            r#"{"Addr":"h:1","Metadata":{"k":"\u0000"}}"#,
        ] {
            let key = "services/echo/a";
            let error = EtcdNaming::default().decode(&echo(), key, value.as_bytes());

            let error = error.unwrap_err();
            assert_eq!(error.to_string(), "read services/echo/a", "{value}");
            assert!(error.chain().len() > "read services/echo/a: ".len());
        }
    }

    #[test]
    fn the_whole_of_what_stands_below_belongs_to_the_target() {
        let layout = EtcdNaming::default();

        assert_eq!(layout.prefix(&echo()), "services/echo/");
        assert!(layout.owns(&echo(), "services/echo/unix:/run/echo.sock"));
        assert!(!layout.owns(&echo(), "services/echo-2/10.0.0.5:1"));
        assert!(!layout.owns(&echo(), "services/echo/"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instance in any_instance()) {
            let mut instance = instance;
            instance.addresses.truncate(1);
            instance.server_name = None;
            round_trip(&EtcdNaming::default(), &instance)?;
        }
    }
}
