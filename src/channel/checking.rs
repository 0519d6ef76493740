//! A channel's endpoints are asked whether they are well, each over the connection that its calls take.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Instance, InstanceId,
    health::{Checks, Verdict, follow_over},
    transport::Connection,
};

/// One task for each endpoint that is connected; they end when this lets go of them.
pub(super) struct Checking {
    checks: Arc<[Checks]>,
    /// By the attempt that made the connection.
    asking: HashMap<u64, (InstanceId, AbortOnDropHandle<()>)>,
    /// Over which of its connections each is asked.
    over: HashMap<InstanceId, u64>,
    verdicts: Arc<Verdicts>,
}

/// What was said and not yet heard: the last word of each, so that it never grows beyond their number.
#[derive(Default)]
struct Verdicts {
    last: Mutex<BTreeMap<InstanceId, (u64, Verdict)>>,
    news: Notify,
}

impl Checking {
    pub(super) fn new(checks: impl Into<Arc<[Checks]>>) -> Self {
        Self {
            checks: checks.into(),
            asking: HashMap::new(),
            over: HashMap::new(),
            verdicts: Arc::default(),
        }
    }

    /// The endpoint is connected: it is asked over this connection, unless it is over another.
    pub(super) fn begin(
        &mut self,
        instance: &Arc<Instance>,
        attempt: u64,
        connection: &Connection,
    ) {
        if self.checks.is_empty() || self.over.contains_key(&instance.id) {
            return;
        }
        let (checks, verdicts) = (Arc::clone(&self.checks), Arc::clone(&self.verdicts));
        let (instance, connection) = (Arc::clone(instance), connection.clone());
        let id = instance.id.clone();
        let task = tokio::spawn(async move {
            let tell = |verdict| verdicts.tell(&instance.id, attempt, verdict);
            follow_over(&checks, &instance, connection, &tell).await;
        });
        self.over.insert(id.clone(), attempt);
        self.asking
            .insert(attempt, (id, AbortOnDropHandle::new(task)));
    }

    /// The connection takes no more calls. A question under way would keep it open. Who was asked over it, if
    /// anybody was.
    pub(super) fn end(&mut self, attempt: u64) -> Option<InstanceId> {
        let (id, _task) = self.asking.remove(&attempt)?;
        self.over.remove(&id);
        Some(id)
    }

    /// Returns when there are verdicts to take.
    pub(super) async fn news(&self) {
        self.verdicts.news.notified().await;
    }

    /// The verdicts since this was last asked; those about connections that have ended are of no use.
    pub(super) fn take(&self) -> Vec<(InstanceId, Verdict)> {
        let last = std::mem::take(&mut *self.verdicts.last());
        let of_now = |id: &InstanceId, attempt| self.over.get(id) == Some(&attempt);
        let verdicts = last.into_iter();
        let verdicts = verdicts.filter(|(id, (attempt, _))| of_now(id, *attempt));
        verdicts.map(|(id, (_, verdict))| (id, verdict)).collect()
    }
}

impl Verdicts {
    fn tell(&self, id: &InstanceId, attempt: u64, verdict: Verdict) {
        self.last().insert(id.clone(), (attempt, verdict));
        self.news.notify_one();
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<InstanceId, (u64, Verdict)>> {
        // Each change is whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
