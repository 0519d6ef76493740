//! A client's number among all clients of a service.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    number::{Numbers, Whose},
    pace::Pace,
    registry::Registry,
    session::Pulse,
    tenure::{Lease, Tenure},
};
use crate::{ErrorKind, Result, ServiceName, stage::Seat};

impl Registry {
    /// Takes the smallest number that no client of this service has, under `/fleet/numbers/clients/`, and keeps
    /// it on a lease of its own.
    ///
    /// No two clients have a number at a time. A client that dies gives it back when its lease ends, one that
    /// drops the seat does at once; whoever then has a number beyond the count of all moves down within one and
    /// a half minutes, or a fiftieth of a second for each client if that is more, and a number whose key somebody
    /// deletes by hand is taken again as soon. While etcd is away the number stays; a client that was frozen for longer than its lease may go by its old number for a moment, while somebody
    /// else has it, which makes two subsets alike and does no other harm.
    ///
    /// # Errors
    /// When etcd cannot be reached now: go on without, by [`Subset::of`](crate::stage::Subset::of) alone.
    ///
    /// ```no_run
    /// use tonic_fleet::{Channel, etcd, stage::Subset};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tonic_fleet::Result<()> {
    /// let registry = etcd::Registry::open(&"etcd://127.0.0.1:2379".parse()?)?;
    /// let seat = registry.seat(&"greeter".parse()?).await?;
    /// let channel = Channel::over("greeter".parse()?, registry)
    ///     .subset(Subset::of(20).seat(seat))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn seat(&self, service: &ServiceName) -> Result<Seat> {
        let mut keeping = Keeping {
            tenure: Tenure::new(self.etcd().clone(), self.lease()),
            numbers: Numbers::of(self.etcd(), Whose::Clients, service),
        };
        let number = match keeping.hold().await {
            Ok(number) => number,
            Err(error) => {
                keeping.leave().await;
                return Err(error);
            }
        };
        let (tell, told) = watch::channel(number);
        let stop = CancellationToken::new();
        self.etcd().spawn(keeping.run(tell, stop.clone()));
        Ok(Seat::kept(told, stop.drop_guard()))
    }
}

/// Keeps a number until it is told to stop.
struct Keeping {
    tenure: Tenure,
    numbers: Numbers,
}

/// Giving it back takes no longer; then it ends with its lease.
const PARTING: Duration = Duration::from_secs(2);

impl Keeping {
    async fn run(mut self, tell: watch::Sender<u32>, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep(tell)).await;
        self.leave().await;
    }

    async fn keep(&mut self, tell: watch::Sender<u32>) {
        let mut pace = Pace::within(self.tenure.ttl() / 3);
        loop {
            let began = Instant::now();
            let again = match self.hold().await {
                Ok(number) => {
                    pace.reset();
                    tell.send_if_modified(|known| std::mem::replace(known, number) != number);
                    self.numbers.due()
                }
                Err(error) => {
                    tracing::debug!(
                        error = error.chain(),
                        "a client's number cannot be kept for now"
                    );
                    Some(pace.next(&error, began))
                }
            };
            self.rest(again.unwrap_or(began)).await;
        }
    }

    /// Until then, or until the lease is lost.
    async fn rest(&mut self, until: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                pulse = self.tenure.beat() => if let Pulse::Lost(_) = pulse {
                    return self.tenure.lose();
                },
            }
        }
    }

    async fn hold(&mut self) -> Result<u32> {
        let (Lease::Same(lease) | Lease::New(lease)) = self.tenure.lease_or_new().await?;
        let held = self.numbers.hold(lease).await;
        if held
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Lost)
        {
            self.tenure.lose_for_good();
        }
        held
    }

    async fn leave(&mut self) {
        drop(timeout(PARTING, self.tenure.end()).await);
    }
}
