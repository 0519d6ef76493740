//! The crate's own policies, as a channel uses them, on a clock that the simulation moves.

use std::ops::Range;

use tonic::Code;
use tonic_fleet::{
    Instance,
    balance::{Policy, Rehearsal, Rehearsed},
    stage::Subset,
};

use crate::{
    balancer::{Balancer, End, Fleet, Picked},
    clock::Clock,
    server::Time,
};

/// One client with a policy of the crate's.
pub struct Ours {
    rehearsal: Rehearsal,
    clock: Clock,
    calls: Vec<Option<Rehearsed>>,
    free: Vec<usize>,
}

impl Ours {
    /// Seeds are told before: [`tonic_fleet::balance::seed`].
    pub fn new(among: usize, clock: &Clock, policy: impl Policy) -> Self {
        Self::over(among, clock, Rehearsal::of(policy))
    }

    /// The same, with a subset for this client.
    pub fn within(among: usize, clock: &Clock, policy: impl Policy, subset: Subset) -> Self {
        Self::over(among, clock, Rehearsal::within(policy, subset))
    }

    fn over(among: usize, clock: &Clock, rehearsal: Rehearsal) -> Self {
        let mut ours = Self {
            rehearsal,
            clock: clock.clone(),
            calls: Vec::new(),
            free: Vec::new(),
        };
        ours.put(0..among);
        ours
    }

    fn put(&mut self, servers: Range<usize>) {
        for server in servers {
            let address = format!("10.0.{}.{}:1", server / 250, server % 250 + 1);
            let instance = Instance::at(address).and_then(|i| i.id(format!("s{server:05}")));
            self.rehearsal.put(instance.expect("these are good names"));
        }
    }
}

impl Balancer for Ours {
    fn pick(&mut self, at: Time, _: Fleet<'_>) -> Picked {
        self.clock.reach(at);
        let call = self.rehearsal.call().expect("there are servers");
        let id = call.endpoint().id().as_str();
        let server = id[1..].parse().expect("it is the number of a server");
        let ticket = self.free.pop().unwrap_or(self.calls.len());
        if ticket == self.calls.len() {
            self.calls.push(Some(call));
        } else {
            self.calls[ticket] = Some(call);
        }
        Picked { server, ticket }
    }

    fn ended(&mut self, picked: Picked, end: End, _: Time, at: Time) {
        self.clock.reach(at);
        let mut call = self.calls[picked.ticket].take().expect("it ends once");
        self.free.push(picked.ticket);
        match end {
            End::Answered => {
                call.answered();
                call.ended(Code::Ok);
            }
            End::Failed => call.ended(Code::Unavailable),
            End::Late => call.late(),
        }
    }

    fn joined(&mut self, servers: Range<usize>, at: Time) {
        self.clock.reach(at);
        self.put(servers);
    }
}
