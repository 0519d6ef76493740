//! The endpoints of one service: what the registry says, what connections show, and what follows from both.
//!
//! A plain state machine: fed with updates, with what became of connections, and with the time; it answers
//! with [`Step`]s. It never waits and never looks at a clock.

mod judged;
mod links;
mod share;
mod stages;
mod standing;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

pub(super) use share::Share;
pub(crate) use standing::Wellness;

use super::{
    Endpoint, Endpoints, Event, Owner, State, Told, Vitals,
    entry::{Entry, Next},
    tiers::Tiers,
};
use crate::{
    Backoff, Error, Instance, InstanceId,
    health::{Alarm, Classify, Ejection, Ejector, SlowStart},
    resolve::{Change, Skipped, Update},
    stage::{Selection, Stages},
};

/// Who is inside and who is well depend on each other: so often that is gone through at once.
const ROUNDS: usize = 4;

/// How the set behaves; every default is stated at the channel's builder.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// How long a vanished instance may serve on while its connection is healthy.
    pub(crate) grace: Duration,
    /// How long a collapsed set is kept at most.
    pub(crate) hold: Duration,
    /// Between attempts to connect.
    pub(crate) redial: Backoff,
    /// Attempts to connect at a time.
    pub(crate) dials: usize,
    /// Whether endpoints are asked whether they are well, and are not ready before they say so.
    pub(crate) asked: bool,
    /// Connections of one endpoint.
    pub(crate) connections: usize,
    pub(crate) health: Health,
    /// Who is used at all.
    pub(crate) stages: Stages,
}

/// How it is judged who is well, and what follows.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) ejection: Ejection,
    pub(crate) slow_start: SlowStart,
    /// When less than so many of a hundred are well, calls go to all.
    pub(crate) panic: u32,
    /// Judges calls in place of the usual judgement.
    pub(crate) classify: Option<Arc<dyn Classify>>,
    /// Where calls tell what they see.
    pub(crate) alarm: Arc<Alarm>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ejection: Ejection::default(),
            slow_start: SlowStart::default(),
            panic: 50,
            classify: None,
            alarm: Arc::default(),
        }
    }
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Step {
    /// Connect; tell [`Set::up`] or [`Set::down`] what came of it.
    Dial(Dial),
    /// Let go of the endpoint's connection of this attempt: no new calls, those in flight end in peace.
    Drain(Arc<Vitals>, u64),
    /// Give up the attempt to connect of this number.
    Abandon(u64),
    /// Tell whoever listens.
    Tell(Event),
}

/// An attempt to connect. `attempt` tells it from those before and after it.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) instance: Arc<Instance>,
    pub(crate) attempt: u64,
    /// Whether the endpoint has a connection already.
    pub(crate) spare: bool,
}

/// What is due for an endpoint. Each is called off by itself, though several may come at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Redial,
    /// The end of a suspicion.
    Doubt,
    /// The end of the time of one who is left out.
    Leave,
}

/// Room for so many times those who are left is given back.
const ROOMY: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Set {
    limits: Limits,
    /// Whom the endpoints' calls tell what they see.
    told: Arc<Told>,
    /// In boxes, for a table has room for twice as many. Gone through in the order of [`Set::known`].
    entries: HashMap<InstanceId, Box<Entry>>,
    /// All of them, as views show them.
    known: Endpoints,
    tiers: Tiers,
    /// Who is inside of the stages, if there are any.
    selection: Option<Box<Selection>>,
    ejector: Ejector,
    /// How many there are to choose among, and whether too few of them are well.
    wellness: Wellness,
    panics: bool,
    /// Those that a caller has barred, and those that became well, or unwell, since it was last seen to.
    turned: BTreeSet<InstanceId>,
    shifted: BTreeSet<InstanceId>,
    /// Those that are given less than their weight, and when that is next another part.
    partial: BTreeSet<InstanceId>,
    adjust_at: Option<Instant>,
    /// Since when there has been anybody to choose.
    up_since: Option<Instant>,
    /// When something is due for an endpoint.
    due: BTreeSet<(Instant, InstanceId, Due)>,
    /// Endpoints that wait for one of the places in which to connect.
    queue: VecDeque<InstanceId>,
    dialling: usize,
    suspects: BTreeSet<InstanceId>,
    held_until: Option<Instant>,
    /// When the collapse began to be held, and when the last one vanished: nobody is held twice.
    held_since: Option<Instant>,
    vanished_at: Option<Instant>,
    attempts: u64,
    stale: Option<(Error, Instant)>,
    skipped: Vec<Skipped>,
    listed: bool,
    /// Whether nobody is connected because nobody calls.
    asleep: bool,
    steps: Vec<Step>,
    changed: bool,
}

