//! What keeps an agent's two keys in etcd.

use std::time::{Duration, SystemTime};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Agents,
    agent::Wish,
    moment,
    record::{self, Beat, Info, Part},
    teller::Teller,
};
use crate::{
    Error, ErrorKind, InstanceId, Result,
    etcd::{Guard, Kv, Lease, Mirror, Pace, Pulse, Standing, Tenure},
    register::keeper::Report,
};

/// Makes the wishes of one agent come true.
pub(super) struct Task {
    agents: Agents,
    teller: Teller,
    /// The keys of both records.
    info: String,
    beat: String,
    started: SystemTime,
    tenure: Tenure,
    /// The leases that were ours; a heartbeat on one of them is.
    leases: Vec<i64>,
    held: Option<Held>,
    /// At which revision we last wrote our info, whatever has become of it.
    written: i64,
    stranger: Option<Stranger>,
    /// Whether it is the stranger who keeps us from what is wished.
    blocked: bool,
    mirror: Mirror,
    guard: Guard,
}

/// Both records as we wrote them.
#[derive(Debug)]
struct Held {
    lease: i64,
    info: Vec<u8>,
    /// When each was written, in etcd's time.
    written: i64,
    beaten: i64,
}

/// Somebody else's heartbeat, where ours should be.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    lease: i64,
    revision: i64,
    since: Instant,
    /// Whether it has beaten since we looked first.
    lives: bool,
}

/// How often records may change under our hands before that is a failure.
const TRIES: u32 = 5;
/// How many of our own leases are remembered.
const LEASES: usize = 4;
/// A heartbeat that nobody keeps is gone within this, unless its lease is unusually long.
const SILENCE: Duration = Duration::from_secs(60);
/// Stopping takes no longer than this; what then stands ends with its lease.
const PARTING: Duration = Duration::from_secs(2);

impl Task {
    pub(super) fn new(agents: Agents, id: &InstanceId, report: watch::Sender<Report>) -> Self {
        Self {
            info: record::key(&agents.prefix, id, Part::Info),
            beat: record::key(&agents.prefix, id, Part::Heartbeat),
            teller: Teller::new(id.clone(), report),
            started: SystemTime::now(),
            tenure: Tenure::new(agents.etcd.clone(), agents.ttl),
            leases: Vec::new(),
            held: None,
            written: 0,
            stranger: None,
            blocked: false,
            mirror: Mirror::default(),
            guard: Guard::default(),
            agents,
        }
    }

    pub(super) async fn run(mut self, mut wished: watch::Receiver<Wish>) {
        let every = self.agents.ttl / 3;
        let mut pace = Pace::within(every);
        loop {
            let wish = wished.borrow_and_update().clone();
            self.teller.taken(wish.version);
            if wish.gone || wished.has_changed().is_err() {
                return self.leave(&wish).await;
            }
            let began = Instant::now();
            let done = tokio::select! {
                biased;
                () = leaving(wished.clone()) => continue,
                done = self.converge(&wish) => done,
            };
            let well = done.is_ok();
            let again = match done {
                Ok(()) => {
                    pace.reset();
                    self.tenure.settled();
                    self.teller.online();
                    began + every
                }
                Err(error) => {
                    let again = pace.next(&error, began);
                    let error = self.tenure.or_lost(error);
                    if self.is_undecided() {
                        self.teller.not_yet(error);
                    } else {
                        self.teller.failed(error);
                    }
                    again
                }
            };
            self.rest(&mut wished, again, well).await;
        }
    }

