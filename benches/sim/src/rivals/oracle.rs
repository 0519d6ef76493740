//! The best that anybody could do who knew all.

use std::ops::Range;

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    dice::Dice,
    server::Time,
};

/// Where the call would be done first, given what every server has to do and how fast it is at this moment.
pub struct Oracle {
    among: usize,
    cores: f64,
    dice: Dice,
}

impl Oracle {
    pub fn new(among: usize, cores: usize, dice: Dice) -> Self {
        let cores = cores as f64;
        Self { among, cores, dice }
    }
}

impl Balancer for Oracle {
    fn pick(&mut self, _: Time, fleet: Fleet<'_>) -> Picked {
        let start = self.dice.below(self.among);
        let outlook = |server: usize| {
            let coming = fleet.coming[server] / self.cores;
            fleet.servers[server].outlook(fleet.work) + coming
        };
        let all = (0..self.among).map(|nth| (start + nth) % self.among);
        let timed = all.map(|server| (outlook(server), server));
        let best = timed.min_by(|a, b| a.0.total_cmp(&b.0));
        Picked::plain(best.map_or(start, |(_, server)| server))
    }

    fn ended(&mut self, _: Picked, _: End, _: Time, _: Time) {}

    fn joined(&mut self, servers: Range<usize>, _: Time) {
        self.among = servers.end;
    }
}
