//! A request that can be sent again when it was not processed.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Request, Uri, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use tonic::{Status, body::Body};

/// One call's request: its head, its body, and what of the body has been sent already.
///
/// The first 64 KiB of the body are kept while they are sent, so that a call which the server did not
/// process can be sent again; longer ones cannot once they have sent more.
#[derive(Debug)]
pub(crate) struct Outgoing {
    head: request::Parts,
    /// The headers, while the map itself has gone to a connection.
    lent: Option<Lent>,
    source: Source,
}

/// Headers to make a map of again. Those that nearly every call has are known by heart, so that such a
/// call needs no copy.
#[derive(Debug, Default)]
struct Lent {
    content_type: bool,
    /// Whether there is one, of whatever value.
    te: bool,
    user_agent: bool,
    more: Vec<(HeaderName, HeaderValue)>,
}

/// What every request on a connection says besides its own words.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    pub(super) user_agent: HeaderValue,
}

impl Outgoing {
    /// How much of a body is kept, unless something else is said.
    pub(crate) const KEPT: usize = 64 << 10;

    #[inline]
    pub(crate) fn new(request: Request<Body>) -> Self {
        Self::keeping(Self::KEPT, request)
    }

    /// Of whose body so much is kept; 0 never sends a body twice.
    #[inline]
    pub(crate) fn keeping(bytes: usize, request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Self {
            head,
            lent: None,
            source: Source::new(body, bytes),
        }
    }

    /// The method called, as `/package.Service/Method`.
    pub(crate) fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// The call's metadata; empty between a failed attempt and [`rewind`](Self::rewind).
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The same, to change before an attempt.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.head.headers
    }

    /// What is called, and the metadata to change before an attempt.
    pub(crate) fn path_and_headers(&mut self) -> (&str, &mut HeaderMap) {
        (self.head.uri.path(), &mut self.head.headers)
    }

    /// Makes it ready to be sent from its start; `false` if it can no longer be.
    pub(crate) fn rewind(&mut self) -> bool {
        if !self.source.rewind() {
            return false;
        }
        if let Some(lent) = self.lent.take() {
            self.head.headers = lent.headers();
        }
        true
    }

    /// The head as it goes to a connection, how large it is as HTTP/2 counts, and whether there is no body.
    pub(super) fn head(&mut self, origin: &Origin) -> (Request<()>, usize, bool) {
        let headers = &mut self.head.headers;
        let (lent, mut size) = Lent::of(headers);
        let mut one_more = |name: &str, value: &[u8]| size += size_of_field(name, value);
        if !lent.te {
            one_more(TE.as_str(), TRAILERS.as_bytes());
            headers.insert(TE, HeaderValue::from_static(TRAILERS));
        }
        if !lent.user_agent {
            one_more(USER_AGENT.as_str(), origin.user_agent.as_bytes());
            headers.insert(USER_AGENT, origin.user_agent.clone());
        }
        self.lent = self.source.kept.whole.then_some(lent);

        one_more(":method", self.head.method.as_str().as_bytes());
        one_more(":scheme", origin.scheme.as_str().as_bytes());
        one_more(":authority", origin.authority.as_str().as_bytes());
        one_more(
            ":path",
            self.head
                .uri
                .path_and_query()
                .map_or("/", PathAndQuery::as_str)
                .as_bytes(),
        );

        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.uri(origin);
        *request.version_mut() = Version::HTTP_2;
        // The new one's are empty, and stay here.
        mem::swap(request.headers_mut(), &mut self.head.headers);
        (request, size, self.source.is_empty())
    }

    fn uri(&self, origin: &Origin) -> Uri {
        let path = self.head.uri.path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(origin.scheme.clone());
        parts.authority = Some(origin.authority.clone());
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        Uri::from_parts(parts).expect("scheme, authority and path are all there is to a URI")
    }

    /// Room for extensions, emptied: to hand on what is allocated already.
    pub(crate) fn take_extensions(&mut self) -> Extensions {
        let mut extensions = mem::take(&mut self.head.extensions);
        extensions.clear();
        extensions
    }

    /// What there is besides the body, which cannot be sent again after that.
    #[cfg(feature = "tonic-channel")]
    pub(super) fn take_head(&mut self) -> (http::Method, Uri, HeaderMap) {
        let head = &mut self.head;
        let headers = mem::take(&mut head.headers);
        (head.method.clone(), head.uri.clone(), headers)
    }

    pub(super) fn source(&mut self) -> &mut Source {
        &mut self.source
    }

    /// Takes the rest of the body away; what is left cannot be sent again.
    pub(super) fn take_source(&mut self) -> Source {
        let spent = Source {
            body: Body::empty(),
            ended: true,
            ahead: None,
            kept: Kept::default(),
            replayed: 0,
        };
        mem::replace(&mut self.source, spent)
    }
}

