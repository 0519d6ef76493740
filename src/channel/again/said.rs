//! What an attempt came to, as far as sending it again goes.

use std::{error::Error as _, fmt, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tonic::{Code, Status};

use crate::{
    Error, ErrorKind,
    channel::{ServedBy, body},
};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// The response has begun, or is OK: it is the call's.
    Answered,
    /// It failed, and another attempt may do better.
    Failed { code: Code, pushback: Pushback },
    /// It did not come within the time of one attempt.
    RanOut,
    /// It failed in a way that no other attempt changes.
    Final,
}

/// What the server wants of further attempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pushback {
    None,
    /// None before that.
    Wait(Duration),
    Never,
}

/// The source of a status: the attempt took longer than one may, and the call had time left.
#[derive(Debug)]
pub(in crate::channel) struct RanOut;

/// The source of a status: nobody could be called in all the time there was.
#[derive(Debug)]
pub(in crate::channel) struct Nobody;

impl Said {
    pub(super) fn of<B>(answer: &Result<Response<B>, Status>) -> Self {
        match answer {
            Ok(response) => Self::in_head(response),
            Err(status) => Self::in_status(status),
        }
    }

    fn in_head<B>(response: &Response<B>) -> Self {
        let code = match body::code(response.headers()) {
            Some(Code::Ok) => return Self::Answered,
            Some(code) => code,
            None if response.status() == StatusCode::OK => return Self::Answered,
            None => body::code_of(response.status()),
        };
        // An interceptor's word, and no server's.
        if response.extensions().get::<ServedBy>().is_none() {
            return Self::Final;
        }
        let pushback = Pushback::in_headers(response.headers());
        Self::Failed { code, pushback }
    }

    fn in_status(status: &Status) -> Self {
        if let Some(source) = status.source() {
            if source.is::<RanOut>() {
                return Self::RanOut;
            }
            let is_overload =
                |error: &Error| error.kind() == ErrorKind::Overloaded && !ServedBy::is_in(status);
            if source.is::<Nobody>() || source.downcast_ref().is_some_and(is_overload) {
                return Self::Final;
            }
        }
        let metadata = status.metadata().clone().into_headers();
        Self::Failed {
            code: status.code(),
            pushback: Pushback::in_headers(&metadata),
        }
    }
}

impl Pushback {
    fn in_headers(headers: &HeaderMap) -> Self {
        let mut all = headers.get_all("grpc-retry-pushback-ms").iter();
        match (all.next(), all.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::read(one).map_or(Self::Never, Self::Wait),
            (Some(_), Some(_)) => Self::Never,
        }
    }

    /// A number of 32 bits without needless zeros or signs.
    fn read(value: &HeaderValue) -> Option<Duration> {
        let text = value.to_str().ok()?;
        let n: i32 = text.parse().ok()?;
        let millis = u64::try_from(n).ok()?;
        (millis.to_string() == text).then(|| Duration::from_millis(millis))
    }
}

impl fmt::Display for RanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time of one attempt is over")
    }
}

impl std::error::Error for RanOut {}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody could be called")
    }
}

impl std::error::Error for Nobody {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushback(values: &[&'static str]) -> Pushback {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("grpc-retry-pushback-ms", HeaderValue::from_static(value));
        }
        Pushback::in_headers(&headers)
    }

    #[test]
    fn a_pushback_is_one_number_that_is_not_negative() {
        assert_eq!(pushback(&[]), Pushback::None);
        for (text, millis) in [("0", 0), ("250", 250), ("2147483647", 2_147_483_647)] {
            let wait = Pushback::Wait(Duration::from_millis(millis));
            assert_eq!(pushback(&[text]), wait, "{text}");
        }
    }

    #[test]
    fn a_pushback_that_is_negative_or_cannot_be_read_means_never() {
        for text in [
            "-1",
            "",
            "soon",
            "1.5",
            "007",
            "+5",
            "-0",
            "2147483648",
            "1 ",
        ] {
            assert_eq!(pushback(&[text]), Pushback::Never, "{text:?}");
        }
        assert_eq!(pushback(&["1", "2"]), Pushback::Never);
    }
}
