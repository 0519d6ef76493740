//! Which registry, and how it is reached.

use std::{env, fmt, path::Path, str::FromStr, sync::Arc, time::Duration};

use super::{
    Target,
    query::Query,
    read::{check_name, read},
    text::{hidden_word, refuse, word},
};
#[cfg(any(feature = "etcd", feature = "consul"))]
use crate::transport::Tls;
use crate::{Address, Error, ServiceName, parse::from_text};

/// One registry: the part of a [`Target`] before the service, as `FLEET_REGISTRY` holds it.
///
/// ```
/// use tonic_fleet::RegistryUrl;
///
/// let registry: RegistryUrl = "etcd://user:pass@h1:2379,h2?ttl=5s".parse()?;
/// assert_eq!(registry.members().len(), 2);
/// assert_eq!(registry.to_string(), "etcd://user:***@h1:2379,h2:2379?ttl=5s");
/// assert_eq!(registry.service("shop/cart")?.service().as_str(), "shop/cart");
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
///
/// | scheme | registry | target |
/// |---|---|---|
/// | etcd | `etcd://user:pass@h1:2379,h2:2379` | `etcd://h1:2379/shop/cart` |
/// | static | `static://10.0.0.1:50051,10.0.0.2:50051?weights=3,1` | the same, or with `/greeter` behind |
/// | file | `file:///etc/fleet`, where `greeter.json` is | `file:///etc/fleet/greeter.json` |
/// | memory | `memory://` | `memory://greeter` |
/// | dns | `dns://svc.local:50051`, the domain | `dns://greeter.svc.local:50051` |
/// | consul | `consul://127.0.0.1:8500?token=…`, one agent | `consul://127.0.0.1:8500/greeter?dc=dc1` |
///
/// In users, passwords and paths, what has a meaning in URLs is percent-encoded (`@` is `%40`). Neither
/// `Display` nor `Debug` nor any error shows the password, or the token.
///
/// What a `consul://` URL may say is told at [`consul`].
///
/// [`consul`]: https://docs.rs/tonic-fleet/latest/tonic_fleet/consul/index.html
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct RegistryUrl {
    pub(super) scheme: Scheme,
    pub(super) login: Option<Login>,
    pub(super) place: Place,
    /// Decoded: the file's path, or without a first or last `/` what stands before the service.
    pub(super) path: Arc<str>,
    pub(super) query: Query,
}

/// Which kind of registry a URL names.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Scheme {
    /// `etcd://`: keys under leases, watched.
    Etcd,
    /// `static://`: addresses in the URL.
    Static,
    /// `file://`: a JSON file, watched.
    File,
    /// `memory://`: a registry in this process.
    Memory,
    /// `dns://`: A, AAAA and SRV records.
    Dns,
    /// `consul://`: an agent of a Consul cluster.
    Consul,
}

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Login {
    pub(super) user: Arc<str>,
    pub(super) password: Option<Arc<str>>,
}

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) enum Place {
    Nowhere,
    Members(Arc<[Address]>),
    /// A DNS name or IP address; empty for a registry without a domain.
    Name(Arc<str>, Option<u16>),
}

/// The environment variable with the registry's URL.
pub(super) const VARIABLE: &str = "FLEET_REGISTRY";

impl Scheme {
    pub(super) const ALL: [Self; 6] = [
        Self::Etcd,
        Self::Static,
        Self::File,
        Self::Memory,
        Self::Dns,
        Self::Consul,
    ];

    /// The word before `://`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Static => "static",
            Self::File => "file",
            Self::Memory => "memory",
            Self::Dns => "dns",
            Self::Consul => "consul",
        }
    }
}

