//! Callers that work for a while, and what they have seen.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::{Burden, Caller, Failure, Peer, Talk, Work};

/// What all callers of a process have seen so far.
#[derive(Default)]
pub struct Tally {
    pub latencies: crate::Histogram,
    calls: AtomicU64,
    failed: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Tally {
    fn ok(&self, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.latencies.record(took);
    }

    fn failed(&self, why: &Failure) {
        self.failed.fetch_add(1, Relaxed);
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| why.to_string());
    }

    /// How many calls went well, how many failed, and the first error.
    pub fn take(&self) -> (u64, u64, Option<String>) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        (
            self.calls.swap(0, Relaxed),
            self.failed.swap(0, Relaxed),
            error.take(),
        )
    }
}

/// Callers at work; they end with this value.
pub struct Callers(JoinSet<()>);

impl Callers {
    /// They work from now until then.
    pub fn start<P: Peer>(peer: &P, burden: Burden, until: Instant, tally: &Arc<Tally>) -> Self {
        let message: Arc<str> = "e".repeat(burden.size).into();
        let began = Instant::now();
        let one = |place| {
            let at_work = AtWork {
                caller: peer.caller(Arc::clone(&message)),
                burden,
                until,
                tally: Arc::clone(tally),
            };
            async move {
                match (burden.work, burden.rate) {
                    (Work::Unary, None) => at_work.unary().await,
                    (Work::Unary, Some(rate)) => at_work.paced(began, place, rate).await,
                    (Work::Stream, _) => at_work.stream().await,
                }
            }
        };
        Self((0..burden.callers).map(one).collect())
    }

    /// Waits for all of them.
    pub async fn done(self) {
        self.0.join_all().await;
    }
}

struct AtWork<C> {
    caller: C,
    burden: Burden,
    until: Instant,
    tally: Arc<Tally>,
}

/// So that a caller that is refused at once does not spend the second on being refused.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

const MESSAGES: usize = 100;

impl<C: Caller> AtWork<C> {
    async fn unary(mut self) {
        let mut now = Instant::now();
        while now < self.until {
            let answer = self.caller.ask().await;
            let ended = Instant::now();
            match self.checked(answer) {
                Ok(()) => self.tally.ok(ended - now),
                Err(why) => fail(&self.tally, &why).await,
            }
            now = ended;
        }
    }

    /// Each call has its time, and one that must wait for those before it is late from then on: a server that
    /// stands still is noticed by all calls that were due meanwhile.
    async fn paced(mut self, began: Instant, place: usize, rate: u32) {
        let gap = Duration::from_secs(1) / rate;
        let Ok(callers) = u32::try_from(self.burden.callers) else {
            return;
        };
        let mut due = began + gap * u32::try_from(place).unwrap_or(0);
        while due < self.until {
            tokio::time::sleep_until(due).await;
            let answer = self.caller.ask().await;
            match self.checked(answer) {
                Ok(()) => self.tally.ok(Instant::now() - due),
                Err(why) => self.tally.failed(&why),
            }
            due += gap * callers;
        }
    }

    async fn stream(mut self) {
        while Instant::now() < self.until {
            if let Err(why) = self.one_stream().await {
                fail(&self.tally, &why).await;
            }
        }
    }

    async fn one_stream(&mut self) -> Result<(), Failure> {
        let mut now = Instant::now();
        let mut talk = self.caller.talk().await?;
        for _ in 0..MESSAGES {
            let answer = talk.say().await;
            self.checked(answer)?;
            let ended = Instant::now();
            self.tally.ok(ended - now);
            now = ended;
            if now >= self.until {
                break;
            }
        }
        talk.end().await
    }

    fn checked(&self, answer: Result<usize, Failure>) -> Result<(), Failure> {
        match answer? {
            length if length == self.burden.size => Ok(()),
            length => Err(format!("{length} bytes came back for {}", self.burden.size).into()),
        }
    }
}

async fn fail(tally: &Tally, why: &Failure) {
    tally.failed(why);
    tokio::time::sleep(AFTER_FAILURE).await;
}
