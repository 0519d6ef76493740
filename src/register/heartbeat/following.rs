//! The control plane's side: who is there, and what changes.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tokio::{sync::watch, time::timeout};

use super::{
    Agents,
    record::{self, Part},
    roll::{Gone, Heard, Roll},
    seen::{Event, Seen},
};
use crate::{
    Error, InstanceId, Result,
    etcd::{Span, Watch},
    lock::locked,
    resolve::Skipped,
};

/// All agents under a prefix, followed for as long as this lives.
///
/// What it shows is what etcd said last: an outage of etcd makes it [`stale`](Self::stale) and changes
/// nobody. [`next`](Self::next) tells changes; who does not ask for them misses nothing but what was over
/// in between, and queues nothing.
///
/// A [`Lost`](super::Presence::Lost) may be over within milliseconds: an etcd that stood still deletes the
/// leases of living agents when it goes on, and they put their heartbeats back. Who acts on it should let a
/// moment pass, and look again.
pub struct Following {
    agents: Agents,
    roll: Arc<Mutex<Roll>>,
    changed: watch::Receiver<()>,
    heard: Heard,
    /// At most a few for each agent: what one look showed.
    events: VecDeque<Event>,
    _watch: Watch,
}

/// How long the first list is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Following {
    pub(super) async fn begin(agents: Agents) -> Self {
        let roll = Arc::new(Mutex::new(Roll::new(Arc::clone(&agents.prefix))));
        let (news, mut changed) = watch::channel(());
        let told = Arc::clone(&roll);
        let span = Span::Prefix(agents.prefix.to_string());
        let watch = Watch::telling(agents.etcd.clone(), span, move |word| {
            if locked(&told).hear(word, SystemTime::now()) {
                news.send_replace(());
            }
        });
        let spoken =
            async { while !locked(&roll).has_spoken() && changed.changed().await.is_ok() {} };
        if timeout(PATIENCE, spoken).await.is_err() {
            tracing::debug!(prefix = %agents.prefix, "no word about agents yet");
        }
        changed.mark_changed();
        Self {
            agents,
            roll,
            changed,
            heard: Heard::default(),
            events: VecDeque::new(),
            _watch: watch,
        }
    }

    /// All who are known, by their ids.
    pub fn list(&self) -> Vec<Seen> {
        locked(&self.roll).all()
    }

    /// One of them, if it is known.
    pub fn get(&self, id: &str) -> Option<Seen> {
        locked(&self.roll).get(id)
    }

    /// Whether an agent is there, as far as etcd said last.
    pub fn is_online(&self, id: &str) -> bool {
        self.get(id).is_some_and(|seen| seen.is_online())
    }

    /// Whether the agents were ever listed. Before that, that nobody is there means nothing.
    pub fn is_listed(&self) -> bool {
        locked(&self.roll).is_listed()
    }

    /// Why what is seen may be out of date, if etcd is out of reach.
    pub fn stale(&self) -> Option<Error> {
        locked(&self.roll).stale()
    }

    /// The records that are passed over now, with their keys and what is wrong with them.
    pub fn skipped(&self) -> Vec<Skipped> {
        locked(&self.roll).skipped()
    }

    /// The next change; at first, one for each agent that is known.
    ///
    /// Never ends, and never fails.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if self.changed.changed().await.is_err() {
                // The runtime of the watch is gone.
                return std::future::pending().await;
            }
            self.events = locked(&self.roll).news(&mut self.heard);
        }
    }

    /// Deletes the records of agents that have been gone for at least so long, stopped or lost, and says whose.
    ///
    /// One that comes back meanwhile stays, at whatever moment: a record is deleted only if it is still the one
    /// that was seen, and no heartbeat stands beside it. Who was lost counts from when this saw it, so that
    /// nobody is deleted sooner than that after this began.
    ///
    /// # Errors
    /// When etcd does not take it. Those who were deleted before are gone.
    pub async fn clean(&self, age: Duration) -> Result<Vec<InstanceId>> {
        let gone = locked(&self.roll).gone(age, SystemTime::now());
        let mut cleaned = Vec::new();
        for Gone { id, revision } in gone {
            let info = record::key(&self.agents.prefix, &id, Part::Info);
            let beat = record::key(&self.agents.prefix, &id, Part::Heartbeat);
            let txn = Txn::new()
                .when([
                    Compare::mod_revision(info.as_str(), CompareOp::Equal, revision),
                    Compare::create_revision(beat, CompareOp::Equal, 0),
                ])
                .and_then([TxnOp::delete(info.as_str(), None)]);
            let answer = self.agents.etcd.txn(format!("clean {info}"), txn).await?;
            if answer.succeeded() {
                tracing::info!(%id, "an agent that was gone is cleaned away");
                cleaned.push(id);
            }
        }
        Ok(cleaned)
    }
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Following")
            .field("prefix", &self.agents.prefix)
            .field("agents", &self.list())
            .field("stale", &self.stale())
            .finish_non_exhaustive()
    }
}