impl RegistryUrl {
    /// The registry that the environment variable `FLEET_REGISTRY` names.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variable(env::var(VARIABLE))
    }

    pub(super) fn from_variable(value: Result<String, env::VarError>) -> Result<Self, Error> {
        let hint = "set it to a registry, such as `etcd://127.0.0.1:2379`";
        match value {
            Ok(url) => url.parse(),
            Err(env::VarError::NotPresent) => {
                Err(Error::config(format!("{VARIABLE} is not set: {hint}")))
            }
            Err(env::VarError::NotUnicode(_)) => {
                Err(Error::config(format!("{VARIABLE} is not UTF-8: {hint}")))
            }
        }
    }

    /// What stands before the names of all services here, if anything does.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The same registry, with nothing before the names of services.
    pub(crate) fn bare(&self) -> Self {
        let mut url = self.clone();
        if matches!(self.scheme, Scheme::Etcd | Scheme::Consul | Scheme::Memory) {
            url.path = "".into();
        }
        url
    }

    /// One service of this registry.
    ///
    /// What the registry's path holds stands before the name. In a `file://` registry the service is a
    /// file of that name, unless the path ends in `.json`; in `dns://` it is a label before the domain.
    pub fn service(&self, name: impl AsRef<str>) -> Result<Target, Error> {
        let service = ServiceName::new(name)?;
        let mut url = self.clone();
        url.query.service = None;
        match self.scheme {
            Scheme::Etcd | Scheme::Consul | Scheme::Memory | Scheme::Static
                if !self.path.is_empty() =>
            {
                url.path = "".into();
                let whole = ServiceName::new(format!("{}/{service}", self.path))?;
                return Target::of(url, whole);
            }
            Scheme::File if !self.path.ends_with(".json") => {
                let directory = self.path.trim_end_matches('/');
                url.path = format!("{directory}/{service}.json").into();
            }
            Scheme::Dns => url.place = self.label(&service)?,
            _ => {}
        }
        Target::of(url, service)
    }

    /// The name to look up for a service of this domain.
    fn label(&self, service: &ServiceName) -> Result<Place, Error> {
        let Place::Name(domain, port) = &self.place else {
            return Ok(self.place.clone());
        };
        if !self.path.is_empty() {
            return Err(refuse(
                &self.to_string(),
                "a path behind the domain: leave it out",
            ));
        }
        let dot = if domain.is_empty() { "" } else { "." };
        let name = format!("{service}{dot}{domain}");
        check_name(&name).map_err(|why| refuse(&self.to_string(), why))?;
        Ok(Place::Name(name.into(), *port))
    }

    /// Which kind of registry it is.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The members of an etcd cluster, the Consul agent, or the addresses of a static list; otherwise none.
    pub fn members(&self) -> &[Address] {
        match &self.place {
            Place::Members(members) => members,
            _ => &[],
        }
    }

    /// Who logs in.
    pub fn user(&self) -> Option<&str> {
        self.login.as_ref().map(|login| &*login.user)
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.login.as_ref()?.password.as_deref()
    }

    /// Whether a part of it is not shown.
    #[cfg(test)]
    pub(super) fn has_secret(&self) -> bool {
        self.password().is_some() || self.query.token.is_some()
    }

    /// The file of a `file://` target, or the directory of a `file://` registry.
    pub fn file(&self) -> Option<&Path> {
        (self.scheme == Scheme::File).then(|| Path::new(&*self.path))
    }

    /// The DNS name, and the port where one is given.
    pub(crate) fn name(&self) -> Option<(&str, Option<u16>)> {
        match &self.place {
            Place::Name(name, port) => Some((name, *port)),
            _ => None,
        }
    }

    /// `?layout=`: how instances stand in etcd.
    pub fn layout(&self) -> Option<&str> {
        self.query.layout.as_deref()
    }

    /// `?prefix=`: what stands before services in etcd. The empty one is not the same as none.
    pub fn prefix(&self) -> Option<&str> {
        self.query.prefix.as_deref()
    }

    /// `?filter=`: whom channels use; see [`stage`](crate::stage).
    pub fn filter(&self) -> Option<&str> {
        self.query.filter.as_deref()
    }

    /// `?else=`: whom they use when nobody fits the filter.
    pub fn or_else(&self) -> Option<&str> {
        self.query.or_else.as_deref()
    }

    /// `?zone=`: the zone they are in, and those that are to help first.
    pub fn zones(&self) -> &[Arc<str>] {
        &self.query.zone
    }

    /// `?subset=`: how many they connect to.
    pub fn subset(&self) -> Option<usize> {
        self.query.subset
    }

    /// The same without a word of whom a channel uses: channels that use others read of one service together.
    #[cfg_attr(
        not(any(feature = "etcd", feature = "consul")),
        allow(dead_code, reason = "nobody else is read of together")
    )]
    pub(crate) fn unstaged(&self) -> Self {
        let mut url = self.clone();
        let query = &mut url.query;
        (query.filter, query.or_else, query.subset) = (None, None, None);
        query.zone.clear();
        url
    }

    /// `?ordinals=true`: whether those who register in etcd are given numbers.
    pub fn ordinals(&self) -> bool {
        self.query.ordinals.unwrap_or(false)
    }

    /// `?ttl=`: how long a registration outlives its server, at least 2 s.
    pub fn ttl(&self) -> Option<Duration> {
        self.query.ttl
    }

    /// `?tls=true`, or a certificate was given: whether etcd or Consul is reached by TLS.
    pub fn tls(&self) -> bool {
        let certificates = self.query.ca.is_some() || self.query.cert.is_some();
        self.query.tls.unwrap_or(certificates)
    }

    /// `?ca=`: the file with the authorities that its certificate is checked against.
    pub fn ca(&self) -> Option<&Path> {
        self.query.ca.as_deref()
    }

    /// `?cert=` and `?key=`: the files with our own certificate and its key.
    pub fn identity(&self) -> Option<(&Path, &Path)> {
        Some((self.query.cert.as_deref()?, self.query.key.as_deref()?))
    }

    /// How it is reached by TLS, where it is to be.
    #[cfg(all(feature = "_tls", any(feature = "etcd", feature = "consul")))]
    pub(crate) fn secured(&self) -> Result<Tls, Error> {
        let mut tls = Tls::new();
        match self.ca() {
            Some(ca) => tls = tls.ca_file(ca),
            #[cfg(feature = "tls-webpki-roots")]
            None => tls = tls.webpki_roots(),
            #[cfg(not(feature = "tls-webpki-roots"))]
            None => {}
        }
        if let Some((certificate, key)) = self.identity() {
            tls = tls.identity_files(certificate, key);
        }
        Ok(tls)
    }

    /// The same where there is none.
    #[cfg(all(not(feature = "_tls"), any(feature = "etcd", feature = "consul")))]
    pub(crate) fn secured(&self) -> Result<Tls, Error> {
        Err(Error::config(format!(
            "open {self}: TLS needs one of the features `tls-ring` and `tls-aws-lc`; add it in Cargo.toml"
        )))
    }

    /// `?weights=`: one for each static address, or none.
    pub(crate) fn weights(&self) -> &[u32] {
        &self.query.weights
    }

    /// Whether DNS is asked for SRV records: `?srv=true`, or a name such as `_grpc._tcp.greeter.svc`.
    pub(crate) fn srv(&self) -> bool {
        let underscored = self.name().is_some_and(|(name, _)| name.starts_with('_'));
        self.query.srv.unwrap_or(underscored)
    }

    /// `?server=`: the DNS server to ask.
    #[cfg(feature = "dns")]
    pub(crate) fn server(&self) -> Option<std::net::SocketAddr> {
        self.query.server
    }

    /// What a `consul://` URL says beside.
    #[cfg(feature = "consul")]
    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    /// Takes the service out of the path, for a URL that names both.
    pub(super) fn into_target(mut self) -> Result<Target, Error> {
        let service = match &self.place {
            _ if self.scheme == Scheme::File => self.file_service(),
            Place::Name(name, _) if name.is_empty() => {
                Err("the name is missing: write `dns://greeter.svc:50051`".into())
            }
            _ if !self.path.is_empty() => Ok(self.path.to_string()),
            Place::Name(name, _) => Ok(name.to_string()),
            _ if self.scheme == Scheme::Static => Ok("static".into()),
            Place::Members(_) => {
                Err("the service is missing: write `…/greeter` behind the hosts".into())
            }
            Place::Nowhere => Err("the service is missing: write `memory://greeter`".into()),
        };
        let service = service.and_then(|name| ServiceName::new(name).map_err(|e| e.to_string()));
        let service = service.map_err(|why| refuse(&self.to_string(), why))?;
        if self.scheme != Scheme::File {
            self.path = "".into();
        }
        self.query.service = None;
        Target::of(self, service)
    }

    fn file_service(&self) -> Result<String, String> {
        match &self.query.service {
            Some(service) => Ok(service.to_string()),
            None => stem(&self.path),
        }
    }

    /// What keeps it from being asked for a service, if anything does.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.scheme == Scheme::File && self.path.ends_with('/') {
            return Err("the path is a directory's: write `file:///path/to/greeter.json`".into());
        }
        match &self.place {
            Place::Name(_, None) if !self.srv() => Err("the port is missing: write `dns://greeter.svc:50051`, or `?srv=true` behind it for SRV records".into()),
            Place::Name(name, _) if self.srv() && name.parse::<std::net::IpAddr>().is_ok() => Err(format!("{name} is an address, which has no SRV records: leave out `srv`")),
            _ => Ok(()),
        }
    }

    /// The URL of a service of this registry, which [`Target`] reads back.
    pub(super) fn with_service(&self, service: &ServiceName) -> Self {
        let mut url = self.clone();
        let service = service.as_str();
        match &self.place {
            _ if self.scheme == Scheme::File => {
                if stem(&self.path).as_deref() != Ok(service) {
                    url.query.service = ServiceName::new(service).ok();
                }
            }
            Place::Members(_) if self.scheme == Scheme::Static && service == "static" => {}
            Place::Name(name, _) if **name == *service => {}
            _ => url.path = service.into(),
        }
        url
    }
}

