//! Where a call would be answered soonest, as far as anybody can tell from here.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::{Call, Pick, Policy, alias::Alias, dice};
use crate::{
    Endpoint, Endpoints,
    endpoint::{Board, Signs, Tick, fade},
};

/// The best of five drawn by chance, and of the runner-up of the last pick, by what their calls have shown.
///
/// What counts is how soon an endpoint answers, times its calls in flight, over the fourth power of its good name:
///
/// - **Latency** is a moving average over twenty seconds, or fifty calls, of the time to the head of good
///   responses. Who fails at once does not look fast.
/// - **A stall** counts while it lasts: where calls wait and none is answered, the wait is the latency. A stream
///   that has begun to answer does not wait.
/// - **Failures** cost four times as much after one, and seventy times after three in a row. They count at the end
///   of a stream, with its trailers, by the [one judgement](crate::health::Outcome) of all.
/// - **Calls in flight** count against what is usual among the five: where there are many, one more weighs little.
/// - **Old news fades**: without news, two thirds of what made an endpoint look slow are forgotten in twenty
///   seconds.
/// - **Tries** find out who is well again: one call goes to an endpoint that has looked bad for five seconds, or for
///   nine since a first failure; each try that fails makes the next wait twice as long, up to 36 seconds. Less than
///   one call in a thousand is spent so, but for the first four. One that is twice as fast as it was, or succeeds, is
///   believed at once.
/// - **Weights**, and the [share](Endpoint::share) of one that is new, say how often it is drawn first, and how many
///   calls in flight are usual for it.
///
/// The first that is drawn is taken unless another costs a quarter less, or less than that where many calls are in
/// flight; and the fewer answers a latency is known by, the less it counts against an endpoint: to follow every
/// difference would leave some of a fleet's equals idle. All that is known of an endpoint outlives changes of the set.
///
/// A pick takes no lock, allocates nothing and looks at six endpoints, however many there are.
///
/// # Limits
///
/// All it knows is what this channel's own calls have shown. Where a client calls each server less than once in
/// some seconds, that is little. A server that was many times slower is found to be fast again only when it is
/// tried: where a client makes a hundred calls a second, within five seconds, where it makes ten and several are
/// slow, in minutes. One that failed for half a minute may wait as long again. `scripts/sim` in the repository says
/// how it does in seventeen scenarios, beside others, and with what confidence.
///
/// ```
/// use tonic_fleet::{Channel, balance::Adaptive};
///
/// # fn example() -> Result<(), tonic_fleet::Error> {
/// let target = "static://10.0.0.1:50051,10.0.0.2:50051".parse()?;
/// let builder = Channel::builder(target).policy(Adaptive::default());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Adaptive {
    fleet: Arc<Fleet>,
}

/// What is usual: outlives changes of the set.
#[derive(Debug)]
struct Fleet {
    /// The latency that calls meet, in microseconds as a float; 0 while nothing is known.
    usual: AtomicU32,
    /// So many calls may be spent on trying those that look bad.
    tries: AtomicU32,
}

#[derive(Debug)]
struct OfFive {
    board: Board,
    /// One over each weight, as a part of the mean of all; none when all weights are equal.
    per_weight: Option<Box<[f32]>>,
    /// How to draw by weight; none when all weights are equal.
    alias: Option<Alias>,
    fleet: Arc<Fleet>,
    /// The place of the last pick's runner-up.
    runner_up: AtomicU32,
}

