//! How much a server may send before it is read.

use std::time::Duration;

use tokio::time::Instant;

use crate::Error;

/// How much a server may send before the caller has read it: HTTP/2's flow control windows.
///
/// A window bounds the memory that a slow reader costs, and the speed: so much in each round trip. With
/// the default, 1 MiB for a stream and 2 MiB for all streams of a connection, a stream can have 2 GB/s
/// where a round trip takes half a millisecond, and 20 MB/s where it takes 50 ms.
///
/// ```
/// use tonic_fleet::transport::Windows;
///
/// let roomy = Windows::fixed(8 << 20, 16 << 20);
/// let learning = Windows::adaptive();
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Windows {
    pub(super) stream: u32,
    pub(super) connection: u32,
    pub(super) adaptive: bool,
}

impl Windows {
    /// This many bytes for a stream, and for all streams of a connection together.
    #[must_use]
    pub const fn fixed(stream: u32, connection: u32) -> Self {
        Self {
            stream,
            connection,
            adaptive: false,
        }
    }

    /// From 64 KiB up to 16 MiB, as much as was on its way at once so far, twice over.
    ///
    /// For servers that are far away, and for callers who do not know how far. A connection that brings
    /// data pings now and then to learn how long a round trip is, so a large answer over a new connection
    /// is slower than with a window of its size: it takes a few round trips to grow. It never shrinks.
    #[must_use]
    pub const fn adaptive() -> Self {
        Self {
            stream: LEAST,
            connection: LEAST,
            adaptive: true,
        }
    }

    /// Refuses what HTTP/2 cannot express, or what would waste a part of it.
    pub(crate) fn check(self) -> Result<(), Error> {
        let Self {
            stream, connection, ..
        } = self;
        let why = if stream == 0 {
            "0 bytes for a stream: no answer could ever come".to_owned()
        } else if stream.max(connection) > LIMIT {
            format!("HTTP/2 allows no window of more than {LIMIT} bytes")
        } else if connection < LEAST {
            format!("HTTP/2 gives a connection {LEAST} bytes, and they cannot be taken back")
        } else if connection < stream {
            "less for a connection than for one of its streams".to_owned()
        } else {
            return Ok(());
        };
        let what = format!("windows of {stream} and {connection} bytes: {why}");
        Err(Error::config(what))
    }

    /// The most that a connection may come to have under way.
    pub(super) fn most(self) -> u32 {
        if self.adaptive { MOST } else { self.connection }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self::fixed(1 << 20, 2 << 20)
    }
}

/// What HTTP/2 begins with.
const LEAST: u32 = 65_535;

/// The greatest that HTTP/2 can express.
const LIMIT: u32 = (1 << 31) - 1;

/// More than this the kernel's own buffers would not carry.
const MOST: u32 = 16 << 20;

/// How much is on its way at once, by how much comes in the time that a ping takes.
///
/// It is fed with counts and times, and does no waiting of its own.
#[derive(Debug)]
pub(super) struct Estimate {
    window: u32,
    /// Bytes a second, the most so far.
    fastest: f64,
    round_trip: Option<Duration>,
    /// When a ping was sent, and how much had come by then.
    asked: Option<(Instant, usize)>,
    /// When to ask again, and how long to wait after that: longer while nothing changes.
    next: Option<Instant>,
    gap: Duration,
}

impl Estimate {
    /// So soon it asks again while the window grows, and so rarely when it has not for long.
    const SOON: Duration = Duration::from_millis(10);
    const RARELY: Duration = Duration::from_secs(10);

    pub(super) fn new() -> Self {
        Self {
            window: LEAST,
            fastest: 0.0,
            round_trip: None,
            asked: None,
            next: None,
            gap: Self::SOON,
        }
    }

    /// Something came, and this much did in all. Whether to ping now.
    pub(super) fn wants_ping(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        self.window < MOST && self.asked.is_none() && due
    }

    /// A ping was sent now.
    pub(super) fn asked(&mut self, bytes: usize, now: Instant) {
        self.asked = Some((now, bytes));
    }

