//! How many calls a channel has under way at a time.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tonic::{Code, Status};

use super::{Shared, call::caused};
use crate::{Error, ErrorKind};

/// One of the calls that a channel may have under way at a time; no longer when this is dropped.
pub(super) struct Admitted(Arc<Shared>);

impl Admitted {
    /// None where there may be any number.
    pub(super) fn to(shared: &Arc<Shared>) -> Result<Option<Self>, Status> {
        let Some(most) = shared.max_calls else {
            return Ok(None);
        };
        // Not counted first and looked at then: those who are refused would be counted for a moment.
        let one_more = |calls| (calls < most).then_some(calls + 1);
        let counted = shared.under_way.fetch_update(Relaxed, Relaxed, one_more);
        if counted.is_err() {
            let what = format!(
                "{}: {most} calls are under way, as many as may be",
                shared.service
            );
            let error = Error::new(ErrorKind::Overloaded, what);
            return Err(caused(Code::ResourceExhausted, error));
        }
        Ok(Some(Self(Arc::clone(shared))))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}
