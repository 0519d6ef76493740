//! An agent as others see it.

use std::{fmt, sync::Arc, time::SystemTime};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::record::Info;
use crate::{Error, ErrorKind, InstanceId, Result};

/// What is seen of an agent.
#[derive(Clone, PartialEq)]
pub struct Seen {
    id: InstanceId,
    presence: Presence,
    info: Option<Arc<Info>>,
    beaten: Option<SystemTime>,
}

/// Whether an agent is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Presence {
    /// It keeps its lease.
    Online,
    /// It stopped in order.
    Offline {
        /// When, by its own clock; by ours, and when we saw it, if it does not say.
        since: SystemTime,
    },
    /// It let its lease run out: it crashed, or cannot reach etcd.
    Lost {
        /// When we saw that, by our clock: who has looked only since then cannot know more.
        since: SystemTime,
    },
}

/// What changes among agents.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An agent is there: it is new, or back, or has started anew.
    Online(Seen),
    /// An agent stopped in order.
    Offline(Seen),
    /// An agent's lease ran out.
    Lost(Seen),
    /// An agent says something else of itself.
    Changed(Seen),
    /// An agent's records are gone.
    Removed(InstanceId),
    /// etcd is out of reach; what was seen last still counts.
    Stale(Error),
    /// etcd is in reach again.
    Fresh,
}

impl Seen {
    pub(super) fn new(
        id: InstanceId,
        presence: Presence,
        info: Option<Arc<Info>>,
        beaten: Option<SystemTime>,
    ) -> Self {
        Self {
            id,
            presence,
            info,
            beaten,
        }
    }

    /// What it is called.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Whether it is there.
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// Whether it is there.
    pub fn is_online(&self) -> bool {
        self.presence == Presence::Online
    }

    /// When it started, by its own clock.
    pub fn started_at(&self) -> Option<SystemTime> {
        self.info.as_ref()?.started_at
    }

    /// When it stopped in order, by its own clock.
    pub fn stopped_at(&self) -> Option<SystemTime> {
        self.info.as_ref()?.stopped_at
    }

    /// When it last beat, by its own clock; none once it is gone.
    pub fn last_updated(&self) -> Option<SystemTime> {
        self.beaten
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// `Decode` when its fields are not such.
    pub fn own<T: DeserializeOwned>(&self) -> Result<T> {
        let own = self.info.as_ref().map(|info| info.own.clone());
        serde_json::from_value(Value::Object(own.unwrap_or_default())).map_err(|why| {
            let doing = format!("read the fields of agent {}", self.id);
            Error::new(ErrorKind::Decode, doing).because(why)
        })
    }

    /// What there is to tell one who was told this before.
    pub(super) fn news(&self, before: Option<&Self>) -> Option<Event> {
        let kind = |seen: &Self| std::mem::discriminant(&seen.presence);
        let anew = before.is_none_or(|before| {
            kind(before) != kind(self)
                || (before.started_at() != self.started_at() && before.info.is_some())
        });
        if anew {
            return Some(match self.presence {
                Presence::Online => Event::Online(self.clone()),
                Presence::Offline { .. } => Event::Offline(self.clone()),
                Presence::Lost { .. } => Event::Lost(self.clone()),
            });
        }
        let changed = before.is_some_and(|before| before.info != self.info);
        changed.then(|| Event::Changed(self.clone()))
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Online => f.write_str("online"),
            Self::Offline { since } => write!(f, "offline since {}", super::moment::text(*since)),
            Self::Lost { since } => write!(f, "lost since {}", super::moment::text(*since)),
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("id", &self.id)
            .field("presence", &format_args!("{}", self.presence))
            .finish_non_exhaustive()
    }
}
