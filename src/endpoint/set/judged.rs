//! What becomes of an endpoint that was asked whether it is well.

use tokio::time::Instant;

use super::{Event, Set, Step};
use crate::{InstanceId, health::Verdict};

impl Set {
    /// A connected endpoint was asked, and this came of it. An unwell one keeps its connection, and its calls.
    pub(crate) fn judged(&mut self, id: &InstanceId, verdict: Verdict, now: Instant) -> Vec<Step> {
        if let Some(entry) = self
            .entries
            .get_mut(id)
            .filter(|entry| !entry.up.is_empty())
        {
            match &verdict {
                Verdict::Healthy => {
                    // Of a thousand that connect and are well, nobody wants to read.
                    if matches!(entry.verdict, Some(Verdict::Unhealthy(_))) {
                        tracing::info!(%id, "endpoint is well again");
                    }
                    self.steps.push(Step::Tell(Event::Healthy(id.clone())));
                }
                Verdict::Unhealthy(why) => {
                    tracing::info!(%id, error = why.chain(), "endpoint is unwell");
                    entry.vitals.failed(why.clone());
                    let event = Event::Unhealthy(id.clone(), why.clone());
                    self.steps.push(Step::Tell(event));
                }
                Verdict::Unknown => {}
            }
            entry.verdict = Some(verdict);
            entry.show(now);
            self.rank(id);
        }
        self.settle(now)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        Backoff, Error, ErrorKind, Instance, State,
        endpoint::{Health, Limits, set::Dial},
        resolve::Update,
        stage::Stages,
    };

    /// A set whose endpoints are asked, and the attempts that connected them.
    fn connected(ids: &[&str], now: Instant) -> (Set, Vec<Dial>) {
        let mut set = Set::new(Limits {
            grace: Duration::from_secs(10),
            hold: Duration::from_secs(60),
            redial: Backoff::between(Duration::from_millis(100), Duration::from_secs(30)),
            dials: 100,
            connections: 1,
            asked: true,
            health: Health::default(),
            stages: Stages::default(),
        });
        let instance = |id| Arc::new(Instance::at("10.0.0.5:1").unwrap().id(id).unwrap());
        let all = ids.iter().map(instance).collect();
        let dials = dials(set.apply(Update::Reset(all), now));
        for dial in &dials {
            set.up(&dial.instance.id, dial.attempt, now);
        }
        (set, dials)
    }

    fn dials(steps: Vec<Step>) -> Vec<Dial> {
        let dial = |step| match step {
            Step::Dial(dial) => Some(dial),
            _ => None,
        };
        steps.into_iter().filter_map(dial).collect()
    }

    fn id(id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    fn unwell() -> Verdict {
        Verdict::Unhealthy(Error::new(ErrorKind::Unavailable, "it says NOT_SERVING"))
    }

    fn ready(set: &Set) -> Vec<&str> {
        set.ready().iter().map(|e| e.id().as_str()).collect()
    }

    fn state(set: &Set, id: &str) -> State {
        let id = id.parse().unwrap();
        set.endpoints().find(&id).unwrap().state()
    }

    #[test]
    fn who_is_asked_is_ready_when_it_says_that_it_is_well() {
        let now = Instant::now();
        let (mut set, _) = connected(&["a", "b"], now);
        assert_eq!(ready(&set), [""; 0]);
        assert_eq!(state(&set, "a"), State::Connecting);

        let steps = set.judged(&id("a"), Verdict::Healthy, now);

        assert_eq!(ready(&set), ["a"]);
        assert_eq!(state(&set, "a"), State::Ready);
        assert!(matches!(&steps[..], [Step::Tell(Event::Healthy(who))] if who.as_str() == "a"));
        assert!(set.take_changed());
    }

    #[test]
    fn an_unwell_one_keeps_its_connection_and_is_back_when_it_is_well() {
        let now = Instant::now();
        let (mut set, _) = connected(&["a", "b"], now);
        set.judged(&id("a"), Verdict::Healthy, now);
        set.judged(&id("b"), Verdict::Healthy, now);

        let steps = set.judged(&id("a"), unwell(), now);

        assert!(matches!(&steps[..], [Step::Tell(Event::Unhealthy(..))]));
        assert_eq!(ready(&set), ["b"]);
        assert_eq!(state(&set, "a"), State::Unhealthy);
        let endpoints = set.endpoints();
        let why = endpoints.find(&id("a")).unwrap().last_error().unwrap();
        assert_eq!(why.to_string(), "it says NOT_SERVING");
        set.judged(&id("a"), Verdict::Healthy, now);
        assert_eq!(ready(&set), ["a", "b"]);
    }

    #[test]
    fn calls_go_to_the_unwell_when_nobody_is_well_but_not_to_those_who_have_not_answered() {
        let now = Instant::now();
        let (mut set, _) = connected(&["a", "b", "c"], now);

        set.judged(&id("a"), unwell(), now);
        set.judged(&id("b"), unwell(), now);

        assert_eq!(ready(&set), ["a", "b"]);
    }

    #[test]
    fn a_new_connection_is_asked_anew() {
        let now = Instant::now();
        let (mut set, made) = connected(&["a"], now);
        set.judged(&id("a"), Verdict::Healthy, now);
        let broken = Error::new(ErrorKind::Unavailable, "broken");

        set.down(&id("a"), made[0].attempt, broken, false, now);
        set.judged(&id("a"), Verdict::Healthy, now);
        assert_eq!(state(&set, "a"), State::Broken);
        let again = dials(set.tick(now + Duration::from_secs(1)));
        set.up(&id("a"), again[0].attempt, now);

        assert_eq!(state(&set, "a"), State::Connecting);
        assert_eq!(ready(&set), [""; 0]);
    }

    #[test]
    fn a_verdict_about_nobody_changes_nothing() {
        let now = Instant::now();
        let (mut set, _) = connected(&["a"], now);
        set.take_changed();

        assert!(set.judged(&id("b"), unwell(), now).is_empty());

        assert!(!set.take_changed());
    }
}