    /// Waits until there is something to do, the next beat at the latest.
    async fn rest(&mut self, wished: &mut watch::Receiver<Wish>, again: Instant, well: bool) {
        loop {
            if let Some(why) = self.tenure.is_lost() {
                return self.lose(why);
            }
            if self.is_disturbed() {
                return self.yield_to_others(wished).await;
            }
            if self.has_stranger_moved() {
                return;
            }
            tokio::select! {
                _ = wished.changed() => return,
                pulse = self.tenure.beat() => match pulse {
                    Pulse::Lost(why) => return self.lose(why),
                    Pulse::Missed(why) if well => self.teller.failed(why),
                    Pulse::Alive if well => self.teller.online(),
                    Pulse::Missed(_) | Pulse::Alive => {}
                },
                () = self.mirror.changed() => {}
                () = sleep_until(again) => return,
            }
        }
    }

    /// The session is over; what was written is to be written again.
    fn lose(&mut self, why: Error) {
        self.teller.failed(why);
        self.tenure.lose();
        self.held = None;
    }

    /// A record was taken away: waits a while if that goes on and on, and then puts it back.
    async fn yield_to_others(&mut self, wished: &watch::Receiver<Wish>) {
        let now = Instant::now();
        let wait = self.guard.disturbed(now);
        if self.guard.is_fight(now) {
            let doing = format!("keep {}: somebody keeps taking it away", self.info);
            self.teller.failed(Error::new(ErrorKind::Conflict, doing));
        }
        tokio::select! {
            () = leaving(wished.clone()) => {}
            () = sleep_until(now + wait) => {}
        }
        tracing::info!(key = self.info, "putting back what was taken away");
        self.held = None;
    }

    fn is_disturbed(&self) -> bool {
        let taken = |held: &Held| {
            held.is_info_taken(self.mirror.standing(&self.info))
                || held.is_beat_taken(self.mirror.standing(&self.beat))
        };
        self.held.as_ref().is_some_and(taken)
    }

    /// Whether the one who is in our way has beaten, or gone.
    fn has_stranger_moved(&self) -> bool {
        let (Some(stranger), true) = (self.stranger, self.blocked) else {
            return false;
        };
        let standing = self.mirror.standing(&self.beat);
        standing.is_some_and(|standing| standing.revision > stranger.revision)
    }

    /// Whether it has yet to be seen if the one who is in our way is alive.
    fn is_undecided(&self) -> bool {
        let patience = self.agents.ttl / 2;
        let undecided = |one: Stranger| !one.lives && Instant::now() < one.since + patience;
        self.blocked && self.stranger.is_some_and(undecided)
    }

    /// Makes what stands in etcd what is wished, and beats.
    async fn converge(&mut self, wish: &Wish) -> Result<()> {
        self.blocked = false;
        let info = Info::online(self.started, wish.own.clone());
        let info = record::write(&self.info, &info)?;
        let lease = match self.tenure.lease_or_new().await? {
            Lease::Same(lease) => lease,
            Lease::New(lease) => {
                self.held = None;
                self.own(lease);
                // What was told before says nothing of a cluster whose revisions went back.
                self.mirror.forget();
                lease
            }
        };
        let keys = [self.info.clone(), self.beat.clone()];
        self.mirror.follow(&self.agents.etcd, keys);
        let done = match &self.held {
            Some(held) if held.info == info => self.go_on(lease, info).await,
            _ => self.claim(lease, info).await,
        };
        if matches!(&done, Err(error) if error.kind() == ErrorKind::Lost) {
            self.tenure.lose_for_good();
            self.held = None;
        }
        done
    }

    /// A lease is ours from now on.
    fn own(&mut self, lease: i64) {
        if !self.leases.contains(&lease) {
            self.leases.push(lease);
        }
        if self.leases.len() > LEASES {
            self.leases.remove(0);
        }
    }

    /// Beats, if the heartbeat is still ours.
    async fn go_on(&mut self, lease: i64, info: Vec<u8>) -> Result<()> {
        let txn = Txn::new()
            .when([Compare::lease(self.beat.as_str(), CompareOp::Equal, lease)])
            .and_then([self.put_beat(lease)?]);
        let asked = self.agents.etcd.txn(format!("beat {}", self.beat), txn);
        let answer = asked.await?;
        match &mut self.held {
            Some(held) if answer.succeeded() => {
                held.beaten = revision(&answer);
                Ok(())
            }
            _ => self.claim(lease, info).await,
        }
    }

