//! Asking a server as gRPC has it: `grpc.health.v1.Health`.

use std::{fmt, sync::Arc, time::Duration};

use http::{Request, Response, uri::PathAndQuery};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, body::Body};
use tower::{BoxError, Service};

use super::{
    Tell, Verdict,
    checks::Inner,
    codec::{Messages, Says},
    over::{Over, Turn},
    poll::poll,
    rule::Said,
};
use crate::{Backoff, Error, ErrorKind, Result};

/// Asks the server's own health service, over the connection that its calls take.
///
/// The name is that of a service in `grpc.health.v1`, usually the full one, `shop.Cart`; the empty name asks
/// for the server as a whole. A server without a health service counts as healthy, and that is said once.
/// An answer other than `SERVING` takes it out of new calls, those in flight go on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic_fleet::Error> {
/// use tonic_fleet::{Channel, health::Grpc};
///
/// let channel = Channel::builder("static://10.0.0.5:50051/cart".parse()?)
///     .health(Grpc::watch("shop.Cart"))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Grpc {
    service: Arc<str>,
    how: How,
    /// Asked instead of whoever is at the other end of the connection.
    of: Option<Over>,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Watch,
    Check,
}

impl Grpc {
    /// One stream per endpoint, on which the server says so at once when something changes (gRFC A17).
    ///
    /// It takes one of the calls that the server allows at once on a connection. Where that is all there are,
    /// calls need [another](crate::Builder::connections).
    pub fn watch(service: impl Into<Arc<str>>) -> Self {
        Self::new(service.into(), How::Watch)
    }

    /// One short call every few seconds, for servers or proxies that streams do not suit.
    pub fn check(service: impl Into<Arc<str>>) -> Self {
        Self::new(service.into(), How::Check)
    }

    fn new(service: Arc<str>, how: How) -> Self {
        Self {
            service,
            how,
            of: None,
        }
    }

    /// Asks this health service, in this process: for [`Registrar::health`](crate::Registrar::health). Give
    /// a clone of the `HealthServer` that `tonic_health` makes.
    #[must_use]
    pub fn of<S>(mut self, server: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError> + 'static,
    {
        self.of = Some(Over::service(server));
        self
    }

    /// Judges for as long as it is polled.
    pub(super) async fn follow(&self, inner: &Inner, over: Over, tell: &Tell<'_>) {
        let over = self.of.clone().unwrap_or(over);
        match self.how {
            How::Watch => self.watching(inner, over, tell).await,
            How::Check => {
                let ask = || self.ask(inner, &over);
                poll(inner.rule(), inner.gate(), tell, ask).await;
            }
        }
    }

    /// A stream that breaks is begun anew; until that fails too, what was said last holds.
    async fn watching(&self, inner: &Inner, over: Over, tell: &Tell<'_>) {
        let mut backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let mut heard = false;
            let ended = match over.turn().await {
                Ok(turn) => self.stream(inner, turn, &mut heard, tell).await,
                Err(away) => away,
            };
            if ended.code() == Code::Unimplemented {
                inner.say_once(&self.service);
                return tell(Verdict::Healthy);
            }
            if heard {
                backoff.reset();
            } else {
                tell(Verdict::Unhealthy(self.failed(&ended)));
            }
            sleep(backoff.next()).await;
        }
    }

