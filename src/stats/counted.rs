//! A call as it is counted, from its beginning to its end.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::Code;

use super::{Ending, Past, Tally, Took, Why, usual};
use crate::{endpoint::InFlight, moment::Moment};

/// A call that is counted; cancelled, if this is dropped before it was said how it ended.
#[derive(Debug)]
pub(crate) struct Counted {
    method: Arc<Tally>,
    /// Known from the first attempt, or from when it first waited.
    began: Option<Moment>,
    /// How often it was sent again, for each reason.
    again: [u16; 3],
    /// Why the next attempt will be made, if it will not be the first.
    next: Option<Why>,
    over: bool,
}

impl Counted {
    pub(crate) fn begin(method: Arc<Tally>) -> Self {
        method.begins();
        Self {
            method,
            began: None,
            again: [0; 3],
            next: None,
            over: false,
        }
    }

    /// It may be some time before it is first sent.
    pub(crate) fn waits(&mut self) {
        self.began.get_or_insert_with(Moment::now);
    }

    /// It is sent, as this.
    #[inline]
    pub(crate) fn attempt(&mut self, attempt: &mut InFlight) {
        self.began.get_or_insert_with(|| attempt.began());
        attempt.counts_for(&self.method, self.next.take());
    }

    /// One of several attempts is sent, for this reason if it is not the first.
    pub(crate) fn leaves(&mut self, attempt: &mut InFlight, why: Option<Why>) {
        if let Some(why) = why {
            self.again(why);
        }
        self.next = why;
        self.attempt(attempt);
    }

    /// Whether the next attempt will not be the first.
    pub(crate) fn is_again(&self) -> bool {
        self.next.is_some()
    }

    /// The next attempt is made for this reason.
    pub(crate) fn again(&mut self, why: Why) {
        let n = &mut self.again[why as usize];
        *n = n.saturating_add(1);
        self.next = Some(why);
    }

    /// The head of its answer has come.
    #[inline]
    pub(crate) fn answered(&self, now: Moment) {
        if let Some(began) = self.began {
            self.method.answered(now.nanos_since(began), now);
        }
    }

    /// It ended as this attempt at it did, which began then, and both are counted, if it was the only one and
    /// there was no wait before; otherwise nothing is.
    pub(crate) fn ends_at_once(&mut self, began: Moment, past: &Past) -> bool {
        let at_once = !self.over && self.again == [0; 3] && self.began == Some(began);
        if at_once {
            self.over = true;
            self.method.ended_at_once(past);
        }
        at_once
    }

    /// It ended as this attempt at it did.
    pub(crate) fn ends_as(&mut self, past: Past) {
        self.over(past);
    }

    /// It ended with a status that no server has given it.
    pub(crate) fn fails(&mut self, code: Code, deadline: Option<Instant>) {
        let now = Instant::now();
        let is_late = deadline.is_some_and(|deadline| deadline <= now);
        let ending = match code {
            Code::Cancelled | Code::DeadlineExceeded if is_late => Ending::TimedOut,
            // It is not the caller who cancels his own call and waits for the answer.
            Code::Cancelled => Ending::Failed,
            _ => usual(code),
        };
        self.over(Past::new(code, ending, Moment::at(now)));
    }

    fn over(&mut self, past: Past) {
        if !std::mem::replace(&mut self.over, true) {
            let began = self.began.unwrap_or(past.at);
            let took = match past.at.nanos_since(began) {
                // It was sent once, and at once.
                same if same == past.took.nanos => past.took,
                _ => Took::between(began, past.at),
            };
            self.method.ended(&Past { took, ..past }, self.again);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.over {
            self.over(Past::new(Code::Cancelled, Ending::Cancelled, Moment::now()));
        }
    }
}
