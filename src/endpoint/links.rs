//! The connections that lead to one endpoint.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use crate::transport::Connection;

/// An endpoint's connections, the oldest first.
///
/// Nearly all endpoints have one, and for them a call looks at nothing else. Written by the channel's one
/// task only, read by every call.
pub(crate) struct Links {
    first: ArcSwapOption<Connection>,
    more: ArcSwapOption<Vec<Arc<Connection>>>,
    crowded: AtomicBool,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            first: ArcSwapOption::empty(),
            more: ArcSwapOption::empty(),
            crowded: AtomicBool::new(false),
        }
    }

    /// The oldest.
    pub(crate) fn first(&self) -> Option<Arc<Connection>> {
        self.first.load_full()
    }

    /// What this makes of the oldest, which it may look at and not keep: that costs no count of owners.
    pub(crate) fn with_first<T>(&self, with: impl FnOnce(&Connection) -> Option<T>) -> Option<T> {
        self.first.load().as_deref().and_then(with)
    }

    /// All of them, the oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Connection>> + use<> {
        let more = self.more.load_full();
        let count = more.as_ref().map_or(0, |more| more.len());
        let more = (0..count).filter_map(move |nth| more.as_ref()?.get(nth).cloned());
        self.first().into_iter().chain(more)
    }

    pub(crate) fn add(&self, connection: Arc<Connection>) {
        let all = self.all().chain([connection]).collect();
        self.put(all);
    }

    pub(crate) fn remove(&self, connection: &Arc<Connection>) {
        let others = self.all().filter(|other| !Arc::ptr_eq(other, connection));
        self.put(others.collect());
    }

    fn put(&self, mut all: Vec<Arc<Connection>>) {
        let more = all.split_off(all.len().min(1));
        // In this order nobody sees none where there is one.
        let more = Some(Arc::new(more)).filter(|more| !more.is_empty());
        self.first.store(all.pop());
        self.more.store(more);
    }

    /// Notes that a call found no room on any of them; whether it is the first to since this was mended.
    pub(crate) fn crowd(&self) -> bool {
        !self.is_crowded() && !self.crowded.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Acquire)
    }

    /// Calls may complain again.
    pub(super) fn relieve(&self) {
        self.crowded.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("connections", &self.all().count())
            .field("crowded", &self.is_crowded())
            .finish_non_exhaustive()
    }
}
