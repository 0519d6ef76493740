//! Moments as text: RFC 3339, written in UTC.
//!
//! By hand, because the forty lines of it cost less than a crate that knows every calendar.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serializer, de};

const DAY: i64 = 86_400;

/// `2026-11-21T16:29:33.250Z`. What lies outside the years 0 to 9999 is written as the nearest within.
pub(super) fn text(moment: SystemTime) -> String {
    let millis = match moment.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => {
            let millis = before.duration().as_nanos().div_ceil(1_000_000);
            i64::try_from(millis).map_or(i64::MIN, |millis| -millis)
        }
    };
    let millis = millis.clamp(EARLIEST, LATEST);
    let (seconds, millis) = (millis.div_euclid(1_000), millis.rem_euclid(1_000));
    let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(day);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The first and the last moment that the format has room for, in milliseconds.
const EARLIEST: i64 = -62_167_219_200_000;
const LATEST: i64 = 253_402_300_799_999;

/// Reads RFC 3339 with any offset; what is finer than a nanosecond is cut off.
pub(super) fn read(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at(at);
    let (time, fraction) = match time.split_once('.') {
        Some((time, fraction)) => (time, nanos(fraction)?),
        None => (time, 0),
    };
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    // A leap second is the one before it.
    let in_range = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let of_day = hour * 3_600 + minute * 60 + second.min(59);
    let seconds = days(year, month, day) * DAY + of_day - offset(zone)?;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let moment = match seconds {
        0.. => UNIX_EPOCH.checked_add(whole)?,
        _ => UNIX_EPOCH.checked_sub(whole)?,
    };
    moment.checked_add(Duration::from_nanos(fraction))
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, zone) = match zone.strip_prefix('-') {
        Some(zone) => (-1, zone),
        None => (1, zone.strip_prefix('+')?),
    };
    let [hours, minutes] = numbers(zone, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn nanos(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let kept = digits.get(..9).unwrap_or(digits);
    let missing = u32::try_from(9 - kept.len()).ok()?;
    Some(kept.parse::<u64>().ok()? * 10_u64.pow(missing))
}

/// So many numbers of so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970, counted in years that begin in March, so that the leap day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The reverse.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// For `serde(with)`.
pub(super) fn serialize<S: Serializer>(
    moment: &Option<SystemTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => to.serialize_str(&text(*moment)),
        None => to.serialize_none(),
    }
}

/// For `serde(with)`: none, `null`, the empty text and Go's year one are no moment.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<SystemTime>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    if text.is_empty() || text.starts_with("0001-01-01T") {
        return Ok(None);
    }
    let wrong = || de::Error::custom(format!("{text:.40?} is no moment in RFC 3339"));
    read(&text).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn moments_are_written_in_utc() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_278_573, "2026-11-21T16:29:33.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(text(at(seconds)), written);
        }
        assert_eq!(
            text(at(1) + Duration::from_micros(2_999)),
            "1970-01-01T00:00:01.002Z"
        );
        assert_eq!(
            text(UNIX_EPOCH - Duration::from_millis(1)),
            "1969-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn any_offset_and_any_fraction_is_read() {
        let noon = at(1_795_262_400);
        for text in [
            "2026-11-21T12:00:00Z",
            "2026-11-21t12:00:00z",
            "2026-11-21 12:00:00+00:00",
            "2026-11-21T20:00:00+08:00",
            "2026-11-20T23:30:00.000000000-12:30",
            "2026-11-21T12:00:00.0000000001Z",
        ] {
            assert_eq!(read(text), Some(noon), "{text}");
        }
        assert_eq!(read("2016-12-31T23:59:60Z"), read("2016-12-31T23:59:59Z"));
        assert_eq!(
            read("2026-11-21T12:00:00.25Z"),
            Some(noon + Duration::from_millis(250))
        );
        assert_eq!(
            read("1969-12-31T23:59:59.5Z"),
            Some(UNIX_EPOCH - Duration::from_millis(500))
        );
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-21",
            "2026-11-21T12:00:00",
            "2026-11-21T12:00Z",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "2026-11-31T12:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T12:60:00Z",
            "2026-11-21T12:00:61Z",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00.xZ",
            "2026-11-21T12:00:00+8",
            "2026-11-21T12:00:00Zé",
            "2026-11-21T12:00:00Z05:00",
            "2026-11-21T12:00:00z05:00",
            "+026-11-21T12:00:00Z",
            "26-11-21T12:00:00Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis in EARLIEST..=LATEST) {
            let away = Duration::from_millis(millis.unsigned_abs());
            let moment = if millis < 0 { UNIX_EPOCH - away } else { UNIX_EPOCH + away };

            prop_assert_eq!(read(&text(moment)), Some(moment));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9TtZz:. +-]{0,40}|\\PC{0,40}") {
            let _ = read(&text);
        }
    }
}