    /// One stream, from its request to why it ended.
    async fn stream(&self, inner: &Inner, turn: Turn, heard: &mut bool, tell: &Tell<'_>) -> Status {
        let limit = inner.rule().timeout;
        let _listening = turn.listen();
        let begin = async {
            let mut client = tonic::client::Grpc::new(turn);
            let request = tonic::Request::new(self.service.to_string());
            let begun = client.server_streaming(request, WATCH, Messages).await?;
            let mut says = begun.into_inner();
            let first = says.message().await?;
            Ok((says, first))
        };
        let (mut says, mut next) = match timeout(limit, begin).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded(format!("no answer within {limit:?}")),
        };
        let mut paced = Instant::now();
        while let Some(word) = next {
            *heard = true;
            tell(self.verdict(word));
            // One that talks without end keeps nobody busy: what it says last is heard, in time.
            let now = Instant::now();
            paced = paced.max(now) + BREATH;
            let ahead = paced - now;
            if ahead > BREATH * AT_ONCE {
                sleep(ahead - BREATH * AT_ONCE).await;
            }
            next = match says.message().await {
                Ok(next) => next,
                Err(status) => return status,
            };
        }
        Status::unavailable("the server ended the stream")
    }

    /// None when there is no room for a question on the connection: a busy server is no unwell one.
    async fn ask(&self, inner: &Inner, over: &Over) -> Option<Result<()>> {
        let turn = over.try_turn()?;
        let mut client = tonic::client::Grpc::new(turn);
        let mut request = tonic::Request::new(self.service.to_string());
        request.set_timeout(inner.rule().timeout);
        Some(match client.unary(request, CHECK, Messages).await {
            Ok(word) => match self.verdict(word.into_inner()) {
                Verdict::Unhealthy(why) => Err(why),
                _ => Ok(()),
            },
            Err(status) if status.code() == Code::Unimplemented => {
                inner.say_once(&self.service);
                Ok(())
            }
            Err(status) => Err(self.failed(&status)),
        })
    }

    fn verdict(&self, word: Says) -> Verdict {
        let said = match word {
            Says::Serving => return Verdict::Healthy,
            Says::NotServing => "NOT_SERVING",
            Says::ServiceUnknown => "SERVICE_UNKNOWN",
            Says::Unknown | Says::Other(_) => "UNKNOWN",
        };
        Verdict::Unhealthy(self.doing().because(Said(said.into())))
    }

    fn failed(&self, status: &Status) -> Error {
        self.doing()
            .because(format!("{:?}: {}", status.code(), status.message()))
    }

    fn doing(&self) -> Error {
        let what = format!("health of {:?}", &*self.service);
        Error::new(ErrorKind::Unavailable, what)
    }
}

/// Between two words on a stream, once so many have come without a pause.
const BREATH: Duration = Duration::from_millis(40);
const AT_ONCE: u32 = 4;

const WATCH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
const CHECK: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");

