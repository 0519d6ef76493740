//! Where a call goes whose caller has said so.

use std::borrow::Cow;

use tonic::Status;

use super::{Attempts, Chosen, Instant, View, connected, take};
use crate::{Direct, Endpoint, Endpoints, State, method::Method, moment::Moment};

/// So often the policy is asked for one that fits, before all are looked through.
const ASKS: usize = 8;

impl Attempts {
    /// What its caller wants, if that leaves somebody out.
    fn restriction(&self) -> Option<&Direct> {
        self.direct.as_ref().filter(|direct| direct.restricts())
    }

    /// Those it may go to: all that are ready, unless its caller wants less.
    #[inline]
    pub(super) fn scope<'v>(&self, view: &'v View) -> Cow<'v, Endpoints> {
        match self.restriction() {
            None => Cow::Borrowed(&view.ready),
            Some(direct) => Cow::Owned(fitting(direct, view)),
        }
    }

    /// One of those that fit; `None` of the outer option when its caller has not said a word.
    #[inline]
    pub(super) fn choose_directed(&self, view: &View) -> Option<Option<Chosen>> {
        let direct = self.restriction()?;
        Some(self.choose_fitting(direct, view))
    }

    #[cold]
    fn choose_fitting(&self, direct: &Direct, view: &View) -> Option<Chosen> {
        if direct.pinned().is_none()
            && let Some(chosen) = self.picked_and_fitting(direct, view)
        {
            return Some(chosen);
        }
        let scope = fitting(direct, view);
        let limit = self.channel.shared.breaker;
        let mut usable = self.usable_of(&scope);
        let two = [usable.next(), usable.next()];
        let mut two: Vec<_> = two.into_iter().flatten().collect();
        two.sort_by_key(|(endpoint, _)| endpoint.in_flight());
        let all = two.into_iter().chain(usable);
        for (endpoint, connection) in all {
            if let Some(chosen) = take(endpoint, &connection, limit) {
                return Some(chosen);
            }
            if endpoint.in_flight() < limit {
                self.channel.shared.crowd(endpoint);
            }
        }
        self.refused_again(&scope)
    }

    /// The policy's choice, as long as it fits.
    fn picked_and_fitting(&self, direct: &Direct, view: &View) -> Option<Chosen> {
        let limit = self.channel.shared.breaker;
        (0..ASKS).find_map(|_| {
            let endpoint = self.picked(view, Moment::now())?;
            let is_fitting = direct.prefers(endpoint)
                && endpoint.conduct().is_open()
                && !self.tried.contains(endpoint.id());
            is_fitting.then_some(())?;
            connected(endpoint).find_map(|connection| take(endpoint, &connection, limit))
        })
    }

    /// Nobody fits: an error if that is not going to change.
    pub(super) fn is_findable(&self, view: &View) -> Result<(), Status> {
        if view.ended.is_some() {
            return Err(Status::unavailable(view.outlook(Instant::now())));
        }
        let Some(id) = self.direct.as_ref().and_then(Direct::pinned) else {
            return Ok(());
        };
        let known = view.known.find(id);
        let service = &self.channel.shared.service;
        if let Some(outside) = known.and_then(Endpoint::outside) {
            let what = format!(
                "{service}: instance {id} is wanted, and this channel does not use it: {outside}"
            );
            return Err(Status::unavailable(what));
        }
        if !view.listed || known.is_some() {
            return Ok(());
        }
        let what = format!(
            "{service}: instance {id} is wanted, and is not among the {} that the registry has",
            view.known.len()
        );
        Err(Status::unavailable(what))
    }

    /// What the caller wants, for an error that says that it could not be had.
    pub(super) fn wish(&self, view: &View) -> String {
        let Some(direct) = self.restriction() else {
            return String::new();
        };
        let state = |endpoint: &Endpoint| format!(", which is {}", endpoint.state());
        let pinned = direct.pinned().and_then(|id| view.known.find(id));
        format!(
            "; wanted: {direct}{}",
            pinned.map_or_else(String::new, state)
        )
    }

    /// Nobody is ready and nobody is about to be, and the call is not to wait for that.
    pub(super) fn is_hopeful(&self, view: &View) -> Result<(), Status> {
        let waits = |wanted: &Method| wanted.wait_for_ready != Some(false);
        if self.method.as_deref().is_none_or(waits) {
            return Ok(());
        }
        let told = view.listed || view.stale.is_some();
        let direct = self.restriction().filter(|direct| !direct.falls_back());
        let may_come = |endpoint: &Endpoint| {
            direct.is_none_or(|direct| direct.prefers(endpoint))
                && matches!(
                    endpoint.state(),
                    State::Idle | State::Connecting | State::Ready
                )
        };
        if !told || view.known.iter().any(may_come) {
            return Ok(());
        }
        let outlook = view.outlook(Instant::now()) + &self.wish(view);
        Err(Status::unavailable(format!(
            "{outlook}; the call is not to wait"
        )))
    }
}

/// Those that fit best: who is wanted, or else who will do.
fn fitting(direct: &Direct, view: &View) -> Endpoints {
    if let Some(id) = direct.pinned() {
        // It may have its reasons not to be ready; the caller has others.
        let one = view.known.find(id).filter(|one| direct.permits(one));
        return one.cloned().into_iter().collect();
    }
    let ready = || view.ready.iter();
    let wanted: Endpoints = ready().filter(|one| direct.prefers(one)).cloned().collect();
    if wanted.is_empty() && direct.falls_back() {
        return ready().filter(|one| direct.permits(one)).cloned().collect();
    }
    wanted
}
