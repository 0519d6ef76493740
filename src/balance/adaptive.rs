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

/// The best of six drawn by chance, and of the runner-up of the last pick, by what their calls have shown.
///
/// What counts is how soon an endpoint answers, times its calls in flight, over the fourth power of its good name:
///
/// - **Latency** is a moving average over twenty seconds, or fifty calls, of the time to the head of good
///   responses. Who fails at once does not look fast.
/// - **A stall** counts while it lasts: where calls wait and none is answered, the wait is the latency. A stream
///   that has begun to answer does not wait.
/// - **Failures** cost four times as much after one, and seventy times after three in a row. They count at the end
///   of a stream, with its trailers, by the [one judgement](crate::health::Outcome) of all.
/// - **Calls in flight** count against what is usual among the six: where there are many, one more weighs little.
/// - **Old news fades**: without news, two thirds of what made an endpoint look slow are forgotten in forty
///   seconds.
/// - **Tries** find out who is well again: one call goes to an endpoint that has looked bad for five seconds, or for
///   seven since it took eight times as long as it used to, or for eight and a half since a first failure. Each try
///   that shows no better makes the next wait twice as long, up to 36 seconds, and so does a relapse. Less than one
///   call in a thousand is spent so, but for the first eight. One that is twice as fast as it was, or succeeds, is
///   believed at once, and preferred for some calls: it has nothing to do.
/// - **Weights**, and the [share](Endpoint::share) of one that is new, say how often it is drawn first, and how many
///   calls in flight are usual for it.
///
/// The first that is drawn is taken unless another costs a quarter less, or less than that where many calls are in
/// flight; and the fewer answers a latency is known by, the less it counts against an endpoint: to follow every
/// difference would leave some of a fleet's equals idle. All that is known of an endpoint outlives changes of the set.
///
/// A pick takes no lock, allocates nothing and looks at seven endpoints, however many there are.
///
/// # Limits
///
/// All it knows is what this channel's own calls have shown. Where a client calls each server less than once in
/// some seconds, that is little. A server that was many times slower is found to be fast again only when it is
/// tried: after one that was slow or failed for long has waited as long again, up to 36 seconds, and where a client
/// makes ten calls a second and several are slow, in minutes. `scripts/sim` in the repository says
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
struct Best {
    board: Board,
    /// One over each weight, as a part of the mean of all; none when all weights are equal.
    per_weight: Option<Box<[f32]>>,
    /// How to draw by weight; none when all weights are equal.
    alias: Option<Alias>,
    fleet: Arc<Fleet>,
    runner_up: RunnerUp,
}

/// The place of the last pick's runner-up. In a cache line of its own: each pick writes it, and reads the others.
#[derive(Debug)]
#[repr(align(64))]
struct RunnerUp(AtomicU32);

/// So many are drawn.
const CHOICES: usize = 6;
/// What made an endpoint look slow fades in so many seconds; its failures do in fewer.
const OLD_NEWS: f32 = 40.0;
/// Where nothing is heard for long, so much of what is usual is hoped for: a little less, or an equal that was
/// unlucky once might never be tried again.
const HOPE: f32 = 0.85;
/// A latency that looks bad, and is known by fewer answers than this, counts for less than half.
const DOUBTS: f32 = 2.0;
/// The first that is drawn is taken, unless another costs less by this part of it: by so much do equals seem to
/// differ. Where calls are in flight they tell equals apart, and it is so many times less for each that is usual.
const SAME: f32 = 0.25;
const TELLING: f32 = 60.0;
/// One pick in so many tells what is usual, and counts for so much of it.
const TELLS: u64 = 4;
const COUNTS: f32 = 1.0 / 16.0;
/// One pick in so many earns a try of one that looks bad.
const EARNS: u64 = 1024;
/// So many tries may be saved, and made at first.
const MOST: u32 = 8;
/// Who takes so many times what is usual, or has lost so much of its good name, looks bad. One that was well
/// before and is known to have been slow since need not be as slow as that: it is tried for sure.
const SLOW: f32 = 3.0;
const FELL: f32 = 1.5;
const BLAMED: f32 = 0.1;
/// One that looks slow is tried after so many seconds.
const TRY_AFTER: f32 = 5.0;