impl Set {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::seeded(limits, rand::random())
    }

    /// One whose chance follows from this number.
    pub(crate) fn seeded(limits: Limits, seed: u64) -> Self {
        let health = &limits.health;
        let ejector = Ejector::new(health.ejection.clone(), seed);
        let stages = limits.stages.is_any().then_some(&limits.stages);
        let selection = stages.map(|stages| Box::new(Selection::new(stages, seed)));
        let told = Arc::new(Told {
            alarm: Arc::clone(&health.alarm),
            classify: health.classify.clone(),
        });
        Self {
            told,
            limits,
            entries: HashMap::new(),
            known: Endpoints::default(),
            tiers: Tiers::default(),
            selection,
            ejector,
            wellness: Wellness::default(),
            panics: false,
            turned: BTreeSet::new(),
            shifted: BTreeSet::new(),
            partial: BTreeSet::new(),
            adjust_at: None,
            up_since: None,
            due: BTreeSet::new(),
            queue: VecDeque::new(),
            dialling: 0,
            suspects: BTreeSet::new(),
            held_until: None,
            held_since: None,
            vanished_at: None,
            attempts: 0,
            stale: None,
            skipped: Vec::new(),
            listed: false,
            asleep: false,
            steps: Vec::new(),
            changed: false,
        }
    }

    /// What the registry says.
    pub(crate) fn apply(&mut self, update: Update, now: Instant) -> Vec<Step> {
        match update {
            Update::Reset(instances) => self.reset(instances, now),
            Update::Delta(changes) => self.delta(changes, now),
            Update::Stale(error) => self.went_stale(error, now),
            Update::Skipped(skipped) => {
                self.tell(Event::Skipped(skipped.len()));
                self.skipped = skipped;
                self.changed = true;
            }
        }
        self.settle(now)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Step> {
        while let Some((at, ..)) = self.due.first() {
            if *at > now {
                break;
            }
            if let Some((_, id, due)) = self.due.pop_first() {
                self.is_due(&id, due, now);
            }
        }
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
        self.tick_ejector(now);
        self.settle(now)
    }

    /// When [`Set::tick`] is next worth calling.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let first = self.due.first().map(|(at, ..)| *at);
        let first = first.into_iter().chain(self.held_until);
        first
            .chain(self.ejector.next_due())
            .chain(self.adjust_at)
            .min()
    }

    /// Whether something that a view shows has changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// All that are known.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.known
    }

    /// The endpoint of this id.
    pub(crate) fn vitals(&self, id: &InstanceId) -> Option<&Arc<Vitals>> {
        Some(&self.entries.get(id)?.vitals)
    }

    /// Those that can take calls, the best there are: serving ones; else suspects; else draining ones; else
    /// those whose calls fail.
    pub(crate) fn ready(&self) -> &Endpoints {
        self.tiers.best(&self.known)
    }

    /// Since when and why the registry is out of reach.
    pub(crate) fn stale(&self) -> Option<&(Error, Instant)> {
        self.stale.as_ref()
    }

    /// How many have vanished, if the set is held because of it.
    pub(crate) fn held(&self) -> Option<usize> {
        self.held_until.map(|_| self.suspects.len())
    }

    /// The records that are passed over.
    pub(crate) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Whether the registry has ever said what there is.
    pub(crate) fn listed(&self) -> bool {
        self.listed
    }

    /// Those of a list that are not known yet.
    pub(crate) fn newcomers(&self, listed: &[Arc<Instance>]) -> Vec<Change> {
        let new = listed.iter().filter(|i| !self.entries.contains_key(&i.id));
        new.cloned().map(Change::Put).collect()
    }

    /// For those that come in parts: to move all that are there takes longer than a part should.
    pub(crate) fn make_room(&mut self, news: &[Change]) {
        let is_new = |change: &&Change| matches!(change, Change::Put(i) if !self.entries.contains_key(&i.id));
        self.entries.reserve(news.iter().filter(is_new).count());
    }

    /// All, in the order of their ids.
    fn each(&self) -> impl Iterator<Item = &Entry> + Clone {
        let known = self.known.iter();
        known.filter_map(|endpoint| Some(&**self.entries.get(endpoint.id())?))
    }

    fn reset(&mut self, instances: Vec<Arc<Instance>>, now: Instant) {
        let mut keep: Vec<&InstanceId> = instances.iter().map(|instance| &instance.id).collect();
        keep.sort_unstable();
        let is_gone = |id: &&InstanceId| keep.binary_search(id).is_err();
        let known = self.known.iter().map(Endpoint::id);
        let gone: Vec<InstanceId> = known.filter(is_gone).cloned().collect();
        for id in gone {
            self.remove(&id, now);
        }
        for instance in instances {
            self.put(instance, now);
        }
        if !std::mem::replace(&mut self.listed, true) {
            self.changed = true;
        }
        self.went_fresh();
    }

    fn delta(&mut self, changes: Vec<Change>, now: Instant) {
        for change in changes {
            match change {
                Change::Put(instance) => self.put(instance, now),
                Change::Remove(id) => self.remove(&id, now),
                Change::Vanish(id) => self.vanish(&id, now),
            }
        }
        self.went_fresh();
    }

    fn went_stale(&mut self, error: Error, now: Instant) {
        if self.stale.is_none() {
            tracing::debug!(
                error = error.chain(),
                kept = self.entries.len(),
                "registry out of reach"
            );
            self.tell(Event::Stale(error.clone()));
        }
        let since = self.stale.as_ref().map_or(now, |(_, since)| *since);
        self.stale = Some((error, since));
        self.changed = true;
    }

    fn went_fresh(&mut self) {
        if self.stale.take().is_some() {
            tracing::info!(known = self.entries.len(), "registry in reach again");
            self.tell(Event::Fresh);
            self.changed = true;
        }
    }

    fn put(&mut self, instance: Arc<Instance>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&instance.id) else {
            return self.add(instance, now);
        };
        let was_suspect = entry.suspect.take();
        let told = if entry.instance == instance {
            None
        } else if instance.is_draining() && !entry.instance.is_draining() {
            Some(Event::Draining(instance.id.clone()))
        } else {
            Some(Event::Updated(instance.id.clone()))
        };
        if was_suspect.is_none() && told.is_none() {
            return;
        }
        // A new weight must not cost a connection; a new address must.
        let moved = entry.instance.addresses != instance.addresses
            || entry.instance.server_name != instance.server_name;
        let id = instance.id.clone();
        entry.instance = instance;
        if let Some(selection) = &mut self.selection {
            selection.put(&entry.instance, entry.fitness());
        }
        entry.vitals.suspect(false);
        entry.show(now);
        entry.place = self.known.put_again(entry.endpoint(), entry.place);
        if let Some(since) = was_suspect {
            self.suspects.remove(&id);
            let until = since + self.limits.grace;
            self.due.remove(&(until, id.clone(), Due::Doubt));
            self.tell(Event::Cleared(id.clone()));
        }
        if let Some(event) = told {
            self.tell(event);
        }
        if moved {
            self.disconnect(&id);
            self.connect_anew(&id, now);
            // What was done at the old address, another process did.
            self.ejector.proved(&id, now);
            self.turned.insert(id.clone());
        }
        self.rank(&id);
    }

    fn add(&mut self, instance: Arc<Instance>, now: Instant) {
        let id = instance.id.clone();
        let owner = Owner {
            id: id.clone(),
            told: Arc::clone(&self.told),
        };
        let limit = self.ejector.limit(&id);
        let vitals = Vitals::owned(now, Some(owner), limit);
        let mut entry = Entry::new(instance, vitals);
        if let Some(selection) = &mut self.selection {
            // Whoever turns out to be inside is connected when all that was said is heard.
            selection.put(&entry.instance, entry.fitness());
            entry.next = Next::Rest;
        }
        self.tiers.others_come(&self.known);
        self.known.put(entry.endpoint());
        self.entries.insert(id.clone(), Box::new(entry));
        if self.selection.is_none() {
            self.enqueue(&id);
        }
        self.tell(Event::Added(id));
        self.changed = true;
    }

    fn remove(&mut self, id: &InstanceId, now: Instant) {
        self.disconnect(id);
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        if self.entries.capacity() > ROOMY * self.entries.len().max(ROOMY) {
            self.entries.shrink_to(2 * self.entries.len());
        }
        if let Some(since) = entry.suspect {
            self.suspects.remove(id);
            let until = since + self.limits.grace;
            self.due.remove(&(until, id.clone(), Due::Doubt));
        }
        if let Some(selection) = &mut self.selection {
            selection.remove(id);
        }
        if let Some(until) = entry.lingers {
            self.due.remove(&(until, id.clone(), Due::Leave));
        }
        self.known.remove(id);
        self.tiers.leave(id, entry.tier);
        self.wellness.shift(entry.well, None);
        self.ejector.left(id);
        self.partial.remove(id);
        entry.vitals.enter(State::Gone, now);
        self.limits.health.alarm.forget(id);
        self.tell(Event::Removed(id.clone()));
        self.changed = true;
    }

    fn vanish(&mut self, id: &InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.instance.is_draining() {
            return self.remove(id, now);
        }
        if entry.suspect.is_some() {
            return;
        }
        entry.suspect = Some(now);
        entry.vitals.suspect(true);
        self.vanished_at = Some(now);
        self.suspects.insert(id.clone());
        let until = now + self.limits.grace;
        self.due.insert((until, id.clone(), Due::Doubt));
        self.tell(Event::Suspected(id.clone()));
        self.rank(id);
    }

    fn is_due(&mut self, id: &InstanceId, due: Due, now: Instant) {
        match due {
            Due::Redial => self.redial(id, now),
            Due::Leave => self.end_lingering(id, now),
            // Else it is judged when the set is held no longer.
            Due::Doubt if self.held_until.is_none() => self.remove(id, now),
            Due::Doubt => {}
        }
    }

    /// After all that was said: is the set held, and who may connect now?
    fn settle(&mut self, now: Instant) -> Vec<Step> {
        let collapsed = self.suspects.len() * 2 > self.entries.len();
        match self.held_until {
            None if collapsed && self.vanished_at > self.held_since => self.hold(now),
            Some(_) if !collapsed => self.release(now),
            _ => {}
        }
        if !collapsed {
            self.held_since = None;
        }
        if self.held_until.is_none() {
            // A suspect without a connection is gone; one that is about to connect is given the time to.
            self.remove_suspects(now, |entry| {
                entry.up.is_empty() && matches!(entry.next, Next::Waiting(_))
            });
        }
        // Whoever is ejected may have to be made up for, and whoever comes in has a standing.
        for _ in 0..ROUNDS {
            self.settle_stages(now);
            self.settle_standings(now);
            if self.stages_are_settled() {
                break;
            }
        }
        self.settle_shares(now);
        self.dial(now);
        std::mem::take(&mut self.steps)
    }

    fn hold(&mut self, now: Instant) {
        self.held_until = Some(now + self.limits.hold);
        self.held_since = Some(now);
        tracing::warn!(
            vanished = self.suspects.len(),
            known = self.entries.len(),
            "most of the set vanished; holding it"
        );
        self.tell(Event::Held(self.suspects.len()));
        self.rank_suspects();
    }

    /// The set is held no longer: whoever is still doubted is judged alone.
    fn release(&mut self, now: Instant) {
        self.held_until = None;
        tracing::info!(
            vanished = self.suspects.len(),
            known = self.entries.len(),
            "set no longer held"
        );
        self.tell(Event::Released);
        self.changed = true;
        let grace = self.limits.grace;
        self.remove_suspects(now, |entry| {
            entry.suspect.is_some_and(|since| since + grace <= now)
        });
        self.rank_suspects();
    }

    /// Removes those suspects of whom this is true.
    fn remove_suspects(&mut self, now: Instant, which: impl Fn(&Entry) -> bool) {
        let gone = self
            .suspects
            .iter()
            .filter(|&id| self.entries.get(id).is_some_and(|entry| which(entry)));
        for id in gone.cloned().collect::<Vec<_>>() {
            self.remove(&id, now);
        }
    }

    /// Puts an endpoint that has changed among those with whom it takes calls.
    fn rank(&mut self, id: &InstanceId) {
        self.changed = true;
        let held = self.held_until.is_some();
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let tier = entry.tier(held, self.panics);
        let before = std::mem::replace(&mut entry.tier, tier);
        let endpoint = entry.endpoint();
        self.tiers.shift(endpoint, before, tier, &self.known);
        let well = entry.is_well();
        let before = std::mem::replace(&mut entry.well, well);
        if before != well {
            self.wellness.shift(before, well);
            self.shifted.insert(id.clone());
        }
        self.judge_fitness(id);
    }

    /// While the set is held, whoever is doubted serves as well as the others.
    fn rank_suspects(&mut self) {
        self.changed = true;
        for id in self.suspects.clone() {
            self.rank(&id);
        }
    }

    fn tell(&mut self, event: Event) {
        self.steps.push(Step::Tell(event));
    }
}

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
