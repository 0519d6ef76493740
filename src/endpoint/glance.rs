//! What picks see of an endpoint at a glance: so little that what is seen of a hundred thousand stays at hand.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::Verdict;

/// A quarter of a cache line: to compare endpoints, policies look at this, and seldom at more.
///
/// Calls to two endpoints that begin or end at once on two processors may want the same line; but who picks would
/// have to wait for as many lines as there are endpoints if they did not share any.
#[derive(Debug)]
#[repr(align(16))]
pub(crate) struct Glance {
    verdict: Verdict,
    in_flight: AtomicU32,
    gist: AtomicU32,
}

const _: () = assert!(size_of::<Glance>() == 16, "four are to fit into a line");

/// How soon an endpoint answers, and how good its name is, as near as need be to compare two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gist(u32);

/// The bits of what is lost of a good name, beneath those of the latency.
const LOST: u32 = 8;
/// A float without its sign, and without these bits, has room above them: it is exact up to 131 milliseconds, and to
/// within one in 65,536 beyond.
const ROUGH: u32 = LOST - 1;
/// A good name in full.
const FULL: u32 = 256;

impl Glance {
    pub(super) fn new() -> Self {
        Self {
            verdict: Verdict::default(),
            in_flight: AtomicU32::new(0),
            gist: AtomicU32::new(Gist::new(0, FULL).0),
        }
    }

    /// It is another's, of whom nothing is known.
    pub(super) fn begin_anew(&self) {
        self.verdict.begin_anew();
        self.in_flight.store(0, Relaxed);
        self.tell(Gist::new(0, FULL));
    }

    /// What a policy makes of it; see [`Verdict`].
    #[inline]
    pub(crate) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Calls that have begun and not ended.
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// One more call begins. How many there were before.
    #[inline]
    pub(super) fn begins(&self) -> u32 {
        self.in_flight.fetch_add(1, Relaxed)
    }

    #[inline]
    pub(super) fn ends(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    #[inline]
    pub(crate) fn gist(&self) -> Gist {
        Gist(self.gist.load(Relaxed))
    }

    /// Of two that are told at once, either stays; the next will do.
    #[inline]
    pub(super) fn tell(&self, gist: Gist) {
        self.gist.store(gist.0, Relaxed);
    }
}

impl Gist {
    /// Of so many microseconds, and of a name that is so good, of 256; never nothing.
    #[inline]
    pub(super) fn new(micros: u32, name: u32) -> Self {
        let lost = FULL.saturating_sub(name).min(FULL - 1);
        Self((micros as f32).to_bits() >> ROUGH << LOST | lost)
    }

    /// Microseconds as [`Latency::now`](super::Latency::now) tells them.
    #[inline]
    pub(crate) fn latency(self) -> f32 {
        f32::from_bits(self.0 >> LOST << ROUGH)
    }

    /// As [`Conduct::name`](crate::health::Conduct::name) tells it.
    #[inline]
    pub(crate) fn name(self) -> u32 {
        FULL - self.0 % FULL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gist_tells_names_and_short_times_exactly_and_long_ones_nearly() {
        for micros in [0, 1, 2, 999, 1_000, 131_071, 131_072, 5_000_001, u32::MAX] {
            for name in 1..=256 {
                let gist = Gist::new(micros, name);

                let off = (gist.latency() - micros as f32).abs();
                assert!(off <= micros as f32 / 65_536.0, "{micros} {off}");
                assert!(off == 0.0 || micros > 131_072, "{micros} {off}");
                assert_eq!(gist.name(), name);
            }
        }
    }
}
