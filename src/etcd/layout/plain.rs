//! The layout of small systems and shell scripts: a value is an address.

use super::{Layout, root::Root};
use crate::{Address, Error, ErrorKind, Instance, Result, ServiceName};

/// `/services/{service}/{id}` holds `host:port`, and so may `/services/{service}` itself.
///
/// There is room for one address and nothing else: weight, zone and tags are not written, and neither
/// is the mark of a server that leaves. Its leaving looks like a failure until it is confirmed.
#[derive(Clone, Debug)]
pub struct Plain {
    root: Root,
}

impl Plain {
    /// With this before the service; `/services/` is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for Plain {
    fn default() -> Self {
        Self::under("/services/")
    }
}

impl Layout for Plain {
    /// Without a `/` at its end, so that the key of the service itself is seen.
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.itself(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        key == self.root.itself(service) || self.root.segment(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        format!("{}{}", self.root.of(service), instance.id)
    }

    fn encode(&self, _service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        match instance.addresses.first() {
            Some(address) => Ok(address.to_string().into_bytes()),
            None => Err(Error::config(format!(
                "write {}: it has no address",
                instance.id
            ))),
        }
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let refuse = || Error::new(ErrorKind::Decode, format!("read {key}"));
        let text = std::str::from_utf8(value).map_err(|error| refuse().because(error))?;
        let address = text.trim().parse::<Address>();
        let address = address.map_err(|error| refuse().because(error))?;
        let words = address.to_string();
        let id = self.root.segment(service, key).unwrap_or(&words);
        let instance = Instance::at(address).and_then(|instance| instance.id(id));
        let instance = instance.map_err(|error| refuse().because(error))?;
        instance.check().map_err(|error| refuse().because(error))?;
        Ok(instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeter() -> ServiceName {
        "greeter".parse().unwrap()
    }

    #[test]
    fn an_address_stands_under_the_service_or_in_it() {
        let layout = Plain::default();

        let below = layout.decode(&greeter(), "/services/greeter/a", b"10.0.0.5:50051\n");
        let itself = layout.decode(&greeter(), "/services/greeter", b"10.0.0.5:50051");

        let at = || Instance::at("10.0.0.5:50051").unwrap();
        assert_eq!(below.unwrap(), at().id("a").unwrap());
        assert_eq!(itself.unwrap(), at().id("10.0.0.5:50051").unwrap());
    }

    #[test]
    fn neighbours_with_a_longer_name_are_left_alone() {
        let layout = Plain::default();

        assert!(layout.owns(&greeter(), "/services/greeter"));
        assert!(layout.owns(&greeter(), "/services/greeter/a"));
        for key in [
            "/services/greeter-v2",
            "/services/greeter-v2/a",
            "/services/greeter.old",
            "/services/greeter/a/b",
            "/services/greeter/",
        ] {
            assert!(!layout.owns(&greeter(), key), "{key}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let layout = Plain::default();
        let instance = Instance::at("[::1]:50051").unwrap().id("a").unwrap();

        let key = layout.key(&greeter(), &instance);
        let value = layout.encode(&greeter(), &instance).unwrap();

        assert_eq!(
            (key.as_str(), &value[..]),
            ("/services/greeter/a", &b"[::1]:50051"[..])
        );
        assert_eq!(layout.decode(&greeter(), &key, &value).unwrap(), instance);
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_key() {
        for value in [
            &b""[..],
            b"{}",
            b"\xff",
            b"0.0.0.0:1",
            b"user@host:1",
            b"h:0",
        ] {
            let error = Plain::default()
                .decode(&greeter(), "/services/greeter/a", value)
                .unwrap_err();

            assert_eq!(error.to_string(), "read /services/greeter/a");
        }
    }
}
