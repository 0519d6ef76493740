//! Those that answered last, and which of them is the least busy.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
};

use tokio::{sync::Notify, time::Instant};

use super::super::{alias::Alias, dice};
use crate::{
    Endpoint, Endpoints,
    endpoint::{OLD_FAILURES, Probed, Tick, fade},
    orca::Load,
};

/// What outlives changes of the set.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// How long questions and calls take, in microseconds as floats; 0 while nothing is known.
    question: AtomicU32,
    service: AtomicU32,
    /// Answers are old news.
    off: AtomicBool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pool {
    all: Box<[Candidate]>,
    /// How to draw by weight; none when all weights are equal.
    alias: Option<Alias>,
    known: Arc<Known>,
    answered: [AtomicU32; ANSWERED],
    next: AtomicUsize,
    /// So many questions are to be asked.
    wanted: AtomicU32,
    called: Notify,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Endpoint,
    /// One over its weight, as a part of the mean of all.
    per_weight: f32,
}

/// So many that answered last are gone by, and so many of those are looked at.
const ANSWERED: usize = 16;
const LOOKS: usize = 8;
/// Nobody, in place of one that answered.
const NOBODY: u32 = u32::MAX;
/// Where there are fewer endpoints, there is nothing to ask for.
const FEWEST: usize = 4;
/// Questions do not pile up.
const MOST_WANTED: u32 = 32;
/// So much of an average is the last one.
const LAST: f32 = 1.0 / 16.0;
/// Who switched itself off is on again where calls take so much longer than questions.
const CLEARLY: f32 = 1.25;
/// One call in so many asks while it is off.
const SELDOM: u64 = 64;
/// What one says is not gone by whose failures make it cost more than so much.
const TOO_MUCH_BLAME: f32 = 10.0;

impl Pool {
    pub(super) fn of(ready: &Endpoints, known: &Arc<Known>) -> Self {
        let now = Instant::now();
        let weights = ready.weights();
        let mean = weights.sum as f32 / ready.len() as f32;
        let candidate = |endpoint: &Endpoint| {
            endpoint.vitals().sense().probed(now);
            Candidate {
                per_weight: mean / endpoint.weight().max(1) as f32,
                endpoint: endpoint.clone(),
            }
        };
        let pool = Self {
            all: ready.iter().map(candidate).collect(),
            alias: (!weights.are_equal()).then(|| Alias::of(ready)),
            known: Arc::clone(known),
            answered: [const { AtomicU32::new(NOBODY) }; ANSWERED],
            next: AtomicUsize::new(0),
            wanted: AtomicU32::new(0),
            called: Notify::new(),
        };
        // Those that answered before the set changed.
        let fresh =
            (0..pool.all.len()).filter(|place| pool.probed(*place, now).said(now).is_some());
        fresh.take(ANSWERED).for_each(|place| pool.enter(place));
        pool
    }

    pub(super) fn is_worth_asking(&self) -> bool {
        self.all.len() >= FEWEST
    }

    pub(super) fn endpoint(&self, place: usize) -> &Endpoint {
        &self.all[place].endpoint
    }

