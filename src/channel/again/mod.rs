//! A call that is sent more than once: after it failed, or before it did.
//!
//! All attempts are driven by the caller's own future: to drop it is to cancel them all. Each goes the way of
//! any call, with a word in its request's extensions about the others of its kind.

mod gates;
mod hedge;
mod pace;
mod recording;
mod retry;
#[cfg(test)]
mod rules_tests;
mod said;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, Request, Response, request};
use tokio::time::Instant;
use tonic::{Status, body::Body, metadata::MetadataMap};

pub(crate) use gates::{Gates, Spent, Tokens};
pub(crate) use hedge::hedge;
pub(crate) use pace::{Pace, Paces};
pub(crate) use retry::retry;
pub(in crate::channel) use said::{Nobody, RanOut};

use recording::Recording;

use super::Why;
use crate::{
    InstanceId,
    deadline::{TIMEOUT, write},
    endpoint::InFlight,
    moment::Moment,
    stats::{self, Counted},
};

/// An attempt under way.
pub(crate) type Trying<B> =
    Pin<Box<dyn Future<Output = Result<Response<B>, Status>> + Send + 'static>>;

/// What an attempt is told of its call, in the extensions of its request.
#[derive(Clone, Debug)]
pub(in crate::channel) struct Attempt {
    course: Arc<Course>,
    /// How many were sent before it.
    pub(in crate::channel) number: u32,
    pub(in crate::channel) why: Why,
}

/// What the attempts of one call have in common.
#[derive(Debug)]
struct Course {
    /// Where they went.
    been: Mutex<Vec<InstanceId>>,
    /// How many found a place to go to.
    placed: AtomicU32,
    /// How long each may take.
    limit: Option<Duration>,
    /// How much of the body is kept.
    keep: usize,
    /// Counts the call, where it is counted as one: then it was let in, too, and no attempt need be.
    counted: Option<Mutex<Option<Counted>>>,
}

/// Where a call is counted while its attempts are under way.
pub(in crate::channel) struct Books(Arc<Course>);

/// A call that may be sent more than once.
#[derive(Debug)]
pub(crate) struct Repeated {
    head: request::Parts,
    recording: Recording,
    course: Arc<Course>,
    deadline: Option<Instant>,
    sent: u32,
}

/// How much of a body is kept unless the user says otherwise.
pub(crate) const KEPT: usize = 256 << 10;

pub(super) static PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

impl Attempt {
    /// Where the others went, in turn; more may have gone since.
    pub(in crate::channel) fn been(&self, into: &mut Vec<InstanceId>) {
        into.extend_from_slice(&self.course.been());
    }

    /// It goes there; `first` if it has not been anywhere.
    pub(in crate::channel) fn goes_to(&self, id: &InstanceId, first: bool) {
        if first {
            self.course.placed.fetch_add(1, Ordering::Relaxed);
        }
        let mut been = self.course.been();
        // The latest is the last.
        been.retain(|known| known != id);
        been.push(id.clone());
    }

    pub(in crate::channel) fn limit(&self) -> Option<Duration> {
        self.course.limit
    }

    pub(in crate::channel) fn keep(&self) -> usize {
        self.course.keep
    }

    /// Whether the call counts as one, so that this attempt is not let in and counted by itself.
    pub(in crate::channel) fn is_counted(&self) -> bool {
        self.course.counted.is_some()
    }

    /// It leaves as this, for this reason.
    pub(in crate::channel) fn counts(&self, in_flight: &mut InFlight, why: Why) {
        let why = match why {
            Why::Called => None,
            Why::Unseen => Some(stats::Why::Transparent),
            Why::Retried => Some(stats::Why::Configured),
            Why::Hedged => Some(stats::Why::Hedged),
        };
        self.course.count(|counted| counted.leaves(in_flight, why));
    }

    /// The head of its answer has come.
    pub(in crate::channel) fn answered(&self, now: Moment) {
        self.course.count(|counted| counted.answered(now));
    }
}

impl Course {
    fn count(&self, count: impl FnOnce(&mut Counted)) {
        if let Some(counted) = &self.counted
            && let Some(counted) = &mut *locked(counted)
        {
            count(counted);
        }
    }

    fn been(&self) -> MutexGuard<'_, Vec<InstanceId>> {
        locked(&self.been)
    }
}

impl Books {
    /// What counts the call, for whoever sees its end.
    pub(in crate::channel) fn close(self) -> Option<Counted> {
        locked(self.0.counted.as_ref()?).take()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no code here panics with the lock held")
}

impl Repeated {
    /// A call that has so much time, each attempt of it so much, and of whose body so much is kept.
    pub(crate) fn new(
        request: Request<Body>,
        deadline: Option<Instant>,
        limit: Option<Duration>,
        keep: usize,
    ) -> Self {
        let (mut head, body) = request.into_parts();
        head.headers.remove(&PREVIOUS);
        Self {
            head,
            recording: Recording::of(body, keep),
            course: Arc::new(Course {
                been: Mutex::default(),
                placed: AtomicU32::new(0),
                limit,
                keep,
                counted: None,
            }),
            deadline,
            sent: 0,
        }
    }

    /// The same, counted as one by this; and where to find that at the end.
    pub(in crate::channel) fn counted(mut self, counted: Counted) -> (Self, Books) {
        if let Some(course) = Arc::get_mut(&mut self.course) {
            course.counted = Some(Mutex::new(Some(counted)));
        }
        let books = Books(Arc::clone(&self.course));
        (self, books)
    }

    /// The next attempt's request: it says which it is, and how much time is left.
    fn attempt(&mut self, why: Why) -> Request<Body> {
        let number = self.sent;
        self.sent += 1;
        let mut head = self.head.clone();
        if number > 0 {
            head.headers.insert(&PREVIOUS, HeaderValue::from(number));
        }
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            head.headers.insert(&TIMEOUT, write(left));
        }
        head.extensions.insert(Attempt {
            course: Arc::clone(&self.course),
            number,
            why,
        });
        Request::from_parts(head, self.recording.body(number))
    }

    /// Whether there is time for another attempt after this wait.
    fn has_time(&self, wait: Duration) -> bool {
        let then = Instant::now().checked_add(wait);
        let in_time = |then| self.deadline.is_none_or(|deadline| then < deadline);
        then.is_some_and(in_time)
    }

    /// How many of those that were sent have found somewhere to go.
    fn placed(&self) -> u32 {
        self.course.placed.load(Ordering::Relaxed)
    }

    /// What this attempt brought is what the call gets, with a word on how many there were before it.
    fn settled<B>(
        self,
        attempt: u32,
        answer: Result<Response<B>, Status>,
    ) -> Result<Response<B>, Status> {
        self.recording.belongs_to(attempt);
        if attempt == 0 {
            return answer;
        }
        let number = HeaderValue::from(attempt);
        match answer {
            Ok(mut response) => {
                response.headers_mut().insert(&PREVIOUS, number);
                Ok(response)
            }
            Err(mut status) => {
                let mut metadata = std::mem::take(status.metadata_mut()).into_headers();
                metadata.insert(&PREVIOUS, number);
                *status.metadata_mut() = MetadataMap::from_headers(metadata);
                Err(status)
            }
        }
    }
}
