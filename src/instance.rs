//! What a registry says about one server.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Error, InstanceId, parse::from_text};

/// One server of a service, as the registry describes it.
///
/// In the registry, and in files, it is JSON; `id` and `addresses` are needed, the rest has defaults:
///
/// ```
/// use tonic_fleet::Instance;
///
/// let written = r#"{"id":"a","addresses":["10.0.0.5:50051"],"weight":3,"zone":"eu-1"}"#;
/// let read: Instance = serde_json::from_str(written)?;
/// assert_eq!(read, Instance::at("10.0.0.5:50051")?.id("a")?.weight(3).zone("eu-1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Record")]
#[non_exhaustive]
pub struct Instance {
    /// What tells it from the others.
    pub id: InstanceId,
    /// Where it listens; the first that connects is used.
    pub addresses: Vec<Address>,
    /// Its share of calls, beside the others'. 0 means that it drains: no new calls.
    pub weight: u32,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
    /// What it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
    /// The name its certificate must bear; the address's host, unless set here or on the channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Arc<str>>,
    /// Whatever else is known about it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether it takes new calls. `false` marks it as draining: what leaves next, leaves on purpose.
    pub serving: bool,
}

/// The JSON form; unknown fields are passed over, so that newer writers are understood.
#[derive(Deserialize)]
struct Record {
    id: InstanceId,
    addresses: Vec<Address>,
    #[serde(default = "one")]
    weight: u32,
    zone: Option<Arc<str>>,
    version: Option<Arc<str>>,
    server_name: Option<Arc<str>>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default = "yes")]
    serving: bool,
}

/// Where a server listens: `10.0.0.5:50051`, `[::1]:50051`, `name:50051` or `unix:/run/echo.sock`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Address {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A name, looked up at each attempt to connect, and a port.
    Name(Arc<str>, u16),
    /// A Unix socket.
    Unix(Arc<Path>),
}

/// More of anything than this in one record is a mistake.
const MOST_ADDRESSES: usize = 64;
const MOST_TAGS: usize = 256;
const LONGEST_TEXT: usize = 4096;

impl Instance {
    pub(crate) const GREATEST_WEIGHT: u32 = 1_000_000;

    /// An instance at this address, with weight 1 and a random id.
    pub fn at<A>(address: A) -> Result<Self, Error>
    where
        A: TryInto<Address>,
        A::Error: Into<Error>,
    {
        Ok(Self {
            id: InstanceId::random(),
            addresses: vec![address.try_into().map_err(Into::into)?],
            weight: 1,
            zone: None,
            version: None,
            server_name: None,
            tags: BTreeMap::new(),
            serving: true,
        })
    }

    /// Gives it this id.
    pub fn id(mut self, id: impl AsRef<str>) -> Result<Self, Error> {
        self.id = InstanceId::new(id)?;
        Ok(self)
    }

    /// Adds an address, tried after those before it.
    pub fn also_at<A>(mut self, address: A) -> Result<Self, Error>
    where
        A: TryInto<Address>,
        A::Error: Into<Error>,
    {
        self.addresses.push(address.try_into().map_err(Into::into)?);
        Ok(self)
    }

    /// Sets its share of calls; 0 means that it drains.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets where it runs.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets what it runs.
    #[must_use]
    pub fn version(mut self, version: impl Into<Arc<str>>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets the name its certificate must bear.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets one tag.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// Sets whether it takes new calls.
    #[must_use]
    pub fn serving(mut self, serving: bool) -> Self {
        self.serving = serving;
        self
    }

    /// Whether it asks for no new calls: marked so, or of weight 0.
    pub fn is_draining(&self) -> bool {
        !self.serving || self.weight == 0
    }

    /// Refuses what no client could use, saying which field and why.
    ///
    /// Registrars check before they write, and resolvers after they read.
    pub fn check(&self) -> Result<(), Error> {
        let id = &self.id;
        let refuse = |what: String| Err(Error::config(format!("instance {id}: {what}")));
        if self.addresses.is_empty() {
            return refuse("no address: give at least one `host:port`".into());
        }
        if self.addresses.len() > MOST_ADDRESSES {
            return refuse(format!(
                "{} addresses: at most {MOST_ADDRESSES}",
                self.addresses.len()
            ));
        }
        if let Some(address) = self.addresses.iter().find(|a| a.is_unspecified()) {
            return refuse(format!(
                "nobody can connect to {address}: give the address that clients reach"
            ));
        }
        if self.weight > Self::GREATEST_WEIGHT {
            let most = Self::GREATEST_WEIGHT;
            return refuse(format!("weight {}: at most {most}", self.weight));
        }
        if self.tags.len() > MOST_TAGS {
            return refuse(format!("{} tags: at most {MOST_TAGS}", self.tags.len()));
        }
        let texts = [
            ("zone", &self.zone),
            ("version", &self.version),
            ("server_name", &self.server_name),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(name, text)| Some((name, &**text.as_ref()?)));
        let tags = self
            .tags
            .iter()
            .flat_map(|(k, v)| [("tag", &**k), ("tag", &**v)]);
        for (name, text) in texts.chain(tags) {
            if text.len() > LONGEST_TEXT {
                return refuse(format!(
                    "{name} has {} bytes: at most {LONGEST_TEXT}",
                    text.len()
                ));
            }
            if text.chars().any(char::is_control) {
                return refuse(format!("{name} {text:?} has a control character"));
            }
        }
        Ok(())
    }
}

impl Address {
    /// Whether it names no host in particular, as `0.0.0.0` does.
    pub fn is_unspecified(&self) -> bool {
        matches!(self, Self::Ip(addr) if addr.ip().is_unspecified())
    }

