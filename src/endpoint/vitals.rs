//! What calls and connections show about an endpoint.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Form, InFlight, Latency, Senses, Signs, fade, form::OTHER, links::Links, signs::Line};
use crate::{
    Error, ErrorKind, InstanceId,
    health::{Alarm, Classify, Conduct, Counts, Ended, Mode, Notice, Outcome, PUSHBACK, Turn},
    moment::Moment,
    stage::Outside,
    stats::{Attempted, Past},
};

/// Shared by everybody who looks at one endpoint; survives what the registry says.
#[derive(Debug)]
pub(crate) struct Vitals {
    /// What picks look at: beside that of others, and not here.
    line: Line,
    /// Calls that have begun, those that then could not be sent included.
    begun: AtomicU64,
    /// The last of them that was answered, counted from 1; both begin again at 0 after some thousand millions.
    answered: AtomicU32,
    /// What they came to: nobody has it of those who are never called.
    attempts: OnceLock<Box<Attempted>>,
    /// What some policies go by: nobody has it of those that others choose among.
    senses: OnceLock<Box<Senses>>,
    /// Until when it asked to be spared, in milliseconds since it is known.
    spared: AtomicU64,
    known_since: Moment,
    owner: Option<Owner>,
    links: Links,
    condition: Mutex<Condition>,
}

/// To whom an endpoint belongs, which is to say whom its calls tell what they see.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) id: InstanceId,
    pub(crate) told: Arc<Told>,
}

/// What all endpoints of a channel have in common.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) alarm: Arc<Alarm>,
    /// Judges in place of the usual judgement.
    pub(crate) classify: Option<Arc<dyn Classify>>,
}

/// Written by the channel's one task only, read by whoever looks.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) state: State,
    pub(crate) since: Instant,
    pub(crate) suspect: bool,
    pub(crate) last_error: Option<Error>,
    pub(crate) outside: Option<Outside>,
}

/// Whether calls can go to an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// Known, and not yet tried.
    Idle,
    /// Being connected, or asked for the first time whether it is well.
    Connecting,
    /// Connected, and taking calls.
    Ready,
    /// Connected, but it asked for no new calls.
    Draining,
    /// Connected, but it says that it is not well, or does not say.
    Unhealthy,
    /// Connected, but left out because its calls failed; it is tried now and then.
    Ejected,
    /// Left out by a [stage](crate::stage), as [`Endpoint::outside`](crate::Endpoint::outside) says.
    Outside,
    /// Not connected; the next attempt waits its turn.
    Broken,
    /// No longer in the set.
    Gone,
}

impl Vitals {
    /// Of one that belongs to nobody.
    pub(crate) fn new(now: Instant) -> Self {
        Self::owned(now, None, 0)
    }

    /// So many failures in a row are too many; 0: there never are.
    pub(crate) fn owned(now: Instant, owner: Option<Owner>, limit: u16) -> Self {
        let known_since = Moment::at(now);
        Self {
            line: Line::new(limit, known_since),
            begun: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            attempts: OnceLock::new(),
            senses: OnceLock::new(),
            spared: AtomicU64::new(0),
            known_since,
            owner,
            links: Links::new(),
            condition: Mutex::new(Condition {
                state: State::Idle,
                since: now,
                suspect: false,
                last_error: None,
                outside: None,
            }),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.signs().glance().in_flight() as usize
    }

    pub(crate) fn calls(&self) -> u64 {
        // Read before those that began, of which they are a part.
        let not_sent = self.attempts.get().map_or(0, |all| all.not_sent());
        self.begun.load(Ordering::Relaxed).saturating_sub(not_sent)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.attempts.get().map_or(0, |all| all.failures())
    }

    /// Calls that began, those that then could not be sent included.
    pub(crate) fn calls_begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// What its calls came to, if it was ever called.
    pub(crate) fn called(&self) -> Option<&Attempted> {
        self.attempts.get().map(|all| &**all)
    }

    #[inline]
    pub(super) fn attempts(&self) -> &Attempted {
        self.attempts.get_or_init(|| Box::new(Attempted::new()))
    }

    /// A call is over.
    pub(super) fn count(&self, past: &Past) {
        let age = past.at.nanos_since(self.known_since);
        self.attempts().ended(past, age);
    }

    /// For how long it has been known at that time.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        Moment::at(now).since(self.known_since)
    }

    /// How its calls ended, of those that show how it is.
    pub(crate) fn counts(&self) -> Counts {
        let failed = self.failures();
        let unjudged = self.called().map_or(0, |all| all.unjudged());
        let others = failed + unjudged + self.in_flight() as u64;
        Counts {
            succeeded: self.calls().saturating_sub(others),
            failed,
        }
    }

