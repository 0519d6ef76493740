//! A call on its way, and what its end shows about its endpoint.

use std::{mem, sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Code;

use super::Vitals;
use crate::{
    deadline::is_over,
    health::{Ended, EndedBy, Outcome},
    moment::Moment,
    orca::Report,
    stats::{Counted as Call, Ending, Past, Tally, Took, Unseen, Why, usual},
    transport::Sent,
};

/// A call in flight; it is no more when this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    vitals: Arc<Vitals>,
    began: Moment,
    judged: bool,
    on_trial: bool,
    /// Nothing has been heard of it.
    waits: bool,
    /// The endpoint stalls if it hears nothing of it.
    is_missed: bool,
    /// When the head of its answer came.
    answered: Option<Moment>,
    /// For how many seconds nothing was heard of the endpoint when it began.
    silent: f32,
    counted: Counted,
}

/// What is counted of it.
#[derive(Debug, Default)]
struct Counted {
    /// Which of the endpoint's calls it is.
    nth: u32,
    /// The method whose call it is, if that counts.
    method: Option<Arc<Tally>>,
    end: Option<End>,
    sent: Sent,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Seen(Code, Ending),
    Unseen(Unseen),
    Counted,
}

impl InFlight {
    #[inline]
    pub(super) fn begun(vitals: Arc<Vitals>, nth: u32, on_trial: bool, began: Moment) -> Self {
        let silent = vitals.form().begins(began);
        Self {
            vitals,
            began,
            judged: false,
            on_trial,
            waits: true,
            is_missed: true,
            answered: None,
            silent,
            counted: Counted {
                nth,
                ..Counted::default()
            },
        }
    }

    pub(crate) fn began(&self) -> Moment {
        self.began
    }

    /// It counts among the attempts at calls of this method.
    pub(crate) fn counts_for(&mut self, method: &Arc<Tally>, again: Option<Why>) {
        method.attempt_begins(again);
        if let Some(why) = again {
            self.vitals.attempts().made_again(why);
        }
        if method.takes_long() {
            self.is_not_missed();
        }
        self.counted.method = Some(Arc::clone(method));
    }

    /// Where it is noted how much was sent.
    pub(crate) fn sent(&self) -> &Sent {
        &self.counted.sent
    }

    /// Only the first word counts.
    fn is_counted(&mut self, end: End) {
        self.counted.end.get_or_insert(end);
    }

    /// It ran out of time, whatever that shows.
    pub(crate) fn is_late(&mut self) {
        self.is_counted(End::Seen(Code::DeadlineExceeded, Ending::TimedOut));
    }

    /// Its caller's own request failed with this code.
    pub(crate) fn failed_itself(&mut self, code: Code) {
        self.is_counted(End::Seen(code, Ending::Cancelled));
    }

    /// The server says that it did nothing about it.
    pub(crate) fn is_refused(&mut self) {
        self.is_counted(End::Unseen(Unseen::Refused));
    }

    /// When the head of its answer came, if it did.
    pub(crate) fn answered_at(&self) -> Option<Moment> {
        self.answered
    }

    /// It is over since then, or else since now, after so many bytes of messages were received, and counts from
    /// now on; and with it its call, if this ends that, too.
    pub(crate) fn close(&mut self, at: Option<Moment>, received: u64, mut call: Option<Call>) {
        let at = at.unwrap_or_else(Moment::now);
        let counted = &mut self.counted;
        let end = counted.end.replace(End::Counted);
        let (code, ending) = match end {
            Some(End::Seen(code, ending)) => (code, ending),
            _ => (Code::Cancelled, Ending::Cancelled),
        };
        let past = Past {
            code,
            ending,
            at,
            took: Took::between(self.began, at),
            sent: counted.sent.bytes(),
            received,
        };
        match end {
            Some(End::Counted) => {}
            Some(End::Unseen(how)) => {
                self.vitals.attempts().unseen(how);
                if let Some(method) = &counted.method {
                    method.attempt_unseen(how);
                }
            }
            Some(End::Seen(..)) | None => {
                self.vitals.count(&past);
                let began = self.began;
                if let Some(call) = &mut call
                    && call.ends_at_once(began, &past)
                {
                    return;
                }
                if let Some(method) = &counted.method {
                    method.attempt_ended(&past);
                }
            }
        }
        if let Some(call) = &mut call {
            call.ends_as(past);
        }
    }

