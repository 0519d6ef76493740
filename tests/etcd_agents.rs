//! Agents and who watches them, through what happens to them and to a real etcd.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use etcd::Etcd;
use etcd_client::{EventType, WatchOptions};
use serde_json::{Value, json};
use tokio::{
    runtime,
    time::{Instant, timeout},
};
use tonic_fleet::{
    ErrorKind,
    register::{
        State,
        heartbeat::{Agent, Agents, Event, Following, Presence, Seen},
    },
};

const INFO: &str = "/os/region/eu-1/info";
const HEARTBEAT: &str = "/os/region/eu-1/heartbeat";
/// Longer than anything is waited for, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

fn agents(etcd: &Etcd) -> Agents {
    let url = format!("{}?prefix=/os/region/&ttl=6s", etcd.url());
    Agents::open(&url.parse().unwrap()).unwrap()
}

async fn start(etcd: &Etcd) -> Agent {
    agents(etcd)
        .start("eu-1", &json!({"city": "Lyon"}))
        .await
        .unwrap()
}

/// An agent in a process of its own, as far as anybody can tell from outside.
struct Elsewhere {
    runtime: Option<runtime::Runtime>,
    agent: Option<Agent>,
}

impl Elsewhere {
    async fn start(etcd: &Etcd, ttl: &str) -> Self {
        let url = format!("{}?prefix=/os/region/&ttl={ttl}", etcd.url());
        let started = thread::spawn(move || {
            let runtime = runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let agent = runtime.block_on(async {
                let agents = Agents::open(&url.parse().unwrap()).unwrap();
                agents
                    .start("eu-1", &json!({"city": "Lyon"}))
                    .await
                    .unwrap()
            });
            (runtime, agent)
        });
        let (runtime, agent) = tokio::task::spawn_blocking(|| started.join().unwrap())
            .await
            .unwrap();
        Self {
            runtime: Some(runtime),
            agent: Some(agent),
        }
    }

    /// All of it stops, in the middle of whatever it did, as after SIGKILL. Dropped too early, the handle
    /// might still be heard there.
    fn crash(mut self) -> Agent {
        self.runtime.take().unwrap().shutdown_background();
        self.agent.take().unwrap()
    }

    /// Nothing there runs until the answer is dropped, as after SIGSTOP.
    fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, thawed) = mpsc::channel::<()>();
        let runtime = self.runtime.as_ref().unwrap();
        runtime.spawn(async move { thawed.recv().is_err() });
        thaw
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.agent.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn until(agent: &Agent, state: State) {
    let reached = timeout(SOON, agent.until(state)).await;
    reached
        .unwrap_or_else(|_| panic!("{state} is never reached: {agent:?}"))
        .unwrap();
}

/// The next change that is about an agent, in a word.
async fn next(seen: &mut Following) -> &'static str {
    loop {
        let event = timeout(SOON, seen.next()).await.expect("a change");
        return match event {
            Event::Online(_) => "online",
            Event::Offline(_) => "offline",
            Event::Lost(_) => "lost",
            Event::Changed(_) => "changed",
            Event::Removed(_) => "removed",
            Event::Stale(_) | Event::Fresh => continue,
            other => panic!("unknown event {other:?}"),
        };
    }
}

async fn value(etcd: &Etcd, key: &str) -> Option<(Value, i64, i64)> {
    let got = etcd.client().await.get(key, None).await.unwrap();
    let kv = got.kvs().first()?;
    let value = serde_json::from_slice(kv.value()).unwrap();
    Some((value, kv.lease(), kv.mod_revision()))
}

/// What happened to one key: when, and what it says now.
type Happened = (i64, String, Option<Value>);

