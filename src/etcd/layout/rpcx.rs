//! The layout of rpcx (`rpcxio/rpcx-etcd`).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Layout, called, refused, reserved, root::Root, usable, weighing, writable};
use crate::{Address, Instance, Result, ServiceName};

/// `{base path}/{service}/tcp@10.0.0.5:8972` holds a query such as `state=active&weight=10`.
///
/// The base path is the first part of the service, `rpcx_test/Arith`, or what [`under`](Self::under) says. A
/// server that leaves is `inactive`, which rpcx's own clients pass over as well. `id`, if it is not the last
/// part of the key, `zone` and `version` are parameters, as tags are. Of several addresses the first is
/// written; server names are not.
#[derive(Clone, Debug)]
pub struct Rpcx {
    root: Root,
}

/// What the parameters of these names are for.
const OURS: [&str; 5] = ["id", "state", "version", "weight", "zone"];

/// What Go's `url.QueryEscape` leaves as it is, beside the space, which is `+`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b' ');

impl Rpcx {
    /// With this before the service; nothing is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            // The store that rpcx goes through takes a first `/` away.
            root: Root::new(prefix.trim_start_matches('/')),
        }
    }
}

impl Default for Rpcx {
    fn default() -> Self {
        Self::under("")
    }
}

impl Layout for Rpcx {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    /// Directories have keys, too, without an `@`.
    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        let name = self.root.below(service, key);
        name.is_some_and(|name| {
            name.split('/')
                .next()
                .is_some_and(|first| first.contains('@'))
        })
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        let place = instance.addresses.first().map(place);
        let name = place.unwrap_or_else(|| instance.id.to_string());
        format!("{}{name}", self.prefix(service))
    }

    fn encode(&self, _service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        let place = place(writable(instance)?);
        reserved(instance, &OURS)?;
        if instance.weight == 0 && instance.serving {
            let why = "rpcx takes a weight of 0 for 1: mark it as not serving instead";
            return Err(refused(instance, why));
        }
        let tags = instance.tags.iter();
        let mut pairs: Vec<(&str, String)> = tags
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        let state = if instance.serving {
            "active"
        } else {
            "inactive"
        };
        pairs.push(("state", state.into()));
        if instance.weight != 1 {
            pairs.push(("weight", instance.weight.to_string()));
        }
        if instance.id.as_str() != super::segment(&place) {
            pairs.push(("id", instance.id.to_string()));
        }
        for (name, text) in [("zone", &instance.zone), ("version", &instance.version)] {
            pairs.extend(text.as_ref().map(|text| (name, text.to_string())));
        }
        // Go writes them by their names.
        pairs.sort();
        let pair = |(name, value): (&str, String)| format!("{}={}", escape(name), escape(&value));
        let pairs: Vec<String> = pairs.into_iter().map(pair).collect();
        Ok(pairs.join("&").into_bytes())
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let name = self.root.below(service, key).unwrap_or(key);
        usable(key, read(name, value))
    }
}

fn read(name: &str, value: &[u8]) -> Result<Instance, String> {
    let (network, address) = name.split_once('@').ok_or("its key has no `@`")?;
    let address = match network {
        "tcp" | "tcp4" | "tcp6" | "http" | "grpc" => address.to_owned(),
        "unix" => format!("unix:{address}"),
        other => return Err(format!("its network is {other:?}")),
    };
    let instance = Instance::at(address).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    let mut pairs = std::collections::BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // The first of several is the one that counts there.
        pairs.entry(unescape(name)?).or_insert(unescape(value)?);
    }
    let mut instance = called(instance, pairs.remove("id").as_deref(), name)?;
    instance.serving = pairs.remove("state").as_deref() != Some("inactive");
    let weight = pairs.remove("weight");
    instance.weight = weight.as_deref().and_then(weighing).unwrap_or(1).max(1);
    instance.zone = pairs.remove("zone").map(Into::into);
    instance.version = pairs.remove("version").map(Into::into);
    instance.tags = pairs;
    Ok(instance)
}

fn place(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("unix@{}", path.display()),
        other => format!("tcp@{other}"),
    }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED)
        .to_string()
        .replace(' ', "+")
}

fn unescape(text: &str) -> Result<String, String> {
    let spaced = text.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8();
    Ok(text.map_err(|error| error.to_string())?.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{any_instance, round_trip},
        *,
    };

    fn arith() -> ServiceName {
        "rpcx_test/Arith".parse().unwrap()
    }

    const KEY: &str = "rpcx_test/Arith/tcp@10.0.0.5:8972";

    #[test]
    fn what_rpcx_writes_is_read_and_written_alike() {
        let layout = Rpcx::default();
        let server = Instance::at("10.0.0.5:8972").unwrap();
        let server = server.id("tcp@10.0.0.5:8972").unwrap().weight(10);

        let read = layout.decode(&arith(), KEY, b"state=active&weight=10");

        assert_eq!(read.unwrap(), server);
        assert_eq!(layout.key(&arith(), &server), KEY);
        assert_eq!(
            layout.encode(&arith(), &server).unwrap(),
            b"state=active&weight=10"
        );
    }

    #[test]
    fn an_inactive_one_drains() {
        let layout = Rpcx::default();

        let read = layout.decode(&arith(), KEY, b"weight=7&state=inactive&group=a+b%26c");

        let read = read.unwrap();
        assert!(read.is_draining());
        assert_eq!((read.weight, read.tags["group"].as_str()), (7, "a b&c"));
    }

    #[test]
    fn a_directory_is_nobodys() {
        let layout = Rpcx::under("/base");

        assert!(layout.owns(&arith(), "base/rpcx_test/Arith/tcp@10.0.0.5:1"));
        assert!(layout.owns(&arith(), "base/rpcx_test/Arith/unix@/run/a.sock"));
        for key in [
            "base/rpcx_test/Arith",
            "base/rpcx_test/Arith/",
            "base/rpcx_test/Arith/dir",
            "base/rpcx_test/Arith/dir/tcp@10.0.0.5:1",
            "base/rpcx_test/Arith2/tcp@10.0.0.5:1",
        ] {
            assert!(!layout.owns(&arith(), key), "{key}");
        }
    }

    #[test]
    fn what_cannot_be_called_is_refused_with_the_reason() {
        for (name, value, why) in [
            ("quic@10.0.0.5:1", &b""[..], "\"quic\""),
            ("tcp@u:p@10.0.0.5:1", b"", "no user in an address"),
            ("tcp@10.0.0.5:1", b"\xff", "utf-8"),
            ("tcp@10.0.0.5:1", b"a=%ff", "utf-8"),
            ("tcp@10.0.0.5:1", b"a=%0a", "control character"),
        ] {
            let key = format!("rpcx_test/Arith/{name}");

            let error = Rpcx::default().decode(&arith(), &key, value);

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
            instance.weight = instance.weight.max(1);
            round_trip(&Rpcx::default(), &instance)?;
        }
    }
}
