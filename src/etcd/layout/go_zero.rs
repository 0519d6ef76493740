//! The layout of go-zero (`core/discov`).

use super::{Layout, root::Root, usable, writable};
use crate::{Address, Instance, Result, ServiceName};

/// `{service}/{id}` holds `host:port` and nothing else; the id is a lease there, in decimal, and any word
/// does.
///
/// There is no room for weight, zone, tags, or the mark of a server that leaves. go-zero writes a new key
/// whenever it has lost its lease, while the old one may live on: so its readers tell servers by their
/// addresses, and so does this one. An instance that is read has its address for an id.
#[derive(Clone, Debug)]
pub struct GoZero {
    root: Root,
}

impl GoZero {
    /// With this before the service; nothing is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for GoZero {
    fn default() -> Self {
        Self::under("")
    }
}

impl Layout for GoZero {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.below(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        format!("{}{}", self.prefix(service), instance.id)
    }

    fn encode(&self, _service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        Ok(writable(instance)?.to_string().into_bytes())
    }

    fn decode(&self, _service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        usable(key, read(value))
    }
}

fn read(value: &[u8]) -> Result<Instance, String> {
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    let address: Address = text
        .parse()
        .map_err(|error: crate::Error| error.to_string())?;
    let id = super::segment(&address.to_string());
    let instance = Instance::at(address).and_then(|instance| instance.id(id));
    instance.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Fixture, fixture},
        *,
    };

    fn echo() -> ServiceName {
        "echo.rpc".parse().unwrap()
    }

    #[test]
    fn what_go_zero_wrote_is_read_and_written_alike() {
        let Fixture { key, value } = fixture("gozero-lease-id");
        let layout = GoZero::default();

        let read = layout.decode(&echo(), &key, value.as_bytes()).unwrap();

        let server = Instance::at("10.0.0.7:8080").unwrap();
        assert_eq!(read, server.clone().id("10.0.0.7:8080").unwrap());
        let leased = server.id("884009535655636636").unwrap();
        assert_eq!(layout.key(&echo(), &leased), key);
        assert_eq!(layout.encode(&echo(), &leased).unwrap(), value.as_bytes());
    }

    #[test]
    fn two_keys_of_one_server_are_one_server() {
        let read = |key| GoZero::default().decode(&echo(), key, b"10.0.0.7:8080");

        assert_eq!(read("echo.rpc/1").unwrap(), read("echo.rpc/2").unwrap());
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_key() {
        for value in [
            &b""[..],
            b"{}",
            b"\xff",
            b"0.0.0.0:1",
            b"u:p@h:1",
            b"h:0",
            b" h:1",
        ] {
            let error = GoZero::default().decode(&echo(), "echo.rpc/1", value);

            assert_eq!(error.unwrap_err().to_string(), "read echo.rpc/1");
        }
    }

    #[test]
    fn neighbours_with_a_longer_name_are_left_alone() {
        let layout = GoZero::default();

        assert!(layout.owns(&echo(), "echo.rpc/7587883829485120776"));
        assert!(!layout.owns(&echo(), "echo.rpc2/7587883829485120776"));
        assert!(!layout.owns(&echo(), "echo.rpc"));
    }
}
