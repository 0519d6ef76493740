//! What may stand behind the `?` of a registry URL.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use super::{
    Scheme,
    secret::Secret,
    text::{decode, word},
};
use crate::{
    ServiceName,
    stage::{Filter, Zones},
};

/// The parameters of a registry URL, checked.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Query {
    pub(crate) layout: Option<Arc<str>>,
    pub(crate) prefix: Option<Arc<str>>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) tls: Option<bool>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) weights: Vec<u32>,
    pub(crate) service: Option<ServiceName>,
    pub(crate) srv: Option<bool>,
    pub(crate) server: Option<SocketAddr>,
    pub(crate) dc: Option<Arc<str>>,
    pub(crate) ns: Option<Arc<str>>,
    pub(crate) near: Option<Arc<str>>,
    pub(crate) tag: Vec<Arc<str>>,
    pub(crate) passing: Option<bool>,
    pub(crate) wait: Option<Duration>,
    pub(crate) token: Option<Secret>,
    pub(crate) filter: Option<Arc<str>>,
    pub(crate) or_else: Option<Arc<str>>,
    pub(crate) zone: Vec<Arc<str>>,
    pub(crate) subset: Option<usize>,
    pub(crate) ordinals: Option<bool>,
}

/// Leases shorter than this are lost to a hiccup; longer ones keep the dead for days.
const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(24 * 60 * 60);

/// Consul itself waits no longer than ten minutes; a shorter wait is a poll.
const WAIT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// What means something whatever the registry is: whom a channel uses of those who are there.
const STAGES: &[&str] = &["filter", "else", "zone", "subset"];

/// More than this in one value is a mistake.
const LONGEST: usize = 4096;

impl Scheme {
    /// The parameters that mean something to this kind of registry.
    fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Etcd => &[
                "layout", "prefix", "ttl", "ordinals", "tls", "ca", "cert", "key",
            ],
            Self::Static => &["weights"],
            Self::File => &["service"],
            Self::Memory => &["ttl"],
            Self::Dns => &["srv", "server"],
            Self::Consul => &[
                "dc", "ns", "near", "tag", "passing", "wait", "ttl", "token", "tls", "ca", "cert",
                "key",
            ],
        }
    }
}

impl Query {
    /// Reads what stands behind the `?`; the error says which parameter is wrong.
    pub(super) fn read(scheme: Scheme, text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        let mut seen = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("parameter {pair:?} has no value: write `{pair}=…`"))?;
            if !scheme.parameters().contains(&name) && !STAGES.contains(&name) {
                return Err(unknown(scheme, name));
            }
            if seen.contains(&name) {
                return Err(format!("parameter {name:?} stands twice: keep one"));
            }
            seen.push(name);
            let value = decode(value).and_then(|value| query.set(name, &value));
            value.map_err(|why| format!("parameter {name:?}: {why}"))?;
        }
        query.check()?;
        Ok(query)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        // The prefix may be empty: no word before the service is what some layouts want.
        if value.is_empty() && name != "prefix" {
            return Err("the value is empty: give one, or leave the parameter out".into());
        }
        if value.len() > LONGEST && name != "weights" {
            return Err(format!("{} bytes: at most {LONGEST}", value.len()));
        }
        match name {
            "layout" => self.layout = Some(value.into()),
            "prefix" => self.prefix = Some(prefix(value)?),
            "ttl" => self.ttl = Some(ttl(value)?),
            "tls" => self.tls = Some(truth(value)?),
            "ca" => self.ca = Some(value.into()),
            "cert" => self.cert = Some(value.into()),
            "key" => self.key = Some(value.into()),
            "weights" => self.weights = weights(value)?,
            "service" => self.service = Some(ServiceName::new(value).map_err(|e| e.to_string())?),
            "srv" => self.srv = Some(truth(value)?),
            "server" => self.server = Some(server(value)?),
            "ordinals" => self.ordinals = Some(truth(value)?),
            _ => return self.set_consul(name, value),
        }
        Ok(())
    }

    fn set_consul(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "dc" => self.dc = Some(value.into()),
            "ns" => self.ns = Some(value.into()),
            "near" => self.near = Some(value.into()),
            "tag" => self.tag = tags(value)?,
            "passing" => self.passing = Some(truth(value)?),
            "wait" => self.wait = Some(wait(value)?),
            "token" => self.token = Some(Secret::new(value)?),
            _ => return self.set_stage(name, value),
        }
        Ok(())
    }

    fn set_stage(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "filter" => self.filter = Some(filter(value)?),
            "else" if value == "any" => self.or_else = Some(value.into()),
            "else" => self.or_else = Some(filter(value)?),
            "zone" => self.zone = zones(value)?,
            _ => self.subset = Some(subset(value)?),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.or_else.is_some() && self.filter.is_none() {
            return Err("`else` says what holds when nobody fits a `filter`: give both".into());
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("`cert` and `key` are only of use together: give both".into());
        }
        if self.tls == Some(false) && (self.ca.is_some() || self.cert.is_some()) {
            return Err("`tls=false` beside certificates: leave out one or the other".into());
        }
        Ok(())
    }
}