    /// When somebody may have called.
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }

    /// The least busy of some that answered; none, where another way to choose is better. A question is wanted
    /// for it.
    pub(super) fn best(&self, now: Instant) -> Option<usize> {
        if !self.is_worth_asking() {
            return None;
        }
        let roll = dice::roll();
        let off = self.known.off.load(Relaxed);
        if !off || (roll >> 32).is_multiple_of(SELDOM) {
            self.wants_one();
        }
        if off {
            return None;
        }
        let start = dice::scale(roll as u32, ANSWERED);
        let (mut best, mut known) = ((f32::INFINITY, 0), 0);
        for nth in 0..ANSWERED {
            let place = self.answered[(start + nth) % ANSWERED].load(Relaxed);
            let Some(cost) = self.cost(place as usize, now) else {
                continue;
            };
            known += 1;
            if cost < best.0 {
                best = (cost, place as usize);
            }
            if known == LOOKS {
                break;
            }
        }
        let (cost, place) = best;
        let found = known >= 2 && cost.is_finite();
        found.then(|| {
            self.probed(place, now).is_used();
            place
        })
    }

    /// What a call would cost at this one; none, where nobody knows, or it is not to be gone by.
    fn cost(&self, place: usize, at: Instant) -> Option<f32> {
        let Candidate {
            endpoint,
            per_weight,
        } = self.all.get(place)?;
        let (form, conduct) = (endpoint.vitals().form(), endpoint.conduct());
        let said = self.probed(place, at).said(at)?;
        if !conduct.is_open() || (endpoint.weight() == 0 && self.alias.is_some()) {
            return None;
        }
        let now = Tick::at(at);
        let mut name = conduct.name() as f32 / 256.0;
        if name < 1.0 {
            name = 1.0 - (1.0 - name) * fade(form.silent(now) / OLD_FAILURES);
        }
        let blame = 1.0 / (name * name).powi(2);
        if blame > TOO_MUCH_BLAME {
            return None;
        }
        let usual = f32::from_bits(self.known.service.load(Relaxed));
        let service = if said.service > 0.0 {
            said.service
        } else {
            usual
        };
        // At least a microsecond: where nothing is known of anybody, calls in flight decide.
        let service = service.max(1.0);
        let latency = said.latency.max(form.stalled(now));
        // Our own are known to be there, whatever was said.
        let in_flight = said.in_flight.max(endpoint.in_flight() as f32);
        let queue = 1.0 + in_flight * per_weight;
        Some(((latency - service).max(0.0) + queue.powi(3) * service) * blame)
    }

    fn wants_one(&self) {
        if self.wanted.load(Relaxed) < MOST_WANTED {
            self.wanted.fetch_add(1, Relaxed);
        }
        self.called.notify_one();
    }

    /// Who is to be asked, if anybody is.
    pub(super) fn wanted(&self) -> Option<usize> {
        let one_less = |wanted: u32| wanted.checked_sub(1);
        self.wanted.fetch_update(Relaxed, Relaxed, one_less).ok()?;
        let place = match &self.alias {
            Some(alias) => alias.at(dice::roll()),
            None => dice::below(self.all.len()),
        };
        let now = Instant::now();
        self.probed(place, now).is_asked().then_some(place)
    }

    pub(super) fn heard(&self, place: usize, load: &Load, began: Instant, now: Instant) {
        self.probed(place, now).heard(load, now);
        self.enter(place);
        self.known.learns(
            load,
            now.saturating_duration_since(began).as_secs_f32() * 1e6,
        );
    }

    pub(super) fn is_done(&self, place: usize) {
        self.probed(place, Instant::now()).is_done();
    }

    /// It is among those that answered last, in the place of the one that did so first.
    fn enter(&self, place: usize) {
        let place = place as u32;
        if self
            .answered
            .iter()
            .all(|other| other.load(Relaxed) != place)
        {
            let next = self.next.fetch_add(1, Relaxed) % ANSWERED;
            self.answered[next].store(place, Relaxed);
        }
    }

    fn probed(&self, place: usize, now: Instant) -> &Probed {
        self.endpoint(place).vitals().sense().probed(now)
    }
}

impl Known {
    fn learns(&self, load: &Load, question: f32) {
        let question = average(&self.question, question);
        let service = average(&self.service, load.service.as_secs_f32() * 1e6);
        if question == 0.0 || service == 0.0 {
            return;
        }
        let off = self.off.load(Relaxed);
        let bound = if off { CLEARLY } else { 1.0 };
        let is_old_news = service < question * bound;
        if is_old_news != off {
            self.off.store(is_old_news, Relaxed);
        }
    }
}

/// With this one, unless it is nothing.
fn average(known: &AtomicU32, this: f32) -> f32 {
    let before = f32::from_bits(known.load(Relaxed));
    let now = match (before, this) {
        (before, 0.0) => before,
        (0.0, this) => this,
        (before, this) => before + LAST * (this - before),
    };
    known.store(now.to_bits(), Relaxed);
    now
}
