//! Which registry the environment names.

use super::{Peers, Place, Registry};
use crate::{Error, RegistryUrl, Result};

/// A variable, or that there is none.
type Lookup<'a> = &'a dyn Fn(&str) -> Result<Option<String>>;

const URL: &str = "FLEET_REGISTRY";
const TYPE: &str = "DISCOVERY_TYPE";
const PEERS: &str = "PEER_NODES";

/// A kind of registry, as the older variables name it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Static,
    Consul,
    Etcd,
}

/// Where a registry is, as older variables have it.
struct Told {
    url: RegistryUrl,
    /// Whether it is asked over TLS, where that is said.
    tls: Option<bool>,
    by: &'static str,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Static, Self::Consul, Self::Etcd];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Consul => "consul",
            Self::Etcd => "etcd",
        }
    }
}

/// The registry that the variables name.
pub(super) fn choose(lookup: Lookup<'_>) -> Result<Registry> {
    let kind = discovery_type(lookup)?;
    if let Some(text) = value(lookup, URL)? {
        let url: RegistryUrl = text.parse().map_err(|why| wrong(URL).because(why))?;
        agree(lookup, &url, kind)?;
        return Ok(registry(Place::Url(Box::new(url)), URL.into()));
    }
    match kind {
        Some(Kind::Static) => match peers(lookup)? {
            Some(peers) => Ok(registry(Place::Peers(peers), format!("{TYPE} and {PEERS}"))),
            None => Err(Error::config(format!(
                "{TYPE} is static, and {PEERS} is not set: set it to a JSON list, such as `[\"10.0.0.1:50051\"]`"
            ))),
        },
        Some(kind) => match told(lookup, kind)? {
            Some(told) => Ok(registry(
                Place::Url(Box::new(told.url)),
                format!("{TYPE} and {}", told.by),
            )),
            None => here(lookup, kind),
        },
        None => only(lookup),
    }
}

/// The registry on this machine, where nothing is said but its kind, and maybe its port.
fn here(lookup: Lookup<'_>, kind: Kind) -> Result<Registry> {
    let (name, usual) = match kind {
        Kind::Consul => ("CONSUL_PORT", 8500),
        _ => ("ETCD_PORT", 2379),
    };
    let (port, by) = match port(lookup, name)? {
        Some(port) => (port, format!("{TYPE} and {name}")),
        None => (usual.to_string(), format!("{TYPE} alone")),
    };
    let told = url(kind, &format!("127.0.0.1:{port}"), None, name)?;
    let why = format!("{by}: {} is looked for on this machine", kind.as_str());
    Ok(registry(Place::Url(Box::new(told.url)), why))
}

/// The one registry that something is said about.
fn only(lookup: Lookup<'_>) -> Result<Registry> {
    let mut found = Vec::new();
    if let Some(peers) = peers(lookup)? {
        found.push((Place::Peers(peers), PEERS));
    }
    for kind in [Kind::Consul, Kind::Etcd] {
        if let Some(told) = told(lookup, kind)? {
            found.push((Place::Url(Box::new(told.url)), told.by));
        }
    }
    match (found.pop(), found.pop()) {
        (None, _) => Err(Error::config(format!(
            "{URL} is not set, nor is {TYPE}: set {URL} to a registry, such as `etcd://127.0.0.1:2379`"
        ))),
        (Some((place, by)), None) => Ok(registry(place, by.into())),
        (Some((_, one)), Some((_, other))) => Err(contradiction(
            other,
            one,
            format!("set {TYPE} to say which one is meant"),
        )),
    }
}

