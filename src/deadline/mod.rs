//! How long a call may take, on its way from one server to the next.
//!
//! gRPC tells a server how long its caller waits. What the server calls in turn is worth no more time than
//! that: who works on after everybody has left makes an overload worse.
//!
//! A server's [`layer`] keeps the deadline of each call while its handler runs. There,
//! [`Builder::pass_deadline_on`](crate::Builder::pass_deadline_on) has a channel obey it without another word,
//! [`pass_on`] does the same for any other client, and [`left`] tells.
//!
//! ```no_run
//! # async fn example(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! use tonic_fleet::{Channel, deadline};
//!
//! // What handlers call with it has the time that their own caller has left.
//! let stock = Channel::builder("etcd://127.0.0.1:2379/stock".parse()?)
//!     .pass_deadline_on()
//!     .build()?;
//! // `tonic::transport::Server::builder().layer(deadline::layer())`, or around all routes:
//! let served = tower::Layer::layer(&deadline::layer(), routes);
//! # Ok(())
//! # }
//! ```
//!
//! What a handler [spawns](tokio::spawn) is a task of its own, and so is the stream that it answers with: there the
//! deadline must be taken along, as [`Deadline::scope`] and [`Deadline::put_on`] do.

mod header;
mod serve;

use std::time::Duration;

use http::HeaderMap;
use tokio::{task_local, time::Instant};
use tonic::{Request, Status};

pub(crate) use header::{TIMEOUT, read, write};
pub use serve::{Layer, Served, Serving, layer};

/// When the caller of a call stops waiting for its end.
///
/// In the extensions of requests to servers with the [`layer`], if the caller said when.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Deadline(Instant);

task_local! {
    /// That of the call that is being served, if it has one.
    static CURRENT: Option<Deadline>;
}

impl Deadline {
    /// After so much time; none, when that is more than the clock can count.
    pub fn after(time: Duration) -> Option<Self> {
        Instant::now().checked_add(time).map(Self)
    }

    /// That of the call being served here, if there is one and it has one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| *current).ok().flatten()
    }

    /// The time until then; none at all, if it has come.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Has the future run as if it served a call with this deadline. It is not ended by it.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(Some(self), future).await
    }

    /// Gives a request the time that is left, unless it has less of its own.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`, when none is left.
    pub fn put_on<T>(self, request: &mut Request<T>) -> Result<(), Status> {
        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
        let put = self.tighten(&mut headers);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        put
    }

    fn tighten(self, headers: &mut HeaderMap) -> Result<(), Status> {
        let left = self.left();
        if left.is_zero() {
            return Err(Status::deadline_exceeded(
                "the call on whose behalf this one is made has run out of time",
            ));
        }
        let own = headers.get(&TIMEOUT).map(read).transpose()?;
        if own.is_none_or(|own| own > left) {
            headers.insert(&TIMEOUT, write(left));
        }
        Ok(())
    }
}

/// The time that the caller of the call being served here still waits; none, when there is no such call, or it
/// has no deadline.
pub fn left() -> Option<Duration> {
    Deadline::current().map(Deadline::left)
}

/// Gives a request the time that is left to the call being served, unless it has less of its own: an interceptor for
/// clients over any channel.
///
/// # Errors
/// `DEADLINE_EXCEEDED`, when none is left.
///
/// ```
/// # fn client<C>(channel: C) -> impl Sized {
/// use tonic::service::interceptor::InterceptedService;
/// use tonic_fleet::deadline;
///
/// // Of generated clients: `GreeterClient::with_interceptor(channel, deadline::pass_on)`.
/// InterceptedService::new(channel, deadline::pass_on)
/// # }
/// ```
pub fn pass_on(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(deadline) = Deadline::current() {
        deadline.put_on(&mut request)?;
    }
    Ok(request)
}

/// The same for what a channel is about to send.
pub(crate) fn inherit(headers: &mut HeaderMap) -> Result<(), Status> {
    Deadline::current().map_or(Ok(()), |deadline| deadline.tighten(headers))
}

/// Whether this time is over, or so nearly that the other side's clock may say so already.
pub(crate) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() + TOLERANCE >= deadline)
}

/// So much sooner than ours may a server's clock say that the time is over.
const TOLERANCE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn in_ms(ms: u64) -> Deadline {
        Deadline::after(Duration::from_millis(ms)).unwrap()
    }

    fn limit_of<T>(request: &Request<T>) -> Option<Duration> {
        let headers = request.metadata().clone().into_headers();
        Some(read(headers.get(&TIMEOUT)?).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_passed_on_unless_a_request_has_less() {
        for (own, passed_on) in [(None, 70), (Some(100), 70), (Some(50), 50)] {
            let mut request = Request::new(());
            if let Some(own) = own {
                request.set_timeout(Duration::from_millis(own));
            }
            let deadline = in_ms(100);
            tokio::time::advance(Duration::from_millis(30)).await;

            let request = deadline.scope(async { pass_on(request) }).await.unwrap();

            assert_eq!(limit_of(&request), Some(Duration::from_millis(passed_on)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_when_no_time_is_left() {
        let deadline = in_ms(100);
        tokio::time::advance(Duration::from_millis(100)).await;

        let refused = deadline.scope(async { pass_on(Request::new(())) }).await;

        assert_eq!(refused.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_call_is_served_nothing_is_passed_on() {
        let request = pass_on(Request::new(())).unwrap();

        assert_eq!((limit_of(&request), left()), (None, None));
    }

    #[test]
    fn for_ever_is_no_deadline() {
        assert_eq!(Deadline::after(Duration::MAX), None);
    }
}
