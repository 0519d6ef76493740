//! What became of many calls: counts by server and status, latencies, the longest time without a success.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each program that takes this in uses a part of it"
)]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Response, Status};
use tonic_fleet::ServedBy;

use crate::echo::BACKEND;

/// What became of one caller's calls. Callers keep one each, and add them up at the end.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
    by_backend: BTreeMap<String, u64>,
    by_addr: BTreeMap<String, u64>,
    by_status: BTreeMap<&'static str, u64>,
    errors: Vec<String>,
    latency: Latency,
}

/// So many messages of failed calls are kept.
const KEPT: usize = 5;

impl Tally {
    /// Counts a call that took this long.
    pub fn count<T>(&mut self, outcome: &Result<Response<T>, Status>, took: Duration) {
        self.latency.count(took);
        match outcome {
            Ok(response) => {
                self.ok += 1;
                bump(&mut self.by_status, "OK", 1);
                let server = response.extensions().get::<ServedBy>();
                let named = response.metadata().get(BACKEND);
                if let Some(name) = named.and_then(|name| name.to_str().ok()) {
                    bump_text(&mut self.by_backend, name);
                } else if let Some(server) = server {
                    bump_text(&mut self.by_backend, server.id().as_str());
                }
                if let Some(server) = server {
                    bump_text(&mut self.by_addr, &server.address().to_string());
                }
            }
            Err(status) => {
                self.failed += 1;
                bump(&mut self.by_status, name(status.code()), 1);
                if self.errors.len() < KEPT {
                    self.errors
                        .push(format!("{}: {}", name(status.code()), status.message()));
                }
            }
        }
    }

    /// Adds another's calls.
    pub fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        for (name, n) in other.by_backend {
            *self.by_backend.entry(name).or_default() += n;
        }
        for (addr, n) in other.by_addr {
            *self.by_addr.entry(addr).or_default() += n;
        }
        for (status, n) in other.by_status {
            bump(&mut self.by_status, status, n);
        }
        let room = KEPT.saturating_sub(self.errors.len());
        self.errors.extend(other.errors.into_iter().take(room));
        self.latency.add(&other.latency);
    }

    /// All of it as one JSON object.
    pub fn to_json(&self, elapsed: Duration, longest_gap: Duration) -> Value {
        json!({
            "sent": self.ok + self.failed,
            "ok": self.ok,
            "failed": self.failed,
            "by_backend": self.by_backend,
            "by_addr": self.by_addr,
            "by_status": self.by_status,
            "errors": self.errors,
            "p50_us": self.latency.quantile(0.5),
            "p99_us": self.latency.quantile(0.99),
            "p999_us": self.latency.quantile(0.999),
            "max_us": self.latency.max,
            "elapsed_s": (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            "longest_gap_ms": (longest_gap.as_secs_f64() * 10_000.0).round() / 10.0,
        })
    }
}

fn bump(counts: &mut BTreeMap<&'static str, u64>, what: &'static str, n: u64) {
    *counts.entry(what).or_default() += n;
}

fn bump_text(counts: &mut BTreeMap<String, u64>, what: &str) {
    match counts.get_mut(what) {
        Some(n) => *n += 1,
        None => {
            counts.insert(what.to_owned(), 1);
        }
    }
}

/// The code as the gRPC specification writes it.
fn name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// How long calls took, in microseconds, in buckets that grow with the time.
#[derive(Debug, Default)]
struct Latency {
    buckets: Vec<u64>,
    total: u64,
    max: u64,
}

/// Each power of two is cut into this many buckets, so that a quantile is within 1 % of the truth.
const CUTS: u64 = 128;

impl Latency {
    fn count(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket(micros);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.total += 1;
        self.max = self.max.max(micros);
    }

    fn add(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    fn quantile(&self, q: f64) -> u64 {
        let rank = (self.total as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank && *n > 0 {
                return greatest_in(bucket).min(self.max);
            }
        }
        self.max
    }
}

/// Exact below `CUTS`, then `CUTS` buckets for each power of two.
fn bucket(micros: u64) -> usize {
    let power = u64::from(micros.max(1).ilog2());
    let shift = power.saturating_sub(CUTS.ilog2().into());
    (shift * CUTS + (micros >> shift)) as usize
}

fn greatest_in(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / CUTS).saturating_sub(1);
    ((bucket - shift * CUTS + 1) << shift) - 1
}

/// The longest time without a success, over all callers.
#[derive(Debug)]
pub struct Gap {
    began: Instant,
    last: AtomicU64,
    longest: AtomicU64,
}

impl Gap {
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            last: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }

    /// A call succeeded now.
    pub fn success(&self, now: Instant) {
        let at = (now - self.began).as_micros() as u64;
        let last = self.last.fetch_max(at, Relaxed);
        self.longest.fetch_max(at.saturating_sub(last), Relaxed);
    }

    /// The longest gap, the one that lasts until now included.
    pub fn longest(&self, now: Instant) -> Duration {
        let at = (now - self.began).as_micros() as u64;
        let open = at.saturating_sub(self.last.load(Relaxed));
        Duration::from_micros(open.max(self.longest.load(Relaxed)))
    }
}
