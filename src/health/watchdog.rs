//! Whether a process that lives still works.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Tell, Verdict, ranged};
use crate::{Error, ErrorKind, Result};

/// Trusts a server for as long as it is told regularly that its work goes on.
///
/// A process whose handlers hang may renew its lease for ever. What is stuck cannot feed the dog, and the
/// [registrar](crate::Registrar::health) then marks it as draining; when it is fed again it is back. A process
/// whose whole runtime stands still needs no dog: its lease is not renewed and runs out.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::{Memory, Registrar, health::Watchdog};
///
/// let dog = Watchdog::new(Duration::from_secs(10));
/// let registrar = Registrar::on(Memory::default()).health(dog.clone());
/// // Where the work is done, after each piece of it:
/// dog.pet();
/// # drop(registrar);
/// ```
#[derive(Clone, Debug)]
pub struct Watchdog {
    patience: Duration,
    fed: Arc<watch::Sender<Instant>>,
}

impl Watchdog {
    /// One that waits so long for the next sign of life; the first is that it is made. From 1 ms to an hour.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            fed: Arc::new(watch::Sender::new(Instant::now())),
        }
    }

    /// The work goes on.
    pub fn pet(&self) {
        self.fed.send_replace(Instant::now());
    }

    pub(super) fn check(&self) -> Result<()> {
        let hour = Duration::from_secs(3600);
        let name = "health checks: patience";
        ranged(name, self.patience, Duration::from_millis(1), hour)
    }

    pub(super) async fn follow(&self, tell: &Tell<'_>) {
        let mut fed = self.fed.subscribe();
        let mut well = None;
        loop {
            let until = *fed.borrow_and_update() + self.patience;
            let hungry = until <= Instant::now();
            if well != Some(!hungry) {
                well = Some(!hungry);
                tell(if hungry {
                    self.starved()
                } else {
                    Verdict::Healthy
                });
            }
            // The sender is in `self`, so the only news is a sign of life.
            tokio::select! {
                _ = fed.changed() => {}
                () = sleep_until(until), if !hungry => {}
            }
        }
    }

    fn starved(&self) -> Verdict {
        let what = format!("no sign of life in {:?}", self.patience);
        Verdict::Unhealthy(Error::new(ErrorKind::Timeout, what))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dog_barks_when_it_is_not_fed_and_is_quiet_when_it_is() {
        let dog = Watchdog::new(Duration::from_secs(10));
        let heard = Mutex::new(Vec::new());
        let began = Instant::now();
        let tell = |verdict: Verdict| {
            let at = (Instant::now() - began).as_secs();
            heard.lock().unwrap().push((at, verdict.code()));
        };
        let feed = async {
            for wait in [8, 8, 8, 20] {
                sleep(Duration::from_secs(wait)).await;
                dog.pet();
            }
        };

        let watch = timeout(Duration::from_secs(50), dog.follow(&tell));
        let _ = tokio::join!(watch, feed);

        let heard = heard.lock().unwrap();
        assert_eq!(
            heard[..],
            [(0, "healthy"), (34, "unhealthy"), (44, "healthy")]
        );
    }
}