/// The places of the candidates, each once.
struct Drawn {
    places: Each<usize>,
    n: usize,
    /// Which of them was drawn first.
    first: usize,
}

/// Something of each candidate, and of nobody: processors reckon with four or eight numbers at once.
type Each<T = f32> = [T; LANES];
const LANES: usize = (CHOICES + 1).next_multiple_of(4);

/// What the candidates have to show.
struct Looks {
    /// Calls in flight, for its weight.
    busy: Each,
    /// The latency as it was measured, and how much that is to be doubted.
    known: Each,
    doubt: Each,
    stalled: Each,
    name: Each,
    /// Infinite where it is not to be called at all.
    barred: Each,
    /// For how long nothing was heard of it, and how long that has to be until it may be tried.
    silent: Each,
    rests: Each,
    forgives: Each,
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
        Box::new(Best {
            board: Board::of(ready),
            per_weight: (!equal).then(|| ready.iter().map(per_weight).collect()),
            alias: (!equal).then(|| Alias::of(ready)),
            fleet: Arc::clone(&self.fleet),
            runner_up: RunnerUp(AtomicU32::new(u32::MAX)),
        })
    }
}

impl Pick for Best {
    fn pick(&self, call: &Call<'_>) -> usize {
        if self.board.len() == 1 {
            return 0;
        }
        let [bits, rolls @ ..]: [u64; 5] = dice::rolls();
        let drawn = self.draw(rolls);
        let now = Tick::of(call.at());
        let usual = f32::from_bits(self.fleet.usual.load(Relaxed));
        let looks = self.look_at(&drawn, now);
        let busy = looks.busy.iter().sum::<f32>() / drawn.n as f32;
        let (mut costs, doubtful) = looks.judged(usual, busy);
        if bits & (EARNS - 1) == 0 {
            self.fleet.earns_a_try();
        }
        if doubtful.iter().fold(false, |any, one| any | one)
            && let Some(nth) = doubtful.iter().position(|doubtful| *doubtful)
            && self.fleet.may_try()
        {
            return drawn.places[nth];
        }
        costs[drawn.first] *= 1.0 - SAME / (1.0 + TELLING * busy);
        let (least, second) = two_least(&costs);
        if self.board.len() > CHOICES {
            self.runner_up.0.store(drawn.places[second] as u32, Relaxed);
        }
        if bits >> 56 < 256 / TELLS {
            self.fleet.meets(looks.known[least]);
        }
        drawn.places[least]
    }
}

impl Best {
    #[inline]
    fn draw(&self, rolls: [u64; 4]) -> Drawn {
        let n = self.board.len();
        let mut drawn = Drawn {
            places: [usize::MAX; LANES],
            n: 0,
            first: 0,
        };
        if let Some(alias) = &self.alias {
            let [a, b, c, d] = rolls;
            let mixed = [a, b, c, d, a.rotate_left(32) ^ b, c.rotate_left(32) ^ d];
            mixed.into_iter().for_each(|roll| drawn.add(alias.at(roll)));
        } else if n <= CHOICES {
            let start = dice::scale(rolls[0] as u32, n);
            (start..n)
                .chain(0..start)
                .for_each(|place| drawn.add(place));
        } else {
            // Floyd's way to draw some of many, each at most once; in which order says nothing.
            drawn.first = dice::scale(rolls[3] as u32, CHOICES);
            for nth in 0..CHOICES {
                let bits = (rolls[nth / 2] >> (32 * (nth % 2))) as u32;
                let last = n - CHOICES + nth;
                let place = dice::scale(bits, last + 1);
                drawn.places[nth] = if drawn.has(place) { last } else { place };
                drawn.n = nth + 1;
            }
        }
        let runner_up = self.runner_up.0.load(Relaxed) as usize;
        if runner_up < n {
            drawn.add(runner_up);
        }
        drawn
    }

    #[inline]
    fn look_at(&self, drawn: &Drawn, now: Tick) -> Looks {
        let mut looks = Looks::of_nobody();
        // A word of each before all of any: where memory is far, they are fetched side by side.
        for (busy, &place) in looks.busy.iter_mut().zip(drawn.places()) {
            *busy = self.board.signs(place).in_flight() as f32;
        }
        if let Some(per_weight) = &self.per_weight {
            for (busy, &place) in looks.busy.iter_mut().zip(drawn.places()) {
                *busy *= per_weight[place];
            }
        }
        for (nth, &place) in drawn.places().iter().enumerate() {
            looks.see(nth, self.board.signs(place), now);
        }
        looks
    }
}

