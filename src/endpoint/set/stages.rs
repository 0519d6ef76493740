//! Who is inside of the channel's stages, and what becomes of those who are not.

use std::time::Duration;

use tokio::time::Instant;

use super::{super::entry::Next, Due, Set, Step};
use crate::{
    InstanceId,
    stage::{Outside, Selection, Spread},
};

/// Who is let go of serves on for so long, in case that those who take its place are slow to come.
const LINGER: Duration = Duration::from_secs(5);
/// Another zone may be needed again soon: each time would cost all its connections.
const STANDBY: Duration = Duration::from_secs(60);

impl Set {
    /// Whether there are stages at all.
    pub(super) fn selects(&mut self) -> Option<&mut Selection> {
        self.selection.as_deref_mut()
    }

    /// Has the selection follow how an endpoint is getting on.
    pub(super) fn judge_fitness(&mut self, id: &InstanceId) {
        let Some(selection) = &mut self.selection else {
            return;
        };
        if let Some(entry) = self.entries.get(id) {
            selection.judge(id, entry.fitness());
        }
    }

    /// Does what follows from who has come inside and who is left out.
    pub(super) fn settle_stages(&mut self, now: Instant) {
        let Some(selection) = self.selects() else {
            return;
        };
        if selection.is_settled() {
            return;
        }
        let turned = selection.settle();
        // The shares of zones may be others, even if nobody has turned.
        self.changed = true;
        for (id, outside) in turned {
            match outside {
                None => self.take_in(&id, now),
                Some(outside) => self.leave_out(&id, outside, now),
            }
        }
    }

    /// Whether somebody has come or gone since [`Set::settle_stages`].
    pub(super) fn stages_are_settled(&self) -> bool {
        let selection = self.selection.as_deref();
        selection.is_none_or(Selection::is_settled)
    }

    /// The client has another number among all clients.
    pub(crate) fn reseated(&mut self, now: Instant) -> Vec<Step> {
        if let Some(selection) = self.selects() {
            selection.reseat();
        }
        self.settle(now)
    }

    /// How calls are shared out over zones, if more than one is needed and enough are well.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let selection = self.selection.as_deref().filter(|_| !self.panics);
        selection.and_then(Selection::spread)
    }

    fn take_in(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.outside = None;
        entry.vitals.leave_out(None);
        let lingered = entry.lingers.take();
        let is_idle = entry.up.is_empty() && entry.next == Next::Rest;
        if let Some(until) = lingered {
            self.due.remove(&(until, id.clone(), Due::Leave));
        }
        if is_idle {
            self.connect_anew(id, now);
        } else if let Some(entry) = self.entries.get(id) {
            entry.show(now);
        }
        self.rank(id);
    }

    fn leave_out(&mut self, id: &InstanceId, outside: Outside, now: Instant) {
        let strict = self
            .selection
            .as_ref()
            .is_none_or(|stages| stages.is_strict(outside));
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        tracing::debug!(%id, %outside, "endpoint left out");
        entry.outside = Some(outside);
        entry.vitals.leave_out(Some(outside));
        if strict || entry.up.is_empty() {
            self.let_go(id, now);
        } else if entry.lingers.is_none() {
            let until = now
                + if outside == Outside::Zone {
                    STANDBY
                } else {
                    LINGER
                };
            entry.lingers = Some(until);
            entry.show(now);
            self.due.insert((until, id.clone(), Due::Leave));
        }
        self.rank(id);
    }

    /// The time is over of one who was left out, if it was until now.
    pub(super) fn end_lingering(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.lingers.take_if(|until| *until <= now).is_none() {
            return;
        }
        if self.wellness.of > 0 || entry.up.is_empty() {
            self.let_go(id, now);
            self.rank(id);
        } else {
            // Nobody is there to take its place.
            let until = now + LINGER;
            entry.lingers = Some(until);
            self.due.insert((until, id.clone(), Due::Leave));
        }
    }

    fn let_go(&mut self, id: &InstanceId, now: Instant) {
        self.disconnect(id);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.failed = 0;
            entry.lost = false;
            if let Some(until) = entry.lingers.take() {
                self.due.remove(&(until, id.clone(), Due::Leave));
            }
            entry.show(now);
        }
    }
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
