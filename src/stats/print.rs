//! The table that is shown of it all.

use std::{fmt, time::Duration};

use super::{Attempts, Ended, Lately, Stats, Window};
use crate::method;

pub(super) fn table(stats: &Stats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let calls = &stats.calls;
    let age = stats.age.as_secs_f64();
    write!(
        f,
        "{}: {} calls in {age:.1} s, {} in flight",
        stats.service, calls.started, calls.in_flight
    )?;
    ended(&calls.ended, f)?;
    lately(&calls.lately, f)?;
    for of in &stats.methods {
        write!(f, "\n  {:<40} calls {}", of.path, of.calls.started)?;
        ended(&of.calls.ended, f)?;
        again(&of.attempts, f)?;
        for (name, time) in [
            ("p50", of.answered.p50),
            ("p95", of.answered.p95),
            ("p99", of.answered.p99),
        ] {
            if let Some(time) = time {
                write!(f, "  {name} {}", short(time))?;
            }
        }
    }
    for of in &stats.endpoints {
        write!(
            f,
            "\n  {:<40} attempts {}",
            of.id.as_str(),
            of.attempts.started
        )?;
        ended(&of.attempts.ended, f)?;
        again(&of.attempts, f)?;
        if let Some(mean) = of.attempts.ended.took().mean() {
            write!(f, "  mean {}", short(Duration::from_secs_f64(mean)))?;
        }
    }
    Ok(())
}

/// What is none of is left out.
fn some(words: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (word, n) in words.iter().filter(|(_, n)| *n > 0) {
        write!(f, "  {word} {n}")?;
    }
    Ok(())
}

fn ended(ended: &Ended, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let ways = [
        ("succeeded", ended.succeeded),
        ("failed", ended.failed),
        ("timed out", ended.timed_out),
        ("cancelled", ended.cancelled),
    ];
    some(&ways, f)?;
    let others = ended.codes.iter().filter(|of| of.code != tonic::Code::Ok);
    let others: Vec<_> = others
        .map(|of| format!("{} {}", method::name(of.code), of.took.count()))
        .collect();
    if !others.is_empty() {
        write!(f, "  ({})", others.join(", "))?;
    }
    Ok(())
}

fn again(attempts: &Attempts, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let words = [
        ("not sent", attempts.not_sent),
        ("refused", attempts.refused),
        ("sent again", attempts.again.transparent),
        ("retried", attempts.again.configured),
        ("hedged", attempts.again.hedged),
    ];
    some(&words, f)
}

fn lately(lately: &Lately, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let windows = [
        ("1 s", &lately.second),
        ("10 s", &lately.ten_seconds),
        ("60 s", &lately.minute),
    ];
    for (name, window) in windows {
        write!(f, "\n  last {name:<4}")?;
        rates(window, f)?;
    }
    Ok(())
}

fn rates(window: &Window, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "  {:.1} a second", window.per_second())?;
    let rates = [
        ("succeeded", window.success_rate()),
        ("failed", window.failure_rate()),
        ("timed out", window.timeout_rate()),
    ];
    for (word, rate) in rates {
        if let Some(rate) = rate {
            write!(f, "  {:.2} % {word}", rate * 100.0)?;
        }
    }
    Ok(())
}

fn short(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}
