//! What picks compare endpoints by: a glance and a cache line each, and those of many side by side.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Endpoint, Endpoints, Form, Glance, Latency, form::Facts, glance::Gist, members::MOST as LONGEST,
};
use crate::{health::Conduct, moment::Moment};

/// How an endpoint is doing, as far as picks look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs<'a> {
    glance: &'a Glance,
    detail: &'a Detail,
}

/// What is behind a glance.
///
/// One cache line and a whole one: to look at one of thousands costs one look at memory, and calls to two
/// endpoints that end at once on two processors do not slow each other down here.
#[derive(Debug)]
#[repr(align(64))]
struct Detail {
    conduct: Conduct,
    facts: Facts,
    latency: Latency,
}

const _: () = assert!(size_of::<Detail>() == 64, "more does not fit into a line");
const _: () = assert!(size_of::<Spot>() == 3, "handles have no more room");

/// Those of so many endpoints, which stay where they are. Apart, for most picks are made at a glance.
#[derive(Debug)]
struct Sheet {
    glances: [Glance; LINES],
    details: [Detail; LINES],
}

/// One endpoint's own signs, as long as this is there; then they are another's.
#[derive(Debug)]
pub(super) struct Line(Row);

/// Where a line is, with every handle of its endpoint: a strip asks many for it.
///
/// The sheet's number and which it is on it, in bytes as there is no more room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot([u8; 3]);

#[derive(Debug)]
struct Row {
    sheet: Arc<Sheet>,
    /// Of the sheet; no other has the same at the same time.
    number: u32,
    nth: u32,
}

/// Where the signs of a few endpoints are that follow each other.
#[derive(Debug)]
pub(super) struct Strip {
    /// The numbers of their sheets, and where on them.
    lines: [u32; LONGEST],
    /// Whether all are on one sheet, as those are that arrived together.
    is_one: bool,
}

/// Where the signs of endpoints are, by their places.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    sheets: Arc<[Arc<Sheet>]>,
    /// For each place which of the sheets it is, and where on it.
    at: Arc<[u32]>,
}

/// The signs of endpoints by their places: what a policy goes through.
#[derive(Debug)]
pub(crate) struct Board {
    chart: Chart,
    /// As long as these are there, nobody else is given their lines.
    _endpoints: Endpoints,
}

/// The lines that are nobody's, by the numbers of their sheets.
#[derive(Debug)]
struct Blank {
    lines: BTreeMap<u32, (Arc<Sheet>, Vec<u32>)>,
    /// Numbers below this are or were a sheet's; these were.
    next: u32,
    unused: Vec<u32>,
}

/// All endpoints of a process: whose channel an endpoint is makes no difference here.
static BLANK: Mutex<Blank> = Mutex::new(Blank::new());

/// So many on each: whoever has three endpoints pays 20 KiB, and a pick need not ask how long a sheet is.
const LINES: usize = 1 << BITS;
const BITS: u32 = 8;
/// The bits of a line that say where on its sheet it is.
const ON_IT: u32 = LINES as u32 - 1;

/// No sheet is at this place of a chart.
const UNKNOWN: u32 = u32::MAX;

impl<'a> Signs<'a> {
    /// Nothing is known from now on, and so many failures in a row are too many.
    fn begin_anew(self, limit: u16, now: Moment) {
        self.glance.begin_anew();
        self.conduct().begin_anew(limit);
        self.form().begin_anew(now);
        self.latency().begin_anew(now);
    }

    /// What is seen of it at a glance.
    #[inline]
    pub(crate) fn glance(self) -> &'a Glance {
        self.glance
    }

    /// How its calls have ended lately.
    #[inline]
    pub(crate) fn conduct(self) -> &'a Conduct {
        &self.detail.conduct
    }

    /// In what form it is; see [`Form`].
    #[inline]
    pub(crate) fn form(self) -> Form<'a> {
        Form::of(&self.detail.facts, self.glance.verdict())
    }

    /// How soon it answers; see [`Latency`].
    #[inline]
    pub(crate) fn latency(self) -> &'a Latency {
        &self.detail.latency
    }

    /// It lost a comparison with another.
    pub(crate) fn lost_comparison(self, now: Moment) {
        let a_while = self.latency().lost(now);
        self.conduct().lost(a_while);
        self.are_told();
    }

    /// What two are compared by has changed, and is to be seen.
    pub(super) fn are_told(self) {
        let gist = Gist::new(self.latency().now(), self.conduct().name());
        self.glance.tell(gist);
    }
}