impl Lent {
    /// And how large they are in a head.
    fn of(headers: &HeaderMap) -> (Self, usize) {
        let (mut lent, mut size) = (Self::default(), 0);
        // Looked through, as there are few: to look a name up is to hash it.
        for (name, value) in headers {
            size += size_of_field(name.as_str(), value.as_bytes());
            if *name == TE {
                lent.te = true;
                if value == TRAILERS {
                    continue;
                }
            } else if *name == CONTENT_TYPE && value == GRPC && !lent.content_type {
                lent.content_type = true;
                continue;
            }
            lent.user_agent |= *name == USER_AGENT;
            lent.more.push((name.clone(), value.clone()));
        }
        (lent, size)
    }

    /// All of them, but for `te: trailers`, which every head gets.
    fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.more.len() + 3);
        if self.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        }
        for (name, value) in self.more {
            headers.append(name, value);
        }
        headers
    }
}

/// A body that can be read from its start again, as far as it is kept.
#[derive(Debug)]
pub(super) struct Source {
    body: Body,
    ended: bool,
    /// Read, but not yet sent.
    ahead: Option<Piece>,
    kept: Kept,
    /// How many of the kept frames have been read since the last rewind.
    replayed: usize,
}

/// The next part of a body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// In a box: hardly a request has any.
    Trailers(Box<HeaderMap>),
    End,
}

/// The frames that were read so far.
#[derive(Debug, Default)]
struct Kept {
    /// Most calls send one frame: it needs no allocation.
    first: Option<Bytes>,
    more: Vec<Bytes>,
    bytes: usize,
    most: usize,
    whole: bool,
}

const GRPC: &str = "application/grpc";
const TRAILERS: &str = "trailers";

/// What a field counts for in the size of a head (RFC 9113, 6.5.2).
fn size_of_field(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + 32
}

impl Source {
    #[inline]
    fn new(body: Body, most: usize) -> Self {
        let ended = body.is_end_stream();
        Self {
            body,
            ended,
            ahead: None,
            kept: Kept {
                most,
                whole: true,
                ..Kept::default()
            },
            replayed: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.ended && self.kept.first.is_none() && self.ahead.is_none()
    }

    fn rewind(&mut self) -> bool {
        if !self.kept.whole {
            return false;
        }
        self.ahead = None;
        self.replayed = 0;
        true
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Status>> {
        if let Some(piece) = self.ahead.take() {
            return Poll::Ready(Ok(piece));
        }
        if let Some(frame) = self.kept.get(self.replayed) {
            self.replayed += 1;
            return Poll::Ready(Ok(Piece::Data(frame)));
        }
        self.poll_body(cx)
    }

    /// Whether nothing follows, as far as is known by now.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Status>> {
        if self.ahead.is_none() {
            self.ahead = Some(ready!(self.poll_next(cx))?);
        }
        Poll::Ready(Ok(matches!(self.ahead, Some(Piece::End))))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Status>> {
        while !self.ended {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                self.ended = true;
                break;
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    if self.kept.keep(&data) {
                        self.replayed += 1;
                    }
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                Err(frame) => {
                    self.ended = true;
                    self.kept.forget();
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(Ok(Piece::Trailers(Box::new(trailers))));
                    }
                }
            }
        }
        Poll::Ready(Ok(Piece::End))
    }
}

impl Kept {
    fn get(&self, at: usize) -> Option<Bytes> {
        match at {
            0 => self.first.clone(),
            _ => self.more.get(at - 1).cloned(),
        }
    }

    /// Keeps this frame too, or lets go of all when that is too much.
    fn keep(&mut self, data: &Bytes) -> bool {
        if !self.whole {
            return false;
        }
        self.bytes += data.len();
        if self.bytes > self.most {
            self.forget();
            return false;
        }
        if self.first.is_none() {
            self.first = Some(data.clone());
        } else {
            self.more.push(data.clone());
        }
        true
    }