/// Whether the older variables say nothing else than the URL does.
fn agree(lookup: Lookup<'_>, url: &RegistryUrl, kind: Option<Kind>) -> Result<()> {
    let scheme = url.scheme().as_str();
    if kind.is_some_and(|kind| kind.as_str() != scheme) {
        let hint = format!("the one names {scheme}, the other does not: leave one out");
        return Err(contradiction(URL, TYPE, hint));
    }
    let hint = "they name different ones: leave one out";
    if scheme == Kind::Static.as_str() && value(lookup, PEERS)?.is_some() {
        return Err(contradiction(URL, PEERS, hint.into()));
    }
    for kind in [Kind::Consul, Kind::Etcd] {
        if kind.as_str() != scheme {
            continue;
        }
        match told(lookup, kind)? {
            Some(told) if !same_place(&told, url) => {
                return Err(contradiction(URL, told.by, hint.into()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn discovery_type(lookup: Lookup<'_>) -> Result<Option<Kind>> {
    let Some(text) = value(lookup, TYPE)? else {
        return Ok(None);
    };
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(&text));
    match kind {
        Some(kind) => Ok(Some(kind)),
        None => Err(Error::config(format!(
            "{TYPE} is {text:.40?}: set it to static, consul or etcd, or set {URL} instead"
        ))),
    }
}

fn peers(lookup: Lookup<'_>) -> Result<Option<Peers>> {
    let text = value(lookup, PEERS)?;
    text.map(|text| Peers::read(PEERS, &text)).transpose()
}

/// Where a registry of this kind is, if anything says so.
fn told(lookup: Lookup<'_>, kind: Kind) -> Result<Option<Told>> {
    match kind {
        Kind::Static => Ok(None),
        Kind::Consul => host(lookup, kind, ["CONSUL_HOST", "CONSUL_PORT"], 8500),
        Kind::Etcd => {
            let host = host(lookup, kind, ["ETCD_HOST", "ETCD_PORT"], 2379)?;
            let Some(endpoints) = endpoints(lookup)? else {
                return Ok(host);
            };
            match host {
                Some(host) if !holds(&endpoints.url, &host.url) => Err(contradiction(
                    endpoints.by,
                    host.by,
                    "the one is not among the others: leave one out".into(),
                )),
                _ => Ok(Some(endpoints)),
            }
        }
    }
}

/// A host in one variable, and maybe its port in another.
fn host(
    lookup: Lookup<'_>,
    kind: Kind,
    [name, port_name]: [&'static str; 2],
    usual: u16,
) -> Result<Option<Told>> {
    let Some(host) = value(lookup, name)? else {
        return Ok(None);
    };
    let port = port(lookup, port_name)?;
    let (host, tls) = bare(&host);
    let is_v6 = host.matches(':').count() > 1 && !host.starts_with('[');
    let host = if is_v6 {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let own = host
        .rsplit_once(':')
        .map(|(_, own)| own)
        .filter(|_| !host.ends_with(']'));
    let host = match (own, port) {
        (Some(own), Some(port)) if own != port => {
            let hint = "they name different ports: leave one out";
            return Err(contradiction(name, port_name, hint.into()));
        }
        (Some(_), _) => host,
        (None, Some(port)) => format!("{host}:{port}"),
        (None, None) => format!("{host}:{usual}"),
    };
    url(kind, &host, tls, name).map(Some)
}

fn port(lookup: Lookup<'_>, name: &str) -> Result<Option<String>> {
    let port = value(lookup, name)?;
    // Kubernetes tells of a service called `etcd` like this.
    Ok(port.filter(|port| !port.contains("://")))
}

/// Several members in one variable.
fn endpoints(lookup: Lookup<'_>) -> Result<Option<Told>> {
    let name = "ETCD_ENDPOINTS";
    let Some(list) = value(lookup, name)? else {
        return Ok(None);
    };
    let members: Vec<_> = list.split(',').map(|member| bare(member.trim())).collect();
    let tls = members.iter().find_map(|(_, tls)| *tls);
    let with = |member: &(&str, Option<bool>)| member.1 == Some(true);
    if members.iter().any(with) && !members.iter().all(with) {
        let why = "some members have https:// and some do not: give all of them the same";
        return Err(wrong(name).because(why));
    }
    let hosts: Vec<_> = members.iter().map(|(host, _)| *host).collect();
    url(Kind::Etcd, &hosts.join(","), tls, name).map(Some)
}

/// A member without what stands around it, and whether it is asked over TLS, if it says so.
fn bare(member: &str) -> (&str, Option<bool>) {
    let (member, tls) = match member.split_once("://") {
        Some(("http", member)) => (member, Some(false)),
        Some(("https", member)) => (member, Some(true)),
        _ => (member, None),
    };
    (member.strip_suffix('/').unwrap_or(member), tls)
}

fn url(kind: Kind, hosts: &str, tls: Option<bool>, by: &'static str) -> Result<Told> {
    let query = if tls == Some(true) { "?tls=true" } else { "" };
    let url = format!("{}://{hosts}{query}", kind.as_str());
    let url = url.parse().map_err(|why| wrong(by).because(why))?;
    Ok(Told { url, tls, by })
}

/// A variable that says something.
fn value(lookup: Lookup<'_>, name: &str) -> Result<Option<String>> {
    let value = lookup(name)?.map(|value| value.trim().to_owned());
    Ok(value.filter(|value| !value.is_empty()))
}

fn same_place(told: &Told, url: &RegistryUrl) -> bool {
    // A bare host says nothing about TLS.
    let same_tls = told.tls.is_none_or(|tls| tls == url.tls());
    same_tls && holds(&told.url, url) && holds(url, &told.url)
}

fn holds(all: &RegistryUrl, some: &RegistryUrl) -> bool {
    some.members()
        .iter()
        .all(|member| all.members().contains(member))
}

fn registry(place: Place, why: String) -> Registry {
    Registry {
        place,
        why: why.into(),
    }
}

fn wrong(name: &str) -> Error {
    Error::config(format!("{name} names no registry"))
}

fn contradiction(one: &str, other: &str, hint: String) -> Error {
    Error::config(format!("{one} and {other} contradict each other: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> Result<Registry> {
        choose(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            Ok(found.map(|(_, value)| value.to_string()))
        })
    }

    #[test]
    fn the_registry_is_what_the_variables_name() {
        for (variables, place, why) in [
            (
                &[("FLEET_REGISTRY", "etcd://h1,h2?ttl=5s")][..],
                "etcd://h1:2379,h2:2379?ttl=5s",
                "FLEET_REGISTRY",
            ),
            (
                &[
                    ("FLEET_REGISTRY", "etcd://h1"),
                    ("DISCOVERY_TYPE", "ETCD"),
                    ("ETCD_HOST", "h1"),
                ],
                "etcd://h1:2379",
                "FLEET_REGISTRY",
            ),
            (
                &[
                    ("FLEET_REGISTRY", "etcd://h1?tls=true"),
                    ("ETCD_HOST", "h1"),
                ],
                "etcd://h1:2379?tls=true",
                "FLEET_REGISTRY",
            ),
            (
                &[("FLEET_REGISTRY", "memory://"), ("ETCD_HOST", "h1")],
                "memory://",
                "FLEET_REGISTRY",
            ),
            (
                &[("DISCOVERY_TYPE", "etcd")],
                "etcd://127.0.0.1:2379",
                "DISCOVERY_TYPE alone: etcd is looked for on this machine",
            ),
            (
                &[("DISCOVERY_TYPE", "consul"), ("CONSUL_PORT", "8501")],
                "consul://127.0.0.1:8501",
                "DISCOVERY_TYPE and CONSUL_PORT: consul is looked for on this machine",
            ),
            (
                &[
                    ("DISCOVERY_TYPE", "etcd"),
                    ("ETCD_PORT", "tcp://10.0.0.1:2379"),
                ],
                "etcd://127.0.0.1:2379",
                "DISCOVERY_TYPE alone: etcd is looked for on this machine",
            ),
            (
                &[
                    ("DISCOVERY_TYPE", "etcd"),
                    ("ETCD_HOST", "h1"),
                    ("ETCD_PORT", "23790"),
                    ("CONSUL_HOST", "c"),
                ],
                "etcd://h1:23790",
                "DISCOVERY_TYPE and ETCD_HOST",
            ),
            (
                &[
                    ("DISCOVERY_TYPE", "etcd"),
                    ("ETCD_ENDPOINTS", "http://h1:2379/, h2 ,::1"),
                    ("ETCD_HOST", "h2"),
                ],
                "",
                "address",
            ),
            (
                &[("ETCD_ENDPOINTS", "https://h1:2379,https://h2:2380")],
                "etcd://h1:2379,h2:2380?tls=true",
                "ETCD_ENDPOINTS",
            ),
            (
                &[("ETCD_HOST", "::1"), ("ETCD_PORT", "tcp://10.0.0.1:2379")],
                "etcd://[::1]:2379",
                "ETCD_HOST",
            ),
            (
                &[
                    ("ETCD_HOST", "h1:7"),
                    ("ETCD_PORT", "7"),
                    ("FLEET_REGISTRY", " "),
                ],
                "etcd://h1:7",
                "ETCD_HOST",
            ),
            (
                &[
                    ("DISCOVERY_TYPE", "static"),
                    ("PEER_NODES", r#"["10.0.0.1:1","10.0.0.2:1"]"#),
                ],
                "a list of 2 servers",
                "DISCOVERY_TYPE and PEER_NODES",
            ),
            (
                &[("PEER_NODES", r#"["10.0.0.1:1"]"#)],
                "a list of 1 servers",
                "PEER_NODES",
            ),
        ] {
            match chosen(variables) {
                Ok(registry) => assert_eq!(
                    (registry.to_string().as_str(), registry.why()),
                    (place, why)
                ),
                Err(error) => assert!(
                    place.is_empty() && error.chain().contains(why),
                    "{}",
                    error.chain()
                ),
            }
        }
    }

    #[test]
    fn contradictions_are_refused_with_both_names() {
        for (variables, one, other) in [
            (
                &[
                    ("FLEET_REGISTRY", "etcd://h1"),
                    ("DISCOVERY_TYPE", "consul"),
                ][..],
                URL,
                TYPE,
            ),
            (
                &[("FLEET_REGISTRY", "etcd://h1"), ("ETCD_HOST", "h2")],
                URL,
                "ETCD_HOST",
            ),
            (
                &[("FLEET_REGISTRY", "etcd://h1"), ("ETCD_ENDPOINTS", "h1,h2")],
                URL,
                "ETCD_ENDPOINTS",
            ),
            (
                &[("FLEET_REGISTRY", "etcd://h1"), ("ETCD_HOST", "https://h1")],
                URL,
                "ETCD_HOST",
            ),
            (
                &[
                    ("FLEET_REGISTRY", "etcd://h1?tls=true"),
                    ("ETCD_ENDPOINTS", "http://h1"),
                ],
                URL,
                "ETCD_ENDPOINTS",
            ),
            (
                &[("FLEET_REGISTRY", "static://h:1"), ("PEER_NODES", "[]")],
                URL,
                PEERS,
            ),
            (
                &[("ETCD_HOST", "h1"), ("ETCD_ENDPOINTS", "h2,h3")],
                "ETCD_ENDPOINTS",
                "ETCD_HOST",
            ),
            (
                &[("ETCD_HOST", "h1:1"), ("ETCD_PORT", "2")],
                "ETCD_HOST",
                "ETCD_PORT",
            ),
            (
                &[("ETCD_HOST", "h1"), ("PEER_NODES", r#"["h:1"]"#)],
                "ETCD_HOST",
                PEERS,
            ),
        ] {
            let error = chosen(variables).unwrap_err().to_string();
            let both = error.contains(one) && error.contains(other);
            assert!(both && error.contains("contradict"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_or_missing_is_said_with_the_name_and_without_the_password() {
        for (variables, why) in [
            (&[][..], "FLEET_REGISTRY is not set, nor is DISCOVERY_TYPE"),
            (
                &[("DISCOVERY_TYPE", "zookeeper")],
                "set it to static, consul or etcd",
            ),
            (&[("DISCOVERY_TYPE", "static")], "PEER_NODES is not set"),
            (
                &[("FLEET_REGISTRY", "etcd://u:secret@h1:x")],
                "FLEET_REGISTRY names no registry",
            ),
            (
                &[("ETCD_ENDPOINTS", "http://u:secret@h1:x")],
                "ETCD_ENDPOINTS names no registry",
            ),
            (
                &[("ETCD_ENDPOINTS", "https://h1,h2")],
                "give all of them the same",
            ),
            (
                &[("ETCD_HOST", "h1"), ("ETCD_PORT", "x")],
                "the port is not a number",
            ),
        ] {
            let error = chosen(variables).unwrap_err().chain();
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn consul_is_named_where_the_variables_say() {
        for variables in [
            &[("CONSUL_HOST", "c1"), ("CONSUL_PORT", "8501")][..],
            &[
                ("DISCOVERY_TYPE", "consul"),
                ("CONSUL_HOST", "c1"),
                ("CONSUL_PORT", "8501"),
                ("ETCD_HOST", "h1"),
            ],
        ] {
            let registry = chosen(variables).unwrap();
            assert_eq!(registry.to_string(), "consul://c1:8501");
        }
    }
}
