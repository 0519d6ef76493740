//! The server's side of a call: it is counted, and its trailers say how busy the server is.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tower::Service;

use super::Recorder;
use crate::health::{Ended, Outcome};

/// Counts calls, and reports in the trailers of each: see [`Recorder::layer`].
#[derive(Clone, Debug)]
pub struct Layer(Recorder);

/// A service whose calls are counted, and whose trailers report.
#[derive(Clone, Debug)]
pub struct Reporting<S> {
    inner: S,
    recorder: Recorder,
}

/// A call that is being served.
pub struct Serving<F> {
    inner: Pin<Box<F>>,
    recorder: Recorder,
}

/// The body of a response, which ends with a report.
///
/// A report that a handler has put there itself is left as it is.
pub struct Reported<B> {
    inner: B,
    /// Until the call has been counted.
    recorder: Option<Recorder>,
}

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
        Serving {
            inner: Box::pin(self.inner.call(request)),
            recorder: self.recorder.clone(),
        }
    }
}

impl<F, B, E> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Reported<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.inner.as_mut().poll(cx))?;
        let (mut head, inner) = response.into_parts();
        // A status in the head is the last word.
        let ended = tell(&self.recorder, &mut head.headers);
        let recorder = (!ended).then(|| self.recorder.clone());
        let body = Reported { inner, recorder };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

/// Counts the call, if these headers or trailers say how it ended, and has them report. Whether they did.
fn tell(recorder: &Recorder, metadata: &mut HeaderMap) -> bool {
    let Some(status) = metadata.get("grpc-status") else {
        return false;
    };
    let code = Code::from_bytes(status.as_bytes());
    let outcome = Ended::with(code, metadata).usual();
    recorder.count(matches!(outcome, Outcome::Failure | Outcome::Overload));
    recorder.report().put_on(metadata);
    true
}

impl<B: Body + Unpin> Body for Reported<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let mut frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some(recorder) = &this.recorder
            && tell(recorder, trailers)
        {
            this.recorder = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for Reported<B> {
    fn default() -> Self {
        Self {
            inner: B::default(),
            recorder: None,
        }
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
