//! The server's side of a call: it is counted, and its trailers say how busy the server is. Probes are answered.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tonic::Code;
use tower::Service;

use super::{Load, Recorder, probe};
use crate::health::{Ended, Outcome};

/// Counts calls, reports in the trailers of each, and answers those who ask before they call: see
/// [`Recorder::layer`].
///
/// Health checks, reflection and streams of reports pass uncounted.
#[derive(Clone, Debug)]
pub struct Layer(Recorder);

/// A service whose calls are counted, and whose trailers report.
#[derive(Clone, Debug)]
pub struct Reporting<S> {
    inner: S,
    recorder: Recorder,
}

/// A call that is being served.
pub struct Serving<F>(State<F>);

enum State<F> {
    /// A call that counts, or one that only listens.
    Handler(Pin<Box<F>>, Option<Call>),
    /// Nobody's call: how busy the server is.
    Probe(Load),
}

/// The body of a response, which ends with a report.
///
/// A report that a handler has put there itself is left as it is.
#[derive(Default)]
pub struct Reported<B> {
    inner: Option<B>,
    /// Until the call has been counted.
    call: Option<Call>,
}

/// A call in flight; it is no more when this is dropped.
struct Call {
    recorder: Recorder,
    among: usize,
    began: Instant,
}

/// Who calls these waits for news, and keeps nobody busy.
const LISTEN: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.",
    "/xds.service.orca.v3.OpenRcaService/",
];

impl Layer {
    pub(super) fn of(recorder: Recorder) -> Self {
        Self(recorder)
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Reporting<S>;

    fn layer(&self, inner: S) -> Reporting<S> {
        let recorder = self.0.clone();
        Reporting { inner, recorder }
    }
}

impl<S, A, B> Service<Request<A>> for Reporting<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<Reported<B>>;
    type Error = S::Error;
    type Future = Serving<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        if request.uri().path() == probe::PATH {
            return Serving(State::Probe(self.recorder.load()));
        }
        let path = request.uri().path();
        let listens = LISTEN.iter().any(|service| path.starts_with(service));
        let call = (!listens).then(|| Call::begin(&self.recorder));
        Serving(State::Handler(Box::pin(self.inner.call(request)), call))
    }
}

impl<F, B, E> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Reported<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (inner, call) = match &mut self.0 {
            State::Handler(inner, call) => (inner, call),
            State::Probe(load) => {
                let (head, ()) = probe::answer(load).into_parts();
                let body = Reported {
                    inner: None,
                    call: None,
                };
                return Poll::Ready(Ok(Response::from_parts(head, body)));
            }
        };
        let response = ready!(inner.as_mut().poll(cx))?;
        let (mut head, inner) = response.into_parts();
        let mut call = call.take();
        if let Some(answered) = &call {
            answered.is_answered(&head.headers);
            // A status in the head is the last word.
            if answered.tell(&mut head.headers) {
                call = None;
            }
        }
        let inner = Some(inner);
        Poll::Ready(Ok(Response::from_parts(head, Reported { inner, call })))
    }
}

impl Call {
    fn begin(recorder: &Recorder) -> Self {
        Self {
            among: recorder.begins(),
            recorder: recorder.clone(),
            began: Instant::now(),
        }
    }

    /// With this head: failures are no answers.
    fn is_answered(&self, head: &HeaderMap) {
        if code(head).is_none_or(|code| code == Code::Ok) {
            self.recorder.answered(self.among, self.began);
        }
    }

    /// Counts the call, if these headers or trailers say how it ended, and has them report. Whether they did.
    fn tell(&self, metadata: &mut HeaderMap) -> bool {
        let Some(code) = code(metadata) else {
            return false;
        };
        let outcome = Ended::with(code, metadata).usual();
        let failed = matches!(outcome, Outcome::Failure | Outcome::Overload);
        self.recorder.count(failed);
        self.recorder.report().put_on(metadata);
        true
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.recorder.ends();
    }
}

fn code(metadata: &HeaderMap) -> Option<Code> {
    let status = metadata.get("grpc-status")?;
    Some(Code::from_bytes(status.as_bytes()))
}

