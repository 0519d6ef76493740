//! What a failure of an etcd call means, and what to do about it.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use etcd_client::Error as EtcdError;
use tonic::{Code, Status};

use super::line::Unsent;
use crate::{Error, ErrorKind, error::with_causes};

/// What to do after a failed call, beside telling.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Remedy {
    /// Nothing about the member is wrong: the answer is an answer.
    None,
    /// This member does not serve: go to the next one, over a new connection.
    Rotate,
    /// The token is no longer good: a new client, which asks for a new one.
    Renew,
    /// The history that was asked for is gone: list.
    Relist,
    /// This member does not have the history that we know: go to the next one, and let the cluster say whether
    /// it has.
    Check,
}

/// A failed call, understood.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) remedy: Remedy,
    /// Whether the request certainly never left, so that even a write may be tried again.
    pub(crate) unsent: bool,
    /// Which member it was; empty while nobody has said.
    pub(crate) member: Arc<str>,
    words: String,
}

impl Failure {
    fn new(kind: ErrorKind, remedy: Remedy, words: String) -> Self {
        Self {
            kind,
            remedy,
            unsent: false,
            member: "".into(),
            words,
        }
    }

    /// Nothing was sent.
    fn unsent(self) -> Self {
        Self {
            unsent: true,
            ..self
        }
    }

    /// The same failure, of this member.
    pub(crate) fn of(self, member: &Arc<str>) -> Self {
        Self {
            member: Arc::clone(member),
            ..self
        }
    }

    /// What the other side, or the way there, said.
    pub(crate) fn words(&self) -> &str {
        &self.words
    }

    /// No answer came in time; what was asked for may have happened.
    pub(crate) fn timeout(limit: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            Remedy::Rotate,
            format!("no answer within {limit:?}"),
        )
    }

    /// The other side ended a stream without a word.
    pub(crate) fn ended() -> Self {
        Self::new(
            ErrorKind::Unavailable,
            Remedy::Rotate,
            "the stream ended".into(),
        )
    }

    /// A member's history does not reach as far as what we know.
    pub(crate) fn behind() -> Self {
        Self::new(
            ErrorKind::Unavailable,
            Remedy::Check,
            "the history went backwards".into(),
        )
    }

    /// A watch was refused or ended in-band.
    ///
    /// After a compaction there is no reason, only a revision; servers of 3.5.1 and before spell an
    /// expired token as a denied permission.
    pub(crate) fn canceled(reason: &str, compact_revision: i64) -> Self {
        let (kind, remedy) = match reason {
            _ if compact_revision != 0 => (ErrorKind::Unavailable, Remedy::Relist),
            r if r.contains("compacted") => (ErrorKind::Unavailable, Remedy::Relist),
            r if r.contains("future revision") => (ErrorKind::Unavailable, Remedy::Check),
            r if r.contains("auth token") || r.contains("auth store is old") => {
                (ErrorKind::Unavailable, Remedy::Renew)
            }
            r if r.contains("ermission denied") || r.contains("PermissionDenied") => {
                (ErrorKind::Denied, Remedy::Renew)
            }
            r if r.contains("user name is empty") => (ErrorKind::Denied, Remedy::Renew),
            _ => (ErrorKind::Unavailable, Remedy::Rotate),
        };
        let words = match reason {
            "" => format!("the watch was canceled, history before {compact_revision} is gone"),
            reason => format!("the watch was canceled: {reason}"),
        };
        Self::new(kind, remedy, words)
    }

    /// This failure as an [`Error`], with what was being done to what.
    pub(crate) fn error(self, doing: impl fmt::Display) -> Error {
        let doing = match &*self.member {
            "" => doing.to_string(),
            member => format!("{doing} on etcd {member}"),
        };
        Error::new(self.kind, doing).because(self.words)
    }
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::GRpcStatus(status) => {
                if let Some(Unsent(error)) = never_sent(&status) {
                    return Self::new(error.kind(), Remedy::Rotate, error.chain()).unsent();
                }
                let (kind, remedy, unsent) = classify(&status);
                Self {
                    unsent,
                    ..Self::new(kind, remedy, chain(&status))
                }
            }
            EtcdError::InvalidArgs(words) => {
                Self::new(ErrorKind::Config, Remedy::None, words).unsent()
            }
            EtcdError::LeaseKeepAliveError(words) if words.contains("not found") => {
                Self::new(ErrorKind::Lost, Remedy::None, words)
            }
            other => Self::new(ErrorKind::Unavailable, Remedy::Rotate, other.to_string()),
        }
    }
}

