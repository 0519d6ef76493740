//! What a pick costs, by policy and number of endpoints: `cargo bench --bench pick`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use tonic_fleet::{
    Endpoint, Endpoints, Instance,
    balance::{self, Call},
};

fn endpoints(n: usize) -> Endpoints {
    let make = |place: usize| {
        let instance = Instance::at(format!("10.{}.{}.1:1", place / 250, place % 250))
            .and_then(|instance| instance.id(format!("i{place:06}")))
            .unwrap();
        Endpoint::idle(instance.weight(1 + place as u32 % 3))
    };
    (0..n).map(make).collect()
}

fn pick(c: &mut Criterion) {
    let headers = HeaderMap::new();
    let call = Call::new("/grpc.examples.echo.Echo/UnaryEcho", &headers);
    for name in [
        "round_robin",
        "random",
        "weighted",
        "weighted_random",
        "least_loaded",
    ] {
        let mut group = c.benchmark_group(name);
        for n in [10, 1_000, 10_000, 50_000] {
            let pick = balance::named(name).unwrap().over(&endpoints(n));
            group.bench_function(BenchmarkId::from_parameter(n), |b| {
                b.iter(|| black_box(pick.pick(&call)))
            });
        }
        group.finish();
    }
}

criterion_group!(benches, pick);
criterion_main!(benches);