    /// The port, unless it is a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(addr) => Some(addr.port()),
            Self::Name(_, port) => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// The host as a certificate would name it; `localhost` for a Unix socket.
    pub fn host(&self) -> String {
        match self {
            Self::Ip(addr) => addr.ip().to_string(),
            Self::Name(name, _) => name.to_string(),
            Self::Unix(_) => "localhost".into(),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Err(Error::config(format!(
                "address {text:?}: {why}; write `10.0.0.5:50051`, `[::1]:50051`, `name:50051` or `unix:/path`"
            )))
        };
        if text.len() > LONGEST_TEXT {
            return Err(Error::config(format!(
                "an address of {} bytes: at most {LONGEST_TEXT}",
                text.len()
            )));
        }
        // Whoever wrote it may have meant a password, which is not for logs.
        if let (false, Some((_, host))) = (text.starts_with("unix:"), text.rsplit_once('@')) {
            return Err(Error::config(format!(
                "address \"***@{}\": there is no user in an address; write `10.0.0.5:50051`",
                host.escape_debug()
            )));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => refuse("the path is empty"),
                _ if !path.starts_with('/') => refuse("the path must start with `/`"),
                _ if path.contains('\0') => refuse("the path has a zero byte"),
                // Two slashes would be taken for those of a URL when it is read again.
                _ => Ok(Self::Unix(
                    PathBuf::from(format!("/{}", path.trim_start_matches('/'))).into(),
                )),
            };
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return addr.try_into();
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let scheme = scheme.escape_debug();
            return refuse(&format!("it has a scheme: leave `{scheme}://` out"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return refuse("the port is missing");
        };
        let Some(port) = self::port(port) else {
            return refuse("the port is not a number from 1 to 65535");
        };
        if port == 0 {
            return refuse("port 0 is no port");
        }
        if host.is_empty() {
            return refuse("the host is missing");
        }
        if host.contains(':') {
            return refuse("an IPv6 address stands in brackets");
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if host.len() > 253 || !host.chars().all(fits) {
            return refuse("the host is not a name");
        }
        if host.ends_with(|c: char| c.is_ascii_digit())
            && host.parse::<IpAddr>().is_err()
            && !host.contains(|c: char| c.is_ascii_alphabetic())
        {
            return refuse("the host is not an IP address");
        }
        Ok(match host.parse::<IpAddr>() {
            Ok(ip) => Self::Ip(SocketAddr::new(ip, port)),
            Err(_) => Self::Name(host.into(), port),
        })
    }
}

/// A port in digits; Rust reads `+5` as a number, too.
pub(crate) fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

impl TryFrom<SocketAddr> for Address {
    type Error = Error;

    fn try_from(addr: SocketAddr) -> Result<Self, Error> {
        if addr.port() == 0 {
            return Err(Error::config(format!(
                "address {addr}: port 0 is no port; bind first and give the listener's own address"
            )));
        }
        Ok(Self::Ip(addr))
    }
}

from_text!(Address);

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => write!(f, "{addr}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<Record> for Instance {
    type Error = Error;

    fn try_from(record: Record) -> Result<Self, Error> {
        let instance = Self {
            id: record.id,
            addresses: record.addresses,
            weight: record.weight,
            zone: record.zone,
            version: record.version,
            server_name: record.server_name,
            tags: record.tags,
            serving: record.serving,
        };
        instance.check()?;
        Ok(instance)
    }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "10.0.0.5:50051",
            "[::1]:50051",
            "greeter.svc:50051",
            "unix:/run/echo.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!(
            "unix:///run/echo.sock"
                .parse::<Address>()
                .unwrap()
                .to_string(),
            "unix:/run/echo.sock"
        );
    }

    #[test]
    fn bad_addresses_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "port is missing"),
            ("10.0.0.5", "port is missing"),
            ("10.0.0.5:", "not a number"),
            ("10.0.0.5:0", "port 0"),
            ("10.0.0.5:70000", "not a number"),
            ("10.0.0.5:+5", "not a number"),
            ("::1:50051", "brackets"),
            (":50051", "host is missing"),
            ("a b:1", "not a name"),
            ("user:secret@host:1", "\"***@host:1\": there is no user"),
            ("300.0.0.1:1", "not an IP address"),
            ("unix:relative", "start with `/`"),
            ("http://h:1", "has a scheme: leave `http://` out"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_instance_survives_being_written_and_read() {
        let instance = Instance::at("10.0.0.5:50051").unwrap().id("a").unwrap();
        let instance = instance
            .weight(7)
            .zone("eu-1")
            .version("1.2")
            .tag("k", "v")
            .serving(false);

        let written = serde_json::to_string(&instance).unwrap();

        assert_eq!(
            serde_json::from_str::<Instance>(&written).unwrap(),
            instance
        );
    }

    #[test]
    fn what_no_client_could_use_is_refused() {
        let base = || Instance::at("10.0.0.5:50051").unwrap().id("a").unwrap();
        let nowhere = Instance {
            addresses: vec![],
            ..base()
        };
        let unspecified = Instance::at("0.0.0.0:1").unwrap();

        assert!(
            nowhere
                .check()
                .unwrap_err()
                .to_string()
                .contains("no address")
        );
        assert!(
            unspecified
                .check()
                .unwrap_err()
                .to_string()
                .contains("nobody can connect")
        );
        assert!(base().weight(1_000_001).check().is_err());
        assert!(base().zone("a\nb").check().is_err());
        assert!(serde_json::from_str::<Instance>(r#"{"id":"a","addresses":[]}"#).is_err());
    }

    #[test]
    fn weight_zero_and_the_mark_both_drain() {
        let base = || Instance::at("10.0.0.5:50051").unwrap();

        assert!(!base().is_draining());
        assert!(base().weight(0).is_draining());
        assert!(base().serving(false).is_draining());
    }
}
