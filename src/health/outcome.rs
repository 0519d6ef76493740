//! What a call that has ended shows about its server.

use std::{fmt, time::Duration};

use http::HeaderMap;
use percent_encoding::percent_decode;
use tonic::Code;

/// What a call showed about its server: the one judgement that statistics, ejection and policies share.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It answered as it should, were it with an error of the caller's making.
    Success,
    /// It failed.
    Failure,
    /// It says that it has too much to do: it is given less for a while.
    Overload,
    /// Nothing: the caller gave up, or gave it no fair time.
    Ignore,
}

/// A call that has ended, as a [`Classify`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub(crate) code: Code,
    pub(crate) metadata: Option<&'a HeaderMap>,
    pub(crate) by: EndedBy,
    pub(crate) fair: bool,
}

/// Who or what ended a call.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum EndedBy {
    /// The server, with a status.
    Status,
    /// The server, which broke off without a status.
    Reset,
    /// The server, which refused it before it looked at it, and stays.
    Refusal,
    /// The connection, which broke under the call.
    Connection,
    /// The call's deadline.
    Deadline,
}

/// Says what an ended call shows about its server.
///
/// A closure will do. Where it has no opinion, [`Ended::usual`] has one:
///
/// ```
/// use tonic::Code;
/// use tonic_fleet::health::{Ended, Outcome};
///
/// // These servers say `ABORTED` when they lost their database.
/// let classify = |ended: &Ended<'_>| match ended.code() {
///     Code::Aborted => Outcome::Failure,
///     _ => ended.usual(),
/// };
/// # let _: &dyn tonic_fleet::health::Classify = &classify;
/// ```
pub trait Classify: Send + Sync + 'static {
    /// What this call shows. Asked once for each call, on the caller's task: it must not wait.
    fn classify(&self, ended: &Ended<'_>) -> Outcome;
}

impl<F> Classify for F
where
    F: Fn(&Ended<'_>) -> Outcome + Send + Sync + 'static,
{
    fn classify(&self, ended: &Ended<'_>) -> Outcome {
        self(ended)
    }
}

impl fmt::Debug for dyn Classify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classify")
    }
}

impl<'a> Ended<'a> {
    /// With the status in these headers or trailers.
    pub(crate) fn with(code: Code, metadata: &'a HeaderMap) -> Self {
        Self {
            metadata: Some(metadata),
            ..Self::without_status(code, EndedBy::Status)
        }
    }

    pub(crate) fn without_status(code: Code, by: EndedBy) -> Self {
        Self {
            code,
            metadata: None,
            by,
            fair: true,
        }
    }

    /// Its time was over, whoever said so first.
    pub(crate) fn late(self) -> Self {
        Self {
            code: Code::DeadlineExceeded,
            by: EndedBy::Deadline,
            ..self
        }
    }

    /// Whether the server had the time that it usually takes.
    pub(crate) fn fair(self, fair: bool) -> Self {
        Self { fair, ..self }
    }

