//! Where a call would be answered soonest, as far as anybody can tell from here.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::{Call, Pick, Policy, alias::Alias, dice};
use crate::{
    Endpoints,
    endpoint::{Board, Clock, Left, Signs, Tick, fade},
};

/// The best of seven drawn by chance, and of the runner-up of the last pick, by what their calls have shown.
///
/// What counts is how soon an endpoint answers, times its calls in flight, over the fourth power of its good name:
///
/// - **Latency** is a moving average over twenty seconds, or fifty calls, of the time to the head of good
///   responses. Who fails at once does not look fast. A call of a method that usually takes a hundred times as long
///   as the channel's others counts a hundredth, so that nobody looks slow for having been asked it.
/// - **A stall** counts while it lasts: where calls wait and none is answered, the wait is the latency, up to eight
///   times as much for each call that waits. A stream that has begun to answer does not wait, nor does a call of a
///   method that takes long, nor one that was overtaken: that was sent before another which is answered.
/// - **Failures** cost four times as much after one, and seventy times after three in a row. They count at the end
///   of a stream, with its trailers, by the [one judgement](crate::health::Outcome) of all.
/// - **Calls in flight** count against what is usual among the seven: where there are many, one more weighs little.
/// - **Old news fades**: without news, two thirds of what made an endpoint look slow are forgotten in forty
///   seconds.
/// - **Tries** find out who is well again: one call goes to an endpoint that has looked bad for five seconds, or for
///   seven since it took eight times as long as it used to, or for eight and a half since a first failure. Each try
///   that shows no better makes the next wait twice as long, up to 36 seconds, and so does a relapse. Less than one
///   call in a thousand is spent so, but for the first eight. One that is four times as fast as it was, or
///   succeeds, is believed at once, and preferred for some calls: it has nothing to do.
/// - **Weights**, and the [share](crate::Endpoint::share) of one that is new, say how often it is drawn first, and how many
///   calls in flight are usual for it.
///
/// The first that is drawn is taken unless another costs two fifths less, or much less than that where calls are
/// usually in flight; and the fewer answers a latency is known by, the less it counts against an endpoint: to follow
/// every difference would leave some of a fleet's equals idle. All that is known of an endpoint outlives changes of
/// the set.
///
/// A pick takes no lock, allocates nothing and looks at eight endpoints, however many there are.
///
/// # Limits
///
/// All it knows is what this channel's own calls have shown. Methods are told apart, but not the calls of one: where
/// one method now answers at once and now waits for minutes, as the request says, a server that waits looks stalled
/// until another call that was sent after it is answered: of two or five servers, each busy for four fifths of the
/// time, one such call in a thousand makes the slowest tenth of the others take twice or three times as long. Name such
/// a method apart, or choose [`LeastLoaded`](super::LeastLoaded).
///
/// Where a client calls each server less than once in some seconds, what it knows is little. A server that was many
/// times slower is found to be fast again only when it is tried: after one that was slow or failed for long has waited
/// as long again, up to 36 seconds, and where a client makes ten calls a second and several are slow, in minutes.
///
/// After all servers were slow at once, as when what they all call is, those who are found to be quick again first are
/// given far more than their share until the others have been tried: for some five seconds, the slowest of a hundred
/// calls may take ten times as long as with `LeastLoaded`.
///
/// Streams that stay open are levelled by how soon servers begin to answer them: of two, one that takes three times as
/// long is given one stream in four. Where a channel's calls are mostly such, `LeastLoaded` is the better choice.
///
/// `scripts/sim` in the repository says how it does in twenty-three scenarios, beside others, and with what confidence.
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
    /// The calls in flight that they find at an endpoint, for its weight: as a float.
    busy: AtomicU32,
    /// So many calls may be spent on trying those that look bad.
    tries: AtomicU32,
}

