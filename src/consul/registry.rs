//! A registry of services behind a Consul agent.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::{
    agent::Agent,
    check::Check,
    definition::Rules,
    resolve::{Query, Service},
};
#[cfg(feature = "_tls")]
use crate::transport::Tls;
use crate::{
    Address, Error, RegistryUrl, Result, Scheme, ServiceName, backoff::countable, lock::locked,
    target::Secret,
};

/// The services that a Consul agent knows; clones are the same registry.
///
/// Finds instances as a [`Resolve`](crate::resolve::Resolve), and keeps them as a
/// [`Register`](crate::Register). However many read about one service, it is asked for once, for as long as
/// anybody reads.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::consul::{Check, Registry};
///
/// let registry = Registry::at("127.0.0.1:8500")?
///     .token("b1gs33cr3t")?
///     .ttl(Duration::from_secs(15))
///     .check(Check::grpc(""))
///     .tag("primary");
/// assert!(!format!("{registry:?}").contains("b1gs33cr3t"));
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    query: Query,
    rules: Rules,
    grace: Duration,
    services: Mutex<HashMap<ServiceName, Weak<Service>>>,
    url: Option<RegistryUrl>,
}

/// The registries that were opened by a URL and are in use.
static OPEN: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Registry {
    /// The services that the agent at this address knows, asked in plain text.
    ///
    /// # Errors
    /// `Config` when it is no address.
    pub fn at<A>(address: A) -> Result<Self>
    where
        A: TryInto<Address>,
        A::Error: Into<Error>,
    {
        let agent = Agent {
            address: address.try_into().map_err(Into::into)?,
            tls: None,
            token: None,
            namespace: None,
        };
        let query = Query {
            agent,
            datacenter: None,
            near: None,
            tags: Vec::new(),
            passing: false,
            wait: WAIT,
        };
        let rules = Rules {
            ttl: TTL,
            forget: Some(FORGET),
            tags: Vec::new(),
            checks: Vec::new(),
        };
        Ok(Self::new(query, rules, GRACE, None))
    }

    /// The registry that a URL names; the same one for the same URL, while it is in use.
    ///
    /// Touches no network, but reads the certificates that the URL names.
    ///
    /// # Errors
    /// `Config` when it is not `consul://`, or its certificates cannot be used.
    pub fn open(url: &RegistryUrl) -> Result<Self> {
        let (Scheme::Consul, [address]) = (url.scheme(), url.members()) else {
            return Err(Error::config(format!("open {url}: it is not consul://")));
        };
        let mut open = locked(&OPEN);
        open.retain(|one| one.strong_count() > 0);
        let mut found = open.iter().filter_map(Weak::upgrade);
        if let Some(inner) = found.find(|one| one.url.as_ref() == Some(url)) {
            return Ok(Self(inner));
        }
        let registry = Self::at(address.clone())?.asking(url)?;
        open.push(Arc::downgrade(&registry.0));
        Ok(registry)
    }

    fn asking(self, url: &RegistryUrl) -> Result<Self> {
        let given = url.query();
        let text = |text: &Option<Arc<str>>| text.as_deref().map(Into::into);
        let mut query = self.0.query.clone();
        query.agent.token.clone_from(&given.token);
        query.agent.namespace = text(&given.ns);
        query.datacenter = text(&given.dc);
        query.near = text(&given.near);
        query.tags = given.tag.iter().map(|tag| (&**tag).into()).collect();
        query.passing = given.passing.unwrap_or(false);
        query.wait = given.wait.unwrap_or(WAIT);
        if url.tls() {
            let tls = url.secured()?;
            tls.check()
                .map_err(|error| Error::config(format!("open {url}")).because(error))?;
            query.agent.tls = Some(tls);
        }
        let mut rules = self.0.rules.clone();
        rules.ttl = url.ttl().unwrap_or(TTL);
        let grace = url.ttl().unwrap_or(GRACE);
        Ok(Self::new(query, rules, grace, Some(url.clone())))
    }

    fn new(query: Query, rules: Rules, grace: Duration, url: Option<RegistryUrl>) -> Self {
        Self(Arc::new(Inner {
            query,
            rules,
            grace,
            services: Mutex::default(),
            url,
        }))
    }

    fn queried(self, change: impl FnOnce(&mut Query)) -> Self {
        let mut query = self.0.query.clone();
        change(&mut query);
        Self::new(query, self.0.rules.clone(), self.0.grace, None)
    }

    fn ruled(self, change: impl FnOnce(&mut Rules)) -> Self {
        let mut rules = self.0.rules.clone();
        change(&mut rules);
        Self::new(self.0.query.clone(), rules, self.0.grace, None)
    }

    /// Asks with this token. None, unless set.
    ///
    /// # Errors
    /// `Config` when it cannot stand in a header.
    pub fn token(self, token: impl AsRef<str>) -> Result<Self> {
        let token = Secret::new(token.as_ref());
        let token = token.map_err(|why| Error::config(format!("Consul token: {why}")))?;
        Ok(self.queried(|query| query.agent.token = Some(token)))
    }

    /// Asks over TLS.
    ///
    /// # Errors
    /// `Config` when its certificates cannot be used.
    #[cfg(feature = "_tls")]
    pub fn tls(self, tls: Tls) -> Result<Self> {
        tls.check()?;
        Ok(self.queried(|query| query.agent.tls = Some(tls)))
    }

    /// Finds and registers in this namespace. That of the token, unless set; Consul Enterprise alone has
    /// more than one.
    #[must_use]
    pub fn namespace(self, namespace: impl AsRef<str>) -> Self {
        self.queried(|query| query.agent.namespace = Some(namespace.as_ref().into()))
    }

    /// Finds instances in this datacenter. In the agent's, unless set; servers always register in that.
    #[must_use]
    pub fn datacenter(self, datacenter: impl AsRef<str>) -> Self {
        self.queried(|query| query.datacenter = Some(datacenter.as_ref().into()))
    }

    /// Has Consul sort its list by the distance from this node, or from `_agent`. Unsorted, unless set.
    ///
    /// Nothing here asks for an order: it changes nobody's share of calls.
    #[must_use]
    pub fn near(self, node: impl AsRef<str>) -> Self {
        self.queried(|query| query.near = Some(node.as_ref().into()))
    }

    /// Finds only those who have this tag, too. Given several times, they must have all.
    #[must_use]
    pub fn tagged(self, tag: impl AsRef<str>) -> Self {
        self.queried(|query| query.tags.push(tag.as_ref().into()))
    }

    /// Sets whether a check that warns is as bad as one that fails. No, unless set: its instance has the
    /// weight that it was registered with for this case.
    #[must_use]
    pub fn passing(self, passing: bool) -> Self {
        self.queried(|query| query.passing = passing)
    }

    /// Sets how long a blocking query waits for a change: half a minute, unless set; from a second to ten
    /// minutes. An agent that stands still is noticed only after this.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        let wait = wait.clamp(Duration::from_secs(1), Duration::from_secs(600));
        self.queried(|query| query.wait = wait)
    }

    /// Sets how long an instance that vanished unannounced, or is critical, is kept as a suspect before two
    /// lists may remove it. Ten seconds, or the time to live in the URL, unless set: an agent that starts
    /// again knows nobody, and servers need a moment to register anew.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        let (query, rules) = (self.0.query.clone(), self.0.rules.clone());
        Self::new(query, rules, countable(grace), None)
    }

    /// Sets for how long an instance that is registered here passes without a word of its server. Ten
    /// seconds, or the time to live in the URL, unless set; never under two. The agent is told every third of
    /// that, and every three seconds at least.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        let ttl = countable(ttl).max(Duration::from_secs(2));
        self.ruled(|rules| rules.ttl = ttl)
    }

    /// Sets after how long of being critical the agent forgets an instance that is registered here. Ten
    /// minutes, unless set; Consul takes less than a minute for one. `None` keeps it until somebody deletes
    /// it.
    #[must_use]
    pub fn forget(self, after: Option<Duration>) -> Self {
        self.ruled(|rules| rules.forget = after.map(countable))
    }

    /// Has the agent run one more check on all who are registered here.
    #[must_use]
    pub fn check(self, check: Check) -> Self {
        self.ruled(|rules| rules.checks.push(check))
    }

    /// Gives all who are registered here one more tag.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.ruled(|rules| rules.tags.push(tag.into()))
    }

    pub(super) fn agent(&self) -> &Agent {
        &self.0.query.agent
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.0.rules
    }

    /// The one watch on a service.
    pub(super) fn service(&self, name: &ServiceName) -> Arc<Service> {
        let mut services = locked(&self.0.services);
        if let Some(service) = services.get(name).and_then(Weak::upgrade) {
            return service;
        }
        services.retain(|_, service| service.strong_count() > 0);
        let query = self.0.query.clone();
        let service = Arc::new(Service::follow(query, name.clone(), self.0.grace));
        services.insert(name.clone(), Arc::downgrade(&service));
        service
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("query", &self.0.query)
            .field("rules", &self.0.rules)
            .field("grace", &self.0.grace)
            .finish_non_exhaustive()
    }
}

