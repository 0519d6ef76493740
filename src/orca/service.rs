//! Reports on a stream: `xds.service.orca.v3.OpenRcaService`.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use http::{Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::{
    Code, Status,
    body::Body,
    server::{NamedService, ServerStreamingService},
};
use tower::{BoxError, Service};

use super::{
    Recorder, Report,
    ask::PATH,
    messages::{Messages, Wish},
};

/// Reports on a stream, as often as its caller wants: see [`Recorder::service`].
///
/// A service for a tonic router. Whoever drains a server should know that such a stream has no end of its own.
#[derive(Clone, Debug)]
pub struct OpenRca {
    recorder: Recorder,
    least: Duration,
}

impl OpenRca {
    pub(super) fn of(recorder: Recorder) -> Self {
        let least = Duration::from_secs(1);
        Self { recorder, least }
    }

    /// How often it reports at most, whatever it is asked for. Once a second, unless set; gRPC's own servers report
    /// twice a minute.
    #[must_use]
    pub fn at_most_every(self, least: Duration) -> Self {
        let least = least.max(SHORTEST);
        Self { least, ..self }
    }
}

/// However often that is: reports that come without a pause are of no use.
const SHORTEST: Duration = Duration::from_millis(10);

impl NamedService for OpenRca {
    const NAME: &'static str = "xds.service.orca.v3.OpenRcaService";
}

impl<B> Service<Request<B>> for OpenRca
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        if path != PATH.path() {
            let status = Status::new(Code::Unimplemented, format!("there is no {path}"));
            return std::future::ready(Ok(status.into_http())).boxed();
        }
        let reports = Reports(self.clone());
        let mut server = tonic::server::Grpc::new(Messages::<Report, Wish>::new());
        async move { Ok(server.server_streaming(reports, request).await) }.boxed()
    }
}

struct Reports(OpenRca);

impl ServerStreamingService<Wish> for Reports {
    type Response = Report;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Report, Status>> + Send>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, wish: tonic::Request<Wish>) -> Self::Future {
        let OpenRca { recorder, least } = self.0.clone();
        let every = wish.into_inner().0.max(least);
        // The first at once.
        let reports = stream::unfold(Some(Instant::now()), move |due| {
            let recorder = recorder.clone();
            async move {
                sleep_until(due?).await;
                // A wait that no clock can count is the last.
                let next = Instant::now().checked_add(every);
                Some((Ok(recorder.report()), next))
            }
        });
        std::future::ready(Ok(tonic::Response::new(reports.boxed())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When reports come in the first ten seconds, in milliseconds, of a service that is asked for one every
    /// so often.
    async fn times(service: OpenRca, every: Duration) -> Vec<u128> {
        let began = Instant::now();
        let mut client = tonic::client::Grpc::new(service);
        let wish = tonic::Request::new(Wish(every));
        let codec = Messages::<Wish, Report>::new();
        let answer = client.server_streaming(wish, PATH, codec).await.unwrap();
        let ten = tokio::time::sleep(Duration::from_secs(10));
        let told = answer.into_inner().take_until(ten);
        let told = told.map(|_| (Instant::now() - began).as_millis());
        told.collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn it_reports_at_once_and_then_as_often_as_it_is_asked_and_allows() {
        let service = Recorder::new().service();

        let asked = times(service.clone(), Duration::from_secs(4)).await;
        let greedy = times(service.clone(), Duration::ZERO).await;
        let patient = times(service.clone(), Duration::MAX).await;
        let limited = times(
            service.at_most_every(Duration::from_secs(5)),
            Duration::from_secs(4),
        );

        assert_eq!(asked, [0, 4_000, 8_000]);
        assert_eq!(greedy, (0..10).map(|n| n * 1_000).collect::<Vec<_>>());
        assert_eq!(patient, [0]);
        assert_eq!(limited.await, [0, 5_000]);
    }

    #[tokio::test]
    async fn another_method_is_unimplemented() {
        let request = Request::builder().uri("/xds.service.orca.v3.OpenRcaService/Other");
        let request = request.body(Body::empty()).unwrap();

        let response = Recorder::new().service().call(request).await.unwrap();

        assert_eq!(response.headers()["grpc-status"], "12");
    }
}