#[derive(Debug)]
struct Best {
    board: Board,
    /// The mean of all weights, and one over each; none when all weights are equal.
    mean: f32,
    per_weight: Option<Arc<[f32]>>,
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
const CHOICES: usize = 7;
/// What made an endpoint look slow fades in so many seconds; its failures do in fewer.
const OLD_NEWS: f32 = 40.0;
/// Where nothing is heard for long, so much of what is usual is hoped for: a little less, or an equal that was
/// unlucky once might never be tried again.
const HOPE: f32 = 0.85;
/// A latency that looks bad, and is known by fewer answers than this, counts for less than half; and by one answer
/// nobody looks slower than so many times what is usual.
const DOUBTS: f32 = 3.0;
const FIRST: f32 = 1.5;
/// In microseconds: of those who answer sooner than that none is preferred for it. Chance delays them by as much.
const CHANCE: f32 = 2000.0;
/// The first that is drawn is taken, unless another costs less by this part of it: by so much do equals seem to
/// differ to one who calls them one by one. Calls in flight tell equals apart: where every fourth usually has one, a
/// fortieth is enough.
const SAME: f32 = 0.4;
const TELLING: f32 = 24.0;
/// One pick in so many tells what is usual, and counts for so much of it.
const TELLS: u32 = 4;
const COUNTS: f32 = 1.0 / 16.0;
/// One pick in so many earns a try of one that looks bad.
const EARNS: u32 = 1024;
/// So many tries may be saved, and made at first.
const MOST: u32 = 8;
/// Who takes so many times what is usual, or has lost so much of its good name, looks bad. One that was well
/// before and is known to have been slow since need not be as slow as that: it is tried for sure.
const SLOW: f32 = 3.0;
const FELL: f32 = 1.5;
const BLAMED: f32 = 0.1;
/// Each call that waits makes its endpoint look slower by at most so many times what it takes: where one does, another
/// is sent there before the others have too much to do, and tells whether it is the server that takes long, or the call.
const EACH: f32 = 8.0;
/// Calls in flight beyond so many on average make no difference to what one more weighs: who answers much later
/// could never make up for that.
const CROWD: f32 = 16.0;
/// One that looks slow is tried after so many seconds.
const TRY_AFTER: f32 = 5.0;

/// The places of the candidates, each once and in the order in which they were drawn, and after them any.
struct Drawn {
    places: Each<usize>,
    n: usize,
}

/// Something of each candidate, and of nobody: processors reckon with four or eight numbers at once.
type Each<T = f32> = [T; LANES];
const LANES: usize = MOST_DRAWN.next_power_of_two();
const MOST_DRAWN: usize = CHOICES + 1;
/// One of so many, as a part.
const ONE_OF: [f32; LANES + 1] = [
    1.0,
    1.0,
    0.5,
    1.0 / 3.0,
    0.25,
    0.2,
    1.0 / 6.0,
    1.0 / 7.0,
    0.125,
];

/// What a call to an endpoint without any would cost, in microseconds. To be looked at closely, this is below 0:
///
/// - from -1, for one that nothing is known of, half as much for each microsecond that is usual now;
/// - beyond that, for one that has looked bad for so long that it may be tried.
type Cost = f32;
/// More than any that is to be called; and what is left of the greatest numbers suffices for calls in flight, of which
/// there are no more for a weight than so many.
const BARRED: Cost = 1e28;
const BUSIEST: f32 = 1e9;
const _: () = assert!(BARRED * (BUSIEST + 1.0 + CROWD) < f32::MAX);
/// A wait that is longer than usual is looked at again when it is longer by this part.
const GROWS: f32 = 1.0 / 16.0;

impl Policy for Adaptive {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        let weights = ready.weights();
        let equal = weights.are_equal();
        Box::new(Best {
            board: Board::of(ready),
            mean: weights.sum as f32 / ready.len() as f32,
            per_weight: (!equal).then(|| Arc::clone(ready.per_weight())),
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
        // One by one: what is copied at once waits until all are written.
        let [a, b, c, d] = dice::rolls();
        let rolls = [a, b, c, d];
        let now = Tick::of(call.at());
        if self.alias.is_none() && self.board.len() > CHOICES {
            // Seven times 32 bits are drawn by.
            self.best_of(self.some(rolls), (d >> 32) as u32, now)
        } else {
            self.best_of_few(rolls, now)
        }
    }
}

impl Best {
    /// The best of those that are drawn, and by chance, what is learnt from it. Part of each who calls it, so that what
    /// is drawn need not go through memory.
    #[inline(always)]
    fn best_of(&self, drawn: Drawn, chance: u32, now: Tick) -> usize {
        let usual = f32::from_bits(self.fleet.usual.load(Relaxed));
        let (mut costs, busy) = self.look_at(&drawn, now, usual);
        let found_busy = sum(&busy) * ONE_OF[drawn.n];
        if chance & (EARNS - 1) == 0 {
            self.fleet.earns_a_try();
        }
        let any = costs.iter().fold(0, |any, cost| any | cost.to_bits());
        if f32::from_bits(any).is_sign_negative() {
            let (better, to_try) = look_closely(costs, busy, usual);
            if let Some(nth) = to_try
                && self.fleet.may_try()
            {
                return drawn.places[nth];
            }
            costs = better;
        }
        let weighs = 1.0 + found_busy.min(CROWD);
        for nth in 0..LANES {
            costs[nth] *= busy[nth] + weighs;
        }
        costs[0] *= 1.0 - self.fleet.same();
        let (least, second) = two_least(&costs);
        if self.board.len() > CHOICES {
            self.runner_up.0.store(drawn.places[second] as u32, Relaxed);
        }
        let picked = drawn.places[least];
        if chance >> 24 < 256 / TELLS {
            let latency = self.board.signs(picked).form().latency();
            self.fleet.meets(latency, found_busy);
        }
        picked
    }

