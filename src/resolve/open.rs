//! Which resolver a target asks for.

use std::sync::Arc;

use super::{File, Fixed, Memory, Resolve};
use crate::{Error, Scheme, Target};

/// The resolver for a target's registry.
///
/// Nothing is connected to before its [`resolve`](Resolve::resolve) is called.
///
/// ```
/// let target = "static://10.0.0.1:50051,10.0.0.2:50051".parse()?;
/// let resolver = tonic_fleet::resolve::open(&target)?;
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
pub fn open(target: &Target) -> Result<Arc<dyn Resolve>, Error> {
    match target.scheme() {
        Scheme::Static => Ok(Arc::new(Fixed::of(target)?)),
        Scheme::File => match target.registry().file() {
            Some(path) => Ok(Arc::new(File::new(path))),
            None => Err(Error::config(format!("open {target}: it names no file"))),
        },
        Scheme::Memory => Ok(Arc::new(Memory::named(""))),
        #[cfg(feature = "etcd")]
        Scheme::Etcd => Ok(Arc::new(crate::etcd::Registry::open(
            &target.registry().unstaged(),
        )?)),
        #[cfg(feature = "dns")]
        Scheme::Dns => Ok(Arc::new(super::Dns::of(target)?)),
        #[cfg(feature = "consul")]
        Scheme::Consul => Ok(Arc::new(crate::consul::Registry::open(
            &target.registry().unstaged(),
        )?)),
        #[cfg(not(all(feature = "etcd", feature = "dns", feature = "consul")))]
        scheme => Err(Error::config(format!(
            "open {target}: {scheme}:// needs the feature `{scheme}`; add it in Cargo.toml"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_opens_its_resolver() {
        for url in [
            "static://10.0.0.1:1",
            "file:///etc/fleet/greeter.json",
            "memory://greeter",
            #[cfg(feature = "dns")]
            "dns://greeter.svc:50051",
        ] {
            assert!(open(&url.parse().unwrap()).is_ok(), "{url}");
        }
    }

    #[cfg(not(feature = "dns"))]
    #[test]
    fn a_missing_feature_is_named() {
        let error = open(&"dns://greeter.svc:50051".parse().unwrap())
            .err()
            .unwrap();

        assert!(
            error.to_string().contains("needs the feature `dns`"),
            "{error}"
        );
    }

    #[test]
    fn a_static_address_that_nobody_can_reach_is_refused() {
        let error = open(&"static://0.0.0.0:1".parse().unwrap()).err().unwrap();

        assert!(error.to_string().contains("nobody can connect"), "{error}");
    }
}
