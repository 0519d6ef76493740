//! Which service of which registry: one URL.

#[cfg(test)]
mod fuzz;
mod query;
mod read;
mod secret;
mod text;
mod url;

use std::{env, fmt, str::FromStr};

#[cfg(feature = "dns")]
pub(crate) use read::check_name;
#[cfg(feature = "consul")]
pub(crate) use secret::Secret;
pub use url::{RegistryUrl, Scheme};

use crate::{Address, Error, ServiceName, parse::from_text};
use text::refuse;

/// A service and the registry that knows where it is, as one URL.
///
/// ```
/// use tonic_fleet::{Scheme, Target};
///
/// let target: Target = "etcd://h1:2379,h2:2379/shop/cart?prefix=/services/".parse()?;
/// assert_eq!(target.scheme(), Scheme::Etcd);
/// assert_eq!(target.service().as_str(), "shop/cart");
/// assert_eq!(target.prefix(), Some("/services/"));
/// assert_eq!("dns://greeter.svc:50051".parse::<Target>()?.service().as_str(), "greeter.svc");
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
///
/// Which URLs there are is told at [`RegistryUrl`]. What is wrong with one is said in one sentence:
///
/// ```
/// # use tonic_fleet::Target;
/// let error = "etcd://user:secret@h1:23x9/greeter".parse::<Target>().unwrap_err();
/// assert!(error.to_string().contains("address \"h1:23x9\": the port is not a number"));
/// assert!(!error.to_string().contains("secret"));
/// ```
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Target {
    registry: RegistryUrl,
    service: ServiceName,
}

impl Target {
    /// This service of the registry that the environment variable `FLEET_REGISTRY` names.
    pub fn from_env(service: impl AsRef<str>) -> Result<Self, Error> {
        RegistryUrl::from_variable(env::var(url::VARIABLE))?.service(service)
    }

    fn of(registry: RegistryUrl, service: ServiceName) -> Result<Self, Error> {
        let target = Self { registry, service };
        let checked = target.registry.check();
        checked.map_err(|why| refuse(&target.to_string(), why))?;
        Ok(target)
    }

    /// The registry; for files and DNS, it names the service too.
    pub fn registry(&self) -> &RegistryUrl {
        &self.registry
    }

    /// Which service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Which kind of registry knows it.
    pub fn scheme(&self) -> Scheme {
        self.registry.scheme()
    }

    /// The members of the etcd cluster, the Consul agent, or the addresses of a static list; otherwise none.
    pub fn members(&self) -> &[Address] {
        self.registry.members()
    }

    /// Who logs in to the registry.
    pub fn user(&self) -> Option<&str> {
        self.registry.user()
    }

    /// `?layout=`: how instances stand in etcd.
    pub fn layout(&self) -> Option<&str> {
        self.registry.layout()
    }

    /// `?prefix=`: what stands before services in etcd. The empty one is not the same as none.
    pub fn prefix(&self) -> Option<&str> {
        self.registry.prefix()
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse::<RegistryUrl>()?.into_target()
    }
}

from_text!(Target);

