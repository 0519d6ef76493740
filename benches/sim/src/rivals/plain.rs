//! Those that know little.

use std::{ops::Range, sync::Arc};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::Time,
};

/// Any: what tonic's own balancer does, for all endpoints have the same load there.
pub struct Random {
    among: usize,
    dice: Dice,
}

/// Any, by shares of which all clients have the same: how even calls are that know nothing of each other.
pub struct Shares {
    /// Up to which part of all each has its own.
    up_to: Arc<[f64]>,
    dice: Dice,
}

/// Each in turn, from anywhere.
pub struct RoundRobin {
    among: usize,
    turn: usize,
}

/// The one with fewer of our calls in flight, of two (Envoy's least request, gRFC A48).
pub struct LeastRequest {
    in_flight: Vec<u32>,
    dice: Dice,
}

impl Random {
    pub fn new(among: usize, dice: Dice) -> Self {
        Self { among, dice }
    }
}

impl Shares {
    /// By these counts, of which one is not 0.
    pub fn sums(counts: &[usize]) -> Arc<[f64]> {
        let all = counts.iter().sum::<usize>() as f64;
        let mut sum = 0;
        let sums = counts.iter().map(|count| {
            sum += count;
            sum as f64 / all
        });
        sums.collect()
    }

    pub fn new(up_to: Arc<[f64]>, dice: Dice) -> Self {
        Self { up_to, dice }
    }
}

impl RoundRobin {
    pub fn new(among: usize, mut dice: Dice) -> Self {
        let turn = dice.below(among);
        Self { among, turn }
    }
}

impl LeastRequest {
    pub fn new(among: usize, dice: Dice) -> Self {
        let in_flight = vec![0; among];
        Self { in_flight, dice }
    }
}

impl Balancer for Random {
    fn pick(&mut self, _: Time, _: Fleet<'_>) -> Picked {
        Picked::plain(self.dice.below(self.among))
    }

    fn ended(&mut self, _: Picked, _: End, _: Time, _: Time) {}

    fn joined(&mut self, servers: Range<usize>, _: Time) {
        self.among = servers.end;
    }
}

impl Balancer for Shares {
    fn pick(&mut self, _: Time, _: Fleet<'_>) -> Picked {
        let at = self.dice.unit();
        let place = self.up_to.partition_point(|up_to| *up_to <= at);
        Picked::plain(place.min(self.up_to.len() - 1))
    }

    fn ended(&mut self, _: Picked, _: End, _: Time, _: Time) {}

    /// Those who join have none.
    fn joined(&mut self, _: Range<usize>, _: Time) {}
}

impl Balancer for RoundRobin {
    fn pick(&mut self, _: Time, _: Fleet<'_>) -> Picked {
        self.turn = (self.turn + 1) % self.among;
        Picked::plain(self.turn)
    }

    fn ended(&mut self, _: Picked, _: End, _: Time, _: Time) {}

    fn joined(&mut self, servers: Range<usize>, _: Time) {
        self.among = servers.end;
    }
}

impl Balancer for LeastRequest {
    fn pick(&mut self, _: Time, _: Fleet<'_>) -> Picked {
        let (a, b) = self.dice.two_below(self.in_flight.len());
        let less = if self.in_flight[b] < self.in_flight[a] {
            b
        } else {
            a
        };
        self.in_flight[less] += 1;
        Picked::plain(less)
    }

    fn ended(&mut self, picked: Picked, _: End, _: Time, _: Time) {
        self.in_flight[picked.server] -= 1;
    }

    fn joined(&mut self, servers: Range<usize>, _: Time) {
        self.in_flight.resize(servers.end, 0);
    }
}
