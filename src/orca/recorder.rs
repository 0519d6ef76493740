//! What a server has to say of its load.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Layer, Load, Report, cpu::Cpu, load::Busy, rate::Rate};

/// What a server has to say of its load, counted and told. A cheap handle: clones are the same.
///
/// Calls and failures a second are counted by its [layer](Self::layer), over the last ten seconds. How much of its
/// processors the process uses is measured on Linux, once a second; elsewhere it is to be told. What a method is
/// told that is no number from 0 up takes back what it was told before.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    began: Instant,
    calls: Rate,
    failures: Rate,
    busy: Busy,
    cpu: Cpu,
    told_cpu: Told,
    memory: Told,
    application: Told,
    more: Mutex<More>,
}

#[derive(Default)]
struct More {
    utilization: BTreeMap<String, f64>,
    named: BTreeMap<String, f64>,
}

/// A number, if it was told.
struct Told(AtomicU64);

impl Recorder {
    /// With nothing counted or told.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            began: Instant::now(),
            calls: Rate::default(),
            failures: Rate::default(),
            busy: Busy::new(),
            cpu: Cpu::default(),
            told_cpu: Told::nothing(),
            memory: Told::nothing(),
            application: Told::nothing(),
            more: Mutex::default(),
        }))
    }

    /// How much the server is used by its own measure: 1 is as much as it can do. It is believed before the
    /// processor.
    pub fn application_utilization(&self, utilization: f64) {
        self.0.application.tell(utilization);
    }

    /// How much of its processors the server uses, in place of what is measured: 1 is all of them.
    pub fn cpu_utilization(&self, utilization: f64) {
        self.0.told_cpu.tell(utilization);
    }

    /// How much of its memory the server uses, from 0 to 1.
    pub fn mem_utilization(&self, utilization: f64) {
        self.0.memory.tell(utilization);
    }

    /// How much of something else the server uses, from 0 to 1: `utilization.NAME` to those who go by it.
    pub fn utilization(&self, name: impl Into<String>, utilization: f64) {
        self.more(|more| tell(&mut more.utilization, name.into(), utilization));
    }

    /// Something else there is to say: `named_metrics.NAME` to those who go by it.
    pub fn named_metric(&self, name: impl Into<String>, value: f64) {
        self.more(|more| tell(&mut more.named, name.into(), value));
    }

    /// All of it, as it is now.
    pub fn report(&self) -> Report {
        let (inner, now) = (&*self.0, Instant::now());
        let age = self.age(now);
        let cpu = inner.told_cpu.get();
        let (utilization, named_metrics) =
            self.more(|more| (more.utilization.clone(), more.named.clone()));
        Report {
            cpu_utilization: cpu.unwrap_or_else(|| inner.cpu.utilization(now)),
            mem_utilization: inner.memory.get().unwrap_or(0.0),
            utilization,
            rps_fractional: inner.calls.per_second(age),
            eps: inner.failures.per_second(age),
            named_metrics,
            application_utilization: inner.application.get().unwrap_or(0.0),
            ..Report::default()
        }
    }

    /// How many calls the server can work on at once: what calls take longer when there are more is put down to
    /// that. As many as there are processors, unless told.
    pub fn concurrency(&self, calls: usize) {
        self.0.busy.can_do(calls);
    }

    /// How busy it is this moment, which is what those are answered who ask before they call.
    pub fn load(&self) -> Load {
        self.0.busy.load(self.age(Instant::now()))
    }

    /// Counts calls, reports in the trailers of each, and answers those who ask before they call.
    pub fn layer(&self) -> Layer {
        Layer::of(self.clone())
    }

    /// The service that reports on a stream, for those who ask for that: `xds.service.orca.v3.OpenRcaService`.
    #[cfg(feature = "server")]
    pub fn service(&self) -> super::OpenRca {
        super::OpenRca::of(self.clone())
    }

    /// A call has ended.
    pub(super) fn count(&self, failed: bool) {
        let age = self.age(Instant::now());
        self.0.calls.count(age);
        if failed {
            self.0.failures.count(age);
        }
    }

    /// A call begins; how many there are with it.
    pub(super) fn begins(&self) -> usize {
        self.0.busy.begins()
    }

    /// It was answered, having come when there were so many.
    pub(super) fn answered(&self, among: usize, began: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(began);
        self.0.busy.answered(among, took, self.age(now));
    }

    pub(super) fn ends(&self) {
        self.0.busy.ends();
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0.began)
    }

    fn more<T>(&self, with: impl FnOnce(&mut More) -> T) -> T {
        // Each write is whole.
        with(&mut self.0.more.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.report()).finish()
    }
}

fn tell(map: &mut BTreeMap<String, f64>, name: String, value: f64) {
    if is_number(value) {
        map.insert(name, value);
    } else {
        map.remove(&name);
    }
}

fn is_number(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

impl Told {
    fn nothing() -> Self {
        Self(AtomicU64::new(f64::to_bits(f64::NAN)))
    }

    fn tell(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Relaxed))).filter(|value| is_number(*value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_counted_and_told_is_reported() {
        let recorder = Recorder::new();
        for n in 0..100 {
            recorder.count(n % 10 == 0);
            tokio::time::advance(Duration::from_millis(20)).await;
        }

        recorder.application_utilization(0.7);
        recorder.cpu_utilization(0.5);
        recorder.mem_utilization(0.3);
        recorder.named_metric("queue", 3.0);
        recorder.utilization("disk", 0.2);
        let report = recorder.report();

        assert_eq!((report.rps_fractional, report.eps), (50.0, 5.0));
        assert_eq!((report.cpu_utilization, report.mem_utilization), (0.5, 0.3));
        assert_eq!(report.application_utilization, 0.7);
        assert_eq!(
            (report.named_metrics["queue"], report.utilization["disk"]),
            (3.0, 0.2)
        );
    }

    #[test]
    fn what_is_no_number_takes_back_what_was_told() {
        let recorder = Recorder::new();
        for (told, reported) in [(0.7, 0.7), (f64::NAN, 0.0), (0.5, 0.5), (-1.0, 0.0)] {
            recorder.application_utilization(told);
            recorder.named_metric("queue", told);

            let report = recorder.report();

            assert_eq!(report.application_utilization, reported);
            let named = report.named_metrics.get("queue").copied();
            assert_eq!(named.unwrap_or(0.0), reported);
        }
    }
}