/// What happens to the keys, at which revision.
async fn happenings(etcd: &Etcd) -> impl AsyncFnMut() -> Happened {
    let mut client = etcd.client().await;
    let options = WatchOptions::new().with_prefix();
    let mut stream = client.watch("/os/", Some(options)).await.unwrap();
    let mut waiting = std::collections::VecDeque::new();
    async move || {
        let _lives = &client;
        while waiting.is_empty() {
            let message = timeout(SOON, stream.message())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            for event in message.events() {
                let kv = event.kv().unwrap();
                let value = (event.event_type() == EventType::Put)
                    .then(|| serde_json::from_slice(kv.value()).unwrap());
                waiting.push_back((kv.mod_revision(), kv.key_str().unwrap().to_owned(), value));
            }
        }
        waiting.pop_front().unwrap()
    }
}

/// RFC 3339 in UTC, and about now.
fn is_now(time: &Value) -> bool {
    let text = time.as_str().unwrap();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let (date, time) = text.split_once('T').unwrap();
    let day = Duration::from_secs(24 * 3600);
    let parts: Vec<f64> = time
        .strip_suffix('Z')
        .unwrap()
        .split(':')
        .map(|part| part.parse().unwrap())
        .collect();
    let of_day = parts[0] * 3600.0 + parts[1] * 60.0 + parts[2];
    let now_of_day = now.as_secs_f64() % day.as_secs_f64();
    let apart = (of_day - now_of_day).abs();
    date.len() == 10 && (apart < 20.0 || apart > day.as_secs_f64() - 20.0)
}

#[tokio::test]
async fn an_agent_starts_beats_and_stops_each_in_one_transaction() {
    let etcd = Etcd::start().await;
    let mut happened = happenings(&etcd).await;

    let agent = start(&etcd).await;
    assert_eq!((agent.state(), agent.key()), (State::Registered, INFO));
    let (at, _, beat) = happened().await;
    let (with, _, info) = happened().await;
    let (beat, info) = (beat.unwrap(), info.unwrap());
    assert_eq!(at, with, "one transaction");
    assert_eq!(
        (&info["status"], &info["city"]),
        (&json!("online"), &json!("Lyon"))
    );
    assert!(
        is_now(&info["started_at"]) && is_now(&beat["last_updated"]),
        "{info} {beat}"
    );
    let (_, lease, _) = value(&etcd, HEARTBEAT).await.unwrap();
    assert_eq!(beat["lease_id"], json!(lease));
    assert_eq!(value(&etcd, INFO).await.unwrap().1, 0, "no lease");
    let (_, key, again) = happened().await;
    let again = again.unwrap();
    assert_eq!(
        (key.as_str(), &again["lease_id"]),
        (HEARTBEAT, &json!(lease))
    );
    assert!(again["last_updated"].as_str() > beat["last_updated"].as_str());
    agent.close().await.unwrap();

    let (at, key, info) = loop {
        let (at, key, info) = happened().await;
        if key == INFO {
            break (at, key, info.unwrap());
        }
    };
    assert_eq!((key.as_str(), &info["status"]), (INFO, &json!("offline")));
    assert!(is_now(&info["stopped_at"]), "{info}");
    assert_eq!(happened().await, (at, HEARTBEAT.to_owned(), None));
    let left = etcd
        .client()
        .await
        .lease_time_to_live(lease, None)
        .await
        .unwrap();
    assert!(left.ttl() < 0, "its lease is given back");
}

