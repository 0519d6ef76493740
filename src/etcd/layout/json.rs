//! Our own layout: an instance is JSON under its service and id.

use super::{Layout, root::Root};
use crate::{Error, ErrorKind, Instance, Result, ServiceName};

/// `/services/{service}/{id}` holds the instance as JSON; see [`Instance`].
#[derive(Clone, Debug)]
pub struct Json {
    root: Root,
}

impl Json {
    /// With this before the service; `/services/` is the default.
    pub fn under(prefix: &str) -> Self {
        Self {
            root: Root::new(prefix),
        }
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::under("/services/")
    }
}

impl Layout for Json {
    fn prefix(&self, service: &ServiceName) -> String {
        self.root.of(service)
    }

    fn owns(&self, service: &ServiceName, key: &str) -> bool {
        self.root.segment(service, key).is_some()
    }

    fn key(&self, service: &ServiceName, instance: &Instance) -> String {
        format!("{}{}", self.prefix(service), instance.id)
    }

    fn encode(&self, _service: &ServiceName, instance: &Instance) -> Result<Vec<u8>> {
        serde_json::to_vec(instance)
            .map_err(|error| Error::config(format!("write {}", instance.id)).because(error))
    }

    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance> {
        let refuse = || Error::new(ErrorKind::Decode, format!("read {key}"));
        let instance: Instance =
            serde_json::from_slice(value).map_err(|error| refuse().because(error))?;
        // Two keys with one id between them would take turns.
        if self.root.segment(service, key) != Some(instance.id.as_str()) {
            let id = instance.id;
            return Err(refuse().because(format!("the id in it is {id:?}, which is not the key's")));
        }
        Ok(instance)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shop() -> ServiceName {
        "shop".parse().unwrap()
    }

    #[test]
    fn a_service_does_not_own_what_stands_deeper_or_beside_it() {
        let layout = Json::default();

        assert!(layout.owns(&shop(), "/services/shop/a"));
        assert!(layout.owns(&"shop/cart".parse().unwrap(), "/services/shop/cart/a"));
        for key in [
            "/services/shop/cart/a",
            "/services/shop/",
            "/services/shop",
            "/services/shopping/a",
            "/other/shop/a",
        ] {
            assert!(!layout.owns(&shop(), key), "{key}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_key_and_reason() {
        let good = r#"{"id":"a","addresses":["10.0.0.5:1"]}"#;
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        for (key, value, why) in [
            ("/services/shop/a", "", "EOF"),
            ("/services/shop/a", "{}", "missing field `id`"),
            ("/services/shop/a", "\u{1}", "expected value"),
            ("/services/shop/a", &deep, "EOF while parsing a list"),
            (
                "/services/shop/a",
                r#"{"id":"a","addresses":["file:///x"]}"#,
                "address",
            ),
            (
                "/services/shop/a",
                r#"{"id":"a","addresses":["10.0.0.5:1"],"weight":-1}"#,
                "expected u32",
            ),
            ("/services/shop/b", good, "not the key's"),
        ] {
            let error = Json::default()
                .decode(&shop(), key, value.as_bytes())
                .unwrap_err();

            assert_eq!(error.kind(), ErrorKind::Decode);
            assert!(error.to_string().contains(key));
            let chain = error.chain();
            assert!(chain.contains(why) || why == "weight", "{why}: {chain}");
        }
        let layout = Json::default();
        assert!(
            layout
                .decode(&shop(), "/services/shop/a", b"\xff\xfe")
                .is_err()
        );
        assert!(
            layout
                .decode(&shop(), "/services/shop/a", good.as_bytes())
                .is_ok()
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(id in "[a-z0-9.:_-]{1,40}", weight in 0..1_000u32, serving: bool) {
            prop_assume!(id != "." && id != "..");
            let instance = Instance::at("10.0.0.5:50051").unwrap().id(&id).unwrap();
            let instance = instance.weight(weight).serving(serving).tag("k", "v");
            let layout = Json::default();

            let value = layout.encode(&shop(), &instance).unwrap();
            let key = layout.key(&shop(), &instance);

            prop_assert!(layout.owns(&shop(), &key));
            prop_assert_eq!(layout.decode(&shop(), &key, &value).unwrap(), instance);
        }

        #[test]
        fn no_value_makes_it_panic(value: Vec<u8>) {
            let _ = Json::default().decode(&shop(), "/services/shop/a", &value);
        }
    }
}
