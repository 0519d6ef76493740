//! How much of its processors this process uses, where the system says so without much ado.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// Measured once a second at most, by whoever asks; half of what was measured before is kept.
#[derive(Debug, Default)]
pub(super) struct Cpu {
    measured: Mutex<Measured>,
    /// As a float, for whoever comes while it is measured.
    utilization: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// When, and what the process had used by then.
    last: Option<(Instant, Duration)>,
    utilization: f64,
}

const EVERY: Duration = Duration::from_secs(1);

impl Cpu {
    /// A part of all processors that it may use; 0 while nothing is known.
    pub(super) fn utilization(&self, now: Instant) -> f64 {
        if let Ok(mut measured) = self.measured.try_lock() {
            let due = |(then, _)| now.saturating_duration_since(then) >= EVERY;
            if measured.last.is_none_or(due) {
                *measured = measured.next(now, used());
                let utilization = measured.utilization.to_bits();
                self.utilization.store(utilization, Relaxed);
            }
        }
        f64::from_bits(self.utilization.load(Relaxed))
    }
}

impl Measured {
    fn next(self, now: Instant, used: Option<Duration>) -> Self {
        let Some(used) = used else {
            return Self {
                last: Some((now, Duration::ZERO)),
                utilization: 0.0,
            };
        };
        let last = Some((now, used));
        let Some((then, before)) = self.last else {
            return Self { last, ..self };
        };
        let time = now.saturating_duration_since(then).as_secs_f64();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let share = used.saturating_sub(before).as_secs_f64() / time.max(1e-3) / cores as f64;
        let utilization = match self.utilization {
            0.0 => share,
            before => (before + share) / 2.0,
        };
        Self { last, utilization }
    }
}

/// The time that the process has had a processor.
fn used() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    return read(&std::fs::read_to_string("/proc/self/stat").ok()?);
    #[cfg(not(target_os = "linux"))]
    None
}

/// Hundredths of seconds in fields 14 and 15; the second is a name in brackets, in which anything may stand.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn read(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    let ticks = next()?.checked_add(next()?)?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_used_stands_behind_its_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 9 0 0 0 123 45 7 8 20 0 1 0 99 1 2";

        assert_eq!(read(stat), Some(Duration::from_millis(1_680)));
        for wrong in ["", "42 (a) S 1", "42 (a) S 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn it_is_what_was_used_since_it_was_last_looked_by_all_processors() {
        let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
        let (now, second) = (Instant::now(), EVERY);
        let measured = Measured::default().next(now, Some(second));
        assert_eq!(measured.utilization, 0.0);

        let measured = measured.next(now + second * 2, Some(second * 2));
        assert!((measured.utilization - 0.5 / cores).abs() < 1e-9);
        let measured = measured.next(now + second * 3, Some(second * 2));

        assert!((measured.utilization - 0.25 / cores).abs() < 1e-9);
    }

    #[test]
    fn where_nobody_says_it_is_nothing() {
        let measured = Measured::default().next(Instant::now(), None);

        assert_eq!(measured.utilization, 0.0);
    }
}
