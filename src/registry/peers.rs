//! A list of servers, as older programs have it in a variable.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    Error, Instance, Result, ServiceName,
    resolve::{Fixed, Resolve, Updates},
};

/// Servers, each of one service, or of all.
#[derive(Clone, Debug)]
pub(super) struct Peers(Arc<[Peer]>);

#[derive(Debug)]
struct Peer {
    service: Option<ServiceName>,
    instance: Arc<Instance>,
}

impl Peers {
    /// Reads a JSON list; the error says which of the servers is wrong.
    pub(super) fn read(name: &str, text: &str) -> Result<Self> {
        let wrong = |why: String| Error::config(format!("{name}: {why}"));
        let list: Vec<Value> = serde_json::from_str(text).map_err(|error| {
            wrong(format!(
                "it is no JSON list, such as `[\"10.0.0.1:50051\"]`: {error}"
            ))
        })?;
        if list.is_empty() {
            return Err(wrong("the list is empty: name a server".into()));
        }
        let peers = list.into_iter().enumerate().map(|(at, value)| {
            peer(value).map_err(|why| wrong(format!("server {}: {why}", at + 1)))
        });
        Ok(Self(peers.collect::<Result<_>>()?))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn peer(value: Value) -> Result<Peer, String> {
    let mut record = match value {
        Value::String(address) => return at(&address, None, None).map(|i| of(None, i)),
        Value::Object(record) => record,
        _ => return Err("it is neither an address nor an object".into()),
    };
    let address = ["address", "addr", "host"]
        .iter()
        .find_map(|name| take(&mut record, name));
    let address = address.ok_or("the `address` is missing")?;
    let port = take(&mut record, "port");
    let id = take(&mut record, "id");
    let mut instance = at(&address, port.as_deref(), id.as_deref())?;
    let service = take(&mut record, "name").or_else(|| take(&mut record, "service"));
    let service = service.map(ServiceName::new).transpose();
    let mut tags = texts(record.remove("metadata"));
    for (name, value) in ["weight", "zone", "version"].map(|name| {
        let own = take(&mut record, name);
        (name, own.or_else(|| tags.remove(name)))
    }) {
        instance = match (name, value) {
            (_, None) => instance,
            ("weight", Some(weight)) => {
                let parsed = weight.parse();
                instance.weight(
                    parsed.map_err(|_| format!("the weight {weight:?} is no whole number"))?,
                )
            }
            ("zone", Some(zone)) => instance.zone(zone),
            (_, Some(version)) => instance.version(version),
        };
    }
    instance.tags = tags;
    instance.check().map_err(|error| error.chain())?;
    Ok(of(service.map_err(|error| error.to_string())?, instance))
}

fn of(service: Option<ServiceName>, instance: Instance) -> Peer {
    Peer {
        service,
        instance: Arc::new(instance),
    }
}

/// An instance at this address, named after it unless it has a name.
fn at(host: &str, port: Option<&str>, id: Option<&str>) -> Result<Instance, String> {
    let address = match port {
        Some(port) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let one = Fixed::at([address.as_str()]).map_err(|error| error.chain())?;
    let instance = (*one.instances()[0]).clone();
    match id {
        Some(id) => instance.id(id).map_err(|error| error.chain()),
        None => Ok(instance),
    }
}

/// A text, or a number as one; the case of the name does not matter.
fn take(record: &mut Map<String, Value>, name: &str) -> Option<String> {
    let found = record.keys().find(|key| key.eq_ignore_ascii_case(name))?;
    let found = found.clone();
    match record.remove(&found)? {
        Value::String(text) if !text.is_empty() => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(value: Option<Value>) -> BTreeMap<String, String> {
    let Some(Value::Object(fields)) = value else {
        return BTreeMap::new();
    };
    let text = |(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    };
    fields.into_iter().filter_map(text).collect()
}

impl Resolve for Peers {
    fn resolve(&self, service: &ServiceName) -> Updates {
        let meant = |peer: &&Peer| peer.service.as_ref().is_none_or(|name| name == service);
        let peers = self.0.iter().filter(meant);
        Fixed::new(peers.map(|peer| Arc::clone(&peer.instance))).resolve(service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Peers> {
        Peers::read("PEER_NODES", text)
    }

    #[test]
    fn servers_are_addresses_or_objects() {
        let peers = read(
            r#"["10.0.0.1:50051",
                {"id":"b","name":"greeter","address":"10.0.0.2","port":50052,"metadata":{"weight":"3","zone":"eu","n":7},"ttl":10},
                {"ID":7,"Host":"::1","Port":"50053"},
                {"addr":"greeter.svc:50054","weight":2}]"#,
        )
        .unwrap();

        let [a, b, c, d] = &*peers.0 else {
            panic!("{peers:?}");
        };
        assert_eq!(a.instance.id.as_str(), "10.0.0.1:50051");
        assert_eq!(b.service.as_ref().unwrap().as_str(), "greeter");
        assert_eq!(b.instance.addresses[0].to_string(), "10.0.0.2:50052");
        assert_eq!(
            (b.instance.weight, b.instance.zone.as_deref()),
            (3, Some("eu"))
        );
        assert_eq!(b.instance.tags["n"], "7");
        assert_eq!(
            (c.instance.id.as_str(), c.instance.addresses[0].to_string()),
            ("7", "[::1]:50053".into())
        );
        assert_eq!((d.service.as_ref(), d.instance.weight), (None, 2));
    }

    #[test]
    fn a_wrong_one_is_named() {
        for (text, why) in [
            ("10.0.0.1:1", "it is no JSON list"),
            ("{}", "it is no JSON list"),
            ("[]", "the list is empty"),
            (r#"["10.0.0.1:1", 7]"#, "server 2: it is neither"),
            (r#"[{"port":1}]"#, "server 1: the `address` is missing"),
            (r#"["10.0.0.1"]"#, "port"),
            (r#"["0.0.0.0:1"]"#, "nobody can connect"),
            (r#"[{"address":"h:1","weight":"x"}]"#, "no whole number"),
            (r#"[{"address":"h:1","name":"a//b"}]"#, "empty segment"),
        ] {
            let error = read(text).unwrap_err().chain();
            assert!(
                error.starts_with("PEER_NODES: ") && error.contains(why),
                "{text}: {error}"
            );
        }
    }
}
