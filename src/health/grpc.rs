//! Asking a server as gRPC has it: `grpc.health.v1.Health`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response, uri::PathAndQuery};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tonic::{Code, Status, body::Body};
use tower::{
    BoxError, Service,
    util::{BoxCloneSyncService, MapErr},
};

use super::{
    Tell, Verdict,
    checks::Inner,
    codec::{Messages, Says},
    poll::poll,
};
use crate::{
    Backoff, Error, ErrorKind, Instance, Result,
    transport::{Connection, Dialer, Outgoing, Settings, Tcp, Told},
};

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

/// What requests go over.
pub(super) type Over = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

impl Grpc {
    /// One stream per connection, on which the server says so at once when something changes (gRFC A17).
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
        let server = MapErr::new(server, |error: S::Error| Status::from_error(error.into()));
        self.of = Some(BoxCloneSyncService::new(server));
        self
    }

    /// Judges for as long as it is polled.
    pub(super) async fn follow(&self, inner: &Inner, over: Over, tell: &Tell<'_>) {
        let over = self.of.clone().unwrap_or(over);
        match self.how {
            How::Watch => self.watching(inner, over, tell).await,
            How::Check => {
                let ask = || self.ask(inner, over.clone());
                poll(inner.rule(), inner.gate(), tell, ask).await;
            }
        }
    }

    /// A stream that breaks is begun anew; until that fails too, what was said last holds.
    async fn watching(&self, inner: &Inner, over: Over, tell: &Tell<'_>) {
        let mut backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let mut heard = false;
            let ended = self.stream(inner, over.clone(), &mut heard, tell).await;
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
    async fn stream(&self, inner: &Inner, over: Over, heard: &mut bool, tell: &Tell<'_>) -> Status {
        let limit = inner.rule().timeout;
        let begin = async {
            let mut client = tonic::client::Grpc::new(over);
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
        while let Some(word) = next {
            *heard = true;
            tell(self.verdict(word));
            next = match says.message().await {
                Ok(next) => next,
                Err(status) => return status,
            };
        }
        Status::unavailable("the server ended the stream")
    }

    async fn ask(&self, inner: &Inner, over: Over) -> Result<()> {
        let mut client = tonic::client::Grpc::new(over);
        let mut request = tonic::Request::new(self.service.to_string());
        request.set_timeout(inner.rule().timeout);
        match client.unary(request, CHECK, Messages).await {
            Ok(word) => match self.verdict(word.into_inner()) {
                Verdict::Unhealthy(why) => Err(why),
                _ => Ok(()),
            },
            Err(status) if status.code() == Code::Unimplemented => {
                inner.say_once(&self.service);
                Ok(())
            }
            Err(status) => Err(self.failed(&status)),
        }
    }

    fn verdict(&self, word: Says) -> Verdict {
        let said = match word {
            Says::Serving => return Verdict::Healthy,
            Says::NotServing => "NOT_SERVING",
            Says::ServiceUnknown => "SERVICE_UNKNOWN",
            Says::Unknown | Says::Other(_) => "UNKNOWN",
        };
        let what = format!("it says {said} of {:?}", &*self.service);
        Verdict::Unhealthy(Error::new(ErrorKind::Unavailable, what))
    }

    fn failed(&self, status: &Status) -> Error {
        let what = format!("health of {:?}", &*self.service);
        let said = format!("{:?}: {}", status.code(), status.message());
        Error::new(ErrorKind::Unavailable, what).because(said)
    }
}

const WATCH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
const CHECK: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");

/// Over this connection.
pub(super) fn over(connection: Connection) -> Over {
    BoxCloneSyncService::new(Wire(connection))
}

/// Over a connection of its own to this instance, made when it is needed.
pub(super) fn line(instance: Arc<Instance>) -> Over {
    let dialer = Dialer::new(Arc::new(Tcp::default()), None, Settings::default());
    BoxCloneSyncService::new(Line(Arc::new(Way {
        dialer,
        instance,
        connection: Mutex::default(),
    })))
}

#[derive(Clone)]
struct Wire(Connection);

impl Service<Request<Body>> for Wire {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = self.0.clone();
        async move { send(&connection, request).await }.boxed()
    }
}

#[derive(Clone)]
struct Line(Arc<Way>);

struct Way {
    dialer: Dialer,
    instance: Arc<Instance>,
    connection: Mutex<Option<Connection>>,
}

impl Way {
    async fn connection(&self) -> Result<Connection> {
        let known = self.current().clone().filter(Connection::accepts);
        if let Some(known) = known {
            return Ok(known);
        }
        let (connection, driver) = self.dialer.dial(&self.instance).await?;
        // Ends by itself when the last who has the connection, or a stream over it, has gone. And a server
        // that stops waits for its streams to end, which a watch would not.
        tokio::spawn(async move {
            let leaving = Notify::new();
            let told = |told| {
                if matches!(told, Told::GoingAway(_)) {
                    leaving.notify_one();
                }
            };
            tokio::select! {
                _ = driver.run(told) => {}
                () = leaving.notified() => {}
            }
        });
        *self.current() = Some(connection.clone());
        Ok(connection)
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        // Each write is whole.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let way = Arc::clone(&self.0);
        async move {
            let away = |error: Error| Status::unavailable(error.chain());
            let connection = way.connection().await.map_err(away)?;
            send(&connection, request).await
        }
        .boxed()
    }
}

async fn send(connection: &Connection, request: Request<Body>) -> Result<Response<Body>, Status> {
    let mut call = Outgoing::new(request);
    let sent = connection.call(&mut call).await;
    let response = sent.map_err(Status::from)?;
    Ok(response.map(Body::new))
}

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
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::time::Instant;
    use tonic_health::{ServingStatus, server::health_reporter};

    use super::*;
    use crate::health::{Checks, follow_at};

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
    fn failing(code: Code, calls: &Arc<AtomicUsize>) -> Over {
        let calls = Arc::clone(calls);
        BoxCloneSyncService::new(tower::service_fn(move |_| {
            calls.fetch_add(1, SeqCst);
            async move { Ok(Status::new(code, "no").into_http::<Body>()) }
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
        let server = failing(Code::Unimplemented, &calls);

        let told = told(Grpc::watch("").of(server), 600).await;

        assert_eq!(told, [(0, "healthy")]);
        assert_eq!(calls.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_health_service_fails_is_unwell_and_asked_less_and_less() {
        let calls = Arc::new(AtomicUsize::new(0));
        let server = failing(Code::Internal, &calls);

        let told = told(Grpc::watch("").of(server), 600).await;

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
        assert!(last == "unhealthy" && (30..=42).contains(&at), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_of_a_server_without_a_health_service_counts_as_healthy() {
        let server = failing(Code::Unimplemented, &Arc::default());

        assert_eq!(told(Grpc::check("").of(server), 20).await, [(0, "healthy")]);
    }
}
