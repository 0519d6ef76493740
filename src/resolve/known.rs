//! What a resolver that asks again and again has found and told so far.

use std::{fmt, sync::Arc};

use super::{Publisher, Skipped};
use crate::{Error, Instance};

/// What was found last, so that only what changes is told.
#[derive(Debug)]
pub(super) struct Known {
    /// What is asked, for the log.
    place: String,
    set: Option<Vec<Arc<Instance>>>,
    skipped: usize,
    /// Why the last attempt failed, if it did.
    failure: Option<String>,
}

/// One answer: who is there, and what was passed over.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) set: Vec<Arc<Instance>>,
    pub(super) skipped: Vec<Skipped>,
}

impl Known {
    /// Nothing is known yet of what stands in this place.
    pub(super) fn of(place: impl fmt::Display) -> Self {
        Self {
            place: place.to_string(),
            set: None,
            skipped: 0,
            failure: None,
        }
    }

    /// Tells what the answer changes; a failure leaves what was known.
    pub(super) fn tell(&mut self, answer: Result<Found, Error>, publisher: &Publisher) {
        match answer {
            Ok(found) => self.found(found, publisher),
            Err(why) => self.failed(why, publisher),
        }
    }

    fn found(&mut self, mut found: Found, publisher: &Publisher) {
        found.set.sort_by(|a, b| a.id.cmp(&b.id));
        let back = self.failure.take().is_some();
        if back {
            tracing::info!(place = %self.place, "registry in reach again");
        }
        if self.set.as_ref() != Some(&found.set) {
            publisher.reset(found.set.iter().cloned());
            self.set = Some(found.set);
        } else if back {
            publisher.delta([]);
        }
        if self.skipped > 0 || !found.skipped.is_empty() {
            if self.skipped != found.skipped.len() {
                let (place, skipped) = (&self.place, found.skipped.len());
                tracing::warn!(%place, skipped, "records passed over");
            }
            self.skipped = found.skipped.len();
            publisher.skipped(found.skipped);
        }
    }

    fn failed(&mut self, why: Error, publisher: &Publisher) {
        let words = why.chain();
        if self.failure.is_none() {
            let kept = self.set.as_ref().map_or(0, Vec::len);
            tracing::warn!(place = %self.place, error = words, kept, "registry out of reach");
        }
        if self.failure.as_ref() != Some(&words) {
            self.failure = Some(words);
            publisher.stale(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::{
        super::{Update, Updates, fixed::named_after, publish},
        *,
    };
    use crate::ErrorKind;

    fn found(addresses: &[&str]) -> Result<Found, Error> {
        let set = addresses
            .iter()
            .map(|a| Ok(Arc::new(named_after(a.parse()?)?)));
        Ok(Found {
            set: set.collect::<Result<_, Error>>()?,
            skipped: Vec::new(),
        })
    }

    fn failure(what: &str) -> Result<Found, Error> {
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    fn words(updates: &mut Updates) -> String {
        match updates.next().now_or_never().flatten() {
            None => "nothing".into(),
            Some(Update::Reset(set)) => format!("reset {}", set.len()),
            Some(Update::Delta(changes)) => format!("delta {}", changes.len()),
            Some(Update::Stale(why)) => format!("stale: {why}"),
            Some(Update::Skipped(skipped)) => format!("skipped {}", skipped.len()),
        }
    }

    #[test]
    fn the_same_answer_in_another_order_is_no_news() {
        let (publisher, mut updates) = publish();
        let mut known = Known::of("x");
        known.tell(found(&["a:1", "b:1"]), &publisher);
        assert_eq!(words(&mut updates), "reset 2");

        known.tell(found(&["b:1", "a:1"]), &publisher);

        assert_eq!(words(&mut updates), "nothing");
    }

    #[test]
    fn a_failure_is_told_once_and_its_end_too() {
        let (publisher, mut updates) = publish();
        let mut known = Known::of("x");
        known.tell(found(&["a:1"]), &publisher);
        words(&mut updates);

        known.tell(failure("no such file"), &publisher);
        assert_eq!(words(&mut updates), "stale: no such file");
        known.tell(failure("no such file"), &publisher);
        assert_eq!(words(&mut updates), "nothing");
        known.tell(failure("not JSON"), &publisher);
        assert_eq!(words(&mut updates), "stale: not JSON");
        known.tell(found(&["a:1"]), &publisher);

        assert_eq!(words(&mut updates), "delta 0");
    }

    #[test]
    fn an_empty_first_answer_is_an_answer() {
        let (publisher, mut updates) = publish();

        Known::of("x").tell(found(&[]), &publisher);

        assert_eq!(words(&mut updates), "reset 0");
    }

    #[test]
    fn what_was_passed_over_is_told_until_nothing_is() {
        let (publisher, mut updates) = publish();
        let mut known = Known::of("x");
        let bad = Skipped::new("x[0]", Error::config("not a record"));
        let answer = Found {
            skipped: vec![bad],
            ..Found::default()
        };
        known.tell(Ok(answer), &publisher);
        assert_eq!(words(&mut updates), "reset 0");
        assert_eq!(words(&mut updates), "skipped 1");

        known.tell(found(&[]), &publisher);

        assert_eq!(words(&mut updates), "skipped 0");
    }
}