/// So many are drawn.
const CHOICES: usize = 5;
/// What made an endpoint look slow fades in so many seconds; its failures do in fewer.
const OLD_NEWS: f32 = 20.0;
/// Where nothing is heard for long, so much of what is usual is hoped for: a little less, or an equal that was
/// unlucky once might never be tried again.
const HOPE: f32 = 0.85;
/// A latency that looks bad, and is known by fewer answers than this, counts for less than half.
const DOUBTS: f32 = 2.0;
/// The first that is drawn is taken, unless another costs less by this part of it: by so much do equals seem to
/// differ. Where calls are in flight they tell equals apart, and it is so many times less for each that is usual.
const SAME: f32 = 0.25;
const TELLING: f32 = 15.0;
/// One pick in so many tells what is usual, and counts for so much of it.
const TELLS: u64 = 4;
const COUNTS: f32 = 1.0 / 16.0;
/// One pick in so many earns a try of one that looks bad.
const EARNS: u64 = 1024;
/// So many tries may be made at first, and saved.
const AT_FIRST: u32 = 4;
const MOST: u32 = 8;
/// Who takes so many times what is usual, or has lost so much of its good name, looks bad.
const SLOW: f32 = 2.0;
const BLAMED: f32 = 0.1;
/// One that looks slow is tried after so many seconds.
const TRY_AFTER: f32 = 5.0;

/// The places of the candidates, each once.
struct Drawn {
    places: [usize; CHOICES + 1],
    n: usize,
    /// Which of them was drawn first.
    first: usize,
}

/// What a candidate has to show.
#[derive(Clone, Copy, Default)]
struct Look {
    in_flight: usize,
    /// As it was measured, and as it counts now.
    known: f32,
    latency: f32,
    busy: f32,
    blame: f32,
    /// It has looked bad for so long that it may be tried.
    doubtful: bool,
}

impl Policy for Adaptive {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let first = ready.iter().next().map(Endpoint::weight);
        let equal = ready
            .iter()
            .all(|endpoint| Some(endpoint.weight()) == first);
        let sum: u64 = ready.iter().map(Endpoint::weight).sum();
        let mean = sum as f32 / ready.len() as f32;
        let per_weight = |endpoint: &Endpoint| mean / endpoint.weight().max(1) as f32;
        Box::new(OfFive {
            board: Board::of(ready),
            per_weight: (!equal).then(|| ready.iter().map(per_weight).collect()),
            alias: (!equal).then(|| Alias::of(ready)),
            fleet: Arc::clone(&self.fleet),
            runner_up: AtomicU32::new(u32::MAX),
        })
    }
}

impl Pick for OfFive {
    fn pick(&self, call: &Call<'_>) -> usize {
        if self.board.len() == 1 {
            return 0;
        }
        let [bits, rolls @ ..]: [u64; 4] = dice::rolls();
        let drawn = self.draw(rolls);
        let now = Tick::of(call.at());
        let usual = f32::from_bits(self.fleet.usual.load(Relaxed));
        let mut looks = [Look::default(); CHOICES + 1];
        // A word of each before all of any: where memory is far, they are fetched side by side.
        for (look, &place) in looks.iter_mut().zip(drawn.places()) {
            look.in_flight = self.board.signs(place).in_flight();
        }
        let mut busy = 0.0;
        for (look, &place) in looks.iter_mut().zip(drawn.places()) {
            let per_weight = self.per_weight.as_deref();
            look.busy = look.in_flight as f32 * per_weight.map_or(1.0, |each| each[place]);
            busy += look.busy;
            look.at(self.board.signs(place), now, usual);
        }
        if bits & (EARNS - 1) == 0 {
            self.fleet.earns_a_try();
        }
        let looks = &looks[..drawn.n];
        if let Some(nth) = looks.iter().position(|look| look.doubtful)
            && self.fleet.may_try()
        {
            return drawn.places[nth];
        }
        let (least, second) = two_least(looks, busy / drawn.n as f32, drawn.first);
        if self.board.len() > CHOICES {
            self.runner_up.store(drawn.places[second] as u32, Relaxed);
        }
        if bits >> 56 < 256 / TELLS {
            self.fleet.meets(looks[least].known);
        }
        drawn.places[least]
    }
}