/// One request in half a minute costs an agent nothing, and one that stands still is noticed soon enough.
const WAIT: Duration = Duration::from_secs(30);
/// One time to live.
const GRACE: Duration = TTL;
/// How long a registration outlives its server.
const TTL: Duration = Duration::from_secs(10);
/// As kratos has it: an agent that is away for less finds its services again.
const FORGET: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> RegistryUrl {
        url.parse().unwrap()
    }

    #[test]
    fn a_url_is_opened_once_and_says_everything() {
        let whole =
            "consul://h1/?dc=eu&ns=a&near=_agent&tag=x,y&passing=true&wait=5s&ttl=3s&token=s3cret";
        let first = Registry::open(&url(whole)).unwrap();

        let same = Registry::open(&url(whole)).unwrap();
        let other = Registry::open(&url("consul://h1")).unwrap();

        assert!(Arc::ptr_eq(&first.0, &same.0));
        assert!(!Arc::ptr_eq(&first.0, &other.0));
        let query = &first.0.query;
        assert_eq!(query.datacenter.as_deref(), Some("eu"));
        assert_eq!(query.agent.namespace.as_deref(), Some("a"));
        assert_eq!((query.tags.len(), query.passing), (2, true));
        assert_eq!(query.wait, Duration::from_secs(5));
        assert_eq!(first.0.rules.ttl, Duration::from_secs(3));
        assert_eq!(first.0.grace, Duration::from_secs(3));
        assert!(!format!("{first:?}").contains("s3cret"));
    }

    #[test]
    fn what_cannot_be_opened_is_refused_with_the_reason() {
        for (text, why) in [
            ("memory://", "not consul://"),
            #[cfg(feature = "_tls")]
            ("consul://h1?ca=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ] {
            let error = Registry::open(&url(text)).unwrap_err().chain();
            assert!(error.contains(why), "{error}");
        }
        let error = Registry::at("h1:1").unwrap().token("s3 cret").unwrap_err();
        assert!(!error.chain().contains("s3"), "{error}");
    }
}