    /// Writes both records, if the heartbeat is ours or nobody's.
    async fn claim(&mut self, lease: i64, info: Vec<u8>) -> Result<()> {
        let mut expect = self.held.take().map_or(0, |held| held.beaten);
        for _ in 0..TRIES {
            let compare = Compare::mod_revision(self.beat.as_str(), CompareOp::Equal, expect);
            let put_info = TxnOp::put(self.info.as_str(), info.clone(), None);
            let txn = Txn::new()
                .when([compare])
                .and_then([self.put_beat(lease)?, put_info])
                .or_else([self.beat.as_str(), self.info.as_str()].map(|key| TxnOp::get(key, None)));
            let asked = self.agents.etcd.txn(format!("start {}", self.info), txn);
            let answer = asked.await?;
            if answer.succeeded() {
                let at = revision(&answer);
                self.stranger = None;
                self.written = at;
                self.held = Some(Held {
                    lease,
                    info,
                    written: at,
                    beaten: at,
                });
                return Ok(());
            }
            let [beat, info] = found(answer);
            expect = match beat {
                None => 0,
                // A heartbeat without a lease would stand for ever, whoever wrote it.
                Some(kv) if kv.lease == 0 || self.leases.contains(&kv.lease) => kv.mod_revision,
                Some(kv) => return Err(self.meet(&kv, info.as_ref())),
            };
        }
        let doing = format!("start {}: others keep writing it", self.info);
        Err(Error::new(ErrorKind::Conflict, doing))
    }

    /// Somebody else's heartbeat stands there: says what that means.
    fn meet(&mut self, beat: &Kv, info: Option<&Kv>) -> Error {
        let now = Instant::now();
        let (since, beaten) = match self.stranger {
            Some(one) if one.lease == beat.lease => {
                (one.since, one.lives || beat.mod_revision > one.revision)
            }
            _ => (now, false),
        };
        // Its lease would have ended if nobody kept it.
        let kept = now >= since + SILENCE.max(self.agents.ttl);
        let lives = beaten || kept;
        self.blocked = true;
        self.stranger = Some(Stranger {
            lease: beat.lease,
            revision: beat.mod_revision,
            since,
            lives,
        });
        let info = info.and_then(|kv| record::read::<Info>(&self.info, &kv.value).ok());
        let started = info.and_then(|info| info.started_at).map(moment::text);
        let started = started.map_or_else(String::new, |at| format!(", started at {at}"));
        let lease = beat.lease;
        if lives {
            let doing = format!(
                "start {}: another agent lives under this id{started}, on lease {lease:x}",
                self.info
            );
            return Error::new(ErrorKind::Conflict, doing)
                .because("give one of the two another id");
        }
        let doing = format!(
            "start {}: waiting for the lease {lease:x} of one who is silent{started} to end",
            self.info
        );
        Error::new(ErrorKind::Unavailable, doing)
    }

    fn put_beat(&self, lease: i64) -> Result<TxnOp> {
        let beat = record::write(&self.beat, &Beat::now(lease))?;
        let on_lease = PutOptions::new().with_lease(lease);
        Ok(TxnOp::put(self.beat.as_str(), beat, Some(on_lease)))
    }

    /// Stops, and says how it went; within a time limit.
    async fn leave(mut self, wish: &Wish) {
        self.mirror = Mirror::default();
        let left = match timeout(PARTING, self.withdraw(wish)).await {
            Ok(left) => left,
            Err(late) => {
                let doing = format!("stop {}", self.info);
                Err(Error::new(ErrorKind::Timeout, doing).because(late))
            }
        };
        match left {
            Ok(()) => self.teller.withdrawn(),
            Err(error) => self.teller.failed(error),
        }
    }