    /// It ended like this; only the first word counts.
    fn ended(&mut self, ended: Ended<'_>) {
        if mem::replace(&mut self.judged, true) {
            return;
        }
        let outcome = self.vitals.judge(&ended);
        let ending = match outcome {
            _ if ended.by() == EndedBy::Deadline => Ending::TimedOut,
            Outcome::Success => Ending::Succeeded,
            Outcome::Failure | Outcome::Overload => Ending::Failed,
            Outcome::Ignore => usual(ended.code()),
        };
        self.is_counted(End::Seen(ended.code(), ending));
        self.is_heard_of(&ended, outcome);
        match outcome {
            Outcome::Success => self.vitals.succeeded(self.on_trial, self.silent),
            Outcome::Failure => self.vitals.failed_like(&ended, self.on_trial),
            Outcome::Overload => {
                self.vitals.overloaded(&ended);
                self.shows_nothing();
            }
            Outcome::Ignore => self.shows_nothing(),
        }
    }

    /// What its end says about the server's form.
    fn is_heard_of(&mut self, ended: &Ended<'_>, outcome: Outcome) {
        let by_server = matches!(ended.by(), EndedBy::Status | EndedBy::Reset);
        let form = self.vitals.form();
        if outcome == Outcome::Failure {
            form.failed(Moment::now());
        }
        if by_server {
            self.is_spoken_on(Moment::now());
        }
    }

    /// The server says something on it.
    fn is_spoken_on(&mut self, now: Moment) {
        if mem::take(&mut self.waits) {
            let others_began = self.vitals.answers(self.counted.nth);
            self.vitals.form().speaks(now, others_began);
            self.is_not_missed();
        }
    }

    /// One that began after it has been answered: what it waits for is its own.
    fn is_overtaken(&self) -> bool {
        self.vitals.has_answered_after(self.counted.nth)
    }

    fn is_not_missed(&mut self) {
        if mem::take(&mut self.is_missed) {
            self.vitals.form().is_left();
        }
    }

    /// It ended with a status in these headers or trailers.
    pub(crate) fn ended_with(
        &mut self,
        code: Code,
        metadata: &HeaderMap,
        deadline: Option<Instant>,
    ) {
        self.says(metadata);
        let ended = Ended::with(code, metadata);
        self.ended(self.in_time(ended, deadline));
    }

    /// The server broke it off.
    pub(crate) fn reset_with(&mut self, code: Code, deadline: Option<Instant>) {
        let ended = Ended::without_status(code, EndedBy::Reset);
        self.ended(self.in_time(ended, deadline));
    }

