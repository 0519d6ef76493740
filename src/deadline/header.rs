//! How long a call may take, as it is told from one server to the next.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tonic::Status;

/// The header that tells how long a call may take.
pub(crate) static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The greatest number that the header can hold: eight digits.
const MOST: u128 = 99_999_999;

/// Reads the header: at most eight digits and a unit.
pub(crate) fn read(value: &HeaderValue) -> Result<Duration, Status> {
    let refuse = || {
        Status::invalid_argument(format!(
            "grpc-timeout {value:?} is not up to eight digits and a unit"
        ))
    };
    let text = value.to_str().map_err(|_| refuse())?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(refuse)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err(refuse());
    }
    let n: u64 = digits.parse().map_err(|_| refuse())?;
    match unit {
        "H" => Ok(Duration::from_secs(n * 3600)),
        "M" => Ok(Duration::from_secs(n * 60)),
        "S" => Ok(Duration::from_secs(n)),
        "m" => Ok(Duration::from_millis(n)),
        "u" => Ok(Duration::from_micros(n)),
        "n" => Ok(Duration::from_nanos(n)),
        _ => Err(refuse()),
    }
}

/// Writes the header in the finest unit that fits.
pub(crate) fn write(limit: Duration) -> HeaderValue {
    let units = [
        (limit.as_nanos(), 'n'),
        (limit.as_micros(), 'u'),
        (limit.as_millis(), 'm'),
        (u128::from(limit.as_secs()), 'S'),
        (u128::from(limit.as_secs() / 60), 'M'),
    ];
    let fits = units.into_iter().find(|(n, _)| *n <= MOST);
    let (n, unit) = fits.unwrap_or_else(|| (u128::from(limit.as_secs() / 3600).min(MOST), 'H'));
    HeaderValue::try_from(format!("{n}{unit}")).unwrap_or(HeaderValue::from_static("99999999H"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_read_and_written() {
        for (text, limit) in [
            ("300m", Duration::from_millis(300)),
            ("1S", Duration::from_secs(1)),
            ("2H", Duration::from_secs(7200)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(read(&HeaderValue::from_static(text)).unwrap(), limit);
            assert_eq!(read(&write(limit)).unwrap(), limit);
        }
        assert_eq!(write(Duration::MAX), "99999999H");
    }

    #[test]
    fn a_time_limit_that_is_none_is_refused() {
        for text in ["", "S", "10", "-1S", "123456789S", "1.5S", "1X", "é"] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert!(read(&value).is_err(), "{text:?}");
        }
    }
}