/// The meaning of a status; the words are those that etcd 3.4 to 3.6 and tonic were seen to use.
fn classify(status: &Status) -> (ErrorKind, Remedy, bool) {
    let words = status.message();
    match status.code() {
        Code::Unauthenticated => (ErrorKind::Unavailable, Remedy::Renew, true),
        Code::PermissionDenied => (ErrorKind::Denied, Remedy::None, true),
        Code::InvalidArgument if words.contains("auth store is old") => {
            (ErrorKind::Unavailable, Remedy::Renew, true)
        }
        Code::InvalidArgument
            if words.contains("authentication failed") || words.contains("user name is empty") =>
        {
            (ErrorKind::Denied, Remedy::Renew, true)
        }
        // The other side of the same mistake: credentials for a cluster that asks for none.
        Code::FailedPrecondition if words.contains("authentication is not enabled") => {
            (ErrorKind::Denied, Remedy::Renew, true)
        }
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => {
            (ErrorKind::Config, Remedy::None, true)
        }
        Code::ResourceExhausted if words.contains("space exceeded") => {
            (ErrorKind::NoSpace, Remedy::None, true)
        }
        // gRPC refuses what etcd would not even look at.
        Code::ResourceExhausted if words.contains("received message larger than max") => {
            (ErrorKind::Config, Remedy::None, true)
        }
        Code::ResourceExhausted => (ErrorKind::Unavailable, Remedy::None, true),
        Code::NotFound => (ErrorKind::Lost, Remedy::None, true),
        Code::OutOfRange if words.contains("revision") => {
            (ErrorKind::Unavailable, Remedy::Relist, true)
        }
        Code::OutOfRange => (ErrorKind::Decode, Remedy::None, false),
        Code::Unknown if words.contains("invalid auth token") => {
            (ErrorKind::Unavailable, Remedy::Renew, true)
        }
        Code::DeadlineExceeded => (ErrorKind::Timeout, Remedy::Rotate, false),
        _ => (ErrorKind::Unavailable, Remedy::Rotate, false),
    }
}

/// Why it certainly never was processed, if it was not.
fn never_sent(status: &Status) -> Option<&Unsent> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(unsent) = error.downcast_ref() {
            return Some(unsent);
        }
        cause = error.source();
    }
    None
}

/// What a status says, and its causes, in one line.
fn chain(status: &Status) -> String {
    let line = match status.message() {
        "" => status.code().description(),
        words => words,
    };
    with_causes(line.to_owned(), status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, words: &str) -> Failure {
        EtcdError::GRpcStatus(Status::new(code, words)).into()
    }

    #[test]
    fn what_etcd_was_seen_to_say_is_understood() {
        for (code, words, kind, remedy) in [
            (
                Code::Unavailable,
                "etcdserver: no leader",
                ErrorKind::Unavailable,
                Remedy::Rotate,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                ErrorKind::Unavailable,
                Remedy::Rotate,
            ),
            (
                Code::Unknown,
                "h2 protocol error: error reading a body from connection",
                ErrorKind::Unavailable,
                Remedy::Rotate,
            ),
            (
                Code::Cancelled,
                "Timeout expired",
                ErrorKind::Unavailable,
                Remedy::Rotate,
            ),
            (
                Code::DeadlineExceeded,
                "context deadline exceeded",
                ErrorKind::Timeout,
                Remedy::Rotate,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::NoSpace,
                Remedy::None,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                ErrorKind::Unavailable,
                Remedy::None,
            ),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (3145800 vs. 2097152)",
                ErrorKind::Config,
                Remedy::None,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                ErrorKind::Unavailable,
                Remedy::Relist,
            ),
            (
                Code::OutOfRange,
                "Error, decoded message length too large",
                ErrorKind::Decode,
                Remedy::None,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                ErrorKind::Lost,
                Remedy::None,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                ErrorKind::Unavailable,
                Remedy::Renew,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                ErrorKind::Unavailable,
                Remedy::Renew,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                ErrorKind::Denied,
                Remedy::Renew,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                ErrorKind::Denied,
                Remedy::None,
            ),
        ] {
            let failure = of(code, words);

            assert_eq!((failure.kind, failure.remedy), (kind, remedy), "{words}");
        }
    }

    #[test]
    fn a_canceled_watch_says_why_in_many_ways() {
        for (reason, compacted, remedy) in [
            ("", 17, Remedy::Relist),
            (
                "etcdserver: mvcc: required revision has been compacted",
                0,
                Remedy::Relist,
            ),
            (
                "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                0,
                Remedy::Renew,
            ),
            (
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                0,
                Remedy::Renew,
            ),
            ("duplicate watch ID", 0, Remedy::Rotate),
        ] {
            assert_eq!(
                Failure::canceled(reason, compacted).remedy,
                remedy,
                "{reason}"
            );
        }
    }

    #[test]
    fn a_write_is_only_called_unsent_when_no_connection_was_there() {
        let mut status = Status::unavailable("no");
        let refused = Error::new(ErrorKind::Denied, "TLS with 10.0.0.5:2379");
        status.set_source(Arc::new(Unsent(refused)));
        let denied = Failure::from(EtcdError::GRpcStatus(status));

        assert!(denied.unsent && denied.kind == ErrorKind::Denied);
        assert!(!of(Code::Unavailable, "etcdserver: request timed out").unsent);
        assert!(!of(Code::Unknown, "transport error").unsent);
        assert!(!Failure::timeout(Duration::from_secs(2)).unsent);
    }

    #[test]
    fn an_error_says_what_was_done_and_why_it_failed() {
        let error = of(Code::Unavailable, "etcdserver: no leader").error("list /services/greeter/");

        assert_eq!(
            error.chain(),
            "list /services/greeter/: etcdserver: no leader"
        );
    }
}