impl<B: Body + Unpin> Body for Reported<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let mut frame = ready!(Pin::new(inner).poll_frame(cx));
        let trailers = match &mut frame {
            Some(Ok(frame)) => frame.trailers_mut(),
            // It is over, and has not said how.
            Some(Err(_)) | None => {
                this.call = None;
                None
            }
        };
        if let Some(trailers) = trailers
            && let Some(call) = &this.call
            && call.tell(trailers)
        {
            this.call = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let empty = || SizeHint::with_exact(0);
        self.inner.as_ref().map_or_else(empty, Body::size_hint)
    }
}

/// So that a service with it has a name in routes.
#[cfg(feature = "server")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for Reporting<S> {
    const NAME: &'static str = S::NAME;
}

impl<F> fmt::Debug for Serving<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Reported<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reported").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use tower::{Layer as _, ServiceExt};

    use super::{super::Report, *};

    /// What a service reports whose answer has this head, and these trailers.
    async fn reported(head: &[(&'static str, &str)], trailers: &[(&'static str, &str)]) -> Told {
        let recorder = Recorder::new();
        recorder.application_utilization(0.5);
        let [head, trailers] = [head, trailers].map(|pairs| {
            let pairs = pairs.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, value.parse().unwrap())
            });
            pairs.collect::<HeaderMap>()
        });
        let service = tower::service_fn(move |_: Request<()>| {
            let data = Frame::data(bytes::Bytes::from_static(b"\0\0\0\0\0"));
            let frames = [data, Frame::trailers(trailers.clone())];
            let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
            let mut response = Response::new(StreamBody::new(frames));
            *response.headers_mut() = head.clone();
            async { Ok::<_, Infallible>(response) }
        });

        let answer = recorder.layer().layer(service).oneshot(Request::new(()));
        let (head, body) = answer.await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let of = |metadata: &HeaderMap| Report::of(metadata).unwrap();
        Told {
            head: of(&head.headers),
            trailers: body.trailers().and_then(of),
            recorder: recorder.report(),
        }
    }

    struct Told {
        head: Option<Report>,
        trailers: Option<Report>,
        recorder: Report,
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_report_and_count_the_call_by_its_end() {
        for (status, eps) in [("0", 0.0), ("5", 0.0), ("13", 1.0), ("8", 1.0)] {
            let told = reported(&[], &[("grpc-status", status)]).await;

            let report = told.trailers.unwrap();
            assert_eq!(report.application_utilization, 0.5);
            assert_eq!((report.rps_fractional, report.eps), (1.0, eps), "{status}");
            assert_eq!(told.head, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_in_the_head_is_the_last_word() {
        let told = reported(&[("grpc-status", "14")], &[("grpc-status", "0")]).await;

        assert_eq!(told.head.unwrap().eps, 1.0);
        assert_eq!(told.trailers, None);
        assert_eq!(told.recorder.rps_fractional, 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_in_flight_until_their_bodies_end_or_are_dropped_and_probes_never_are() {
        let recorder = Recorder::new();
        let service = tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(
                http_body_util::Full::new(bytes::Bytes::new()),
            ))
        });
        let service = recorder.layer().layer(service);
        let call = |path: &str| {
            let request = Request::builder().uri(path).body(()).unwrap();
            service.clone().oneshot(request)
        };

        let answered = call("/a.B/C").await.unwrap();
        let watching = call("/grpc.health.v1.Health/Watch").await.unwrap();
        let probed = call(probe::PATH).await.unwrap();

        assert_eq!(recorder.load().in_flight, 1);
        assert_eq!(probed.headers()["fleet-load"], "1 1 1");
        drop((watching, probed));
        answered.into_body().collect().await.unwrap();
        let given_up = call("/a.B/C").await.unwrap();
        drop(given_up);
        assert_eq!(recorder.load().in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_call_of_grpcs_is_let_pass() {
        let told = reported(&[], &[("checksum", "1")]).await;

        assert_eq!((told.head, told.trailers), (None, None));
        assert_eq!(told.recorder.rps_fractional, 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_of_the_handlers_own_is_left_as_it_is() {
        // A cpu_utilization of 2.0.
        let own = ("endpoint-load-metrics-bin", "CQAAAAAAAABA");

        let told = reported(&[], &[("grpc-status", "0"), own]).await;

        let report = told.trailers.unwrap();
        assert_eq!((report.cpu_utilization, report.rps_fractional), (2.0, 0.0));
    }
}