impl fmt::Display for Target {
    /// The URL, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.registry.with_service(&self.service))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ErrorKind;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn registry(text: &str) -> RegistryUrl {
        text.parse().unwrap()
    }

    #[test]
    fn every_part_of_an_etcd_url_is_read() {
        let target = target(
            "etcd://us%40er:p%3Aw%2F%40@h1,[::1]:2380,10.0.0.1/shop/cart?layout=kratos&prefix=/a/&ttl=5s&cert=/c&key=/k",
        );

        let members: Vec<_> = target.members().iter().map(Address::to_string).collect();
        let registry = target.registry();
        assert_eq!(members, ["h1:2379", "[::1]:2380", "10.0.0.1:2379"]);
        assert_eq!(
            (target.user(), registry.password()),
            (Some("us@er"), Some("p:w/@"))
        );
        assert_eq!(target.service().as_str(), "shop/cart");
        assert_eq!(
            (target.layout(), target.prefix()),
            (Some("kratos"), Some("/a/"))
        );
        assert_eq!(registry.ttl(), Some(Duration::from_secs(5)));
        assert!(registry.tls());
        assert_eq!(registry.identity(), Some(("/c".as_ref(), "/k".as_ref())));
    }

    #[test]
    fn targets_are_read_as_they_were_written() {
        for (text, service) in [
            (
                "etcd://h1:2379,[::1]:2380/shop/cart?prefix=/a/&ttl=5s&tls=true",
                "shop/cart",
            ),
            ("etcd://user@h1:2379/%40b%25", "@b%"),
            ("static://10.0.0.1:50051,h:1?weights=3,0", "static"),
            ("static://unix:%2Frun%2Fa%2Cb.sock/greeter", "greeter"),
            ("file:///etc/fleet/greeter.json", "greeter"),
            ("file:///etc/fleet/list?service=shop/cart", "shop/cart"),
            ("memory://shop/cart", "shop/cart"),
            ("dns://greeter.svc:50051", "greeter.svc"),
            ("dns://[::1]:50051/greeter", "greeter"),
            (
                "dns://_grpc._tcp.greeter.svc?server=127.0.0.1:5353",
                "_grpc._tcp.greeter.svc",
            ),
            ("dns://greeter.svc?srv=true", "greeter.svc"),
            (
                "consul://127.0.0.1:8500/shop/cart?dc=dc1&tag=a,b",
                "shop/cart",
            ),
        ] {
            let target = target(text);
            assert_eq!(target.service().as_str(), service);
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn the_registry_is_the_part_before_the_service() {
        for (registry, service, whole) in [
            (
                "etcd://h1,h2?layout=plain",
                "shop/cart",
                "etcd://h1:2379,h2:2379/shop/cart?layout=plain",
            ),
            ("etcd://h1/shop/", "cart", "etcd://h1:2379/shop/cart"),
            ("static://h:1", "greeter", "static://h:1/greeter"),
            ("memory://", "greeter", "memory://greeter"),
            ("memory://shop", "cart", "memory://shop/cart"),
            (
                "file:///etc/fleet",
                "shop/cart",
                "file:///etc/fleet/shop/cart.json?service=shop/cart",
            ),
            (
                "file:///etc/fleet/",
                "greeter",
                "file:///etc/fleet/greeter.json",
            ),
            (
                "file:///etc/all.json",
                "greeter",
                "file:///etc/all.json?service=greeter",
            ),
            (
                "dns://svc.local:50051",
                "greeter",
                "dns://greeter.svc.local:50051/greeter",
            ),
            ("dns://:50051", "greeter", "dns://greeter:50051"),
            ("consul://h/shop", "cart", "consul://h:8500/shop/cart"),
        ] {
            let target = self::registry(registry).service(service).unwrap();
            assert_eq!(target.to_string(), whole);
            assert_eq!(whole.parse::<Target>().unwrap(), target);
            assert!(target.service().as_str().ends_with(service));
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_and_where_and_what_to_do() {
        for (text, why) in [
            ("", "start with one of `etcd://`"),
            ("greeter", "start with one of `etcd://`"),
            ("http://h:2379/greeter", "unknown scheme \"http\""),
            ("consul://h1,h2/greeter", "several agents: name one"),
            ("consul://u:pw@h/greeter", "knows no user"),
            ("consul://h/", "the service is missing"),
            ("consul://h/a?color=red", "unknown parameter \"color\""),
            ("etcd://h1/a b", "at byte 11"),
            ("etcd://h1/a#b", "a `#` at byte 11"),
            ("etcd:///greeter", "no host: write `host:port`"),
            ("etcd://h1,,h2/greeter", "host 2 is empty"),
            ("etcd://h1,h1:2379/greeter", "stands twice"),
            ("etcd://h1:x/greeter", "address \"h1:x\": the port"),
            ("etcd://::1/greeter", "brackets"),
            ("etcd://:pw@h1/greeter", "the user is empty"),
            ("etcd://h1/", "the service is missing: write `…/greeter`"),
            ("etcd://h1/a//b", "empty segment"),
            ("etcd://h1/../b", "relative"),
            ("etcd://h1/a%2", "hexadecimal"),
            ("etcd://h1/a?color=red", "unknown parameter \"color\""),
            ("etcd://u:a/b@h1/a", "write it `%40`"),
            ("static://", "no host"),
            ("static://h", "the port is missing"),
            ("static://unix:/run/a.sock", "write its slashes as `%2F`"),
            ("static://h:1,i:2?weights=1", "1 weights for 2 addresses"),
            ("static://u:pw@h:1", "knows no user"),
            ("memory://", "write `memory://greeter`"),
            ("file://etc/fleet.json", "three slashes"),
            ("file:///", "the path is missing"),
            ("file:///etc/", "a directory's"),
            ("file:///etc/a%3Fb.json", "?service=greeter"),
            ("dns://", "the name is missing"),
            ("dns://greeter.svc", "the port is missing"),
            ("dns://greeter.svc:0", "the port is not a number"),
            ("dns://a..b:1", "not a DNS name"),
            ("dns://::1:1", "brackets"),
            ("dns://[::x]:1", "no IPv6 address"),
            ("dns://10.0.0.1?srv=true", "no SRV records"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let said = error.to_string();
            assert!(said.contains(why), "{text:?}: {said}");
        }
        assert!(registry("dns://svc:1").service("a/b").is_err());
        assert!(registry("dns://svc:1/a").service("b").is_err());
        assert!(
            "x".repeat(70_000)
                .parse::<Target>()
                .unwrap_err()
                .to_string()
                .len()
                < 400
        );
    }

    #[test]
    fn stages_are_the_channels_and_not_the_registrys() {
        let staged =
            target("etcd://h1/greeter?ttl=5s&filter=version:2&else=any&zone=a,b&subset=20");

        let registry = staged.registry();
        assert_eq!(
            (registry.filter(), registry.or_else()),
            (Some("version:2"), Some("any"))
        );
        assert_eq!((registry.zones().len(), registry.subset()), (2, Some(20)));
        assert_eq!(
            registry.unstaged(),
            *target("etcd://h1/greeter?ttl=5s").registry()
        );
    }

    #[test]
    fn nobody_is_told_the_password() {
        let whole = "etcd://user:secret@h1:2379/greeter";

        assert_eq!(target(whole).to_string(), "etcd://user:***@h1:2379/greeter");
        assert_eq!(
            format!("{:?}", target(whole)),
            "Target(etcd://user:***@h1:2379/greeter)"
        );
        assert!(!format!("{:#?}", registry(whole)).contains("secret"));
        let consul = target("consul://h1/greeter?dc=a&token=secret");
        assert_eq!(
            consul.to_string(),
            "consul://h1:8500/greeter?dc=a&token=***"
        );
        assert!(!format!("{:?}", consul.registry().query).contains("secret"));
        for wrong in [
            "etcd:/user:secret@h1/greeter",
            "user:secret@h1/greeter",
            "etc://user:secret@h1/greeter",
            "consul://user:secret@h1/greeter",
            "static://user:secret@h1:1",
            "etcd://user:secret@h1:x/greeter",
            "etcd://user:secret@h1/a//b",
            "etcd://user:secret@h1/",
            "etcd://user:/secret@h1/greeter",
            "etcd://user:secret%zz@h1/greeter",
            "etcd://user:?secret=@h1/greeter",
            "etcd://user:#secret@h1/greeter",
            "etcd://user:secret\n@h1/greeter",
            "consul://h1/greeter?token=secret&dc=",
            "consul://h1/greeter?dc=&token=secret",
            "consul://h1/a//b?token=secret",
            "consul://h1/greeter?tokn=secret",
            "consul://h1/greeter?token=a@secret",
            "consul://h1/greeter?token=secret@a&dc=b",
            "consul://h1/gree ter?token=secret",
            "etcd://h1/greeter?token=secret",
        ] {
            let error = wrong.parse::<Target>().unwrap_err().chain();
            assert!(!error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_missing_in_the_environment_is_said() {
        let missing = RegistryUrl::from_variable(Err(env::VarError::NotPresent)).unwrap_err();
        let wrong = RegistryUrl::from_variable(Ok("nonsense".into())).unwrap_err();
        let right = RegistryUrl::from_variable(Ok("etcd://h1".into())).unwrap();

        assert!(missing.to_string().contains("FLEET_REGISTRY is not set"));
        assert!(wrong.to_string().contains("no scheme"));
        assert_eq!(right.to_string(), "etcd://h1:2379");
    }
}
