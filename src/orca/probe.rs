//! A server is asked how busy it is this moment, and answers without a handler.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use tonic::body::Body;
use tower::Service;

use super::Load;
use crate::{
    health::{Over, Question},
    transport::Connection,
};

/// No method of anybody's.
pub(super) const PATH: &str = "/tonic_fleet.Load/Probe";
/// Where the answer is: in the head, which is all of it.
static LOAD: HeaderName = HeaderName::from_static("fleet-load");

/// How busy the server at the other end is, if it has room for a question and says so.
pub(crate) async fn probe(connection: &Connection) -> Option<Load> {
    let mut turn: Question = Over::Connection(connection.clone()).try_turn()?;
    let request = Request::post(PATH)
        .header(CONTENT_TYPE, GRPC)
        .header("te", "trailers")
        .body(Body::empty());
    let response = turn.call(request.ok()?).await.ok()?;
    read(response.headers())
}

fn read(headers: &HeaderMap) -> Option<Load> {
    headers.get(&LOAD)?.to_str().ok()?.parse().ok()
}

/// The answer, which is a status and no message.
pub(super) fn answer<B: Default>(load: &Load) -> Response<B> {
    let mut response = Response::new(B::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    if let Ok(said) = HeaderValue::try_from(load.to_string()) {
        headers.insert(&LOAD, said);
    }
    response
}

const GRPC: &str = "application/grpc";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_given() {
        let load = Load {
            in_flight: 7,
            latency: Duration::from_micros(5),
            service: Duration::from_micros(3),
        };

        let response = answer::<()>(&load);

        assert_eq!(read(response.headers()), Some(load));
        assert_eq!(response.headers()["grpc-status"], "0");
        assert_eq!(read(&HeaderMap::new()), None);
    }
}