    fn forget(&mut self) {
        *self = Self {
            most: self.most,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, future::poll_fn, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn outgoing(frames: &[&'static [u8]]) -> Outgoing {
        Outgoing::new(request(frames))
    }

    fn request(frames: &[&'static [u8]]) -> Request<Body> {
        let frames = frames.to_vec();
        let frames = frames
            .into_iter()
            .map(|f| Ok::<_, Infallible>(Frame::data(Bytes::from_static(f))));
        let mut request = Request::new(Body::new(StreamBody::new(stream::iter(frames))));
        *request.uri_mut() = Uri::from_static("/a.B/C");
        request
            .headers_mut()
            .insert("x-key", HeaderValue::from_static("v"));
        request
    }

    fn origin() -> Origin {
        Origin {
            scheme: Scheme::HTTP,
            authority: Authority::from_static("10.0.0.5:50051"),
            user_agent: HeaderValue::from_static("tonic-fleet/test"),
        }
    }

    fn next(call: &mut Outgoing) -> Option<Bytes> {
        let piece = poll_fn(|cx| call.source().poll_next(cx)).now_or_never();
        match piece.unwrap().unwrap() {
            Piece::Data(data) => Some(data),
            Piece::Trailers(_) | Piece::End => None,
        }
    }

    fn rest(call: &mut Outgoing) -> Vec<Bytes> {
        std::iter::from_fn(|| next(call)).collect()
    }

    #[test]
    fn a_head_says_where_it_goes_and_who_sends_it() {
        let mut call = outgoing(&[b"one"]);

        let (head, _, empty) = call.head(&origin());

        assert_eq!(head.uri(), "http://10.0.0.5:50051/a.B/C");
        assert_eq!(head.headers()["te"], "trailers");
        assert_eq!(head.headers()["user-agent"], "tonic-fleet/test");
        assert_eq!(head.headers()["x-key"], "v");
        assert!(!empty);
    }

    #[test]
    fn a_head_is_as_large_as_all_its_fields_and_32_bytes_for_each() {
        for own_agent in [false, true] {
            let mut call = outgoing(&[]);
            if own_agent {
                let agent = HeaderValue::from_static("mine/1");
                call.headers_mut().insert(USER_AGENT, agent);
            }

            let (head, size, _) = call.head(&origin());

            let own = head.headers().iter();
            let own = own.map(|(name, value)| name.as_str().len() + value.len() + 32);
            let pseudo = [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "10.0.0.5:50051"),
                (":path", "/a.B/C"),
            ];
            let pseudo = pseudo.map(|(name, value)| name.len() + value.len() + 32);
            assert_eq!(size, own.sum::<usize>() + pseudo.iter().sum::<usize>());
        }
    }

    #[test]
    fn a_callers_own_user_agent_stays() {
        let mut call = outgoing(&[]);
        call.headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static("mine/1"));

        let (head, ..) = call.head(&origin());

        assert_eq!(head.headers().get_all(USER_AGENT).iter().count(), 1);
        assert_eq!(head.headers()["user-agent"], "mine/1");
    }

    #[test]
    fn a_call_is_the_same_when_it_is_sent_again() {
        let mut call = outgoing(&[b"one", b"two", b"three"]);
        call.headers_mut()
            .append("x-key", HeaderValue::from_static("w"));
        let (first, ..) = call.head(&origin());
        assert_eq!(next(&mut call).unwrap(), "one");
        assert_eq!(next(&mut call).unwrap(), "two");

        assert!(call.rewind());

        assert_eq!(call.path(), "/a.B/C");
        assert_eq!(call.headers().get_all("x-key").iter().count(), 2);
        let (second, ..) = call.head(&origin());
        assert_eq!(
            (first.uri(), first.headers()),
            (second.uri(), second.headers())
        );
        assert_eq!(rest(&mut call), ["one", "two", "three"]);
    }

    #[test]
    fn what_was_looked_at_ahead_is_not_lost_by_a_rewind() {
        let mut call = outgoing(&[b"one", b"two"]);
        next(&mut call);
        let ended = poll_fn(|cx| call.source().poll_ended(cx)).now_or_never();
        assert!(!ended.unwrap().unwrap());

        assert!(call.rewind());

        assert_eq!(rest(&mut call), ["one", "two"]);
        assert!(call.rewind());
        assert_eq!(rest(&mut call), ["one", "two"]);
    }

    #[test]
    fn a_body_longer_than_what_is_kept_cannot_be_sent_again() {
        let mut call = Outgoing::keeping(5, request(&[b"one", b"two"]));
        assert_eq!(next(&mut call).unwrap(), "one");
        assert!(call.rewind());

        assert_eq!(rest(&mut call), ["one", "two"]);

        assert!(!call.rewind());
    }

    #[test]
    fn an_empty_body_needs_no_frame() {
        let mut call = Outgoing::new(Request::new(Body::empty()));

        let (.., empty) = call.head(&origin());

        assert!(empty);
        assert!(call.rewind());
    }

    #[test]
    fn a_body_that_was_taken_away_cannot_be_sent_again() {
        let mut call = outgoing(&[b"one"]);
        call.take_source();

        assert!(!call.rewind());
    }
}
