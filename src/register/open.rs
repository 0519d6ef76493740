//! Which registry a URL names, to register with.

use std::sync::Arc;

use super::Register;
use crate::{Error, Memory, RegistryUrl, Result, Scheme};

/// The registry that a URL names.
///
/// Nothing is connected to before its [`register`](Register::register) is called.
///
/// # Errors
/// `Config` when nothing can be registered there, or the feature for it is missing.
pub fn open(url: &RegistryUrl) -> Result<Arc<dyn Register>> {
    let writable = matches!(url.scheme(), Scheme::Memory | Scheme::Etcd | Scheme::Consul);
    if writable && !url.path().is_empty() {
        let path = url.path();
        return Err(Error::config(format!(
            "register at {url}: a path names no registry; leave out `/{path}` and name the service `{path}/…`"
        )));
    }
    match url.scheme() {
        Scheme::Memory => {
            let registry = Memory::named("");
            Ok(Arc::new(match url.ttl() {
                Some(ttl) => registry.ttl(ttl),
                None => registry,
            }))
        }
        #[cfg(feature = "etcd")]
        Scheme::Etcd => Ok(Arc::new(crate::etcd::Registry::open(url)?)),
        #[cfg(not(feature = "etcd"))]
        Scheme::Etcd => Err(Error::config(format!(
            "register at {url}: etcd:// needs the feature `etcd`; add it in Cargo.toml"
        ))),
        #[cfg(feature = "consul")]
        Scheme::Consul => Ok(Arc::new(crate::consul::Registry::open(url)?)),
        #[cfg(not(feature = "consul"))]
        Scheme::Consul => Err(Error::config(format!(
            "register at {url}: consul:// needs the feature `consul`; add it in Cargo.toml"
        ))),
        scheme => Err(Error::config(format!(
            "register at {url}: {scheme}:// is only read; servers register at etcd://, consul:// or memory://"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_refused_and_not_passed_over() {
        for url in [
            "etcd://127.0.0.1:2379/shop",
            "consul://127.0.0.1/shop",
            "memory://shop",
        ] {
            let refused = open(&url.parse().unwrap()).err().unwrap();

            assert!(
                refused.to_string().contains("name the service `shop/…`"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_registry_that_is_only_read_is_refused() {
        let refused = open(&"static://10.0.0.1:1".parse().unwrap()).err().unwrap();

        assert!(refused.to_string().contains("only read"), "{refused}");
    }
}
