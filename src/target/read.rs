//! How the text of a registry URL is taken apart.

use std::net::Ipv6Addr;

use super::{
    RegistryUrl, Scheme,
    query::Query,
    text::{decode, is_scheme},
    url::{Login, Place},
};
use crate::{Address, ServiceName};

/// A longer URL is a mistake; this one has room for thousands of static addresses.
const LONGEST: usize = 64 * 1024;

const ETCD_PORT: u16 = 2379;
const CONSUL_PORT: u16 = 8500;

/// Takes a URL apart. No error quotes what stands before an `@`.
pub(super) fn read(text: &str) -> Result<RegistryUrl, String> {
    let (scheme, rest) = head(text)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // Up to the last `@` all may be a password; so it must stand where one is looked for.
    if tail.contains('@') {
        return Err("an `@` after the first `/` or `?`: write it `%40`, and a `/` or `?` in a user or password `%2F` or `%3F`".into());
    }
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(credentials(login)?), hosts),
        None => (None, authority),
    };
    if login.is_some() && scheme != Scheme::Etcd {
        return Err(format!(
            "{scheme}:// knows no user: leave out what stands before the `@`"
        ));
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let query = Query::read(scheme, query)?;
    let path = decode(path).map_err(|why| format!("path {path:?}: {why}"))?;
    let (place, path) = match scheme {
        Scheme::Etcd => (members(hosts, Some(ETCD_PORT))?, inner(&path)?),
        Scheme::Static => (members(hosts, None)?, inner(&path)?),
        Scheme::Consul => (agent(hosts)?, inner(&path)?),
        Scheme::Memory => (Place::Nowhere, in_memory(hosts, &path)?),
        Scheme::Dns => (name(hosts)?, inner(&path)?),
        Scheme::File => (Place::Nowhere, file(hosts, path)?),
    };
    let url = RegistryUrl {
        scheme,
        login,
        place,
        path: path.into(),
        query,
    };
    let (weights, members) = (url.query.weights.len(), url.members().len());
    if weights > 0 && weights != members {
        return Err(format!(
            "{weights} weights for {members} addresses: give each one its own"
        ));
    }
    Ok(url)
}

/// The scheme, and what comes behind it.
fn head(text: &str) -> Result<(Scheme, &str), String> {
    if text.len() > LONGEST {
        return Err(format!("{} bytes: at most {LONGEST}", text.len()));
    }
    let wrong = |c: char| c.is_control() || c.is_whitespace() || c == '#';
    if let Some((at, c)) = text.char_indices().find(|&(_, c)| wrong(c)) {
        // Which sign it is may not be said: it may be the password's.
        let what = if c == '#' {
            "a `#`"
        } else {
            "white space or a control character"
        };
        return Err(format!(
            "{what} at byte {at}: percent-encode it, or leave it out"
        ));
    }
    let known = Scheme::ALL.map(Scheme::as_str).join("://`, `");
    let Some((scheme, rest)) = text
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    else {
        return Err(format!("no scheme: it must start with one of `{known}://`"));
    };
    match Scheme::ALL
        .into_iter()
        .find(|known| known.as_str() == scheme)
    {
        Some(scheme) => Ok((scheme, rest)),
        None => Err(format!(
            "unknown scheme {scheme:?}: use one of `{known}://`"
        )),
    }
}

fn credentials(text: &str) -> Result<Login, String> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = decode(user).map_err(|why| format!("the user has {why}"))?;
    if user.is_empty() {
        return Err("the user is empty: write `etcd://user:password@host:2379`".into());
    }
    let password = password.map(decode).transpose();
    let password = password.map_err(|why| format!("the password has {why}"))?;
    Ok(Login {
        user: user.into(),
        password: password.map(Into::into),
    })
}

fn members(hosts: &str, port: Option<u16>) -> Result<Place, String> {
    if hosts.is_empty() {
        return Err("no host: write `host:port`, several with commas between them".into());
    }
    let mut members = Vec::new();
    for (at, host) in hosts.split(',').enumerate() {
        if host.is_empty() {
            return Err(format!(
                "host {} is empty: leave out the extra comma",
                at + 1
            ));
        }
        let whole = decode(host).map_err(|why| format!("host {host:?} has {why}"))?;
        if whole == "unix:" {
            return Err("the path of a Unix socket is missing: write its slashes as `%2F`, as in `unix:%2Frun%2Fecho.sock`".into());
        }
        let bare = !whole.starts_with("unix:") && (whole.ends_with(']') || !whole.contains(':'));
        let whole = match port {
            Some(port) if bare => format!("{whole}:{port}"),
            _ => whole,
        };
        let member = whole
            .parse::<Address>()
            .map_err(|error| error.to_string())?;
        if members.contains(&member) {
            return Err(format!("host {host:?} stands twice: leave one out"));
        }
        members.push(member);
    }
    Ok(Place::Members(members.into()))
}

/// One agent: a server that registers with two would stand there twice.
fn agent(hosts: &str) -> Result<Place, String> {
    match members(hosts, Some(CONSUL_PORT))? {
        Place::Members(agents) if agents.len() > 1 => {
            Err("several agents: name one, the one on this machine".into())
        }
        one => Ok(one),
    }
}

/// What stands before the service, or the service: a name, or nothing.
fn inner(path: &str) -> Result<String, String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if !path.is_empty() {
        ServiceName::new(path).map_err(|error| error.to_string())?;
    }
    Ok(path.to_owned())
}

fn in_memory(host: &str, path: &str) -> Result<String, String> {
    let host = decode(host).map_err(|why| format!("name {host:?} has {why}"))?;
    inner(&format!("{host}{path}"))
}

fn file(host: &str, path: String) -> Result<String, String> {
    if !host.is_empty() {
        return Err(format!(
            "a host, {host:?}: write three slashes, `file:///path/to/greeter.json`"
        ));
    }
    if path.is_empty() || path == "/" {
        return Err("the path is missing: write `file:///path/to/greeter.json`".into());
    }
    Ok(path)
}

/// A DNS name and its port, or the domain of a registry, which may be empty.
fn name(host: &str) -> Result<Place, String> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port = match port.map(crate::instance::port) {
        Some(Some(port)) if port > 0 => Some(port),
        Some(_) => {
            return Err(format!(
                "host {host:?}: the port is not a number from 1 to 65535"
            ));
        }
        None => None,
    };
    let bracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    if let Some(ip) = bracketed {
        let ip = ip.parse::<Ipv6Addr>();
        let ip = ip.map_err(|_| {
            format!("host {host:?}: what stands in the brackets is no IPv6 address")
        })?;
        return Ok(Place::Name(ip.to_string().into(), port));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if !name.is_empty() {
        check_name(name)?;
    }
    Ok(Place::Name(name.into(), port))
}

/// Refuses what no DNS server could have a record for.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        (1..=63).contains(&label.len()) && label.chars().all(fits)
    };
    if name.contains(':') {
        return Err(format!("host {name:?}: an IPv6 address stands in brackets"));
    }
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("host {name:?} is not a DNS name"));
    }
    Ok(())
}
