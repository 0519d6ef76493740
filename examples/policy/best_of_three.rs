//! A policy of one's own, whole. The simulator takes this file too: `scripts/sim --policies tower,best_of_three`.

use std::sync::{Arc, atomic::AtomicUsize, atomic::Ordering::Relaxed};

use tonic_fleet::{
    Endpoint, Endpoints,
    balance::{Call, Pick, Policy},
};

/// Of three in turn, the one that has least to do for its weight, and has failed least.
#[derive(Debug, Default)]
pub(crate) struct BestOfThree(Arc<AtomicUsize>);

#[derive(Debug)]
struct Among(Endpoints, Arc<AtomicUsize>);

impl Policy for BestOfThree {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        Box::new(Among(ready.clone(), Arc::clone(&self.0)))
    }
}

impl Pick for Among {
    fn pick(&self, _: &Call<'_>) -> usize {
        let (turn, n) = (self.1.fetch_add(1, Relaxed), self.0.len());
        let step = 1 + turn / n % (n - 1).max(1);
        let three = (0..3).map(|nth| turn.wrapping_add(nth * step) % n);
        let cost = |place: &usize| self.0.get(*place).map_or(f64::INFINITY, cost);
        three
            .min_by(|a, b| cost(a).total_cmp(&cost(b)))
            .unwrap_or(0)
    }
}

fn cost(endpoint: &Endpoint) -> f64 {
    let good = 1.0 - endpoint.failures() as f64 / (endpoint.calls() + 1) as f64;
    (endpoint.in_flight() + 1) as f64 / endpoint.weight().max(1) as f64 / good.powi(2)
}