/// Whether a parameter of this name is one whose value may be shown.
pub(super) fn is_public(name: &str) -> bool {
    let known = |scheme: &Scheme| scheme.parameters().contains(&name);
    name != "token" && (STAGES.contains(&name) || Scheme::ALL.iter().any(known))
}

fn unknown(scheme: Scheme, name: &str) -> String {
    let known = [scheme.parameters(), STAGES].concat().join("`, `");
    format!("unknown parameter {name:?}: {scheme}:// knows `{known}`")
}

/// `10s`, `500ms`, `2m`, or seconds alone.
fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no duration: write `10s`, `500ms`, `2m` or seconds");
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number = number.parse::<u32>().map_err(|_| refuse())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "" | "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(u64::from(number) * 60)),
        _ => Err(refuse()),
    }
}

fn in_words(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if !TTL.contains(&ttl) {
        return Err(format!(
            "{text:?} is no time to live: from 2 s to 24 h are allowed"
        ));
    }
    Ok(ttl)
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = duration(text)?;
    if !WAIT.contains(&wait) {
        return Err(format!(
            "{text:?} is no wait: from 1 s to 10 min are allowed"
        ));
    }
    Ok(wait)
}

fn tags(text: &str) -> Result<Vec<Arc<str>>, String> {
    let tags: Vec<Arc<str>> = text.split(',').map(Into::into).collect();
    if tags.iter().any(|tag| tag.is_empty()) {
        return Err(format!(
            "{text:?} has an empty tag: leave out the extra comma"
        ));
    }
    Ok(tags)
}

/// What stands before services: any key that a person can read, and that leads to where it says.
fn prefix(text: &str) -> Result<Arc<str>, String> {
    if text.chars().any(char::is_control) {
        return Err(format!("{text:?} has a control character"));
    }
    if let Some(segment) = text
        .split('/')
        .find(|segment| [".", ".."].contains(segment))
    {
        return Err(format!("{text:?} has the relative segment {segment:?}"));
    }
    Ok(text.into())
}

fn truth(text: &str) -> Result<bool, String> {
    let truth = text.parse();
    truth.map_err(|_| format!("{text:?} is neither `true` nor `false`"))
}

/// Read to see whether it can be, and kept as it was written.
fn filter(text: &str) -> Result<Arc<str>, String> {
    let read = text.parse::<Filter>();
    read.map(|_| text.into()).map_err(|why| why.to_string())
}

/// The channel's own, and those that are to help first.
fn zones(text: &str) -> Result<Vec<Arc<str>>, String> {
    let all: Vec<Arc<str>> = text.split(',').map(Into::into).collect();
    let mut order = all.iter().map(Arc::clone);
    let mine = order.next().map(Zones::mine).ok_or("name the zone")?;
    let zones = order.fold(mine, Zones::then);
    zones.check().map_err(|why| why.to_string())?;
    Ok(all)
}

fn subset(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|&size| size > 0);
    size.ok_or_else(|| format!("{text:?} is no size of a subset: write a whole number from 1"))
}

fn weights(text: &str) -> Result<Vec<u32>, String> {
    let weight = |(at, text): (usize, &str)| {
        let weight = text
            .parse::<u32>()
            .ok()
            .filter(|weight| *weight <= 1_000_000);
        weight.ok_or_else(|| {
            format!(
                "weight {} is {text:?}: write a whole number up to 1000000",
                at + 1
            )
        })
    };
    text.split(',').enumerate().map(weight).collect()
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let server = text.parse();
    server.map_err(|_| format!("{text:?} is no IP address and port: write `10.0.0.2:53`"))
}

/// What stands for a token.
const HIDDEN: &str = "***";