impl Drawn {
    fn places(&self) -> &[usize] {
        &self.places[..self.n]
    }

    /// Whether it is among them. Looks at all there can be: nobody can foretell at which to stop. Beyond them there
    /// is nothing, or one of them again.
    #[inline]
    fn has(&self, place: usize) -> bool {
        let is_it = |found, &other| found | (other == place);
        self.places.iter().fold(false, is_it)
    }

    #[inline]
    fn add(&mut self, place: usize) {
        let new = !self.has(place);
        self.places[self.n] = place;
        self.n += usize::from(new);
    }
}

impl Looks {
    fn of_nobody() -> Self {
        let none = [0.0; LANES];
        Self {
            busy: none,
            known: none,
            doubt: none,
            stalled: none,
            name: [1.0; LANES],
            barred: [f32::INFINITY; LANES],
            silent: none,
            rests: none,
            forgives: [1.0; LANES],
        }
    }

    #[inline]
    fn see(&mut self, nth: usize, signs: &Signs, now: Tick) {
        let (form, conduct) = (signs.form(), signs.conduct());
        self.known[nth] = form.latency();
        self.doubt[nth] = form.doubt();
        self.stalled[nth] = form.stalled(now);
        self.name[nth] = conduct.name() as f32 / 256.0;
        self.barred[nth] = if conduct.is_open() {
            0.0
        } else {
            f32::INFINITY
        };
        self.silent[nth] = form.silent(now);
        self.rests[nth] = form.rest().max(TRY_AFTER);
        self.forgives[nth] = form.forgives();
    }

    /// What a call to each would cost, where so much latency and so many calls in flight are usual; and whether it
    /// has looked bad for so long that it may be tried.
    ///
    /// Without a branch, which no processor could foretell.
    #[inline]
    fn judged(&self, usual: f32, busy: f32) -> (Each, Each<bool>) {
        let mut costs = [f32::INFINITY; LANES];
        let mut doubtful = [false; LANES];
        for nth in 0..LANES {
            let (known, silent) = (self.known[nth], self.silent[nth]);
            let usual = if usual > 0.0 { usual } else { known };
            let latency = if known > 0.0 { known } else { usual };
            let name = self.name[nth];
            let fell = self.rests[nth] > TRY_AFTER;
            let slow = if fell { FELL } else { SLOW };
            let looks_bad = (known > slow * usual) | (name < 1.0 - BLAMED);
            let is_idle = self.busy[nth] == 0.0;
            let is_open = self.barred[nth] == 0.0;
            doubtful[nth] = looks_bad & (silent > self.rests[nth]) & is_open & is_idle;
            // None of this makes a difference to one that is as good as hoped.
            let hoped = latency.min(usual * HOPE);
            let sure = 1.0 / (1.0 + DOUBTS * self.doubt[nth]);
            let latency = hoped + (latency - hoped) * sure * fade(silent / OLD_NEWS);
            let name = 1.0 - (1.0 - name) * fade(silent / self.forgives[nth]);
            // At least a microsecond: where nothing is known of anybody, calls in flight decide.
            let latency = latency.max(self.stalled[nth]).max(1.0);
            let blame = 1.0 / (name * name).powi(2);
            costs[nth] = latency * (self.busy[nth] + 1.0 + busy) * blame + self.barred[nth];
        }
        (costs, doubtful)
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            usual: AtomicU32::new(0),
            tries: AtomicU32::new(MOST),
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

/// Where the one is that costs least, and the next.
#[inline]
fn two_least(costs: &Each) -> (usize, usize) {
    let (mut least, mut second) = (u64::MAX, u64::MAX);
    for (nth, cost) in costs.iter().enumerate() {
        // Costs are never below 0, and those are in the order of their bits.
        let this = u64::from(cost.to_bits()) << 32 | nth as u64;
        second = second.min(least.max(this));
        least = least.min(this);
    }
    (least as u32 as usize, second as u32 as usize)
}

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod tests;