impl OfFive {
    #[inline]
    fn draw(&self, rolls: [u64; 3]) -> Drawn {
        let n = self.board.len();
        let mut drawn = Drawn {
            places: [0; CHOICES + 1],
            n: 0,
            first: 0,
        };
        if let Some(alias) = &self.alias {
            let [a, b, c] = rolls;
            let mixed = [a, b, c, a.rotate_left(32) ^ b, b.rotate_left(32) ^ c];
            mixed.into_iter().for_each(|roll| drawn.add(alias.at(roll)));
        } else if n <= CHOICES {
            let start = dice::scale(rolls[0] as u32, n);
            (start..n)
                .chain(0..start)
                .for_each(|place| drawn.add(place));
        } else {
            // Floyd's way to draw some of many, each at most once; in which order says nothing.
            drawn.first = dice::scale((rolls[2] >> 32) as u32, CHOICES);
            for nth in 0..CHOICES {
                let bits = (rolls[nth / 2] >> (32 * (nth % 2))) as u32;
                let last = n - CHOICES + nth;
                let place = dice::scale(bits, last + 1);
                drawn.add(if drawn.places().contains(&place) {
                    last
                } else {
                    place
                });
            }
        }
        let runner_up = self.runner_up.load(Relaxed) as usize;
        if runner_up < n {
            drawn.add(runner_up);
        }
        drawn
    }
}

impl Drawn {
    fn places(&self) -> &[usize] {
        &self.places[..self.n]
    }

    #[inline]
    fn add(&mut self, place: usize) {
        if !self.places().contains(&place) {
            self.places[self.n] = place;
            self.n += 1;
        }
    }
}

impl Look {
    #[inline]
    fn at(&mut self, signs: &Signs, now: Tick, usual: f32) {
        let (form, conduct) = (signs.form(), signs.conduct());
        let known = form.latency();
        let usual = if usual > 0.0 { usual } else { known };
        let mut latency = if known > 0.0 { known } else { usual };
        let mut name = conduct.name() as f32 / 256.0;
        if latency > usual * HOPE || name < 1.0 {
            let silent = form.silent(now);
            let looks_bad = known > SLOW * usual || name < 1.0 - BLAMED;
            self.doubtful = looks_bad
                && silent > form.rest().max(TRY_AFTER)
                && conduct.is_open()
                && self.in_flight == 0;
            let hoped = latency.min(usual * HOPE);
            let sure = 1.0 / (1.0 + DOUBTS * form.doubt());
            latency = hoped + (latency - hoped) * sure * fade(silent / OLD_NEWS);
            name = 1.0 - (1.0 - name) * fade(silent / form.forgives());
        }
        self.known = known;
        // At least a microsecond: where nothing is known of anybody, calls in flight decide.
        self.latency = latency.max(form.stalled(now)).max(1.0);
        self.blame = if conduct.is_open() {
            1.0 / (name * name).powi(2)
        } else {
            f32::INFINITY
        };
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            usual: AtomicU32::new(0),
            tries: AtomicU32::new(AT_FIRST),
        }
    }
}

impl Fleet {
    /// Whether one more call may be spent on a try.
    fn may_try(&self) -> bool {
        let one_less = |tries: u32| tries.checked_sub(1);
        self.tries.fetch_update(Relaxed, Relaxed, one_less).is_ok()
    }

    fn earns_a_try(&self) {
        let one_more = |tries| (tries < MOST).then_some(tries + 1);
        let _ = self.tries.fetch_update(Relaxed, Relaxed, one_more);
    }

    fn meets(&self, latency: f32) {
        if latency == 0.0 {
            return;
        }
        let usual = f32::from_bits(self.usual.load(Relaxed));
        let now = if usual == 0.0 {
            latency
        } else {
            usual + COUNTS * (latency - usual)
        };
        self.usual.store(now.to_bits(), Relaxed);
    }
}

/// Where the one is that costs least, and the next, when so many calls in flight are usual.
#[inline]
fn two_least(looks: &[Look], busy: f32, first: usize) -> (usize, usize) {
    let mut least = (f32::INFINITY, 0);
    let mut second = least;
    let good_enough = 1.0 - SAME / (1.0 + TELLING * busy);
    for (nth, look) in looks.iter().enumerate() {
        let mut cost = look.latency * (look.busy + 1.0 + busy) * look.blame;
        if nth == first {
            cost *= good_enough;
        }
        if cost < least.0 {
            (second, least) = (least, (cost, nth));
        } else if cost < second.0 {
            second = (cost, nth);
        }
    }
    (least.1, second.1)
}

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod tests;