/// The service that a file is about, by its name.
fn stem(path: &str) -> Result<String, String> {
    let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str());
    match stem {
        Some(stem) if ServiceName::new(stem).is_ok() => Ok(stem.to_owned()),
        _ => Err("the file's name is no service's: give one, `?service=greeter`".into()),
    }
}

impl FromStr for RegistryUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        read(text).map_err(|why| refuse(text, why))
    }
}

from_text!(RegistryUrl);

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RegistryUrl {
    /// The URL, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(user) = self.user() {
            let password = self.password().map_or("", |_| ":***");
            write!(f, "{}{password}@", hidden_word(user))?;
        }
        write!(f, "{}", self.place)?;
        if !self.path.is_empty() {
            let slash = if self.place == Place::Nowhere {
                ""
            } else {
                "/"
            };
            write!(f, "{slash}{}", word(&self.path))?;
        }
        write!(f, "{}", self.query)
    }
}

impl fmt::Debug for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryUrl({self})")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::Members(members) => {
                for (at, member) in members.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    match member {
                        // A `/` here would end the list of members.
                        Address::Unix(path) => {
                            write!(f, "{comma}unix:{}", hidden_word(&path.to_string_lossy()))?
                        }
                        _ => write!(f, "{comma}{member}")?,
                    }
                }
                Ok(())
            }
            Self::Name(name, port) => {
                if name.contains(':') {
                    write!(f, "[{name}]")?;
                } else {
                    f.write_str(name)?;
                }
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}