impl fmt::Debug for Grpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grpc")
            .field("service", &self.service)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::{Context, Poll},
    };

    use tonic_health::{ServingStatus, server::health_reporter};

    use super::*;
    use crate::{
        Instance,
        health::{Checks, follow_at},
    };

    /// Follows for so many seconds, and says what was told, and when.
    async fn told(grpc: Grpc, secs: u64) -> Vec<(u64, &'static str)> {
        let instance = Instance::at("10.0.0.5:50051").unwrap().into();
        let told = Mutex::new(Vec::new());
        let began = Instant::now();
        let tell = |verdict: Verdict| {
            let at = (Instant::now() - began).as_secs();
            told.lock().unwrap().push((at, verdict.code()));
        };
        let checks = [Checks::new(grpc)];
        let following = follow_at(&checks, &instance, &tell);
        let _ = timeout(Duration::from_secs(secs), following).await;
        told.into_inner().unwrap()
    }

    /// A server that ends each call with this code, and counts them.
    fn failing(grpc: Grpc, code: Code, calls: &Arc<AtomicUsize>) -> Grpc {
        let calls = Arc::clone(calls);
        grpc.of(tower::service_fn(move |_| {
            calls.fetch_add(1, SeqCst);
            async move { Ok::<_, Infallible>(Status::new(code, "no").into_http()) }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_hears_each_change() {
        let (reporter, server) = health_reporter();
        let says = async {
            for status in [
                ServingStatus::NotServing,
                ServingStatus::Serving,
                ServingStatus::Unknown,
            ] {
                sleep(Duration::from_secs(10)).await;
                reporter.set_service_status("", status).await;
            }
        };

        let (told, ()) = tokio::join!(told(Grpc::watch("").of(server), 60), says);

        assert_eq!(
            told,
            [
                (0, "healthy"),
                (10, "unhealthy"),
                (20, "healthy"),
                (30, "unhealthy")
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_comes_later_is_found() {
        let (reporter, server) = health_reporter();
        let later = async {
            sleep(Duration::from_secs(10)).await;
            let serving = ServingStatus::Serving;
            reporter.set_service_status("shop.Cart", serving).await;
        };

        let (told, ()) = tokio::join!(told(Grpc::watch("shop.Cart").of(server), 60), later);

        assert_eq!(told[0], (0, "unhealthy"));
        let (at, last) = told[1];
        assert!(last == "healthy" && (10..25).contains(&at), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_a_health_service_counts_as_healthy_and_is_asked_no_more() {
        let calls = Arc::new(AtomicUsize::new(0));
        let grpc = failing(Grpc::watch(""), Code::Unimplemented, &calls);

        let told = told(grpc, 600).await;

        assert_eq!(told, [(0, "healthy")]);
        assert_eq!(calls.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_health_service_fails_is_unwell_and_asked_less_and_less() {
        let calls = Arc::new(AtomicUsize::new(0));
        let grpc = failing(Grpc::watch(""), Code::Internal, &calls);

        let told = told(grpc, 600).await;

        assert_eq!(told, [(0, "unhealthy")]);
        let calls = calls.load(SeqCst);
        assert!((20..40).contains(&calls), "{calls} calls in ten minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_unwell() {
        let server = tower::service_fn(|_| std::future::pending::<Result<_, Infallible>>());

        let told = told(Grpc::watch("").of(server), 60).await;

        assert_eq!(told, [(2, "unhealthy")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_and_is_begun_anew_changes_nothing() {
        let (_reporter, server) = health_reporter();
        let streams = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&streams);
        // Each stream ends after its first word.
        let cut = tower::service_fn(move |request| {
            count.fetch_add(1, SeqCst);
            let mut server = server.clone();
            async move {
                let response: Response<Body> = server.call(request).await?;
                Ok::<_, Infallible>(response.map(|body| Body::new(First(Some(body)))))
            }
        });

        let told = told(Grpc::watch("").of(cut), 60).await;

        assert_eq!(told, [(0, "healthy")]);
        let streams = streams.load(SeqCst);
        assert!(
            (45..=75).contains(&streams),
            "{streams} streams in a minute"
        );
    }

    /// A body that ends after its first frame.
    struct First(Option<Body>);

    impl http_body::Body for First {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
            let Some(body) = &mut self.0 else {
                return Poll::Ready(None);
            };
            let frame = std::task::ready!(std::pin::Pin::new(body).poll_frame(cx));
            self.0 = None;
            Poll::Ready(frame)
        }
    }

    /// Says SERVING and NOT_SERVING in turn, as fast as anybody listens.
    struct Flood(u8);

    impl http_body::Body for Flood {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
            self.0 = 3 - self.0;
            let word = bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, self.0]);
            Poll::Ready(Some(Ok(http_body::Frame::data(word))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_talks_without_end_is_heard_now_and_then() {
        let flood = tower::service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Body::new(Flood(1))))
        });

        let told = told(Grpc::watch("").of(flood), 10).await;

        assert!((200..=260).contains(&told.len()), "{} words", told.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_can_be_asked_again_and_again() {
        let (reporter, server) = health_reporter();
        let says = async {
            sleep(Duration::from_secs(20)).await;
            let unwell = ServingStatus::NotServing;
            reporter.set_service_status("", unwell).await;
        };

        let (told, ()) = tokio::join!(told(Grpc::check("").of(server), 60), says);

        assert_eq!(told[0], (0, "healthy"));
        let (at, last) = told[1];
        assert!(last == "unhealthy" && (20..=26).contains(&at), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_of_a_server_without_a_health_service_counts_as_healthy() {
        let grpc = failing(Grpc::check(""), Code::Unimplemented, &Arc::default());

        assert_eq!(told(grpc, 20).await, [(0, "healthy")]);
    }
}