    #[inline(never)]
    fn best_of_few(&self, rolls: [u64; 4], now: Tick) -> usize {
        let chance = mix(rolls[1], rolls[2]);
        self.best_of(self.few(rolls), chance as u32, now)
    }

    /// Some of many equals.
    #[inline]
    fn some(&self, rolls: [u64; 4]) -> Drawn {
        let n = self.board.len();
        let mut places = some_of(n, rolls);
        let runner_up = self.runner_up.0.load(Relaxed) as usize;
        let is_new = is_none_of(&places[..CHOICES], runner_up) & (runner_up < n);
        places[CHOICES] = if is_new { runner_up } else { places[0] };
        Drawn {
            places,
            n: CHOICES + usize::from(is_new),
        }
    }

    /// All, where there are no more; or some by their weights.
    fn few(&self, rolls: [u64; 4]) -> Drawn {
        let n = self.board.len();
        let mut drawn = Drawn {
            places: [0; LANES],
            n: 0,
        };
        if let Some(alias) = &self.alias {
            let [a, b, c, d] = rolls;
            let mixed = [a, b, c, d, mix(a, b), mix(c, d), mix(a, d)];
            mixed.into_iter().for_each(|roll| drawn.add(alias.at(roll)));
        } else {
            let start = dice::scale(rolls[0] as u32, n);
            (start..n)
                .chain(0..start)
                .for_each(|place| drawn.add(place));
        }
        let runner_up = self.runner_up.0.load(Relaxed) as usize;
        if runner_up < n {
            drawn.add(runner_up);
        }
        drawn
    }

    /// What a call to each would cost if it had none, and what its calls in flight come to for its weight.
    #[inline(always)]
    fn look_at(&self, drawn: &Drawn, now: Tick, usual: f32) -> (Each<Cost>, Each) {
        let clock = Clock::at(now);
        let (mut costs, mut in_flight) = ([BARRED; LANES], [0; LANES]);
        let mut left = Left::default();
        for nth in 0..MOST_DRAWN {
            let glance = self.board.glance(drawn.places[nth]);
            let seen = glance.verdict().seen();
            in_flight[nth] = glance.in_flight();
            costs[nth] = seen.cost();
            left = left.and(seen.left(clock));
        }
        if left.is_over() {
            costs = self.judge(drawn.places, now, usual);
        }
        let mut busy = in_flight.map(|n| n as i32 as f32);
        if let Some(per_weight) = &self.per_weight {
            for (busy, &place) in busy.iter_mut().zip(&drawn.places) {
                *busy = (*busy * self.mean * per_weight[place]).min(BUSIEST);
            }
        }
        for nth in 0..LANES {
            let is_any = nth >= drawn.n;
            costs[nth] = if is_any { BARRED } else { costs[nth] };
            busy[nth] = if is_any { 0.0 } else { busy[nth] };
        }
        (costs, busy)
    }

