//! What an endpoint said of itself when it was last asked how busy it is.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::orca::Load;

/// The last answer, and how often it has been gone by. Each is a word by itself, of which one may be an
/// answer older than the next: the one after that settles it.
#[derive(Debug)]
pub(crate) struct Probed {
    known_since: Instant,
    in_flight: AtomicU32,
    /// Microseconds as floats.
    latency: AtomicU32,
    service: AtomicU32,
    /// Calls that were sent there since.
    used: AtomicU32,
    /// In microseconds since it is known, and one more: 0 is never.
    at: AtomicU64,
    /// It is being asked.
    asked: AtomicBool,
}

/// An answer that is not too old.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Said {
    /// Calls in flight, with those sent since.
    pub(crate) in_flight: f32,
    /// Microseconds; 0 where it does not know.
    pub(crate) latency: f32,
    pub(crate) service: f32,
}

/// What was said longer ago than that says nothing.
const FRESH: Duration = Duration::from_secs(1);

impl Probed {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            known_since: now,
            in_flight: AtomicU32::new(0),
            latency: AtomicU32::new(0),
            service: AtomicU32::new(0),
            used: AtomicU32::new(0),
            at: AtomicU64::new(0),
            asked: AtomicBool::new(false),
        }
    }

    /// Whether it may be asked, which it is not by two at a time.
    pub(crate) fn is_asked(&self) -> bool {
        !self.asked.swap(true, Relaxed)
    }

    /// It has answered, or will not.
    pub(crate) fn is_done(&self) {
        self.asked.store(false, Relaxed);
    }

    pub(crate) fn heard(&self, load: &Load, now: Instant) {
        let micros = |time: Duration| (time.as_secs_f32() * 1e6).to_bits();
        self.in_flight.store(load.in_flight, Relaxed);
        self.latency.store(micros(load.latency), Relaxed);
        self.service.store(micros(load.service), Relaxed);
        self.used.store(0, Relaxed);
        self.at.store(self.moment(now), Relaxed);
    }

    /// A call goes there by what it said.
    pub(crate) fn is_used(&self) {
        self.used.fetch_add(1, Relaxed);
    }

    /// What it said, if that is not too long ago.
    pub(crate) fn said(&self, now: Instant) -> Option<Said> {
        let at = self.at.load(Relaxed);
        let age = self.moment(now).saturating_sub(at);
        if at == 0 || age > FRESH.as_micros() as u64 {
            return None;
        }
        Some(Said {
            in_flight: self.in_flight.load(Relaxed) as f32 + self.used.load(Relaxed) as f32,
            latency: f32::from_bits(self.latency.load(Relaxed)),
            service: f32::from_bits(self.service.load(Relaxed)),
        })
    }

    fn moment(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.known_since);
        age.as_micros() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_a_second_and_grows_by_those_who_go_by_it() {
        let now = Instant::now();
        let probed = Probed::new(now);
        let said = |after| probed.said(now + Duration::from_millis(after));
        assert_eq!(said(0), None);

        probed.heard(
            &Load {
                in_flight: 3,
                latency: Duration::from_millis(20),
                service: Duration::from_millis(5),
            },
            now,
        );
        probed.is_used();

        let (latency, service) = (20_000.0, 5_000.0);
        let in_flight = 4.0;
        let whole = Said {
            in_flight,
            latency,
            service,
        };
        assert_eq!((said(1_000), said(1_001)), (Some(whole), None));
    }

    #[test]
    fn it_is_asked_by_one_at_a_time() {
        let probed = Probed::new(Instant::now());

        assert!(probed.is_asked() && !probed.is_asked());
        probed.is_done();

        assert!(probed.is_asked());
    }
}
