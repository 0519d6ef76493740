//! How busy a server is this moment, for those who ask before they call.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{Error, ErrorKind};

/// How busy a server is this moment: what it answers to a probe.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Calls that it is working on.
    pub in_flight: u32,
    /// How long those took lately, to the head of their answers, that came when there were about as many; nothing,
    /// where it does not know.
    pub latency: Duration,
    /// How long a call would take if there were no others; nothing, where it does not know.
    pub service: Duration,
}

/// Counts calls in flight, and remembers how long the last ones took. Without a lock.
#[derive(Debug)]
pub(super) struct Busy {
    in_flight: AtomicUsize,
    /// So many calls it can work on at once.
    concurrency: AtomicUsize,
    /// An average, in microseconds as a float; 0 while nothing is known.
    service: AtomicU32,
    next: AtomicUsize,
    lately: [Sample; KEPT],
}

/// A call that was answered: each a word by itself, of which a reader may see one and not yet the other.
#[derive(Debug, Default)]
struct Sample {
    /// How many were in flight when it came, and microseconds.
    took: AtomicU64,
    /// Milliseconds, and one more: 0 is never.
    at: AtomicU64,
}

const KEPT: usize = 32;
/// So many of those are looked at that came when there were about as many in flight.
const NEAREST: usize = 8;
/// What is older than so many milliseconds says nothing.
const FRESH: u64 = 1_000;
/// So much of an average is the last call.
const LAST: f32 = 0.1;

impl Busy {
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            in_flight: AtomicUsize::new(0),
            concurrency: AtomicUsize::new(cores),
            service: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            lately: Default::default(),
        }
    }

    pub(super) fn can_do(&self, at_once: usize) {
        self.concurrency.store(at_once.max(1), Relaxed);
    }

    /// A call begins; how many there are with it.
    pub(super) fn begins(&self) -> usize {
        self.in_flight.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn ends(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// One that came when there were so many was answered after so long.
    pub(super) fn answered(&self, among: usize, took: Duration, age: Duration) {
        let among = u32::try_from(among).unwrap_or(u32::MAX);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let sample = &self.lately[self.next.fetch_add(1, Relaxed) % KEPT];
        sample
            .took
            .store(u64::from(among) << 32 | u64::from(micros), Relaxed);
        sample.at.store(age.as_millis() as u64 + 1, Relaxed);
        let concurrency = self.concurrency.load(Relaxed) as f32;
        let alone = micros as f32 / (among as f32 / concurrency).max(1.0);
        let known = f32::from_bits(self.service.load(Relaxed));
        let average = match known {
            0.0 => alone,
            known => known + LAST * (alone - known),
        };
        self.service.store(average.to_bits(), Relaxed);
    }

    pub(super) fn load(&self, age: Duration) -> Load {
        let in_flight = u32::try_from(self.in_flight.load(Relaxed)).unwrap_or(u32::MAX);
        let service = f32::from_bits(self.service.load(Relaxed));
        Load {
            in_flight,
            latency: self.latency(in_flight, age),
            service: Duration::from_micros(service as u64),
        }
    }

    /// The median of those that came when there were about as many.
    fn latency(&self, in_flight: u32, age: Duration) -> Duration {
        let now = age.as_millis() as u64 + 1;
        let mut near = [(u32::MAX, u32::MAX); KEPT];
        let mut n = 0;
        for sample in &self.lately {
            let at = sample.at.load(Relaxed);
            if at > 0 && now.saturating_sub(at) <= FRESH {
                let took = sample.took.load(Relaxed);
                let among = (took >> 32) as u32;
                near[n] = (among.abs_diff(in_flight.saturating_add(1)), took as u32);
                n += 1;
            }
        }
        near[..n].sort_unstable();
        let nearest = &mut near[..n.min(NEAREST)];
        nearest.sort_unstable_by_key(|(_, took)| *took);
        let median = nearest.get(nearest.len() / 2).map_or(0, |(_, took)| *took);
        Duration::from_micros(median.into())
    }
}

/// Calls in flight, and microseconds.
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [latency, service] = [self.latency, self.service].map(|time| time.as_micros());
        write!(f, "{} {latency} {service}", self.in_flight)
    }
}

impl FromStr for Load {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut words = text.split(' ').map(|word| word.parse::<u32>().ok());
        let mut next = || words.next().flatten();
        let load = (|| {
            Some(Self {
                in_flight: next()?,
                latency: Duration::from_micros(next()?.into()),
                service: Duration::from_micros(next()?.into()),
            })
        })();
        load.ok_or_else(|| {
            let what = format!("read {text:?} as a server's load");
            Error::new(ErrorKind::Decode, what).because("it is three whole numbers")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn the_latency_is_that_of_those_who_came_when_there_were_as_many() {
        let busy = Busy::new();
        for n in 0..16 {
            busy.answered(1, MILLI * 10, MILLI * n);
            busy.answered(9, MILLI * 90, MILLI * n);
        }

        let idle = busy.load(MILLI * 20);
        (0..8).for_each(|_| _ = busy.begins());
        let full = busy.load(MILLI * 20);
        let later = busy.load(MILLI * 1_100);

        assert_eq!((idle.in_flight, idle.latency), (0, MILLI * 10));
        assert_eq!((full.in_flight, full.latency), (8, MILLI * 90));
        assert_eq!(later.latency, Duration::ZERO);
    }

    #[test]
    fn what_a_call_takes_alone_is_told_from_what_it_takes_among_others() {
        let busy = Busy::new();
        busy.can_do(4);

        for _ in 0..100 {
            busy.answered(8, MILLI * 20, MILLI);
            busy.answered(2, MILLI * 10, MILLI);
        }

        let alone = busy.load(MILLI).service;
        assert!(alone.abs_diff(MILLI * 10) < MILLI / 10, "{alone:?}");
    }

    #[test]
    fn a_load_is_read_as_it_is_written_and_nothing_else() {
        let load = Load {
            in_flight: 3,
            latency: MILLI * 2,
            service: MILLI,
        };

        assert_eq!(load.to_string(), "3 2000 1000");
        assert_eq!("3 2000 1000".parse::<Load>().unwrap(), load);
        for wrong in ["", "3", "3 4", "a b c", "3 -1 2", "1 2 99999999999"] {
            assert!(wrong.parse::<Load>().is_err(), "{wrong}");
        }
    }
}
