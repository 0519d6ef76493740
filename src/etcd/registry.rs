//! A registry of services in an etcd cluster.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::{
    client::Etcd,
    layout::{self, Layout},
    options::Options,
    resolve::Service,
};
use crate::{Error, RegistryUrl, Result, Scheme, ServiceName, backoff::countable, lock::locked};

/// The services in an etcd cluster; clones are the same registry.
///
/// Finds instances as a [`Resolve`](crate::resolve::Resolve). However many read about one service, it
/// is watched once, for as long as anybody reads.
///
/// With several layouts, `?layout=json,kratos` or [`also`](Self::also), whoever registers stands in all of
/// them, on one lease, and whoever reads finds who stands in any: a fleet moves from one to another
/// without a moment in which somebody is not found. What fails in one layout does not keep a server out of the others; its registration
/// says so. Who stands in two under one id is one instance, as the first layout says it. A layout
/// that keeps no id, as `go-zero`, calls it by its address instead, and it counts twice.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    etcd: Etcd,
    /// At least one.
    layouts: Arc<[Arc<dyn Layout>]>,
    grace: Duration,
    ttl: Duration,
    /// Whether who registers is given a number.
    ordinals: bool,
    /// By the layout, and the service.
    services: Mutex<HashMap<(usize, ServiceName), Weak<Service>>>,
    url: Option<RegistryUrl>,
}

/// The registries that were opened by a URL and are in use.
static OPEN: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Registry {
    /// The services in this cluster, as JSON under `/services/`.
    pub fn over(etcd: Etcd) -> Self {
        let json: Arc<dyn Layout> = Arc::new(layout::Json::default());
        Self::new(etcd, [json].into(), [GRACE, TTL], false, None)
    }

    /// The registry that a URL names; the same one for the same URL, while it is in use.
    ///
    /// Touches no network, but reads the certificates that the URL names. Fails outside of a Tokio
    /// runtime.
    pub fn open(url: &RegistryUrl) -> Result<Self> {
        if url.scheme() != Scheme::Etcd {
            return Err(Error::config(format!("open {url}: it is not etcd://")));
        }
        let layouts = layout::all_named(url.layout(), url.prefix());
        let layouts =
            layouts.map_err(|why| Error::config(format!("open {url}: {}", why.chain())))?;
        let members: Vec<_> = url.members().iter().map(ToString::to_string).collect();
        let etcd = Etcd::shared(&members, options(url)?)?;

        let mut open = locked(&OPEN);
        open.retain(|one| one.strong_count() > 0);
        let found = open.iter().filter_map(Weak::upgrade);
        let same = |one: &Arc<Inner>| one.url.as_ref() == Some(url) && one.etcd.is(&etcd);
        if let Some(inner) = found.into_iter().find(same) {
            return Ok(Self(inner));
        }
        let times = [url.ttl().unwrap_or(GRACE), url.ttl().unwrap_or(TTL)];
        let registry = Self::new(
            etcd,
            layouts.into(),
            times,
            url.ordinals(),
            Some(url.clone()),
        );
        open.push(Arc::downgrade(&registry.0));
        Ok(registry)
    }

    fn new(
        etcd: Etcd,
        layouts: Arc<[Arc<dyn Layout>]>,
        [grace, ttl]: [Duration; 2],
        ordinals: bool,
        url: Option<RegistryUrl>,
    ) -> Self {
        Self(Arc::new(Inner {
            etcd,
            layouts,
            grace,
            ttl,
            ordinals,
            services: Mutex::default(),
            url,
        }))
    }

    /// The same cluster, where instances stand otherwise.
    #[must_use]
    pub fn layout(self, layout: impl Layout) -> Self {
        let one: Arc<dyn Layout> = Arc::new(layout);
        let times = [self.0.grace, self.0.ttl];
        Self::new(
            self.0.etcd.clone(),
            [one].into(),
            times,
            self.0.ordinals,
            None,
        )
    }

    /// The same cluster, where instances stand in this layout as well.
    ///
    /// ```
    /// use tonic_fleet::etcd::{Registry, layout::{Json, Kratos}};
    ///
    /// # fn example(etcd: tonic_fleet::etcd::Etcd) {
    /// let moving = Registry::over(etcd).layout(Kratos::default()).also(Json::under("/fleet/"));
    /// # }
    /// ```
    #[must_use]
    pub fn also(self, layout: impl Layout) -> Self {
        let one: Arc<dyn Layout> = Arc::new(layout);
        let layouts = self.0.layouts.iter().cloned().chain([one]).collect();
        let times = [self.0.grace, self.0.ttl];
        Self::new(self.0.etcd.clone(), layouts, times, self.0.ordinals, None)
    }

    /// Sets how long an instance that vanished unannounced is kept as a suspect before two lists may
    /// remove it. Ten seconds, or the time to live in the URL, unless set: an etcd that stood still
    /// deletes the keys of living servers, and they need a moment to put them back.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        let layouts = Arc::clone(&self.0.layouts);
        let times = [countable(grace), self.0.ttl];
        Self::new(self.0.etcd.clone(), layouts, times, self.0.ordinals, None)
    }

    /// Sets for how long an instance that is registered here outlives its server. Ten seconds, or the
    /// time to live in the URL, unless set; never under two. A shorter one finds dead servers sooner, and
    /// loses living ones to shorter outages.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        let layouts = Arc::clone(&self.0.layouts);
        Self::new(
            self.0.etcd.clone(),
            layouts,
            [self.0.grace, ttl],
            self.0.ordinals,
            None,
        )
    }

    /// Gives each instance that is registered here a number among all of its service, as the tag `ordinal`: the
    /// smallest that is free, under `/fleet/numbers/servers/`, on the lease of its registration. Not given, unless
    /// set here or by `?ordinals=true` in the URL.
    ///
    /// No two registrations have a number at a time, and who leaves or dies gives its own back with its lease;
    /// whoever then has one beyond the count of all moves down within some minutes. A layout without tags does not
    /// carry it. While a number cannot be had the instance is registered without. See
    /// [`Subset::seat`](crate::stage::Subset::seat), which is what it is for.
    #[must_use]
    pub fn ordinals(self) -> Self {
        let layouts = Arc::clone(&self.0.layouts);
        let times = [self.0.grace, self.0.ttl];
        Self::new(self.0.etcd.clone(), layouts, times, true, None)
    }

    pub(super) fn gives_ordinals(&self) -> bool {
        self.0.ordinals
    }

    /// The cluster.
    pub fn etcd(&self) -> &Etcd {
        &self.0.etcd
    }

    /// How instances stand in it: in each of these layouts.
    pub(crate) fn layouts(&self) -> &Arc<[Arc<dyn Layout>]> {
        &self.0.layouts
    }

    /// How long the leases of those who register here live.
    pub(super) fn lease(&self) -> Duration {
        self.0.ttl
    }

    /// The one watch on a service in one of the layouts.
    pub(super) fn service(&self, nth: usize, name: &ServiceName) -> Arc<Service> {
        let mut services = locked(&self.0.services);
        let place = (nth, name.clone());
        if let Some(service) = services.get(&place).and_then(Weak::upgrade) {
            return service;
        }
        services.retain(|_, service| service.strong_count() > 0);
        let layout = Arc::clone(&self.0.layouts[nth]);
        let service = Arc::new(Service::follow(
            self.0.etcd.clone(),
            name.clone(),
            layout,
            self.0.grace,
        ));
        services.insert(place, Arc::downgrade(&service));
        service
    }
}

