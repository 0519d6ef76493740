//! How long a call may take.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

use super::Shared;
use crate::{
    deadline::{TIMEOUT, read, write},
    method::Method,
};

/// How long the channel, or what is wanted of the method, lets a call take.
pub(super) fn limit(shared: &Shared, method: Option<&Method>) -> Option<Duration> {
    match method {
        None => shared.timeout,
        Some(method) => tighter(shared.timeout, method.timeout),
    }
}

/// When the call must have ended: the earliest of its own time limit, its method's and the channel's.
pub(crate) fn deadline(
    ours: Option<Duration>,
    headers: &mut HeaderMap,
) -> Result<Option<Instant>, Status> {
    // Looked through, as there are few: to look a name up is to hash it.
    let own = headers.iter().find(|(name, _)| **name == TIMEOUT);
    let own = own.map(|(_, value)| read(value)).transpose()?;
    let limit = match (own, ours) {
        (None, None) => return Ok(None),
        (Some(own), Some(ours)) if own <= ours => own,
        (Some(own), None) => own,
        (_, Some(ours)) => {
            headers.insert(&TIMEOUT, write(ours));
            ours
        }
    };
    if limit.is_zero() {
        return Err(Status::deadline_exceeded(
            "the call had no time left when it began",
        ));
    }
    // A limit beyond what the clock can count is none.
    Ok(Instant::now().checked_add(limit))
}

/// The shorter of two limits, of which there may be none.
pub(super) fn tighter<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_without_time_does_not_begin() {
        let second = Some(Duration::from_secs(1));
        let begun = |own: &'static str, ours| {
            let mut headers = HeaderMap::new();
            headers.insert(&TIMEOUT, HeaderValue::from_static(own));
            deadline(ours, &mut headers).map_err(|status| status.code())
        };

        assert_eq!(begun("0n", second), Err(Code::DeadlineExceeded));
        assert_eq!(begun("0S", None), Err(Code::DeadlineExceeded));
        assert_eq!(begun("1n", second).map(|until| until.is_some()), Ok(true));
    }
}
