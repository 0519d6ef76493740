//! Who is left out because its calls fail, for how long, and how it comes back.
//!
//! A plain state machine: fed with what calls showed and with the time. It never looks at a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use super::{
    outlier::{Counts, Finding, Outliers},
    ranged,
};
use crate::{Error, ErrorKind, InstanceId};

/// When an endpoint whose calls fail is left out, and for how long.
///
/// Five failures in a row eject it, unless set otherwise, at the end of the fifth. After a second it is tried:
/// one call at a time goes to it, and when three have succeeded it is back, with a
/// [slow start](super::SlowStart). The first that fails ejects it again, for twice as long, up to four
/// seconds. One that was ejected lately is ejected sooner, by three in a row. Good behaviour is rewarded: for
/// every ten seconds, one ejection is forgotten.
///
/// However many fail, no more than half are out, and never the last; see
/// [`Builder::panic_threshold`](crate::Builder::panic_threshold) for what happens when most of them fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    consecutive: u32,
    time: Duration,
    longest: Duration,
    at_most: u32,
    outliers: Option<Outliers>,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive: 5,
            time: Duration::from_secs(1),
            longest: Duration::from_secs(4),
            at_most: 50,
            outliers: None,
        }
    }
}

impl Ejection {
    /// Nobody is ejected.
    pub fn off() -> Self {
        Self {
            consecutive: 0,
            ..Self::default()
        }
    }

    /// So many failures in a row eject an endpoint. 5, unless set. Up to 1,000; 0 is never. Fewer spare
    /// calls, more forgive a bad moment.
    #[must_use]
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = failures;
        self
    }

    /// How long the first ejection for failures in a row lasts, and the longest: each in a row is twice as
    /// long as the one before. 1 s and 4 s, unless set. From 10 ms to an hour. Longer ones spare the calls on
    /// which it is tried, and find out later that it is well again.
    #[must_use]
    pub fn time(mut self, first: Duration, longest: Duration) -> Self {
        (self.time, self.longest) = (first, longest);
        self
    }

    /// Which part of the endpoints may be out at a time, in percent, but always one of two or more. 50,
    /// unless set. From 1 to 50.
    #[must_use]
    pub fn at_most(mut self, percent: u32) -> Self {
        self.at_most = percent;
        self
    }

    /// Ejects those, too, that fail more than the others. Nobody, unless set.
    #[must_use]
    pub fn outliers(mut self, outliers: Outliers) -> Self {
        self.outliers = Some(outliers);
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        ranged("ejection: consecutive", self.consecutive, 0, 1000)?;
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(3600));
        ranged("ejection: time: first", self.time, least, most)?;
        ranged("ejection: time: longest", self.longest, self.time, most)?;
        ranged("ejection: at_most", self.at_most, 1, 50)?;
        self.outliers.as_ref().map_or(Ok(()), Outliers::check)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ejector {
    rules: Ejection,
    /// Those that have done something wrong, and not yet lived it down.
    records: BTreeMap<InstanceId, Record>,
    /// When something is due for a record.
    due: BTreeSet<(Instant, InstanceId)>,
    /// Those that are to be ejected as soon as there is room, in the order in which they failed.
    failing: Vec<InstanceId>,
    out: usize,
    sweep: Option<Instant>,
    /// What was counted at the last sweep.
    counted: BTreeMap<InstanceId, Counts>,
    changed: BTreeSet<InstanceId>,
    lingering: Vec<InstanceId>,
    dice: SmallRng,
}

#[derive(Debug)]
struct Record {
    standing: Standing,
    /// Whether it is among those to choose from. If not, nothing is left out with it.
    here: bool,
    /// Ejections that are not forgotten, for failures in a row and as an outlier.
    strikes: u32,
    multiplier: u32,
    outlier: bool,
    why: Error,
    due: Option<Instant>,
    /// When the last ejection began, and the first of those that followed on failed trials.
    ejected: Option<Instant>,
    out_since: Option<Instant>,
}

/// Where an endpoint stands with the ejector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// Nothing is wrong with it.
    Good,
    /// It should be out, but too many are.
    Spared,
    /// It is out.
    Out,
    /// It is out, and is being tried.
    Trial,
}

/// So long without an ejection makes up for one.
const FORGIVEN: Duration = Duration::from_secs(10);
/// A trial that takes longer is looked at: its calls may be streams.
const LONG: Duration = Duration::from_secs(10);
/// More ejections than this are not remembered.
const STRIKES: u32 = 16;

impl Ejector {
    pub(crate) fn new(rules: Ejection, seed: u64) -> Self {
        Self {
            rules,
            records: BTreeMap::new(),
            due: BTreeSet::new(),
            failing: Vec::new(),
            out: 0,
            sweep: None,
            counted: BTreeMap::new(),
            changed: BTreeSet::new(),
            lingering: Vec::new(),
            dice: SmallRng::seed_from_u64(seed),
        }
    }

    /// It failed too often in a row, or the call on which it was tried did.
    pub(crate) fn tripped(&mut self, id: &InstanceId, why: Error, now: Instant) {
        let record = self.record(id, &why);
        match record.standing {
            Standing::Good => self.fails(id, why, false),
            Standing::Trial => {
                record.why = why;
                self.put_out(id, now);
            }
            Standing::Spared | Standing::Out => {}
        }
    }