#[tokio::test]
async fn a_crash_loses_only_the_heartbeat_and_a_stop_is_seen_as_one() {
    let etcd = Etcd::start().await;
    let mut seen = agents(&etcd).follow().await;
    assert!(seen.is_listed() && seen.list().is_empty());

    let first = Elsewhere::start(&etcd, "4s").await;
    assert_eq!(next(&mut seen).await, "online");
    let began = seen.get("eu-1").unwrap().started_at().unwrap();
    let _dead = first.crash();
    let crashed = SystemTime::now();
    assert_eq!(next(&mut seen).await, "lost");
    let Presence::Lost { since } = seen.get("eu-1").unwrap().presence() else {
        panic!("{seen:?}");
    };
    assert!(!seen.is_online("eu-1") && since >= crashed);
    assert_eq!(
        value(&etcd, INFO).await.unwrap().0["status"],
        json!("online")
    );
    assert_eq!(value(&etcd, HEARTBEAT).await, None);
    let second = start(&etcd).await;
    assert_eq!(next(&mut seen).await, "online");
    assert!(seen.get("eu-1").unwrap().started_at().unwrap() > began);
    second.update(&json!({"city": "Nice"})).await.unwrap();
    assert_eq!(next(&mut seen).await, "changed");
    let own: Value = seen.get("eu-1").unwrap().own().unwrap();
    assert_eq!(own, json!({"city": "Nice"}));
    second.close().await.unwrap();

    assert_eq!(next(&mut seen).await, "offline");
    let one = seen.get("eu-1").unwrap();
    let since = one.stopped_at().unwrap();
    assert_eq!(one.presence(), Presence::Offline { since });
    assert!(since > began && one.last_updated().is_none());
}

#[tokio::test]
async fn an_agent_that_restarts_after_a_crash_waits_for_its_old_lease_and_is_back() {
    let etcd = Etcd::start().await;
    let first = Elsewhere::start(&etcd, "5s").await;
    let (_, old, _) = value(&etcd, HEARTBEAT).await.unwrap();

    let _dead = first.crash();
    let second = start(&etcd).await;
    assert_eq!(second.state(), State::Retrying);
    let why = second.error().unwrap().chain();
    assert!(why.contains("silent, started at 20"), "{why}");
    until(&second, State::Registered).await;

    let (_, new, _) = value(&etcd, HEARTBEAT).await.unwrap();
    assert_ne!(old, new);
}

#[tokio::test]
async fn the_second_of_two_with_one_id_is_told_and_leaves_the_first_alone() {
    let etcd = Etcd::start().await;
    let mut seen = agents(&etcd).follow().await;
    let first = start(&etcd).await;
    assert_eq!(next(&mut seen).await, "online");
    let before = value(&etcd, INFO).await.unwrap();

    let refused = agents(&etcd).start("eu-1", &()).await.unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let why = refused.chain();
    assert!(
        why.contains(INFO) && why.contains("another agent lives"),
        "{why}"
    );
    assert_eq!(value(&etcd, INFO).await.unwrap(), before);
    assert!(first.state() == State::Registered && seen.is_online("eu-1"));
    first.close().await.unwrap();
    assert_eq!(next(&mut seen).await, "offline");
}

#[tokio::test]
async fn one_who_stood_still_and_was_replaced_reports_it_and_is_back_when_the_other_stops() {
    let etcd = Etcd::start().await;
    let first = Elsewhere::start(&etcd, "4s").await;
    let mut seen = agents(&etcd).follow().await;
    assert_eq!(next(&mut seen).await, "online");
    let began = seen.get("eu-1").unwrap().started_at();

    let thaw = first.freeze();
    assert_eq!(next(&mut seen).await, "lost");
    let second = start(&etcd).await;
    until(&second, State::Registered).await;
    drop(thaw);
    until(first.agent(), State::Conflict).await;
    assert_eq!(second.state(), State::Registered);
    let why = first.agent().error().unwrap().chain();
    assert!(why.contains("give one of the two another id"), "{why}");
    second.close().await.unwrap();

    until(first.agent(), State::Registered).await;
    let is_first = |one: Seen| one.is_online() && one.started_at() == began;
    while !seen.get("eu-1").is_some_and(is_first) {
        next(&mut seen).await;
    }
}

