//! One question to an agent, and its answer.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use crate::{
    Address, Error, ErrorKind, Result,
    target::Secret,
    transport::{Connect, Io, Tcp, Tls},
};

/// Where an agent is, and how it is asked; clones are the same agent.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) address: Address,
    pub(super) tls: Option<Tls>,
    pub(super) token: Option<Secret>,
    /// Said with every question, where there is one.
    pub(super) namespace: Option<Box<str>>,
}

/// A path with its query, percent-encoded as it is made.
#[derive(Clone, Debug)]
pub(super) struct Question {
    method: Method,
    path: String,
    body: Bytes,
}

/// What an agent said.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What may stand in a path or a value as it is. `/` separates what separates names, too.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':');

/// Tens of thousands of instances; more would be a mistake, or malice.
const LARGEST: usize = 64 << 20;

/// So much of what an agent says about an error is shown.
const SHOWN: usize = 200;

impl Question {
    /// A question that changes nothing; `name` is added to the path.
    pub(super) fn get(path: &str, name: &str) -> Self {
        Self::new(Method::GET, path, name, Bytes::new())
    }

    /// One that changes something.
    pub(super) fn put(path: &str, name: &str, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PUT, path, name, body.into())
    }

    fn new(method: Method, path: &str, name: &str, body: Bytes) -> Self {
        let path = format!("{path}{}", utf8_percent_encode(name, PLAIN));
        Self { method, path, body }
    }

    /// Adds a parameter.
    pub(super) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        let value = value.to_string();
        let value = utf8_percent_encode(&value, PLAIN);
        self.path.push_str(&format!("{joint}{name}={value}"));
        self
    }
}

impl Agent {
    /// Asks, on a connection for this question alone; the answer is whatever it said, if it said anything.
    ///
    /// A connection that was kept could be closed by the other side at the moment of the next question, and
    /// no request could then be told from one that was processed. There are few questions.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the agent may have done what it was asked.
    pub(super) async fn ask(&self, question: Question, limit: Duration) -> Result<Answer> {
        let doing = format!("{} {}", question.method, question.path);
        let doing = format!("{doing} of Consul at {}", self.address);
        match timeout(limit, self.exchange(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Error::new(error.kind(), doing).because(error)),
            Err(_) => {
                let why = format!("no answer within {limit:?}");
                Err(Error::new(ErrorKind::Timeout, doing).because(why))
            }
        }
    }

    /// Asks what must be answered with a success.
    pub(super) async fn demand(&self, question: Question, limit: Duration) -> Result<Answer> {
        let doing = format!("{} {}", question.method, question.path);
        let answer = self.ask(question, limit).await?;
        match answer.refusal() {
            None => Ok(answer),
            Some((kind, why)) => {
                let doing = format!("{doing} of Consul at {}", self.address);
                Err(Error::new(kind, doing).because(why))
            }
        }
    }

    async fn exchange(&self, question: Question) -> Result<Answer> {
        let io = Tcp::default().connect(&self.address).await;
        let mut io = io.map_err(|error| unavailable("connect", error))?;
        if let Some(tls) = &self.tls {
            io = tls.over_http1(io, &self.address).await?;
        }
        let request = self.request(question)?;
        talk(io, request).await
    }

    fn request(&self, question: Question) -> Result<Request<Full<Bytes>>> {
        let question = match &self.namespace {
            Some(namespace) => question.with("ns", namespace),
            None => question,
        };
        let host = match &self.address {
            Address::Unix(_) => "localhost".to_owned(),
            address => address.to_string(),
        };
        let agent = concat!("tonic-fleet/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder()
            .method(question.method)
            .uri(question.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, agent)
            .header(header::CONNECTION, "close");
        if let Some(token) = &self.token {
            let mut token = HeaderValue::from_str(token.as_str())
                .map_err(|_| Error::config("the Consul token cannot stand in a header"))?;
            token.set_sensitive(true);
            request = request.header("x-consul-token", token);
        }
        let request = request.body(Full::new(question.body));
        request.map_err(|error| Error::config("ask Consul").because(error))
    }
}

/// One request and its answer; the connection lives as long as this.
async fn talk(io: Box<dyn Io>, request: Request<Full<Bytes>>) -> Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| unavailable("begin HTTP/1.1", error))?;
    let asking = async {
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| unavailable("HTTP/1.1", error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body = body.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "read the answer").because(error)
        })?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    };
    let driving = async {
        // How it ended, the request hears, too; what came before that may still be unread.
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        answer = asking => answer,
        never = driving => never,
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Why the agent did not do it, if it did not.
    pub(super) fn refusal(&self) -> Option<(ErrorKind, String)> {
        if self.status.is_success() {
            return None;
        }
        let kind = match self.status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => ErrorKind::Denied,
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        Some((kind, format!("{}: {}", self.status, self.words())))
    }

    /// The first words of the body, for a person.
    pub(super) fn words(&self) -> String {
        let start = &self.body[..self.body.len().min(4 * SHOWN)];
        let words = String::from_utf8_lossy(start);
        let words = words.trim().chars().map(|c| match c {
            c if c.is_control() => ' ',
            c => c,
        });
        words.take(SHOWN).collect()
    }

    /// `X-Consul-Index`, where there is a sensible one.
    pub(super) fn index(&self) -> Option<u64> {
        self.number("x-consul-index").filter(|index| *index > 0)
    }

    /// Why it may be behind the rest of the cluster, if it says so.
    pub(super) fn doubt(&self) -> Option<String> {
        let leader = self.headers.get("x-consul-knownleader");
        if leader.is_some_and(|known| known.as_bytes().eq_ignore_ascii_case(b"false")) {
            return Some("it knows no leader".into());
        }
        let behind = self.number("x-consul-lastcontact").unwrap_or(0);
        (behind > MOST_BEHIND).then(|| format!("it heard from its leader {behind} ms ago"))
    }

    fn number(&self, header: &str) -> Option<u64> {
        self.headers.get(header)?.to_str().ok()?.parse().ok()
    }
}

