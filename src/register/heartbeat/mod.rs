//! Agents that say that they are there, and the control plane that sees them.
//!
//! An agent, such as one for each region, has two keys in etcd:
//!
//! | key | holds | stands |
//! |---|---|---|
//! | `{prefix}/{id}/info` | `status`, `started_at`, `stopped_at`, and the agent's own fields | until it is [cleaned](Following::clean) away |
//! | `{prefix}/{id}/heartbeat` | `status`, `last_updated`, `lease_id` | on a lease, which the agent keeps |
//!
//! Both are JSON, and times are RFC 3339 in UTC. An agent that starts writes both at once, then the
//! heartbeat anew with each beat. One that stops in order says so in its info and deletes its heartbeat, in
//! one transaction. One that crashes loses its heartbeat with its lease, and nothing else: that is how the
//! two ends are told apart.
//!
//! ```no_run
//! use tonic_fleet::register::heartbeat::{Agents, Event};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tonic_fleet::Result<()> {
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Region {
//!     city: String,
//! }
//!
//! let agents = Agents::open(&"etcd://127.0.0.1:2379?prefix=/os/region/".parse()?)?;
//!
//! // The agent.
//! let agent = agents.start("eu-1", &Region { city: "Lyon".into() }).await?;
//!
//! // The control plane.
//! let mut seen = agents.follow().await;
//! assert!(seen.is_online("eu-1"));
//! if let Event::Online(one) = seen.next().await {
//!     println!("{} is there, in {}", one.id(), one.own::<Region>()?.city);
//! }
//!
//! agent.close().await
//! # }
//! ```
//!
//! Whatever happens to etcd, an [`Agent`] keeps its two keys there, as a [registration](super) keeps
//! its one; its [`State`](super::State) says how it stands. Two agents with one id are told apart by their leases: who came
//! second leaves the first alone, and reports a [`Conflict`](super::State::Conflict) as soon as it has seen the first one
//! beat. One that restarts after a crash waits for its own old lease to end; its old heartbeat stands until
//! then.

mod agent;
mod following;
mod moment;
mod record;
mod roll;
mod seen;
mod task;
mod teller;

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;

pub use agent::Agent;
pub use following::Following;
pub use seen::{Event, Presence, Seen};

use crate::{Error, InstanceId, RegistryUrl, Result, etcd::Etcd};

/// Where agents stand in an etcd cluster.
///
/// Their keys begin with `/agents/`, unless a prefix is given.
#[derive(Clone)]
pub struct Agents {
    etcd: Etcd,
    /// Ends in `/`.
    prefix: Arc<str>,
    ttl: Duration,
}

/// How long an agent that crashed still seems to be there.
const TTL: Duration = Duration::from_secs(30);

impl Agents {
    /// The agents in this cluster.
    pub fn over(etcd: Etcd) -> Self {
        Self {
            etcd,
            prefix: "/agents/".into(),
            ttl: TTL,
        }
    }

    /// The agents that a URL names: `etcd://h1,h2?prefix=/os/region/&ttl=30s`.
    ///
    /// Touches no network, but reads the certificates that the URL names.
    ///
    /// # Errors
    /// `Config` when it is not `etcd://`, or names a path or a layout, and outside of a Tokio runtime.
    pub fn open(url: &RegistryUrl) -> Result<Self> {
        for (what, given) in [
            ("path", url.path()),
            ("layout", url.layout().unwrap_or_default()),
        ] {
            if !given.is_empty() {
                return Err(Error::config(format!(
                    "open {url}: agents have no {what}; leave out {given:?}, and name the keys by `?prefix=/…/`"
                )));
            }
        }
        let mut agents = Self::over(crate::etcd::Registry::open(url)?.etcd().clone());
        if let Some(prefix) = url.prefix() {
            agents = agents.prefix(prefix);
        }
        Ok(match url.ttl() {
            Some(ttl) => agents.ttl(ttl),
            None => agents,
        })
    }

    /// Sets what keys begin with; a `/` goes between it and the agent's id.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = match prefix {
            "" => "".into(),
            _ if prefix.ends_with('/') => prefix.into(),
            _ => format!("{prefix}/").into(),
        };
        self
    }

    /// Sets how long an agent that crashed still seems to be there. Thirty seconds, or the time to live in
    /// the URL, unless set; never under two. It beats every third of that, which is a write to etcd each
    /// time. A shorter one finds the dead sooner, and loses the living to shorter outages.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = crate::backoff::countable(ttl.max(crate::etcd::SHORTEST));
        self
    }

    /// Starts an agent: it is online while the handle lives. `own` are its own fields: a struct or a map,
    /// or `&()` for none.
    ///
    /// Returns after the first attempt. An etcd that cannot be reached is no error: the agent is then
    /// [`Retrying`](super::State::Retrying) and goes on. When somebody else's heartbeat stands there, it is
    /// watched for up to half the time to live, to see whether that one is alive.
    ///
    /// # Errors
    /// What no retry would cure: `Conflict` when another agent lives under this id, `Denied`, and `Config` when
    /// the id or the fields cannot be written.
    ///
    /// # Cancel safety
    /// Dropping the future stops what it may have started.
    pub async fn start<I, T>(&self, id: I, own: &T) -> Result<Agent>
    where
        I: TryInto<InstanceId>,
        I::Error: Into<Error>,
        T: Serialize + ?Sized,
    {
        let id = id.try_into().map_err(Into::into)?;
        let own = record::fields(&id, own)?;
        Agent::begin(self.clone(), id, own).await
    }

    /// Follows all agents. Returns when they were listed, or when etcd turns out to be out of reach; then the
    /// list comes as soon as it is back.
    pub async fn follow(&self) -> Following {
        Following::begin(self.clone()).await
    }
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents")
            .field("etcd", &self.etcd)
            .field("prefix", &self.prefix)
            .field("ttl", &self.ttl)
            .finish()
    }
}