/// How a URL wants the cluster to be asked.
fn options(url: &RegistryUrl) -> Result<Options> {
    let mut options = Options::default();
    if let Some(user) = url.user() {
        options = options.user(user, url.password().unwrap_or_default());
    }
    if !url.tls() {
        return Ok(options);
    }
    options.tls = Some(url.secured()?);
    Ok(options)
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("etcd", &self.0.etcd)
            .field("layouts", &self.0.layouts)
            .field("grace", &self.0.grace)
            .field("ttl", &self.0.ttl)
            .finish_non_exhaustive()
    }
}

/// One lease.
const GRACE: Duration = TTL;
/// How long a registration outlives its server.
const TTL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> RegistryUrl {
        url.parse().unwrap()
    }

    #[tokio::test]
    async fn a_url_is_opened_once() {
        let first = Registry::open(&url("etcd://h1,h2?ttl=5s")).unwrap();

        let same = Registry::open(&url("etcd://h1,h2?ttl=5s")).unwrap();
        let elsewhere = Registry::open(&url("etcd://h1,h2?prefix=/prod/")).unwrap();

        assert!(Arc::ptr_eq(&first.0, &same.0));
        assert!(!Arc::ptr_eq(&first.0, &elsewhere.0));
        assert!(first.etcd().is(elsewhere.etcd()), "one cluster, one client");
        assert_eq!(first.0.grace, Duration::from_secs(5));
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_refused_with_the_reason() {
        for (text, why) in [
            ("memory://", "not etcd://"),
            ("etcd://h1?layout=yaml", "one of `json`, `plain`"),
            ("etcd://h1?ca=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ] {
            let error = Registry::open(&url(text)).unwrap_err().chain();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn outside_of_a_runtime_it_says_so() {
        let error = Registry::open(&url("etcd://h1")).unwrap_err();

        assert!(error.to_string().contains("Tokio runtime"), "{error}");
    }
}
