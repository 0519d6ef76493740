//! Reads the counters.

use std::{
    borrow::Borrow,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::time::Instant;

use super::{
    Answered, Attempted, Attempts, Calls, Ended, Histogram, Lately, OfEndpoint, OfMethod, Stats,
    Tallies, Tally,
    bounds::{RETRIES, SIZES, TRANSPARENT},
    ends::{ByCode, Ends, Weighed},
    histogram::ONE,
};
use crate::{Endpoints, ServiceName};

/// What there is to see now. Counters that are written meanwhile may be a little ahead of each other.
pub(crate) fn look(service: ServiceName, methods: &Tallies, known: &Endpoints) -> Stats {
    let now = Instant::now();
    let endpoints = known.iter().filter_map(|endpoint| {
        let attempts = endpoint.vitals().called()?;
        let age = endpoint.vitals().age(now);
        let lately = Lately::of(|last| attempts.within(last, age));
        let id = endpoint.id().clone();
        let attempts = of_endpoint(
            attempts,
            endpoint.vitals().calls_begun(),
            endpoint.in_flight(),
        );
        Some(OfEndpoint {
            id,
            attempts,
            lately,
        })
    });
    let endpoints = endpoints.collect();
    let since = methods.since();
    let methods: Vec<_> = methods
        .all()
        .iter()
        .map(|tally| of_method(tally, now))
        .collect();
    let (mut calls, mut attempts) = (Calls::default(), Attempts::default());
    for method in &methods {
        calls.add(&method.calls);
        attempts.add(&method.attempts);
    }
    Stats {
        service,
        age: now.saturating_duration_since(since),
        connections: known.iter().map(|e| e.connections() as u64).sum(),
        calls,
        attempts,
        methods,
        endpoints,
    }
}

fn of_endpoint(counted: &Attempted, started: u64, in_flight: usize) -> Attempts {
    let mut attempts = Attempts::default();
    add_ends(&mut attempts.ended, counted.ends());
    [attempts.not_sent, attempts.refused] = counted.unseen_so_far();
    attempts.again.add(counted.again_so_far());
    [attempts.sent_bytes, attempts.received_bytes] = counted.bytes();
    attempts.started = started;
    attempts.in_flight = in_flight as u64;
    attempts
}

fn of_method(tally: &Tally, now: Instant) -> OfMethod {
    let (mut calls, mut attempts) = (Calls::default(), Attempts::default());
    let mut often =
        [&TRANSPARENT[..], &RETRIES, &RETRIES].map(|bounds| Histogram::new(bounds, ONE));
    for part in tally.parts() {
        add_ends(&mut calls.ended, &part.calls);
        add_ends(&mut calls.ended, &part.once);
        for counted in [&part.attempts, &part.once] {
            add_ends(&mut attempts.ended, counted);
            add_sizes(&mut attempts, counted);
        }
        attempts.again.add(part.again.each_ref().map(loaded));
        let [not_sent, refused] = part.unseen.each_ref().map(loaded);
        attempts.not_sent += not_sent;
        attempts.refused += refused;
        for (all, some) in often.iter_mut().zip(&part.often) {
            all.add(some.counts(), some.sum());
        }
    }
    // Those that began are counted last: nothing ends that has not begun.
    for part in tally.parts() {
        calls.started += loaded(&part.started);
        attempts.started += loaded(&part.attempts_started);
    }
    calls.in_flight = calls.started.saturating_sub(calls.ended.count());
    let over = attempts.ended.count() + attempts.not_sent + attempts.refused;
    attempts.in_flight = attempts.started.saturating_sub(over);
    calls.lately = Lately::of(|last| tally.within(last, now));
    let [p50, p95, p99] = tally.percentiles([0.5, 0.95, 0.99], now);
    OfMethod {
        path: tally.path().into(),
        calls,
        attempts,
        answered: Answered { p50, p95, p99 },
        often,
    }
}

fn add_ends<T: Default + Borrow<Ends>>(ended: &mut Ended, counted: &ByCode<T>) {
    ended.add_ways(counted.counted());
    for (code, counted) in counted.iter() {
        let ends = counted.borrow();
        ended.of(code).took.add(ends.took.counts(), ends.took.sum());
    }
}

fn add_sizes(attempts: &mut Attempts, counted: &ByCode<Weighed>) {
    for (code, Weighed { sizes: counted, .. }) in counted.iter() {
        let sizes = attempts
            .ended
            .of(code)
            .sizes
            .get_or_insert_with(|| [(); 2].map(|()| Histogram::new(&SIZES, ONE)));
        for (all, some) in sizes.iter_mut().zip([&counted.sent, &counted.received]) {
            all.add(some.counts(), some.sum());
        }
        attempts.sent_bytes += counted.sent.sum();
        attempts.received_bytes += counted.received.sum();
    }
}

fn loaded(n: &AtomicU64) -> u64 {
    n.load(Ordering::Relaxed)
}
