//! Those that know little.

use std::ops::Range;

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