#[tokio::test]
async fn an_outage_of_etcd_longer_than_the_lease_makes_the_view_stale_and_then_right() {
    let mut etcd = Etcd::start().await;
    let agent = start(&etcd).await;
    let mut seen = agents(&etcd).follow().await;
    let (before, ..) = value(&etcd, INFO).await.unwrap();

    etcd.kill();
    until(&agent, State::Lost).await;
    let stale = async {
        while seen.stale().is_none() {
            drop(seen.next().await)
        }
    };
    timeout(SOON, stale).await.expect("it is noticed");
    assert!(seen.is_online("eu-1"), "what was seen last still counts");
    etcd.restart().await;
    until(&agent, State::Registered).await;
    let well = async {
        while seen.stale().is_some() || !seen.is_online("eu-1") {
            drop(seen.next().await);
        }
    };
    timeout(SOON, well).await.expect("the view is right again");

    assert_eq!(
        value(&etcd, INFO).await.unwrap().0,
        before,
        "it did not start anew"
    );
    etcd.wipe();
    etcd.restart().await;
    let back = async {
        while value(&etcd, INFO).await.is_none() || !seen.is_online("eu-1") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, back).await.expect("both records are back");
    assert_eq!(value(&etcd, INFO).await.unwrap().0, before);
}

#[tokio::test]
async fn a_record_that_somebody_takes_away_is_put_back_at_once() {
    let etcd = Etcd::start().await;
    // It beats every twenty seconds: what is put right before, was noticed before.
    let url = format!("{}?prefix=/os/region/&ttl=60s", etcd.url());
    let agents = Agents::open(&url.parse().unwrap()).unwrap();
    let agent = agents.start("eu-1", &json!({})).await.unwrap();
    let (info, ..) = value(&etcd, INFO).await.unwrap();

    for key in [INFO, HEARTBEAT] {
        etcd.delete(key).await;
        let deleted = Instant::now();
        while value(&etcd, key).await.is_none() {}
        let away = Instant::now() - deleted;
        println!("{key} is back after {away:?}");
        assert!(away < Duration::from_secs(8), "{away:?}");
    }

    assert_eq!(value(&etcd, INFO).await.unwrap().0, info);
    assert_ne!(value(&etcd, HEARTBEAT).await.unwrap().1, 0);
    until(&agent, State::Registered).await;
}

#[tokio::test]
async fn who_is_gone_for_long_enough_is_cleaned_away_and_one_who_came_back_is_not() {
    let etcd = Etcd::start().await;
    let url = etcd.url();
    etcd.put(
        "/os/region/old/info",
        r#"{"status":"offline","stopped_at":"2020-01-01T00:00:00Z"}"#,
    )
    .await;
    etcd.put(
        "/os/region/eu-1/info",
        r#"{"status":"online","started_at":"2020-01-01T00:00:00Z"}"#,
    )
    .await;
    etcd.put("/os/region/broken/info", "[").await;
    let mut seen = agents(&etcd).follow().await;
    assert_eq!(
        [next(&mut seen).await, next(&mut seen).await],
        ["lost", "offline"]
    );
    assert_eq!(&*seen.skipped()[0].key, "/os/region/broken/info");

    // The watch runs on this thread, so it cannot have told of the one who came back.
    let back = thread::spawn(move || {
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let agent = runtime.block_on(async {
            let url = format!("{url}?prefix=/os/region/&ttl=30s");
            let agents = Agents::open(&url.parse().unwrap()).unwrap();
            agents.start("eu-1", &()).await.unwrap()
        });
        (runtime, agent)
    });
    let (runtime, agent) = back.join().unwrap();
    assert!(!seen.is_online("eu-1"), "it was not told");
    assert!(seen.clean(Duration::from_secs(3600)).await.unwrap()[..] == ["old".parse().unwrap()]);
    let cleaned = seen.clean(Duration::ZERO).await.unwrap();

    assert_eq!(cleaned, []);
    let (info, ..) = value(&etcd, INFO).await.unwrap();
    assert_eq!(info["status"], json!("online"));
    assert_eq!(value(&etcd, "/os/region/old/info").await, None);
    drop(agent);
    runtime.shutdown_background();
}