    /// The status' code, or the one that the caller is given where there was no status.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The headers or trailers that the status came in. None when there was no status.
    pub fn metadata(&self) -> Option<&'a HeaderMap> {
        self.metadata
    }

    /// Who or what ended the call.
    pub fn by(&self) -> EndedBy {
        self.by
    }

    /// Whether the server was given as long as it usually takes. A caller who waits for less learns
    /// nothing about it. Only calls whose time ran out can be unfair.
    pub fn had_fair_time(&self) -> bool {
        self.fair
    }

    /// How long the server asks not to be bothered with this call: `grpc-retry-pushback-ms`.
    ///
    /// A server that says only that it should not be tried again, with a negative number, has a second.
    pub fn pushback(&self) -> Option<Duration> {
        let said = self.metadata?.get("grpc-retry-pushback-ms")?;
        let wait = said.to_str().ok().and_then(|text| text.parse().ok());
        Some(wait.map_or(PUSHBACK, Duration::from_millis).min(LONGEST))
    }

    /// The usual judgement. A server's failures are `UNAVAILABLE`, `INTERNAL`, `UNKNOWN` and `DATA_LOSS`,
    /// streams that it resets, connections that break, and deadlines that it had its fair time for.
    /// `RESOURCE_EXHAUSTED`, `UNAVAILABLE` with a push-back, and a call refused unseen, is overload. All other
    /// codes are answers.
    pub fn usual(&self) -> Outcome {
        match (self.by, self.code) {
            (EndedBy::Connection, _) | (EndedBy::Reset, Code::Cancelled) => Outcome::Failure,
            (EndedBy::Refusal, _) | (_, Code::ResourceExhausted) => Outcome::Overload,
            (_, Code::Unavailable) if self.pushback().is_some() => Outcome::Overload,
            // The server keeps time, too, and may be the first to say that it is over.
            (_, Code::DeadlineExceeded) if !self.fair => Outcome::Ignore,
            (
                _,
                Code::Unavailable
                | Code::Internal
                | Code::Unknown
                | Code::DataLoss
                | Code::DeadlineExceeded,
            ) => Outcome::Failure,
            (_, Code::Cancelled) => Outcome::Ignore,
            _ => Outcome::Success,
        }
    }
}

impl fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            EndedBy::Status => {}
            EndedBy::Reset => return write!(f, "it reset the stream ({:?})", self.code),
            EndedBy::Refusal => return f.write_str("it refused the call"),
            EndedBy::Connection => return f.write_str("the connection broke"),
            EndedBy::Deadline => return f.write_str("no answer in time"),
        }
        write!(f, "{:?}", self.code)?;
        let message = self.metadata.and_then(|all| all.get("grpc-message"));
        let Some(message) = message.filter(|message| !message.is_empty()) else {
            return Ok(());
        };
        let message = percent_decode(message.as_bytes()).decode_utf8_lossy();
        write!(f, ": {message}")
    }
}

/// How long an overloaded server is spared when it does not say.
pub(crate) const PUSHBACK: Duration = Duration::from_secs(1);
/// No server is spared longer for one word of its own.
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code) -> Outcome {
        Ended::without_status(code, EndedBy::Status).usual()
    }

    #[test]
    fn a_mistake_of_the_caller_is_no_failure_of_the_server() {
        for code in [
            Code::Ok,
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
        ] {
            assert_eq!(of(code), Outcome::Success, "{code:?}");
        }
    }

    #[test]
    fn what_the_server_did_wrong_is_its_failure() {
        for code in [
            Code::Unavailable,
            Code::Internal,
            Code::Unknown,
            Code::DataLoss,
            Code::DeadlineExceeded,
        ] {
            assert_eq!(of(code), Outcome::Failure, "{code:?}");
        }
        for code in [Code::Cancelled, Code::Internal] {
            let ended = Ended::without_status(code, EndedBy::Reset);
            assert_eq!(ended.usual(), Outcome::Failure, "{code:?}");
        }
    }

    #[test]
    fn a_caller_in_a_hurry_says_nothing_about_the_server() {
        assert_eq!(of(Code::Cancelled), Outcome::Ignore);
        let late = Ended::without_status(Code::DeadlineExceeded, EndedBy::Deadline);
        assert_eq!(late.usual(), Outcome::Failure);
        assert_eq!(late.fair(false).usual(), Outcome::Ignore);
    }

    #[test]
    fn a_server_that_pushes_back_has_too_much_to_do() {
        let pushed = |text: &'static str| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-retry-pushback-ms", text.parse().unwrap());
            let ended = Ended::with(Code::Unavailable, &trailers);
            (ended.usual(), ended.pushback())
        };

        assert_eq!(of(Code::ResourceExhausted), Outcome::Overload);
        let (outcome, wait) = pushed("250");
        assert_eq!(outcome, Outcome::Overload);
        assert_eq!(wait, Some(Duration::from_millis(250)));
        assert_eq!(pushed("-1"), (Outcome::Overload, Some(PUSHBACK)));
        assert_eq!(pushed("99999999999").1, Some(LONGEST));
    }
}