impl Detail {
    fn new() -> Self {
        Self {
            conduct: Conduct::new(0),
            facts: Facts::default(),
            latency: Latency::new(),
        }
    }
}

impl Sheet {
    fn new() -> Self {
        Self {
            glances: std::array::from_fn(|_| Glance::new()),
            details: std::array::from_fn(|_| Detail::new()),
        }
    }

    #[inline]
    fn signs(&self, nth: usize) -> Signs<'_> {
        Signs {
            glance: &self.glances[nth],
            detail: &self.details[nth],
        }
    }
}

impl Line {
    /// Of one of which nothing is known until now, for whom so many failures in a row are too many.
    pub(super) fn new(limit: u16, now: Moment) -> Self {
        let line = Self(blank().take());
        line.signs().begin_anew(limit, now);
        line
    }

    pub(super) fn spot(&self) -> Spot {
        Spot::new(self.0.number as usize, self.0.nth as usize)
    }

    #[inline]
    pub(super) fn signs(&self) -> Signs<'_> {
        self.0.sheet.signs(self.0.nth as usize)
    }
}

impl Spot {
    /// Stands for all that are greater, too.
    const GREATEST: usize = (1 << (24 - BITS)) - 1;

    fn new(number: usize, nth: usize) -> Self {
        let [.., a, b, c] = (number.min(Self::GREATEST) << BITS | nth).to_be_bytes();
        Self([a, b, c])
    }

    fn bits(self) -> usize {
        let [a, b, c] = self.0.map(usize::from);
        a << 16 | b << 8 | c
    }

    fn number(self) -> usize {
        self.bits() >> BITS
    }

    fn nth(self) -> usize {
        self.bits() % LINES
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Taken out of the books under the lock, and given back to the allocator after it.
        let _sheet = blank().take_back(&self.0);
    }
}

impl Strip {
    pub(super) fn of(endpoints: &[Endpoint]) -> Self {
        let mut lines = [0; LONGEST];
        for (line, endpoint) in lines.iter_mut().zip(endpoints) {
            let spot = endpoint.spot();
            let number = match spot.number() {
                Spot::GREATEST => endpoint.vitals().line().0.number as usize,
                number => number,
            };
            *line = (number << BITS | spot.nth()) as u32;
        }
        let mut all = lines.iter().take(endpoints.len());
        let is_one = all.all(|line| line >> BITS == lines[0] >> BITS);
        Self { lines, is_one }
    }
}

impl Chart {
    /// Put together from strips, few of which are new when somebody has come or left.
    pub(super) fn of(endpoints: &Endpoints) -> Self {
        let mut sheets = Sheets::default();
        let mut at: Arc<[u32]> = std::iter::repeat_n(0, endpoints.len()).collect();
        let mut rest = Arc::make_mut(&mut at);
        for part in endpoints.parts() {
            let (strip, all) = (part.strip(), part.all());
            let (here, after) = rest.split_at_mut(all.len());
            rest = after;
            if strip.is_one {
                let sheet = sheets.place(strip.lines[0] >> BITS, &all[0]);
                let lines = here.iter_mut().zip(&strip.lines);
                lines.for_each(|(at, line)| *at = sheet | (line & ON_IT));
                continue;
            }
            for ((at, line), endpoint) in here.iter_mut().zip(&strip.lines).zip(all) {
                *at = sheets.place(line >> BITS, endpoint) | (line & ON_IT);
            }
        }
        let sheets = sheets.all.into();
        Self { sheets, at }
    }
}