    async fn withdraw(&mut self, wish: &Wish) -> Result<()> {
        let Some(lease) = self.tenure.last_lease() else {
            return Ok(());
        };
        let said = self.say_offline(wish, lease).await;
        let ended = self.tenure.end().await;
        said.and(ended)
    }

    /// In one transaction, if the heartbeat is ours; if there is none any more, if the info is.
    async fn say_offline(&self, wish: &Wish, lease: i64) -> Result<()> {
        let info = Info::online(self.started, wish.own.clone()).offline(SystemTime::now());
        let info = record::write(&self.info, &info)?;
        let [beat_key, info_key] = [self.beat.as_str(), self.info.as_str()];
        let put = TxnOp::put(info_key, info, None);
        let mut txn = Txn::new()
            .when([Compare::lease(beat_key, CompareOp::Equal, lease)])
            .and_then([put.clone(), TxnOp::delete(beat_key, None)]);
        if self.written > 0 {
            let unclaimed = [
                Compare::create_revision(beat_key, CompareOp::Equal, 0),
                Compare::mod_revision(info_key, CompareOp::Equal, self.written),
            ];
            txn = txn.or_else([TxnOp::txn(Txn::new().when(unclaimed).and_then([put]))]);
        }
        let asked = self.agents.etcd.txn(format!("stop {info_key}"), txn);
        asked.await.map(drop)
    }
}

impl Held {
    /// Whether something else stands there since we wrote it.
    fn is_info_taken(&self, standing: Option<Standing>) -> bool {
        let Some(standing) = standing.filter(|standing| standing.revision > self.written) else {
            return false;
        };
        let same = |(value, lease): (bytes::Bytes, i64)| *value == self.info && lease == 0;
        !standing.value.is_some_and(same)
    }

    /// Whether it no longer hangs on our lease, whatever it says.
    fn is_beat_taken(&self, standing: Option<Standing>) -> bool {
        let Some(standing) = standing.filter(|standing| standing.revision > self.beaten) else {
            return false;
        };
        standing.value.is_none_or(|(_, lease)| lease != self.lease)
    }
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, |header| header.revision())
}

/// The answers to both questions of a transaction that did not succeed.
fn found(answer: TxnResponse) -> [Option<Kv>; 2] {
    let mut found = answer.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Get(mut got) => got.take_kvs().pop().map(Kv::from),
        _ => None,
    });
    [found.next().flatten(), found.next().flatten()]
}

/// Returns when the wish is to be gone, or nobody is left to wish.
async fn leaving(mut wished: watch::Receiver<Wish>) {
    drop(wished.wait_for(|wish| wish.gone).await);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn held() -> Held {
        Held {
            lease: 7,
            info: b"a".into(),
            written: 5,
            beaten: 8,
        }
    }

    fn told(revision: i64, value: Option<(&'static str, i64)>) -> Option<Standing> {
        let value = value.map(|(value, lease)| (Bytes::from_static(value.as_bytes()), lease));
        Some(Standing { revision, value })
    }

    #[test]
    fn an_info_is_taken_when_it_is_gone_or_says_something_else_or_hangs_on_a_lease() {
        for taken in [None, Some(("b", 0)), Some(("a", 7))] {
            assert!(held().is_info_taken(told(6, taken)), "{taken:?}");
        }
        assert!(!held().is_info_taken(told(6, Some(("a", 0)))));
        assert!(!held().is_info_taken(told(5, None)) && !held().is_info_taken(None));
    }

    #[test]
    fn a_heartbeat_is_taken_when_it_is_gone_or_hangs_on_another_lease() {
        for taken in [None, Some(("a", 8)), Some(("a", 0))] {
            assert!(held().is_beat_taken(told(9, taken)), "{taken:?}");
        }
        assert!(!held().is_beat_taken(told(9, Some(("whatever", 7)))));
        assert!(!held().is_beat_taken(told(8, None)) && !held().is_beat_taken(None));
    }
}