    /// A ping was answered, and this much had come by now. A larger window, if it is time for one.
    pub(super) fn answered(&mut self, bytes: usize, now: Instant) -> Option<u32> {
        // It may be one of the keep-alive's.
        let (asked, before) = self.asked.take()?;
        let took = now.saturating_duration_since(asked);
        let round_trip = self.round_trip.map_or(took, |mean| (mean * 7 + took) / 8);
        self.round_trip = Some(round_trip);
        let came = bytes.wrapping_sub(before);
        let speed = came as f64 / round_trip.as_secs_f64().max(1e-6);
        // Full, or nearly, and not for want of a faster sender.
        let grows = came >= self.window as usize / 3 * 2 && speed >= self.fastest;
        self.fastest = self.fastest.max(speed);
        self.gap = if grows {
            Self::SOON
        } else {
            (self.gap * 2).min(Self::RARELY)
        };
        self.next = Some(now + self.gap);
        if !grows {
            return None;
        }
        self.window = u32::try_from(came.saturating_mul(2)).map_or(MOST, |twice| twice.min(MOST));
        Some(self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(50);

    /// A path that carries so much at once, as long as the window lets it: the windows it is given.
    fn learn(mut on_its_way: impl FnMut() -> u32, pings: usize) -> Vec<u32> {
        let mut estimate = Estimate::new();
        let mut now = Instant::now();
        let mut bytes: usize = usize::MAX - 100_000;
        let mut windows = Vec::new();
        for _ in 0..pings {
            while !estimate.wants_ping(now) {
                now += Duration::from_millis(1);
            }
            estimate.asked(bytes, now);
            now += ROUND_TRIP;
            let window = windows.last().copied().unwrap_or(LEAST);
            bytes = bytes.wrapping_add(on_its_way().min(window) as usize);
            windows.extend(estimate.answered(bytes, now));
        }
        windows
    }

    #[test]
    fn the_window_grows_until_it_is_twice_what_is_on_its_way() {
        let windows = learn(|| 1_000_000, 20);

        assert_eq!(windows, [131_070, 262_140, 524_280, 1_048_560, 2_000_000]);
    }

    #[test]
    fn the_window_has_a_limit_and_then_nobody_asks() {
        let mut estimate = Estimate::new();
        let now = Instant::now();

        estimate.asked(0, now);
        let window = estimate.answered(1 << 30, now + ROUND_TRIP);

        assert_eq!(window, Some(MOST));
        assert!(!estimate.wants_ping(now + Estimate::RARELY * 2));
    }

    #[test]
    fn small_answers_leave_it_as_it_is_and_are_asked_about_less_and_less() {
        let mut estimate = Estimate::new();
        let (start, mut now, mut pings) = (Instant::now(), Instant::now(), 0);

        while now < start + Duration::from_secs(60) {
            if estimate.wants_ping(now) {
                estimate.asked(0, now);
                assert_eq!(estimate.answered(1000, now + ROUND_TRIP), None);
                pings += 1;
            }
            now += Duration::from_millis(10);
        }

        assert!(pings <= 16, "{pings} pings in a minute");
    }

    #[test]
    fn a_longer_path_alone_is_no_reason_to_grow() {
        let mut estimate = Estimate::new();
        let now = Instant::now();
        estimate.asked(0, now);
        assert!(estimate.answered(60_000, now + ROUND_TRIP).is_some());

        estimate.asked(0, now);
        let slower = estimate.answered(110_000, now + ROUND_TRIP * 100);

        assert_eq!(slower, None, "a queue has grown, not the path's capacity");
    }

    #[test]
    fn the_pong_of_another_ping_says_nothing() {
        assert_eq!(Estimate::new().answered(1 << 20, Instant::now()), None);
    }

    #[test]
    fn windows_that_make_no_sense_are_refused() {
        for (stream, connection) in [
            (0, 1 << 20),
            (1 << 31, 1 << 31),
            (1, 1000),
            (1 << 20, 1 << 19),
        ] {
            let refused = Windows::fixed(stream, connection).check().unwrap_err();
            assert!(refused.to_string().contains("windows"), "{refused}");
        }
        for fine in [
            Windows::default(),
            Windows::adaptive(),
            Windows::fixed(1, LEAST),
            Windows::fixed(LIMIT, LIMIT),
        ] {
            fine.check().unwrap();
        }
    }
}