/// A follower that is so many milliseconds behind is no witness.
const MOST_BEHIND: u64 = 10_000;

fn unavailable(doing: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, doing).because(cause)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn at(address: std::net::SocketAddr) -> Agent {
        Agent {
            address: address.try_into().unwrap(),
            tls: None,
            token: Some(Secret::new("t0ken").unwrap()),
            namespace: Some("team a".into()),
        }
    }

    /// Answers one request with these bytes, and gives what it was asked.
    async fn answering(bytes: &'static [u8]) -> (Agent, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = at(listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(4).any(|end| end == b"\r\n\r\n") {
                assert_ne!(io.read_buf(&mut heard).await.unwrap(), 0);
            }
            io.write_all(bytes).await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        (agent, asked)
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_question_is_asked_and_answered_in_chunks() {
        let (agent, asked) = answering(
            b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n",
        )
        .await;
        let question = Question::get("/v1/health/service/", "shop/a b").with("index", 3);

        let answer = agent.demand(question, LIMIT).await.unwrap();

        assert_eq!((&answer.body[..], answer.index()), (&b"[1,2]"[..], Some(7)));
        let asked = asked.await.unwrap();
        let line = "GET /v1/health/service/shop/a%20b?index=3&ns=team%20a HTTP/1.1\r\n";
        assert!(asked.starts_with(line), "{asked}");
        assert!(asked.contains("x-consul-token: t0ken\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_the_agents_words_and_without_the_token() {
        let (agent, _asked) =
            answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 18\r\n\r\nPermission\ndenied\n")
                .await;

        let error = agent.demand(Question::get("/v1/x", ""), LIMIT).await;

        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let said = format!("{} {error:?} {agent:?}", error.chain());
        assert!(said.contains("403 Forbidden: Permission denied"), "{said}");
        assert!(!said.contains("t0ken"), "{said}");
    }

    #[tokio::test]
    async fn what_is_cut_off_or_never_comes_or_is_no_http_is_an_error() {
        for (bytes, limit, kind) in [
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1"[..],
                LIMIT,
                ErrorKind::Unavailable,
            ),
            (b"220 mail\r\n\r\n", LIMIT, ErrorKind::Unavailable),
            (b"", LIMIT, ErrorKind::Unavailable),
        ] {
            let (agent, _asked) = answering(bytes).await;

            let error = agent.ask(Question::get("/v1/x", ""), limit).await;

            assert_eq!(error.unwrap_err().kind(), kind);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = at(listener.local_addr().unwrap());
        let late = agent.ask(Question::get("/v1/x", ""), Duration::from_millis(50));
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Timeout);
    }

    #[test]
    fn who_has_no_leader_or_is_far_behind_is_doubted() {
        let answer = |name: &'static str, value: &'static str| {
            let headers = [(name.parse().unwrap(), HeaderValue::from_static(value))];
            Answer {
                status: StatusCode::OK,
                headers: HeaderMap::from_iter::<[(header::HeaderName, _); 1]>(headers),
                body: Bytes::new(),
            }
        };

        assert!(answer("x-consul-knownleader", "false").doubt().is_some());
        assert!(answer("x-consul-knownleader", "true").doubt().is_none());
        assert!(answer("x-consul-lastcontact", "10001").doubt().is_some());
        assert!(answer("x-consul-lastcontact", "0").doubt().is_none());
        for none in ["0", "-1", "x"] {
            assert_eq!(answer("x-consul-index", none).index(), None);
        }
    }
}