impl Board {
    /// Shared by all sets of the same endpoints, whatever is said of them: what changes is a weight or a version, as
    /// a rule.
    pub(crate) fn of(endpoints: &Endpoints) -> Self {
        Self {
            chart: endpoints.chart().clone(),
            _endpoints: endpoints.clone(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.chart.at.len()
    }

    /// The signs of the endpoint at this place, of which there must be so many.
    #[inline]
    pub(crate) fn signs(&self, place: usize) -> Signs<'_> {
        let at = self.chart.at[place] as usize;
        self.chart.sheets[at >> BITS].signs(at % LINES)
    }

    /// What is seen of it at a glance.
    #[inline]
    pub(crate) fn glance(&self, place: usize) -> &Glance {
        let at = self.chart.at[place] as usize;
        &self.chart.sheets[at >> BITS].glances[at % LINES]
    }
}

/// The sheets of a chart that is put together.
#[derive(Default)]
struct Sheets {
    all: Vec<Arc<Sheet>>,
    /// Where they are on the chart, by their numbers.
    known: Vec<u32>,
}

impl Sheets {
    /// Where the sheet of this number is, on which this endpoint's line is.
    #[inline(always)]
    fn place(&mut self, number: u32, endpoint: &Endpoint) -> u32 {
        match self.known.get(number as usize) {
            Some(&place) if place != UNKNOWN => place,
            _ => self.add(number as usize, endpoint),
        }
    }