    /// What picks look at.
    #[inline]
    pub(super) fn signs(&self) -> Signs<'_> {
        self.line.signs()
    }

    /// Where that is.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    pub(crate) fn conduct(&self) -> &Conduct {
        self.signs().conduct()
    }

    /// From now on; who was let back is judged by what it does from then on.
    pub(crate) fn treat(&self, mode: Mode, limit: u16) {
        if mode == Mode::Free && !self.conduct().is_open() {
            self.form().forget();
        }
        self.conduct().treat(mode, limit);
        self.signs().are_told();
        self.form().is_to_be_judged_anew();
    }

    /// Counts a call that begins now, unless there are so many in flight already.
    #[inline]
    pub(crate) fn begin_within(self: &Arc<Self>, limit: usize, now: Moment) -> Option<InFlight> {
        if self.signs().glance().begins() as usize >= limit {
            self.ends();
            return None;
        }
        Some(self.begun(false, now))
    }

    /// Counts a call on which the endpoint is tried, if it is to be tried now.
    pub(crate) fn begin_trial(self: &Arc<Self>) -> Option<InFlight> {
        if !self.conduct().try_one() {
            return None;
        }
        self.signs().glance().begins();
        Some(self.begun(true, Moment::now()))
    }

    #[inline]
    fn begun(self: &Arc<Self>, on_trial: bool, now: Moment) -> InFlight {
        let before = self.begun.fetch_add(1, Ordering::Relaxed) as u32;
        if self.latency().is_tried() {
            self.signs().are_told();
        }
        InFlight::begun(Arc::clone(self), before.wrapping_add(1), on_trial, now)
    }

    /// This one of its calls is answered; whether others began after the last that was.
    pub(super) fn answers(&self, nth: u32) -> bool {
        let last = self.answered.load(Ordering::Relaxed);
        let last = if is_after(nth, last) { nth } else { last };
        self.answered.store(last, Ordering::Relaxed);
        is_after(self.begun.load(Ordering::Relaxed) as u32, last)
    }

    pub(super) fn has_answered_after(&self, nth: u32) -> bool {
        is_after(self.answered.load(Ordering::Relaxed), nth)
    }

    pub(super) fn ends(&self) {
        self.signs().glance().ends();
    }

    pub(super) fn lost_one(&self) {
        self.attempts().failed();
    }

    pub(super) fn ignored(&self) {
        self.attempts().showed_nothing();
    }

    pub(super) fn judge(&self, ended: &Ended<'_>) -> Outcome {
        let owner = self.owner.as_ref();
        let classify = owner.and_then(|owner| owner.told.classify.as_deref());
        classify.map_or_else(|| ended.usual(), |classify| classify.classify(ended))
    }

    /// A call succeeded before which nothing was heard for so many seconds: what came before is so old.
    pub(super) fn succeeded(&self, on_trial: bool, silent: f32) {
        let is_spotless = self.conduct().is_spotless();
        self.conduct().fades(|| {
            fade(silent / self.form().forgives()) * if silent > OTHER { 0.1 } else { 1.0 }
        });
        self.form().succeeded();
        if self.conduct().succeeded(on_trial) == Turn::Proved {
            self.raise(Notice::Proved);
        }
        if !is_spotless {
            self.signs().are_told();
            self.form().is_to_be_judged_anew();
        }
    }

    pub(super) fn failed_like(&self, ended: &Ended<'_>, on_trial: bool) {
        self.attempts().failed();
        let turn = self.conduct().failed(on_trial);
        self.signs().are_told();
        self.form().is_to_be_judged_anew();
        if turn == Turn::Tripped {
            let n = self.conduct().failed_in_a_row();
            let what = match on_trial {
                true => String::from("the call that tried it failed"),
                false => format!("{n} calls failed in a row"),
            };
            let why = Error::new(ErrorKind::Unavailable, what).because(ended.to_string());
            self.raise(Notice::Tripped(why));
        }
    }

    pub(super) fn overloaded(&self, ended: &Ended<'_>) {
        let time = ended.pushback().unwrap_or(PUSHBACK);
        let now = Moment::now().since(self.known_since);
        let until = u64::try_from((now + time).as_millis()).unwrap_or(u64::MAX);
        // In a storm, one word a while will do.
        if until > self.spared.load(Ordering::Relaxed) + LITTLE {
            self.spared.store(until, Ordering::Relaxed);
            self.raise(Notice::Overloaded(time));
        }
    }

    /// Calls to one that has left may end after another has come that bears its name.
    fn raise(&self, notice: Notice) {
        if let Some(owner) = &self.owner
            && self.condition().state != State::Gone
        {
            owner.told.alarm.raise(&owner.id, notice);
        }
    }

    /// How soon it answers; see [`Latency`].
    pub(crate) fn latency(&self) -> &Latency {
        self.signs().latency()
    }

    /// In what form it is; see [`Form`].
    pub(crate) fn form(&self) -> Form<'_> {
        self.signs().form()
    }

    /// What is to be kept of it beside the rest, from now on.
    pub(crate) fn sense(&self) -> &Senses {
        self.senses.get_or_init(Box::default)
    }

    /// The same, if anybody asked for it.
    #[inline]
    pub(super) fn senses(&self) -> Option<&Senses> {
        self.senses.get().map(|senses| &**senses)
    }

    /// A call was answered, or given up, after so long.
    pub(super) fn heard(&self, time: Duration) {
        self.latency().heard(time);
        self.signs().are_told();
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn condition(&self) -> Condition {
        self.with_condition(|condition| condition.clone())
    }

    pub(crate) fn enter(&self, state: State, now: Instant) {
        self.with_condition(|condition| {
            if condition.state != state {
                condition.state = state;
                condition.since = now;
            }
        });
    }

    pub(crate) fn suspect(&self, suspect: bool) {
        self.with_condition(|condition| condition.suspect = suspect);
    }

    pub(crate) fn leave_out(&self, outside: Option<Outside>) {
        self.with_condition(|condition| condition.outside = outside);
    }

    pub(crate) fn failed(&self, error: Error) {
        self.with_condition(|condition| condition.last_error = Some(error));
    }

    fn with_condition<T>(&self, with: impl FnOnce(&mut Condition) -> T) -> T {
        // Each write is whole, so a panic elsewhere leaves nothing half done.
        with(
            &mut self
                .condition
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Milliseconds by which an overload must grow longer to be news.
const LITTLE: u64 = 100;

impl State {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Outside => "outside",
            Self::Broken => "broken",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// Of two numbers of calls that began not too long after each other.
fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) as i32 > 0
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::health::EndedBy;

    fn ends(call: &mut InFlight, code: Code) {
        call.ended_by(EndedBy::Status, code);
    }

    #[test]
    fn a_call_is_in_flight_until_its_guard_is_dropped() {
        let vitals = Arc::new(Vitals::new(Instant::now()));

        let mut call = vitals.begin_within(1, Moment::now()).unwrap();
        assert!(
            vitals.begin_within(1, Moment::now()).is_none(),
            "there is no room"
        );
        ends(&mut call, Code::Unavailable);
        ends(&mut call, Code::Unavailable);

        let counted = (vitals.in_flight(), vitals.calls(), vitals.failures());
        assert_eq!(counted, (1, 1, 1));
        drop(call);
        assert_eq!((vitals.in_flight(), vitals.calls()), (0, 1));
    }

    #[test]
    fn calls_are_counted_by_what_they_show() {
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let codes = [
            Code::Ok,
            Code::NotFound,
            Code::Internal,
            Code::ResourceExhausted,
            Code::Cancelled,
        ];

        for code in codes {
            ends(&mut vitals.begin_within(9, Moment::now()).unwrap(), code);
        }
        drop(vitals.begin_within(9, Moment::now()));
        vitals.begin_within(9, Moment::now()).unwrap().lost();
        vitals.begin_within(9, Moment::now()).unwrap().not_sent();
        let _under_way = vitals.begin_within(9, Moment::now());

        let (succeeded, failed) = (2, 2);
        assert_eq!(vitals.counts(), Counts { succeeded, failed });
    }

    #[test]
    fn one_that_is_tried_and_shows_nothing_is_not_tried_with_every_call() {
        for code in [Code::ResourceExhausted, Code::Cancelled] {
            let vitals = Arc::new(Vitals::new(Instant::now()));
            vitals.conduct().treat(Mode::Trial, 5);

            for _ in 0..100 {
                if let Some(mut call) = vitals.begin_trial() {
                    ends(&mut call, code);
                }
            }

            assert_eq!(vitals.calls(), 3, "{code:?}");
            assert!(!vitals.conduct().try_anew());
            assert!(vitals.begin_trial().is_some(), "it is tried again later");
        }
    }

    #[test]
    fn who_owns_it_hears_of_the_last_straw_and_of_overload() {
        let alarm = Arc::new(Alarm::default());
        let owner = Owner {
            id: "a".parse().unwrap(),
            told: Arc::new(Told {
                alarm: Arc::clone(&alarm),
                classify: None,
            }),
        };
        let vitals = Arc::new(Vitals::owned(Instant::now(), Some(owner), 2));

        for code in [Code::Internal, Code::ResourceExhausted, Code::Unavailable] {
            ends(&mut vitals.begin_within(9, Moment::now()).unwrap(), code);
        }

        assert!(!vitals.conduct().is_open());
        let heard = alarm.take();
        let [(_, Notice::Tripped(why)), (_, Notice::Overloaded(PUSHBACK))] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert!(
            why.chain().starts_with("2 calls failed in a row: "),
            "{}",
            why.chain()
        );
    }
}
