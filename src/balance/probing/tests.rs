use std::time::Duration;

use tokio::time::advance;
use tonic::Code;

use super::{
    super::{Rehearsal, conform, seed},
    *,
};
use crate::{Instance, InstanceId};

const MILLI: Duration = Duration::from_millis(1);

/// Ten servers, of which each answers when it is asked, at once or after a while.
struct Fleet {
    policy: Probing,
    rehearsal: Rehearsal,
    loads: Vec<Load>,
}

fn load(in_flight: u32) -> Load {
    Load {
        in_flight,
        latency: MILLI * 10,
        service: MILLI * 10,
    }
}

fn id(n: usize) -> InstanceId {
    InstanceId::new(format!("i{n:02}")).unwrap()
}

impl Fleet {
    fn of(loads: &[u32]) -> Self {
        seed(11);
        let policy = Probing::by_hand();
        let mut rehearsal = Rehearsal::of(policy.clone());
        for n in 0..loads.len() {
            let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(id(n)));
            rehearsal.put(instance.unwrap());
        }
        Self {
            policy,
            rehearsal,
            loads: loads.iter().map(|n| load(*n)).collect(),
        }
    }

    /// Everybody who is to be asked answers after so long.
    async fn ask(&self, after: Duration) -> usize {
        let questions: Vec<_> = std::iter::from_fn(|| self.policy.question()).collect();
        advance(after).await;
        let asked = questions.len();
        for question in questions {
            let place = (0..self.loads.len()).find(|n| id(*n) == *question.endpoint().id());
            question.answered(&self.loads[place.unwrap()]);
        }
        asked
    }

    /// How many calls each gets of those that come every millisecond, one at a time.
    async fn calls(&mut self, calls: usize, code: impl Fn(usize) -> Code) -> Vec<usize> {
        self.calls_with(calls, MILLI / 10, code).await
    }

    async fn calls_with(
        &mut self,
        calls: usize,
        answers_after: Duration,
        code: impl Fn(usize) -> Code,
    ) -> Vec<usize> {
        let mut counts = vec![0; self.loads.len()];
        for _ in 0..calls {
            let mut call = self.rehearsal.call().unwrap();
            let place = (0..counts.len()).find(|n| id(*n) == *call.endpoint().id());
            counts[place.unwrap()] += 1;
            let code = code(place.unwrap());
            if code == Code::Ok {
                advance(MILLI).await;
                call.answered();
            }
            call.ended(code);
            self.ask(answers_after).await;
        }
        counts
    }
}

fn good(_: usize) -> Code {
    Code::Ok
}

#[tokio::test(start_paused = true)]
async fn who_says_that_it_is_busy_is_left_alone_though_its_calls_show_nothing() {
    let mut fleet = Fleet::of(&[0, 0, 0, 0, 0, 0, 0, 0, 20, 20]);
    fleet.calls(100, good).await;

    let counts = fleet.calls(1_000, good).await;

    assert!(counts[8] + counts[9] < 20, "{counts:?}");
    assert!(counts[..8].iter().all(|n| *n > 40), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn who_answers_at_once_that_it_cannot_is_not_gone_by_what_it_says() {
    let mut fleet = Fleet::of(&[0, 5, 5, 5, 5, 5, 5, 5, 5, 5]);
    // Nothing in flight, and the shortest latency of all.
    fleet.loads[0] = Load {
        latency: MILLI,
        service: MILLI,
        in_flight: 0,
    };

    let counts = fleet
        .calls(1_000, |place| match place {
            0 => Code::Unavailable,
            _ => Code::Ok,
        })
        .await;

    assert!(counts[0] < 30, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn where_questions_take_longer_than_calls_it_switches_itself_off_and_on_again() {
    let mut fleet = Fleet::of(&[0, 0, 0, 0, 0, 0, 0, 0, 20, 20]);

    fleet.calls_with(100, MILLI * 20, good).await;
    let off = fleet.calls_with(1_000, MILLI * 20, good).await;
    // As it is off, few are asked.
    fleet.calls(4_000, good).await;
    let on = fleet.calls(1_000, good).await;

    assert!(off[8] + off[9] > 40, "{off:?}");
    assert!(on[8] + on[9] < 20, "{on:?}");
}

#[tokio::test(start_paused = true)]
async fn one_question_in_sixty_four_is_asked_while_it_is_off() {
    let mut fleet = Fleet::of(&[0; 10]);
    fleet.calls_with(100, MILLI * 20, good).await;
    let mut asked = 0;

    for _ in 0..6_400 {
        fleet.rehearsal.call().unwrap().ended(Code::Ok);
        asked += fleet.ask(MILLI * 20).await;
    }

    assert!((60..150).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn few_are_not_asked() {
    let mut fleet = Fleet::of(&[0, 0, 20]);

    let counts = fleet.calls(300, good).await;

    assert_eq!(fleet.ask(MILLI).await, 0);
    assert!(counts[2] > 30, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_said_a_second_ago_says_nothing() {
    let mut fleet = Fleet::of(&[0, 0, 0, 0, 0, 0, 0, 0, 20, 20]);
    fleet.calls(100, good).await;
    advance(Duration::from_secs(2)).await;
    let mut busy = 0;

    for _ in 0..200 {
        let mut call = fleet.rehearsal.call().unwrap();
        busy += usize::from(*call.endpoint().id() >= id(8));
        call.answered();
        call.ended(Code::Ok);
    }

    assert!(busy > 8, "{busy}");
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_else_is_busy_beside_is_not_given_all_calls_at_once() {
    let fleet = &mut Fleet::of(&[0; 10]);
    fleet.calls(100, good).await;

    // Nobody is asked meanwhile: what was sent there counts.
    let calls: Vec<_> = (0..100).map(|_| fleet.rehearsal.call().unwrap()).collect();

    let most = (0..10).map(|n| calls.iter().filter(|c| *c.endpoint().id() == id(n)).count());
    assert!(most.max().unwrap() <= 20);
}

#[test]
fn one_that_ramps_is_given_its_share() {
    let counts = conform::ramping(&Probing::by_hand(), &[100, 10, 100, 100], 31_000);

    assert!(counts[1] < 3_000, "{counts:?}");
}