    /// Both sides keep time, and the server may be the first to say that it is over.
    fn in_time<'e>(&self, ended: Ended<'e>, deadline: Option<Instant>) -> Ended<'e> {
        let of_time = matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled);
        if of_time && is_over(deadline) {
            return ended.late().fair(self.had_fair_time());
        }
        ended
    }

    /// It ended without a status of the server's.
    pub(crate) fn ended_by(&mut self, by: EndedBy, code: Code) {
        let ended = Ended::without_status(code, by);
        self.ended(ended.fair(by != EndedBy::Deadline || self.had_fair_time()));
    }

    /// It ended with its connection, of which the channel's task hears: the endpoint is not to be blamed for
    /// each call that was on it.
    pub(crate) fn lost(&mut self) {
        if !mem::replace(&mut self.judged, true) {
            self.vitals.lost_one();
            self.is_undecided();
        }
        self.is_counted(End::Seen(Code::Unavailable, Ending::Failed));
    }

    /// The server has had as long as it usually takes.
    pub(crate) fn had_fair_time(&self) -> bool {
        self.is_fair(self.age())
    }

    /// Of a method that was never answered nobody knows better than of the others.
    fn is_fair(&self, time: Duration) -> bool {
        let method = self.counted.method.as_ref();
        let known = method.filter(|method| method.is_known());
        let time = known.map_or(time, |method| method.leveled(time));
        time >= self.vitals.latency().usual()
    }

    /// The server has answered, and may have more to say.
    pub(crate) fn is_answered(&mut self, now: Moment) {
        self.answered = Some(now);
        let time = now.since(self.began);
        let leveled = self.leveled(time);
        self.took(leveled);
        self.vitals.form().took(leveled, now, self.is_overtaken());
        self.is_sensed(time, now);
        self.is_spoken_on(now);
        if let Some(method) = &self.counted.method {
            method.took(time);
        }
        if self.on_trial {
            self.vitals.conduct().answered();
        }
    }

    /// It was given up unanswered. One that was in a hurry says only that it takes longer than this.
    pub(crate) fn is_given_up(&self) {
        let now = Moment::now();
        let time = now.since(self.began);
        if self.is_fair(time) {
            let leveled = self.leveled(time);
            self.took(leveled);
            self.keeps_waiting(leveled);
            self.is_sensed(time, now);
        }
    }

    /// What that says about the server: for some methods it is much, for others it is what they usually take.
    fn leveled(&self, time: Duration) -> Duration {
        let method = self.counted.method.as_ref();
        method.map_or(time, |method| method.leveled(time))
    }

    fn keeps_waiting(&self, time: Duration) {
        if !self.is_overtaken() {
            self.vitals.form().kept_waiting(time);
        }
    }

    fn is_sensed(&self, time: Duration, now: Moment) {
        if let Some(senses) = self.vitals.senses() {
            senses.took(time, now);
        }
    }

    fn age(&self) -> Duration {
        Moment::now().since(self.began)
    }

    pub(crate) fn took(&self, time: Duration) {
        self.vitals.heard(time);
    }

    /// The server's headers or trailers, in which it may report of its load.
    pub(crate) fn says(&self, metadata: &HeaderMap) {
        if let Some(senses) = self.vitals.senses() {
            senses.said(metadata);
        }
    }

    /// The server reports this of its load.
    pub(crate) fn reports(&self, report: &Report) {
        if let Some(senses) = self.vitals.senses() {
            senses.reports(report);
        }
    }

    /// It never left, so it was no call to this endpoint.
    pub(crate) fn not_sent(&mut self) {
        self.judged = true;
        self.is_counted(End::Unseen(Unseen::NotSent));
        if self.on_trial {
            self.vitals.conduct().untried();
        }
    }

    fn shows_nothing(&self) {
        self.vitals.ignored();
        self.is_undecided();
    }

    fn is_undecided(&self) {
        if self.on_trial {
            self.vitals.conduct().undecided();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.judged {
            self.shows_nothing();
        }
        if !matches!(self.counted.end, Some(End::Counted)) {
            self.close(None, 0, None);
        }
        let form = self.vitals.form();
        // Who was in a hurry says nothing about one that nothing is known of.
        if self.waits && !self.judged && form.latency() > 0.0 {
            self.keeps_waiting(self.leveled(self.age()));
        }
        self.is_not_missed();
        self.vitals.ends();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{balance::conform::endpoints, stats::Tallies};

    #[tokio::test(start_paused = true)]
    async fn a_method_that_takes_long_has_its_time_and_one_that_nobody_answers_no_more_than_others()
    {
        let (known, methods) = (endpoints(&[1; 2]), Tallies::new());
        let [quick, slow, dead] = ["/a.B/Quick", "/a.B/Slow", "/a.B/Dead"];
        let call = async |path: &str, at: usize, millis: u64| {
            let mut call = known[at].begin();
            call.counts_for(&methods.method(path), None);
            tokio::time::advance(Duration::from_millis(millis)).await;
            call
        };
        for n in 0..100 {
            call(quick, n % 2, 4 + n as u64 % 2)
                .await
                .is_answered(Moment::now());
            call(slow, n % 2, 2_000).await.is_answered(Moment::now());
        }

        for at in 0..2 {
            assert!(!call(slow, at, 500).await.had_fair_time());
            assert!(call(slow, at, 4_000).await.had_fair_time());
            assert!(call(quick, at, 500).await.had_fair_time());
            assert!(call(dead, at, 500).await.had_fair_time());
        }
    }
}