    #[cold]
    fn add(&mut self, number: usize, endpoint: &Endpoint) -> u32 {
        let place = (self.all.len() << BITS) as u32;
        self.all.push(Arc::clone(&endpoint.vitals().line().0.sheet));
        if self.known.len() <= number {
            self.known.resize(number + 1, UNKNOWN);
        }
        self.known[number] = place;
        place
    }
}

fn blank() -> MutexGuard<'static, Blank> {
    // Lines are taken and given back whole.
    BLANK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blank {
    const fn new() -> Self {
        Self {
            lines: BTreeMap::new(),
            next: 0,
            unused: Vec::new(),
        }
    }

    fn take(&mut self) -> Row {
        if let Some(mut entry) = self.lines.first_entry() {
            let number = *entry.key();
            let (sheet, lines) = entry.get_mut();
            if let Some(nth) = lines.pop() {
                let sheet = Arc::clone(sheet);
                if lines.is_empty() {
                    entry.remove();
                }
                return Row { sheet, number, nth };
            }
        }
        let sheet = Arc::new(Sheet::new());
        let number = self.unused.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        // The first comes first: those who arrive together lie side by side.
        let others = (1..LINES as u32).rev().collect();
        self.lines.insert(number, (Arc::clone(&sheet), others));
        let nth = 0;
        Row { sheet, number, nth }
    }

    /// The whole sheet, if nobody has a line on it any more.
    fn take_back(&mut self, row: &Row) -> Option<Arc<Sheet>> {
        let new = || (Arc::clone(&row.sheet), Vec::new());
        let (_, lines) = self.lines.entry(row.number).or_insert_with(new);
        lines.push(row.nth);
        if lines.len() < LINES {
            return None;
        }
        self.unused.push(row.number);
        self.lines.remove(&row.number).map(|(sheet, _)| sheet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::conform;

    fn is_same(one: Signs<'_>, other: Signs<'_>) -> bool {
        std::ptr::eq(one.glance, other.glance) && std::ptr::eq(one.detail, other.detail)
    }

    proptest! {
        #[test]
        fn a_line_is_never_two_endpoints_and_a_sheet_that_nobody_uses_goes(
            changes in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..900),
        ) {
            let (mut blank, mut taken) = (Blank::new(), Vec::<Row>::new());

            for (comes, which) in changes {
                if comes || taken.is_empty() {
                    let new = blank.take();
                    let same = |row: &Row| Arc::ptr_eq(&row.sheet, &new.sheet);
                    let of_number = |row: &Row| row.number == new.number;
                    prop_assert!(taken.iter().all(|row| same(row) == of_number(row)));
                    prop_assert!(!taken.iter().any(|row| same(row) && row.nth == new.nth));
                    taken.push(new);
                } else {
                    let gone = taken.swap_remove(which.index(taken.len()));
                    blank.take_back(&gone);
                }
                let blanks: usize = blank.lines.values().map(|(_, lines)| lines.len()).sum();
                let sheets = blank.next as usize - blank.unused.len();
                prop_assert_eq!(blanks + taken.len(), sheets * LINES);
            }

            taken.drain(..).for_each(|row| drop(blank.take_back(&row)));
            prop_assert!(blank.lines.is_empty());
            prop_assert_eq!(blank.unused.len(), blank.next as usize);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_board_shows_each_endpoints_own_signs_however_they_came_and_went(
            changes in proptest::collection::vec((any::<bool>(), 0..1_000_usize), 0..600),
        ) {
            let all: Vec<_> = conform::endpoints(&[1; 1_000]).iter().cloned().collect();
            let mut endpoints: Endpoints = all.iter().step_by(3).cloned().collect();
            let before = (endpoints.clone(), Board::of(&endpoints));
            let is_right = |endpoints: &Endpoints, board: &Board| {
                let is_own = |(place, e): (usize, &Endpoint)| {
                    is_same(board.signs(place), e.vitals().signs())
                        && std::ptr::eq(board.glance(place), e.vitals().signs().glance)
                };
                board.len() == endpoints.len() && endpoints.iter().enumerate().all(is_own)
            };

            for (step, (comes, which)) in changes.into_iter().enumerate() {
                match &all[which] {
                    known if comes && step % 2 == 0 => endpoints.put(known.clone()),
                    // The same, of which something else is said.
                    known if comes => {
                        let instance = known.instance().clone().weight(step as u32);
                        endpoints.put(Endpoint::new(instance.into(), Arc::clone(known.vitals())));
                    }
                    known if step % 5 > 0 => endpoints.remove(known.id()),
                    // One that has its id, and is another.
                    known => endpoints.put(Endpoint::idle(known.instance().clone())),
                }
                if step % 4 == 0 {
                    prop_assert!(is_right(&endpoints, &Board::of(&endpoints)));
                }
            }

            prop_assert!(is_right(&endpoints, &Board::of(&endpoints)));
            prop_assert!(is_right(&before.0, &before.1));
        }
    }

    #[test]
    fn a_handle_says_where_its_line_is_or_that_it_is_too_far() {
        for number in [0, 1, 255, 256, Spot::GREATEST - 1, Spot::GREATEST, 1 << 20] {
            for nth in [0, 7, LINES - 1] {
                let spot = Spot::new(number, nth);

                assert_eq!(spot.number(), number.min(Spot::GREATEST));
                assert_eq!(spot.nth(), nth);
            }
        }
    }

    #[test]
    fn who_arrive_together_lie_side_by_side_on_few_sheets() {
        let mut blank = Blank::new();

        let rows: Vec<_> = (0..10_000).map(|_| blank.take()).collect();

        assert!(blank.next < 50, "{} sheets", blank.next);
        let steps = rows
            .windows(2)
            .map(|two| (two[0].number, two[0].nth + 1, &two[1]));
        let apart = steps.filter(|(number, nth, next)| (*number, *nth) != (next.number, next.nth));
        assert!(apart.count() < 50);
    }

    #[test]
    fn what_is_said_anew_of_one_costs_no_new_board() {
        let mut endpoints = conform::endpoints(&[1; 1_000]);
        let (board, one) = (Board::of(&endpoints), endpoints[500].clone());
        let heavier = Arc::new(one.instance().clone().weight(7));

        endpoints.put(Endpoint::new(heavier, Arc::clone(one.vitals())));

        let same = |other: &Board| Arc::ptr_eq(&board.chart.at, &other.chart.at);
        assert!(same(&Board::of(&endpoints)));
        endpoints.put(Endpoint::idle(one.instance().clone()));
        assert!(!same(&Board::of(&endpoints)), "it is another");
    }

    #[test]
    fn a_board_shows_each_endpoints_own_signs_and_what_befalls_them() {
        let endpoints = conform::endpoints(&[1; 1_000]);
        let board = Board::of(&endpoints);

        let calls: Vec<_> = (0..1_000)
            .step_by(7)
            .map(|place| endpoints[place].begin())
            .collect();

        for (place, endpoint) in endpoints.iter().enumerate() {
            let signs = board.signs(place);
            assert!(is_same(signs, endpoint.vitals().signs()));
            assert_eq!(signs.glance().in_flight(), u32::from(place % 7 == 0));
        }
        drop(calls);
        assert!((0..1_000).all(|place| board.glance(place).in_flight() == 0));
    }

    #[test]
    fn what_one_did_is_not_held_against_another_who_gets_its_line() {
        let now = Moment::now();
        let sheet = Sheet::new();
        let [signs, new] = [0, 1].map(|nth| sheet.signs(nth));
        signs.conduct().failed(false);
        signs.latency().heard(std::time::Duration::from_secs(1));
        signs.form().begins(now);
        signs.form().failed(now);
        signs.glance().begins();
        signs.are_told();

        for signs in [signs, new] {
            signs.begin_anew(0, now);
        }

        assert_eq!(format!("{signs:?}"), format!("{new:?}"));
    }
}