impl fmt::Display for Query {
    /// With the `?`, unless there is nothing to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
        let weights: Vec<_> = self.weights.iter().map(u32::to_string).collect();
        let pairs = [
            ("layout", text(&self.layout)),
            ("prefix", text(&self.prefix)),
            ("ttl", self.ttl.map(in_words)),
            ("tls", self.tls.map(|tls| tls.to_string())),
            ("ca", path(&self.ca)),
            ("cert", path(&self.cert)),
            ("key", path(&self.key)),
            (
                "ordinals",
                self.ordinals.map(|ordinals| ordinals.to_string()),
            ),
            ("weights", (!weights.is_empty()).then(|| weights.join(","))),
            ("service", self.service.as_ref().map(ServiceName::to_string)),
            ("srv", self.srv.map(|srv| srv.to_string())),
            ("server", self.server.map(|server| server.to_string())),
            ("dc", text(&self.dc)),
            ("ns", text(&self.ns)),
            ("near", text(&self.near)),
            ("tag", (!self.tag.is_empty()).then(|| self.tag.join(","))),
            ("passing", self.passing.map(|passing| passing.to_string())),
            ("wait", self.wait.map(in_words)),
            ("filter", text(&self.filter)),
            ("else", text(&self.or_else)),
            ("zone", (!self.zone.is_empty()).then(|| self.zone.join(","))),
            ("subset", self.subset.map(|size| size.to_string())),
            ("token", self.token.as_ref().map(|_| HIDDEN.to_owned())),
        ];
        let mut before = '?';
        for (name, value) in pairs {
            if let Some(value) = value {
                match &*value {
                    HIDDEN => write!(f, "{before}{name}={HIDDEN}")?,
                    _ => write!(f, "{before}{name}={}", word(&value))?,
                }
                before = '&';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_or_are_seconds() {
        for (text, millis) in [
            ("10s", 10_000),
            ("2500ms", 2_500),
            ("30", 30_000),
            ("2m", 120_000),
        ] {
            let query = Query::read(Scheme::Etcd, &format!("ttl={text}")).unwrap();
            assert_eq!(query.ttl, Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1h",
            "1.5s",
            "1s1",
            "99999999999s",
            "1s",
            "25000m",
        ] {
            assert!(
                Query::read(Scheme::Etcd, &format!("ttl={text}")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wrong_parameter_is_named_with_what_would_be_right() {
        for (scheme, text, why) in [
            (Scheme::Etcd, "laiout=x", "knows `layout`, `prefix`"),
            (Scheme::Static, "layout=x", "static:// knows `weights`"),
            (Scheme::Etcd, "tls", "write `tls=…`"),
            (Scheme::Etcd, "tls=yes", "neither `true` nor `false`"),
            (Scheme::Etcd, "ttl=3s&ttl=4s", "stands twice"),
            (Scheme::Etcd, "cert=/a", "give both"),
            (Scheme::Etcd, "tls=false&ca=/a", "leave out one"),
            (Scheme::Etcd, "layout=", "the value is empty"),
            (Scheme::Etcd, "layout=%zz", "hexadecimal"),
            (Scheme::Etcd, "prefix=/../", "relative segment"),
            (Scheme::Etcd, "prefix=/a%0a/", "control character"),
            (Scheme::Static, "weights=1,x", "weight 2 is \"x\""),
            (Scheme::Dns, "server=ns1", "no IP address and port"),
            (Scheme::File, "service=a//b", "empty segment"),
            (Scheme::Consul, "wait=0", "from 1 s to 10 min"),
            (Scheme::Consul, "tag=a,,b", "empty tag"),
            (Scheme::Consul, "passing=1", "neither `true` nor `false`"),
            (Scheme::Consul, "token=s%c3%b6", "printable ASCII"),
            (Scheme::Dns, "filter=gold", "has no `:`"),
            (Scheme::File, "else=any", "give both"),
            (Scheme::Static, "zone=a,,b", "no name of a zone"),
            (Scheme::Static, "subset=0", "no size of a subset"),
            (Scheme::Consul, "layout=x", "consul:// knows `dc`, `ns`"),
        ] {
            let error = Query::read(scheme, text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_query_is_read_as_it_was_written() {
        for (scheme, text) in [
            (
                Scheme::Etcd,
                "?layout=kratos&prefix=/a%40b/&ttl=10s&tls=true&ca=/ca",
            ),
            (Scheme::Static, "?weights=3,1,0"),
            (Scheme::Dns, "?srv=true&server=[::1]:53"),
            (
                Scheme::Consul,
                "?dc=dc1&ns=a&near=_agent&tag=a,b&passing=true&wait=55s",
            ),
            (Scheme::Etcd, "?prefix="),
            (Scheme::Etcd, "?ttl=2500ms&ordinals=true"),
            (
                Scheme::Memory,
                "?filter=version:2,tier:gold&else=any&subset=20",
            ),
            (Scheme::Consul, "?filter=zone:a&else=zone:b&zone=a,b"),
        ] {
            let query = Query::read(scheme, &text[1..]).unwrap();
            assert_eq!(query.to_string(), text);
        }
    }
}
