//! A channel's calls that may be sent more than once.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tonic::{Status, body::Body};

use super::{
    Answer, Channel,
    admitted::Admitted,
    again::{Gates, Paces, Repeated, Spent, Tokens, hedge, retry},
    call::{self, over_before},
    limit::deadline,
    wanted::Wanted,
};
use crate::{
    method::{Again, Budget, Throttle},
    stats::Counted,
};

/// What all calls of a channel that may be sent more than once have in common.
pub(super) struct Repeats {
    /// The tokens, and what they are counted by.
    tokens: ArcSwapOption<(Throttle, Arc<Tokens>)>,
    budget: Option<Arc<Spent>>,
    paces: Paces,
    keep: usize,
}

impl Repeats {
    pub(super) fn new(budget: Option<Budget>, keep: usize) -> Self {
        Self {
            tokens: ArcSwapOption::empty(),
            budget: budget.as_ref().map(|budget| Arc::new(Spent::of(budget))),
            paces: Paces::default(),
            keep,
        }
    }

    fn gates(&self, wanted: &Wanted) -> Gates {
        Gates {
            throttle: wanted.throttle().map(|throttle| self.tokens(throttle)),
            budget: self.budget.clone(),
        }
    }

    /// The tokens that are counted like this. When that changes, they are as full as they were.
    fn tokens(&self, throttle: Throttle) -> Arc<Tokens> {
        if let Some(now) = &*self.tokens.load()
            && now.0 == throttle
        {
            return Arc::clone(&now.1);
        }
        let renewed = self.tokens.rcu(|now| match now {
            Some(same) if same.0 == throttle => Some(Arc::clone(same)),
            other => {
                let tokens = Tokens::of(&throttle);
                let tokens = match other {
                    Some(old) => tokens.filled_like(&old.1),
                    None => tokens,
                };
                Some(Arc::new((throttle, Arc::new(tokens))))
            }
        });
        drop(renewed);
        match &*self.tokens.load() {
            Some(now) => Arc::clone(&now.1),
            None => Arc::new(Tokens::of(&throttle)),
        }
    }
}

/// Sends a call as is wanted of its method, in so much time: it may be sent more than once.
pub(super) async fn repeat(
    channel: Channel,
    wanted: Again,
    time: Option<Duration>,
    mut request: http::Request<Body>,
) -> Result<http::Response<Answer>, Status> {
    let shared = Arc::clone(&channel.shared);
    let path = request.uri().path();
    let mut counted = Counted::begin(shared.stats.method(path));
    counted.waits();
    let (pace, per_attempt) = match &wanted {
        Again::Hedge(_) => (Some(shared.repeats.paces.of(path)), None),
        Again::Retry(retry) => (None, retry.per_attempt),
    };
    let let_in = Admitted::to(&shared)
        .and_then(|admitted| Ok((admitted, deadline(time, request.headers_mut())?)));
    let (admitted, until) =
        let_in.inspect_err(|status| counted.fails(status.code(), over_before(status)))?;
    let gates = shared.repeats.gates(&shared.wanted);
    let call = Repeated::new(request, until, per_attempt, shared.repeats.keep);
    let (call, books) = call.counted(counted);
    let send = |request| call::call(channel.clone(), request);
    let answer = match wanted {
        Again::Retry(wanted) => retry(wanted, call, gates, send).await,
        Again::Hedge(wanted) => hedge(wanted, call, gates, pace.unwrap_or_default(), send).await,
    };
    let mut counted = books.close();
    match answer {
        Ok(mut answer) => {
            answer.body_mut().hold(admitted, counted);
            Ok(answer)
        }
        Err(status) => {
            if let Some(counted) = &mut counted {
                counted.fails(status.code(), until);
            }
            Err(status)
        }
    }
}
