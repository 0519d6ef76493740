//! A duration as protobuf writes it in JSON: `1.5s`.

use std::time::Duration;

/// The longest that protobuf's may be: ten thousand years.
const LONGEST: u64 = 315_576_000_000;

/// Reads one: a decimal number of seconds with up to nine places, and an `s`.
pub(super) fn read(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "a duration is seconds and an `s`, as \"1.5s\"";
    let number = text.strip_suffix('s').ok_or(FORM)?;
    if number.starts_with('-') {
        return Err("a duration here is not negative");
    }
    let (whole, parts) = number.split_once('.').unwrap_or((number, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // gRPC's own documents write `.1s`.
    if !are_digits(whole) || !are_digits(parts) || whole.len() + parts.len() == 0 {
        return Err(FORM);
    }
    if parts.len() > 9 {
        return Err("a duration has nine places after the point at most");
    }
    let seconds = match whole {
        "" => 0,
        _ => whole.parse().unwrap_or(u64::MAX),
    };
    if seconds > LONGEST {
        return Err("a duration has 315576000000 seconds at most");
    }
    let nanos = format!("{parts:0<9}").parse().map_err(|_| FORM)?;
    Ok(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_protobuf_writes_them() {
        for (text, duration) in [
            ("0s", Duration::ZERO),
            ("1s", Duration::from_secs(1)),
            ("1.5s", Duration::from_millis(1500)),
            (".1s", Duration::from_millis(100)),
            ("1.s", Duration::from_secs(1)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("1.000340012s", Duration::new(1, 340_012)),
            ("315576000000s", Duration::from_secs(LONGEST)),
        ] {
            assert_eq!(read(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "s",
            ".s",
            "1",
            "1.5",
            "1ms",
            "1.5.1s",
            "+1s",
            "-1s",
            "1e3s",
            " 1s",
            "1 s",
            "1.0000000001s",
            "315576000001s",
            "99999999999999999999999s",
            "١s",
            "1S",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