    /// The costs of all, where some have to be judged anew.
    #[inline(never)]
    fn judge(&self, places: Each<usize>, now: Tick, usual: f32) -> Each<Cost> {
        let clock = Clock::at(now);
        places.map(|place| {
            let signs = self.board.signs(place);
            let seen = signs.glance().verdict().seen();
            if !seen.is_over(clock) {
                return seen.cost();
            }
            let (cost, lasts) = judged(signs, now, usual);
            signs.glance().verdict().holds(seen, cost, clock, lasts);
            cost
        })
    }
}

/// Some of so many, each at most once. The first is any of them; of the others it is Floyd's way, and in which order
/// they are says nothing.
#[inline]
fn some_of(n: usize, rolls: [u64; 4]) -> Each<usize> {
    let mut places = [0; LANES];
    let below = |end: usize, nth: usize| {
        let bits = (rolls[nth / 2] >> (32 * (nth % 2))) as u32;
        dice::scale(bits, end)
    };
    let first = below(n, 0);
    for nth in 1..CHOICES {
        let last = n - 1 - CHOICES + nth;
        let place = below(last + 1, nth);
        let is_new = is_none_of(&places[1..nth], place);
        places[nth] = if is_new { place } else { last };
    }
    for place in &mut places[1..CHOICES] {
        *place += usize::from(*place >= first);
    }
    places[0] = first;
    places
}

/// Of two rolls another.
fn mix(roll: u64, other: u64) -> u64 {
    roll.rotate_left(32) ^ other
}

/// Looks at all of them: nobody can foretell at which to stop.
#[inline]
fn is_none_of(places: &[usize], place: usize) -> bool {
    places
        .iter()
        .fold(true, |none, other| none & (*other != place))
}

/// What a call to it would cost if it had none, where so much latency is usual; and for how many microseconds that
/// does not change, if nothing is learnt meanwhile.
fn judged(signs: Signs<'_>, now: Tick, usual: f32) -> (Cost, f32) {
    let (form, conduct) = (signs.form(), signs.conduct());
    if !conduct.is_open() {
        return (BARRED, f32::INFINITY);
    }
    let (known, silent, rest) = (form.latency(), form.silent(now), form.rest().max(TRY_AFTER));
    let name = conduct.name() as f32 / 256.0;
    let usual = if usual > 0.0 { usual } else { known };
    let slow = if rest > TRY_AFTER { FELL } else { SLOW };
    let looks_bad = known > slow * usual || name < 1.0 - BLAMED;
    // None of this makes a difference to one that is as good as hoped.
    let latency = if known > 0.0 { known } else { usual };
    let hoped = latency.min(usual * HOPE);
    let sure = 1.0 / (1.0 + DOUBTS * form.doubt());
    let latency = hoped + (latency - hoped) * sure * fade(silent / OLD_NEWS);
    let latency = match form.doubt() {
        1.0 => latency.min(usual * FIRST),
        _ => latency,
    };
    let most = latency * EACH * form.waiting() as f32;
    let stalled = form.stalled(now).min(most);
    let lasts = match latency - stalled {
        left if left > 0.0 && form.waits() => left,
        left if left > 0.0 => f32::INFINITY,
        _ => stalled * GROWS,
    };
    if known == 0.0 && usual > 0.0 && name == 1.0 && stalled < latency {
        return (-0.5 * latency / usual, lasts);
    }
    let name = 1.0 - (1.0 - name) * fade(silent / form.forgives());
    let blame = 1.0 / (name * name).powi(2);
    let cost = latency.max(stalled).max(CHANCE) * blame;
    let may_be_tried = looks_bad && silent > rest;
    (if may_be_tried { -cost } else { cost }, lasts)
}

/// What those cost that are to be looked at closely, and one that may be tried.
#[inline(never)]
fn look_closely(costs: Each<Cost>, busy: Each, usual: f32) -> (Each<Cost>, Option<usize>) {
    let may_be_tried = |nth: &usize| costs[*nth] <= -1.0 && busy[*nth] == 0.0;
    let to_try = (0..LANES).find(may_be_tried);
    let closely = |cost: Cost| match cost {
        0.0.. => cost,
        -1.0..0.0 => (-2.0 * cost * usual).max(CHANCE),
        _ => -cost,
    };
    (costs.map(closely), to_try)
}

impl Drawn {
    #[inline]
    fn add(&mut self, place: usize) {
        let is_new = !self.places[..self.n].contains(&place);
        self.places[self.n] = place;
        self.n += usize::from(is_new);
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            usual: AtomicU32::new(0),
            busy: AtomicU32::new(0),
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

    /// How much less than the first another has to cost.
    #[inline]
    fn same(&self) -> f32 {
        let told = TELLING * f32::from_bits(self.busy.load(Relaxed));
        SAME / (1.0 + told * told)
    }

    /// A pick found so many calls in flight on average, and chose one that takes so long.
    fn meets(&self, latency: f32, busy: f32) {
        let usually = f32::from_bits(self.busy.load(Relaxed));
        let busy = usually + COUNTS * (busy - usually);
        self.busy.store(busy.to_bits(), Relaxed);
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

/// The sum, added up in pairs: processors need not wait for one addition to begin the next.
#[inline]
fn sum(each: &Each) -> f32 {
    let [a, b, c, d, e, f, g, h] = *each;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// Where the one is that costs least, and the next: in pairs, and pairs of pairs, without a branch.
#[inline]
fn two_least(costs: &Each<Cost>) -> (usize, usize) {
    // Of costs, which are never below 0, the lowest bits make no difference.
    let lowest = LANES as u32 - 1;
    let named = |nth: usize| Cost::from_bits(costs[nth].to_bits() & !lowest | nth as u32);
    let two = |nth: usize| {
        let (one, other) = (named(nth), named(nth + LANES / 2));
        (lesser(one, other), greater(one, other))
    };
    let of_both = |(a, b), (c, d)| (lesser(a, c), lesser(greater(a, c), lesser(b, d)));
    let (least, second) = of_both(of_both(two(0), two(2)), of_both(two(1), two(3)));
    let place = |named: Cost| (named.to_bits() & lowest) as usize;
    (place(least), place(second))
}

/// Of two that are numbers: an instruction each, which `min` and `max` are not.
#[inline]
fn lesser(one: f32, other: f32) -> f32 {
    if one < other { one } else { other }
}

#[inline]
fn greater(one: f32, other: f32) -> f32 {
    if one > other { one } else { other }
}

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod tests;
