//! An attempt among others of the same call.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::Status;

use super::{Attempts, LOOKS, View, connected};
use crate::{
    Endpoint, InstanceId, ServedBy,
    channel::{
        Leaving, Why,
        again::{Attempt, Nobody},
        limit::tighter,
    },
    endpoint::InFlight,
    moment::Moment,
    stats::Counted,
    transport::Peer,
};

/// What an attempt knows of the others of its call.
pub(super) struct Among {
    pub(super) attempt: Attempt,
    /// To so many of those that were tried the others went.
    been: usize,
    /// How often it was sent.
    sent: u32,
}

impl Among {
    /// In a box; and what the others tried.
    pub(super) fn begin(attempt: Attempt, tried: &mut Vec<InstanceId>) -> Box<Self> {
        attempt.been(tried);
        Box::new(Self {
            attempt,
            been: tried.len(),
            sent: 0,
        })
    }
}

impl Attempts {
    /// To so many of those that were tried other attempts went.
    #[inline]
    pub(super) fn been(&self) -> usize {
        self.again.as_ref().map_or(0, |again| again.been)
    }

    /// What was tried counts no more, but for what other attempts of the call did.
    pub(super) fn begin_anew(&mut self) {
        self.tried.clear();
        if let Some(again) = &mut self.again {
            again.attempt.been(&mut self.tried);
            again.been = self.tried.len();
        }
        self.tried.extend(self.refused.clone());
    }

    /// Where other attempts went is left out as long as there is anybody else, and then where the last went.
    #[cold]
    pub(super) fn look_elsewhere(&mut self, view: &View) {
        let scope = self.scope(view);
        let beside = |been: &[InstanceId]| {
            let mut others = scope.iter().filter(|one| !been.contains(one.id()));
            others.any(|one| connected(one).next().is_some())
        };
        let been = &self.tried[..self.been()];
        let kept = match (beside(been), been) {
            (true, _) => been.len(),
            (false, [.., last]) if beside(std::slice::from_ref(last)) => 1,
            _ => 0,
        };
        let gone = been.len() - kept;
        drop(scope);
        self.tried.drain(..gone);
        if let Some(again) = &mut self.again {
            again.been = kept;
        }
    }

    /// Another by the policy's own lights is better than one by chance.
    #[cold]
    pub(super) fn picked_elsewhere<'v>(&self, view: &'v View, first: &'v Endpoint) -> &'v Endpoint {
        let is_new = |one: &&Endpoint| !self.tried.contains(one.id());
        let more = (1..LOOKS).map_while(|_| self.picked(view, Moment::now()));
        let mut all = std::iter::once(first).chain(more);
        all.find(is_new).unwrap_or(first)
    }

    /// It leaves for this server.
    pub(super) fn leaves(&mut self, peer: &Arc<Peer>, in_flight: &mut InFlight) {
        let why = self.why();
        if let Some(again) = &mut self.again {
            again.attempt.goes_to(&peer.id, again.sent == 0);
            again.sent += 1;
        }
        match (&mut self.counted, &self.again) {
            (Some(counted), _) => counted.attempt(in_flight),
            (None, Some(again)) => again.attempt.counts(in_flight, why),
            (None, None) => {}
        }
        if let Some(each) = &self.channel.shared.each_attempt {
            let number = self.again.as_ref().map_or(0, |a| a.attempt.number);
            let (path, headers) = self.outgoing.path_and_headers();
            each.leaves(&mut Leaving {
                path,
                headers,
                number,
                why,
                server: &ServedBy::by(peer),
            });
        }
    }

    /// Why it leaves now.
    fn why(&self) -> Why {
        match &self.again {
            Some(again) if again.sent > 0 => Why::Unseen,
            Some(again) => again.attempt.why,
            None if self.counted.as_ref().is_some_and(Counted::is_again) => Why::Unseen,
            None => Why::Called,
        }
    }

    /// When it must have an answer: the call's deadline, or the end of what one attempt may take.
    pub(super) fn until_when(&self) -> Option<Instant> {
        let limit = self.again.as_ref().and_then(|again| again.attempt.limit());
        let own = limit.and_then(|limit| Instant::now().checked_add(limit));
        tighter(self.deadline, own)
    }
}

/// Nobody could be called in all the time there was: no other attempt would find anybody.
pub(super) fn nobody(mut status: Status) -> Status {
    if std::error::Error::source(&status).is_none() {
        status.set_source(Arc::new(Nobody));
    }
    status
}