    /// So many calls in a row succeeded that it may be back.
    pub(crate) fn proved(&mut self, id: &InstanceId, now: Instant) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        match record.standing {
            Standing::Good => return,
            Standing::Spared => self.failing.retain(|failing| failing != id),
            Standing::Out | Standing::Trial => self.out -= usize::from(record.here),
        }
        record.standing = Standing::Good;
        self.changed.insert(id.clone());
        self.is_due(id, Some(now + FORGIVEN));
    }

    /// It left the set.
    pub(crate) fn left(&mut self, id: &InstanceId) {
        self.counted.remove(id);
        if self.records.contains_key(id) {
            self.is_due(id, None);
        }
        self.failing.retain(|failing| failing != id);
        let gone = self.records.remove(id);
        if gone.is_some_and(|record| record.is_left_out()) {
            self.out -= 1;
        }
        self.changed.remove(id);
    }

    /// Whether it is among those to choose from, as whoever trips is.
    pub(crate) fn is_here(&mut self, id: &InstanceId, here: bool) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        let was = record.is_left_out();
        record.here = here;
        self.out = self.out + usize::from(record.is_left_out()) - usize::from(was);
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some((at, _)) = self.due.first() {
            if *at > now {
                return;
            }
            let Some((_, id)) = self.due.pop_first() else {
                return;
            };
            let Some(record) = self.records.get_mut(&id) else {
                continue;
            };
            record.due = None;
            match record.standing {
                Standing::Out => self.on_trial(&id, now),
                Standing::Trial => {
                    self.is_due(&id, Some(now + LONG));
                    self.lingering.push(id);
                }
                Standing::Good => {
                    record.strikes = record.strikes.saturating_sub(1);
                    let again = (record.strikes > 0).then_some(now + FORGIVEN);
                    self.is_due(&id, again);
                    self.forget_if_clean(&id);
                    // It may fail as often again as anybody.
                    self.changed.insert(id);
                }
                Standing::Spared => {}
            }
        }
    }

    /// Those whose trial takes long.
    pub(crate) fn take_lingering(&mut self) -> Vec<InstanceId> {
        std::mem::take(&mut self.lingering)
    }

    /// Whether the calls are to be counted now.
    pub(crate) fn must_sweep(&self, now: Instant) -> bool {
        self.sweep.is_some_and(|at| at <= now)
    }

    /// Looks for outliers among these, given all their calls since ever.
    pub(crate) fn sweep(&mut self, counts: Vec<(InstanceId, Counts)>, now: Instant) {
        let Some(outliers) = self.rules.outliers.clone() else {
            return;
        };
        self.sweep = Some(now + outliers.interval);
        let all: Vec<(Counts, bool)> = counts
            .iter()
            .map(|(id, counts)| {
                let before = self.counted.insert(id.clone(), *counts);
                let standing = self.standing(id);
                let bad = standing.is_out() || standing == Standing::Spared;
                (counts.since(before.unwrap_or_default()), bad)
            })
            .collect();
        let dice = &mut self.dice;
        let found = outliers.find(&all, || dice.next_u32() % 100);
        for (place, finding) in found {
            let id = &counts[place].0;
            self.fails(id, finding.into(), true);
        }
        let ids: Vec<InstanceId> = self.records.keys().cloned().collect();
        for id in ids {
            self.ease(&id, now);
        }
    }

    /// After all that was said, and given how many there are to choose among: who is out?
    pub(crate) fn settle(&mut self, among: usize, now: Instant) {
        if let Some(outliers) = &self.rules.outliers {
            self.sweep.get_or_insert(now + outliers.interval);
        }
        let room = self.room(among);
        while self.out < room
            && let Some(id) = self.take_failing()
        {
            self.out += 1;
            self.put_out(&id, now);
        }
        while self.out > room {
            let out = |(_, record): &(&InstanceId, &Record)| record.is_left_out();
            let longest = self.records.iter().filter(out);
            let Some((id, _)) = longest.min_by_key(|(_, record)| record.out_since) else {
                return;
            };
            let id = id.clone();
            self.out -= 1;
            self.is_due(&id, None);
            if let Some(record) = self.records.get_mut(&id) {
                record.standing = Standing::Spared;
                record.out_since = None;
            }
            self.failing.push(id.clone());
            self.changed.insert(id);
        }
    }

    /// When [`Ejector::tick`] is next worth calling, or [`Ejector::must_sweep`].
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let first = self.due.first().map(|(at, _)| *at);
        first.into_iter().chain(self.sweep).min()
    }

    pub(crate) fn standing(&self, id: &InstanceId) -> Standing {
        let record = self.records.get(id);
        record.map_or(Standing::Good, |record| record.standing)
    }

    /// Why it stands where it does, unless it stands well.
    pub(crate) fn why(&self, id: &InstanceId) -> Option<&Error> {
        let record = self.records.get(id)?;
        (record.standing != Standing::Good).then_some(&record.why)
    }

    /// Since when it has been out, trials included; also when it has just come back.
    pub(crate) fn out_since(&self, id: &InstanceId) -> Option<Instant> {
        self.records.get(id)?.out_since
    }

    /// So many failures in a row are too many for it; 0: there never are.
    pub(crate) fn limit(&self, id: &InstanceId) -> u16 {
        let limit = u16::try_from(self.rules.consecutive).unwrap_or(u16::MAX);
        let lately = self
            .records
            .get(id)
            .is_some_and(|record| record.strikes > 0);
        if lately { limit.div_ceil(2) } else { limit }
    }

    /// Those whose standing has changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.changed)
    }

    /// How many may be out: the share, but one if there are two, and never all.
    fn room(&self, among: usize) -> usize {
        let share = among * self.rules.at_most as usize / 100;
        share.max(1).min(among.saturating_sub(1))
    }

    /// The next that is to be out, and can be.
    fn take_failing(&mut self) -> Option<InstanceId> {
        let is_here = |id| self.records.get(id).is_some_and(|record| record.here);
        let nth = self.failing.iter().position(is_here)?;
        Some(self.failing.remove(nth))
    }

    fn record(&mut self, id: &InstanceId, why: &Error) -> &mut Record {
        self.records.entry(id.clone()).or_insert_with(|| Record {
            standing: Standing::Good,
            here: true,
            strikes: 0,
            multiplier: 0,
            outlier: false,
            why: why.clone(),
            due: None,
            ejected: None,
            out_since: None,
        })
    }

    /// From now on it should be out, and will be if there is room.
    fn fails(&mut self, id: &InstanceId, why: Error, outlier: bool) {
        self.is_due(id, None);
        let record = self.record(id, &why);
        record.standing = Standing::Spared;
        record.out_since = None;
        record.why = why;
        record.outlier = outlier;
        self.failing.push(id.clone());
        self.changed.insert(id.clone());
    }

    /// There is room for it, or it was out already.
    fn put_out(&mut self, id: &InstanceId, now: Instant) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        record.standing = Standing::Out;
        record.ejected = Some(now);
        record.out_since.get_or_insert(now);
        self.changed.insert(id.clone());
        if record.outlier {
            // gRFC A50 lets them back when it counts.
            record.multiplier += 1;
            return self.is_due(id, None);
        }
        record.strikes = (record.strikes + 1).min(STRIKES);
        let doubled = self.rules.time * (1 << (record.strikes - 1));
        let time = doubled.min(self.rules.longest);
        // Clients that saw it fail at the same time do not all try it at the same time.
        let jitter = f64::from(self.dice.next_u32() % 200) / 1000.0;
        self.is_due(id, Some(now + time.mul_f64(1.0 - jitter)));
    }

    /// At each sweep: outliers that have been out long enough are tried, good ones are forgiven.
    fn ease(&mut self, id: &InstanceId, now: Instant) {
        let Some(outliers) = &self.rules.outliers else {
            return;
        };
        let (base, max) = (outliers.base_ejection_time, outliers.max_ejection_time);
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        let over = |record: &Record| {
            let time = base.saturating_mul(record.multiplier).min(base.max(max));
            record.ejected.is_some_and(|since| since + time < now)
        };
        match record.standing {
            Standing::Good => {
                record.multiplier = record.multiplier.saturating_sub(1);
                self.forget_if_clean(id);
            }
            Standing::Out if record.outlier && over(record) => self.on_trial(id, now),
            _ => {}
        }
    }

    fn on_trial(&mut self, id: &InstanceId, now: Instant) {
        if let Some(record) = self.records.get_mut(id) {
            record.standing = Standing::Trial;
            self.changed.insert(id.clone());
            self.is_due(id, Some(now + LONG));
        }
    }

    fn forget_if_clean(&mut self, id: &InstanceId) {
        let clean = |record: &Record| {
            record.standing == Standing::Good && record.strikes == 0 && record.multiplier == 0
        };
        if self.records.get(id).is_some_and(clean) {
            self.is_due(id, None);
            self.records.remove(id);
        }
    }

    fn is_due(&mut self, id: &InstanceId, at: Option<Instant>) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut record.due, at) {
            self.due.remove(&(before, id.clone()));
        }
        if let Some(at) = at {
            self.due.insert((at, id.clone()));
        }
    }
}

impl Record {
    fn is_left_out(&self) -> bool {
        self.here && self.standing.is_out()
    }
}

impl Standing {
    pub(crate) fn is_out(self) -> bool {
        matches!(self, Self::Out | Self::Trial)
    }
}

impl From<Finding> for Error {
    fn from(finding: Finding) -> Self {
        let what = match finding {
            Finding::SuccessRate { is, least } => format!(
                "{:.1} % of its calls succeeded, less than the {:.1} % that pass among the others",
                is * 100.0,
                least * 100.0
            ),
            Finding::FailurePercentage { is, most } => {
                format!("{is:.1} % of its calls failed, more than {most} %")
            }
        };
        Self::new(ErrorKind::Unavailable, what)
    }
}

#[cfg(test)]
#[path = "eject_tests.rs"]
mod tests;
