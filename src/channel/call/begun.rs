//! What a call begins with.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

use crate::{
    channel::{
        Shared,
        admitted::Admitted,
        again::Attempt,
        limit::{deadline, limit},
    },
    method::Method,
    stats::Counted,
};

/// A call that has begun: it counts, was let in, and has so much time.
pub(super) struct Begun {
    pub(super) counted: Option<Counted>,
    pub(super) admitted: Option<Admitted>,
    pub(super) deadline: Option<Instant>,
}

/// When the time of a call was over that ended like this before it began.
pub(in crate::channel) fn over_before(status: &Status) -> Option<Instant> {
    (status.code() == Code::DeadlineExceeded).then(Instant::now)
}

impl Begun {
    /// What is to be sent with this request, as an attempt among others if it is one.
    pub(super) fn call(
        shared: &Arc<Shared>,
        method: Option<&Method>,
        again: Option<&Attempt>,
        request: &mut http::Request<Body>,
    ) -> Result<Self, Status> {
        let is_counted = again.is_some_and(Attempt::is_counted);
        let mut counted =
            (!is_counted).then(|| Counted::begin(shared.stats.method(request.uri().path())));
        let admitted = match is_counted {
            true => Ok(None),
            false => Admitted::to(shared),
        };
        let time = limit(shared, method);
        let let_in =
            admitted.and_then(|admitted| Ok((admitted, deadline(time, request.headers_mut())?)));
        match let_in {
            Ok((admitted, deadline)) => Ok(Self {
                counted,
                admitted,
                deadline,
            }),
            Err(status) => {
                if let Some(counted) = &mut counted {
                    counted.fails(status.code(), over_before(&status));
                }
                Err(status)
            }
        }
    }
}
