//! gRFC A6, rule by rule, against servers that answer by a script.

mod hedges;
mod retries;

use std::{
    collections::VecDeque,
    future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, poll, stream};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, body::Body};

use super::{Gates, PREVIOUS, Pace, Repeated, Spent, Tokens, Trying, hedge, retry, said::RanOut};
use crate::{
    InstanceId, ServedBy,
    deadline::TIMEOUT,
    method::{Budget, Hedge, Retry, Throttle},
};

const MS: Duration = Duration::from_millis(1);

/// What a server does with an attempt.
#[derive(Clone)]
enum Act {
    /// Headers, and an answer after them.
    Ok,
    /// A status without headers before it, and what else stands in it.
    Says(Code, &'static [(&'static str, &'static str)]),
    /// The attempt fails on the way.
    Breaks,
    /// It takes longer than an attempt may.
    RunsOut,
    /// The same as another, after a while.
    After(Duration, Box<Self>),
    Never,
}

use Act::{After, Breaks, Never, Ok as Fine, RunsOut, Says};

/// Servers that do as they are told, one act for each attempt, and keep what they were sent.
#[derive(Clone)]
struct Stage {
    acts: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    given_up: Arc<Mutex<Vec<u32>>>,
    began: Instant,
}

#[derive(Clone, Debug)]
struct Seen {
    at: Duration,
    headers: HeaderMap,
    body: Bytes,
}

/// Tells when an attempt was dropped before its end.
struct Witness(Stage, u32, bool);

impl Drop for Witness {
    fn drop(&mut self) {
        if !self.2 {
            self.0.given_up.lock().unwrap().push(self.1);
        }
    }
}

impl Stage {
    fn with(acts: impl IntoIterator<Item = Act>) -> Self {
        Self {
            acts: Arc::new(Mutex::new(acts.into_iter().collect())),
            seen: Arc::default(),
            given_up: Arc::default(),
            began: Instant::now(),
        }
    }

    fn send(&self) -> impl FnMut(Request<Body>) -> Trying<()> + use<> {
        let stage = self.clone();
        let mut number = 0;
        move |request| {
            number += 1;
            let act = stage.acts.lock().unwrap().pop_front();
            let act = act.expect("no more attempts than acts");
            stage.clone().play(act, number - 1, request).boxed()
        }
    }

    async fn play(
        self,
        act: Act,
        number: u32,
        request: Request<Body>,
    ) -> Result<Response<()>, Status> {
        let mut witness = Witness(self.clone(), number, false);
        let (head, body) = request.into_parts();
        let attempt = head.extensions.get::<super::Attempt>().unwrap();
        attempt.goes_to(&format!("s{number}").parse().unwrap(), true);
        let at = Instant::now() - self.began;
        let body = body.collect().await.map(|all| all.to_bytes());
        self.seen.lock().unwrap().push(Seen {
            at,
            headers: head.headers,
            body: body.clone().unwrap_or_default(),
        });
        let answer = match body {
            Ok(_) => act.come(number).await,
            Err(status) => Err(status),
        };
        witness.2 = true;
        answer
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn attempts(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The waits between attempts, in milliseconds.
    fn waits(&self) -> Vec<u128> {
        let at: Vec<_> = self.seen().iter().map(|seen| seen.at).collect();
        at.windows(2)
            .map(|two| (two[1] - two[0]).as_millis())
            .collect()
    }
}

impl Act {
    async fn come(self, number: u32) -> Result<Response<()>, Status> {
        let mut act = self;
        while let After(time, then) = act {
            sleep(time).await;
            act = *then;
        }
        let mut response = Response::new(());
        let mut extensions = Extensions::new();
        extensions.insert(ServedBy::at(&id(number)));
        *response.extensions_mut() = extensions;
        match act {
            Fine | After(..) => {}
            Says(code, more) => {
                let headers = response.headers_mut();
                headers.insert("grpc-status", HeaderValue::from(code as i32));
                for (name, value) in more {
                    headers.append(*name, HeaderValue::from_static(value));
                }
            }
            Breaks => return Err(Status::unavailable("the connection broke")),
            RunsOut => {
                let mut status = Status::deadline_exceeded("slow");
                status.set_source(Arc::new(RanOut));
                return Err(status);
            }
            Never => future::pending().await,
        }
        Ok(response)
    }
}

fn id(number: u32) -> InstanceId {
    format!("s{number}").parse().unwrap()
}

fn unavailable() -> Act {
    Says(Code::Unavailable, &[])
}

fn pushed(millis: &'static [(&'static str, &'static str)]) -> Act {
    Says(Code::Unavailable, millis)
}

const NOW: &[(&str, &str)] = &[("grpc-retry-pushback-ms", "0")];
const LATER: &[(&str, &str)] = &[("grpc-retry-pushback-ms", "700")];
const NEVER: &[(&str, &str)] = &[("grpc-retry-pushback-ms", "-1")];
const GARBLED: &[(&str, &str)] = &[("grpc-retry-pushback-ms", "soon")];

/// Waits of 100, 200, 400, 400 ms.
fn policy(attempts: u32) -> Retry {
    Retry::attempts(attempts)
        .backoff(100 * MS, 400 * MS)
        .jitter(0.0)
}

fn request() -> Request<Body> {
    let frame = Ok::<_, Status>(Frame::data(Bytes::from_static(b"hello")));
    Request::new(Body::new(StreamBody::new(stream::iter([frame]))))
}

fn repeated(limit: Option<Duration>) -> Repeated {
    let deadline = limit.map(|limit| Instant::now() + limit);
    Repeated::new(request(), deadline, None, 1000)
}

fn throttled(throttle: Throttle) -> Gates {
    Gates {
        throttle: Some(Arc::new(Tokens::of(&throttle))),
        budget: None,
    }
}

/// The call's code at the end, and when that was.
async fn retried(stage: &Stage, policy: Retry) -> (Code, u128) {
    let answer = retry(policy, repeated(None), Gates::default(), stage.send()).await;
    (code(&answer), (Instant::now() - stage.began).as_millis())
}

async fn hedged(stage: &Stage, policy: Hedge) -> (Code, u128) {
    let pace = Arc::default();
    let answer = hedge(policy, repeated(None), Gates::default(), pace, stage.send()).await;
    (code(&answer), (Instant::now() - stage.began).as_millis())
}

fn code(answer: &Result<Response<()>, Status>) -> Code {
    match answer {
        Ok(response) => super::super::body::code(response.headers()).unwrap_or(Code::Ok),
        Err(status) => status.code(),
    }
}
