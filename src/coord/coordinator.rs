//! One door to all that is coordinated over one cluster.

use std::{fmt, marker, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use super::{
    config::Config,
    directory::{Directory, Kept},
    election::Election,
    hub::Hubs,
    leases::Leases,
    lock::Lock,
    retry::Retry,
    sync::Sync,
};
use crate::{
    Error, RegistryUrl, Result, Scheme,
    backoff::countable,
    etcd::{Etcd, Registry},
};

/// Locks, elections, configuration and synchronised entities in one etcd cluster; clones are the same one.
///
/// All of it goes over one client, and what is held hangs on as few leases as can be: one, unless the same
/// name is wanted more than once in this process. The leases are renewed until everything that was had of it
/// is dropped, or it is [closed](Self::close).
#[derive(Clone)]
pub struct Coordinator {
    leases: Arc<Leases>,
    hubs: Arc<Hubs>,
    kept: Arc<Kept>,
    /// What stands before all names; empty, or ends in `/`.
    root: Arc<str>,
    url: Option<RegistryUrl>,
}

/// What is held outlives its process for as long.
const TTL: Duration = Duration::from_secs(10);

impl Coordinator {
    /// Connects to the cluster that a URL names, and returns when it has answered.
    ///
    /// What the URL's path holds stands before all names: with `etcd://127.0.0.1:2379/shop`, the lock `cart`
    /// is at `shop/cart`. `?ttl=` is how long what is held outlives its process: ten seconds, unless set;
    /// never under two.
    ///
    /// # Errors
    /// `Config` when the URL is not of an etcd, `Denied`, `Connection`, `Timeout` or `Unavailable` when the
    /// cluster does not answer. Fails outside of a Tokio runtime.
    pub async fn connect(url: RegistryUrl) -> Result<Self> {
        if url.scheme() != Scheme::Etcd {
            let what = format!("connect {url}: it is not etcd://, which is needed to agree");
            return Err(Error::config(what));
        }
        let etcd = Registry::open(&url)?.etcd().clone();
        let root = match url.path() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let leases = Leases::new(etcd, url.ttl().unwrap_or(TTL), Retry::default());
        leases.asker.look(format!("connect {url}")).await?;
        Ok(Self {
            leases,
            hubs: Arc::default(),
            kept: Arc::default(),
            root: root.into(),
            url: Some(url),
        })
    }

    /// The one in this cluster. Touches no network.
    pub fn over(etcd: Etcd) -> Self {
        Self {
            leases: Leases::new(etcd, TTL, Retry::default()),
            hubs: Arc::default(),
            kept: Arc::default(),
            root: "".into(),
            url: None,
        }
    }

    /// The same cluster, where what is held outlives its process for so long. Ten seconds, or the time to
    /// live in the URL, unless set; never under two. With a shorter one, what a dead process held is free
    /// sooner, and a living one loses it to shorter outages.
    ///
    /// This is another coordinator than the one it was made of: what was had of that one goes on as it was, and is
    /// ended by its [`close`](Self::close) only. Who follows the same prefix shares a watch all the same.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        let retry = self.leases.asker.retry.clone();
        self.other(countable(ttl), retry)
    }

    /// The same cluster, asked as often as this. Another coordinator, as with [`ttl`](Self::ttl).
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        let ttl = self.leases.ttl();
        self.other(ttl, retry)
    }

    fn other(self, ttl: Duration, retry: Retry) -> Self {
        Self {
            leases: Leases::new(self.etcd().clone(), ttl, retry),
            kept: Arc::default(),
            ..self
        }
    }

    /// A lock, by its name, which is what stands before the last `/` of its keys.
    ///
    /// As with Go's locks, whoever stands in line for `a/b` stands in the line of `a`, too: use names of which none
    /// begins with another and a `/`. Who holds `a/b` and waits for `a` waits for himself.
    ///
    /// # Errors
    /// `Validation` when the name is empty or ends in `/`.
    pub fn lock(&self, name: impl AsRef<str>) -> Result<Lock> {
        Lock::new(&self.leases, &self.whole(name.as_ref()))
    }

    /// An election, by its name, which is what stands before the last `/` of its keys. What is said of a lock's
    /// name holds for its, too.
    ///
    /// # Errors
    /// `Validation` when the name is empty or ends in `/`.
    pub fn election(&self, name: impl AsRef<str>) -> Result<Election> {
        Election::new(&self.leases, &self.whole(name.as_ref()))
    }

    /// The configuration under a prefix, which is what stands before the last `/` common to its keys. Keys
    /// of locks and elections below it would be listed as configuration: give each a prefix of its own.
    ///
    /// # Errors
    /// `Validation` when the prefix is empty or ends in `/`.
    pub fn config(&self, prefix: impl AsRef<str>) -> Result<Config> {
        Config::new(&self.leases, &self.hubs, &self.whole(prefix.as_ref()))
    }

    /// The services in this cluster, as plain calls: where they stand, and in which layout, is what the URL
    /// says.
    ///
    /// # Errors
    /// As for [`Registry::open`].
    pub fn registry(&self) -> Result<Directory> {
        let registry = match &self.url {
            Some(url) => Registry::open(url)?,
            None => Registry::over(self.etcd().clone()),
        };
        let registry = registry.ttl(self.leases.ttl());
        let (leases, hubs) = (&self.leases, &self.hubs);
        Ok(Directory::new(
            registry, leases, hubs, &self.kept, &self.root,
        ))
    }

    /// Typed entities under a prefix, mirrored into memory; returns when the mirror is whole.
    ///
    /// # Errors
    /// `Validation` when the prefix is empty or ends in `/`; `Denied` and `Timeout` when etcd cannot be asked.
    pub async fn sync<T>(&self, prefix: impl AsRef<str>) -> Result<Sync<T>>
    where
        T: DeserializeOwned + Send + marker::Sync + 'static,
    {
        Sync::open(self.config(prefix)?).await
    }

    fn whole(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// The cluster.
    pub fn etcd(&self) -> &Etcd {
        &self.leases.asker.etcd
    }

    /// Ends all that was had of it, in order: registrations are withdrawn; who holds, waits for or follows
    /// something learns it; keys are deleted, and leases given back. Returns when that is done, and within ten seconds or so.
    ///
    /// # Errors
    /// When etcd cannot be asked: what was held is then free when its lease ends.
    pub async fn close(self) -> Result<()> {
        let withdrawn = self.kept.close().await;
        self.leases.close().await.and(withdrawn)
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("etcd", self.etcd())
            .field("ttl", &self.leases.ttl())
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
