//! The example programs against a real etcd, with servers that are really restarted, killed and frozen.
#![cfg(all(feature = "etcd", feature = "server", unix))]
#![allow(clippy::unwrap_used)]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/programs.rs"]
mod programs;

use std::{
    collections::BTreeSet, ffi::OsStr, fs, net::TcpListener, os::unix::ffi::OsStrExt,
    time::Duration,
};

use etcd::{Etcd, free_port};
use nix::sys::signal::Signal;
use programs::{Program, Running, run, run_with};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};
use tonic_fleet::{
    Channel, State,
    register::heartbeat::{Agents, Presence},
};

/// Longer than anything is waited for, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

/// What is measured here is not to be measured beside something else that runs flat out.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

async fn five(registry: &str) -> Vec<Program> {
    let mut servers = Vec::new();
    for number in 0..5 {
        servers.push(Program::registered(registry, &format!("s{number}"), "").await);
    }
    servers
}

fn callers(registry: &str, flags: &str) -> Running {
    Running::start(
        "echo_client",
        &format!("--target {registry}/services-echo {flags}"),
    )
}

/// The keys under the prefix of a service.
async fn keys(etcd: &Etcd, service: &str) -> BTreeSet<String> {
    let mut client = etcd.client().await;
    let prefix = etcd_client::GetOptions::new()
        .with_prefix()
        .with_keys_only();
    let found = client
        .get(format!("/services/{service}/"), Some(prefix))
        .await
        .unwrap();
    let keys = found
        .kvs()
        .iter()
        .map(|kv| kv.key_str().unwrap().to_owned());
    keys.collect()
}

/// A record that nobody keeps alive.
async fn put(etcd: &Etcd, id: &str, address: &str) {
    let record = json!({"id": id, "addresses": [address]}).to_string();
    etcd.put(&format!("/services/services-echo/{id}"), record)
        .await;
}

/// Asks again and again until it is so.
async fn until<F: Future<Output = bool>>(what: &str, limit: Duration, mut so: impl FnMut() -> F) {
    let asking = async {
        while !so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(limit, asking)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {limit:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_call() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let mut servers = five(&registry).await;
    let load = callers(&registry, "--seconds 600 --concurrency 64 --rate 2000");

    for _round in 0..3 {
        for number in 0..5 {
            servers.remove(0).leave().await;
            servers.push(Program::registered(&registry, &format!("s{number}"), "").await);
        }
    }
    let summary = load.interrupted().await;

    assert_eq!(summary["failed"], 0, "{summary}");
    assert!(summary["ok"].as_u64().unwrap() > 1_000, "{summary}");
    assert!(
        summary["by_addr"].as_object().unwrap().len() >= 15,
        "{summary}"
    );
    for server in servers {
        server.leave().await;
    }
    assert_eq!(keys(&etcd, "services-echo").await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_fails_only_what_the_killed_one_had_begun() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let mut servers = Vec::new();
    for number in 0..5 {
        let more = "--delay-ms 20 --ttl 4";
        servers.push(Program::registered(&registry, &format!("s{number}"), more).await);
    }
    let load = callers(
        &registry,
        "--seconds 6 --concurrency 64 --policy round_robin",
    );
    sleep(Duration::from_secs(2)).await;

    let dead = servers.remove(2);
    let began = Instant::now();
    dead.signal(Signal::SIGKILL);
    dead.ended().await;
    let summary = load.ended().await.summary();

    // One call in flight for each caller, of which the dead had about a fifth, if it was not slow before.
    assert!(summary["failed"].as_u64().unwrap() <= 64, "{summary}");
    let statuses: Vec<_> = summary["by_status"].as_object().unwrap().keys().collect();
    assert!(
        statuses.iter().all(|s| *s == "OK" || *s == "UNAVAILABLE"),
        "{summary}"
    );
    let gone = "the key of the killed one";
    until(gone, SOON, || async {
        !keys(&etcd, "services-echo")
            .await
            .contains("/services/services-echo/s2")
    })
    .await;
    println!("killed, and forgotten after {:?}", Instant::now() - began);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_frozen_under_load_costs_its_share_of_the_first_deadlines_and_no_more() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let servers = five(&registry).await;
    let load = callers(
        &registry,
        "--policy round_robin --rate 500 --concurrency 500 --deadline-ms 1000 --seconds 12",
    );
    sleep(Duration::from_secs(4)).await;

    servers[2].signal(Signal::SIGSTOP);
    let summary = load.ended().await.summary();

    servers[2].signal(Signal::SIGCONT);
    let failed = summary["failed"].as_u64().unwrap();
    println!("{failed} calls failed");
    assert!(summary["ok"].as_u64().unwrap() > 1_000, "{summary}");
    // A hundred a second are its share, for eight seconds; those of the second before the first deadline are
    // sure to fail.
    assert!((1..=400).contains(&failed), "{summary}");
    for server in servers {
        server.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_frozen_beyond_its_lease_leaves_and_comes_back_under_its_key() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let mut servers = Vec::new();
    for number in 0..3 {
        servers.push(Program::registered(&registry, &format!("s{number}"), "--ttl 4").await);
    }
    let before = keys(&etcd, "services-echo").await;
    let target = format!("{registry}/services-echo").parse().unwrap();
    let channel = Channel::builder(target)
        .grace(Duration::from_secs(1))
        .build()
        .unwrap();
    timeout(SOON, channel.ready(3)).await.unwrap();

    servers[1].signal(Signal::SIGSTOP);
    let limit = SOON;
    until("the key is gone", limit, || async {
        keys(&etcd, "services-echo").await.len() == 2
    })
    .await;
    until("it is out of the set", limit, || async {
        channel.view().ready().len() == 2
    })
    .await;
    servers[1].signal(Signal::SIGCONT);
    until("the key is back", limit, || async {
        keys(&etcd, "services-echo").await == before
    })
    .await;
    until("it is in the set", limit, || async {
        let view = channel.view();
        let all_ready = view.known().iter().all(|e| e.state() == State::Ready);
        all_ready && view.ready().len() == 3 && view.known().len() == 3
    })
    .await;

    let summary = callers(&registry, "--requests 300").ended().await.summary();
    assert_eq!(summary["failed"], 0, "{summary}");
    assert_eq!(
        summary["by_backend"].as_object().unwrap().len(),
        3,
        "{summary}"
    );
    for server in servers {
        server.leave().await;
    }
    assert_eq!(keys(&etcd, "services-echo").await, BTreeSet::new());
}

/// 20,000 calls to three live servers and one at this address.
async fn one_of_four_at(address: &str) -> Value {
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let mut servers = Vec::new();
    for number in 0..3 {
        servers.push(Program::registered(&registry, &format!("s{number}"), "").await);
    }
    put(&etcd, "dead", address).await;

    callers(
        &registry,
        "--requests 20000 --concurrency 16 --deadline-ms 5000",
    )
    .ended()
    .await
    .summary()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_four_that_refuses_connections_costs_no_call() {
    let _alone = alone().await;
    // Nobody listens there.
    let free = format!("127.0.0.1:{}", free_port());

    let summary = one_of_four_at(&free).await;

    assert_eq!(
        (&summary["ok"], &summary["failed"]),
        (&json!(20_000), &json!(0)),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_four_that_answers_nothing_costs_no_call() {
    let _alone = alone().await;
    // The kernel takes connections; nobody ever reads them.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();

    let summary = one_of_four_at(&hole.local_addr().unwrap().to_string()).await;

    assert_eq!(
        (&summary["ok"], &summary["failed"]),
        (&json!(20_000), &json!(0)),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nobody_there_a_call_fails_at_its_deadline_and_says_why() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;

    let ended = callers(&etcd.url(), "--requests 5 --deadline-ms 300")
        .ended()
        .await;

    let summary = ended.summary();
    assert_eq!(ended.code, Some(1));
    // Not after the five seconds that a call without a deadline waits.
    let longest = summary["max_us"].as_u64().unwrap();
    assert!((300_000..4_000_000).contains(&longest), "{summary}");
    let why = summary["errors"][0].as_str().unwrap();
    assert!(why.contains("0 of 0 endpoints"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_share_calls_as_they_promise() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let mut servers = Vec::new();
    for (id, weight) in [("a", 3), ("b", 1), ("c", 1)] {
        servers.push(Program::registered(&registry, id, &format!("--weight {weight}")).await);
    }

    let flags = "--policy weighted --requests 50000 --concurrency 16";
    let weighted = callers(&registry, flags).ended().await.summary();
    let flags = "--policy round_robin --requests 10000 --concurrency 16";
    let turns = callers(&registry, flags).ended().await.summary();

    let exact = json!({"a": 30_000, "b": 10_000, "c": 10_000});
    assert_eq!(weighted["by_backend"], exact, "{weighted}");
    let counts = turns["by_backend"].as_object().unwrap().values();
    let counts: Vec<_> = counts.map(|n| n.as_u64().unwrap()).collect();
    assert!(
        counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
        "{turns}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_says_so_and_leaves_no_key() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();
    let flags = format!("--registry {registry} --service shop/echo --id one --zone a --weight 3");
    let mut server = Program::server(&flags);

    let listening = server.says("listening").await;
    let registered = server.says("registered").await;
    server.signal(Signal::SIGTERM);
    let withdrawn = server.says("withdrawn").await;
    let stopped = server.says("stopped").await;

    assert_eq!(server.ended().await, Some(0));
    assert!(
        listening["addr"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:"),
        "{listening}"
    );
    assert_eq!(registered["key"], "/services/shop/echo/one", "{registered}");
    assert_eq!(
        (&withdrawn["id"], &stopped["served"]),
        (&json!("one"), &json!(0))
    );
    assert_eq!(keys(&etcd, "shop/echo").await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_wrongly_is_said_in_one_sentence() {
    let server = "--registry etcd://127.0.0.1:1 --service a";
    let cases = [
        ("echo_server", "--nope".to_owned(), "not a flag"),
        ("echo_server", "--service a".into(), "--registry is missing"),
        (
            "echo_server",
            "--registry etcd://h".into(),
            "--service is missing",
        ),
        (
            "echo_server",
            "--registry h --service a".into(),
            "no scheme",
        ),
        ("echo_server", format!("{server}//b"), "empty segment"),
        (
            "echo_server",
            format!("{server} --weight -1"),
            "not a whole number",
        ),
        ("echo_server", format!("{server} --ttl 1"), "from 2 to"),
        (
            "echo_server",
            format!("{server} --listen localhost"),
            "IP address and port",
        ),
        ("echo_server", format!("{server} --id a/b"), "one segment"),
        ("echo_server", format!("{server} --layout nope"), "layout"),
        (
            "echo_server",
            "--service --registry h".into(),
            "--service lacks its value",
        ),
        ("echo_client", String::new(), "--target is missing"),
        (
            "echo_client",
            "--target etcd://h".into(),
            "service is missing",
        ),
        (
            "echo_client",
            "--target static://h".into(),
            "port is missing",
        ),
        (
            "echo_client",
            "--target static://h:1 --policy best".into(),
            "round_robin",
        ),
        (
            "echo_client",
            "--target static://h:1 --requests 0".into(),
            "from 1 to",
        ),
        ("demo", "--seconds 1".into(), "from 4 to"),
        ("demo", "--registry static://h:1".into(), "only read"),
    ];
    for (program, flags, words) in cases {
        let ended = run(program, &flags).await;

        assert_eq!(ended.code, Some(2), "{program} {flags}: {ended:?}");
        assert_eq!(
            ended.stderr.trim().lines().count(),
            1,
            "{program} {flags}: {ended:?}"
        );
        assert!(ended.stderr.contains(words), "{program} {flags}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_fails_no_call_and_leaves_nothing_behind() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;
    let registry = etcd.url();

    let here = run("demo", "--seconds 5").await;
    let there = run("demo", &format!("--seconds 5 --registry {registry}")).await;
    let cut = Running::start("demo", &format!("--forever --registry {registry}"));
    until("four servers", SOON, || async {
        keys(&etcd, "demo").await.len() == 4
    })
    .await;
    cut.signal(Signal::SIGINT);
    let cut = cut.ended().await;

    for demo in [&here, &there] {
        assert!(demo.stdout.contains(" 0 failed"), "{demo:?}");
    }
    for demo in [here, there, cut] {
        assert_eq!(demo.code, Some(0), "{demo:?}");
    }
    assert_eq!(keys(&etcd, "demo").await, BTreeSet::new());
    assert_eq!(processes_with(&registry), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_that_is_no_text_or_far_too_long_is_refused_in_one_short_sentence() {
    let long = format!("--seconds={}", "9".repeat(100_000));
    for (argument, words) in [
        (OsStr::from_bytes(b"--seconds=\xff"), "not UTF-8"),
        (OsStr::new(&long), "not a whole number"),
    ] {
        let ended = run_with("demo", argument).await;

        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert_eq!(ended.stderr.trim().lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
        assert!(ended.stderr.len() < 400, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_registry_is_out_of_reach_ends_and_leaves_no_process() {
    let registry = format!("etcd://127.0.0.1:{}", free_port());

    let cut = Running::start("demo", &format!("--registry {registry}"));
    until("four processes", SOON, || async {
        processes_with(&registry).len() == 5
    })
    .await;
    cut.signal(Signal::SIGINT);
    let cut = cut.ended().await;
    let tired = run("demo", &format!("--registry {registry}")).await;

    assert_eq!(cut.code, Some(0), "{cut:?}");
    assert_eq!(tired.code, Some(1), "{tired:?}");
    assert!(tired.stderr.contains("in reach"), "{tired:?}");
    assert_eq!(processes_with(&registry), Vec::<String>::new());
}

/// Processes whose command line has these words in it.
fn processes_with(words: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(words)).collect()
}

#[tokio::test]
async fn an_agent_that_is_killed_is_lost_and_one_that_is_asked_to_end_is_offline() {
    let etcd = Etcd::start().await;
    let url = format!("{}?prefix=/os/region/", etcd.url())
        .parse()
        .unwrap();
    let mut seen = Agents::open(&url).unwrap().follow().await;
    let mut until = async |what: &str, is: &dyn Fn(Presence) -> bool| {
        let reading = async {
            while !seen.get("eu-1").is_some_and(|one| is(one.presence())) {
                drop(seen.next().await);
            }
        };
        let read = timeout(SOON, reading).await;
        read.unwrap_or_else(|_| panic!("{what} is never seen"));
    };
    let online = |presence| presence == Presence::Online;
    let agent = || Running::start("agent", &format!("run eu-1 {}", etcd.url()));

    let first = agent();
    until("online", &online).await;
    first.signal(Signal::SIGKILL);
    until("lost", &|now| matches!(now, Presence::Lost { .. })).await;
    let second = agent();
    until("online", &online).await;
    second.signal(Signal::SIGTERM);
    let ended = second.ended().await;

    assert_eq!(ended.code, Some(0), "{ended:?}");
    until("offline", &|now| matches!(now, Presence::Offline { .. })).await;
    assert_eq!(first.ended().await.code, None);
}

#[tokio::test]
async fn a_fleet_moves_from_one_layout_to_another_and_no_call_is_lost() {
    let _alone = alone().await;
    let etcd = Etcd::start().await;

    let moved = run("migrate", &etcd.url()).await;

    assert_eq!(moved.code, Some(0), "{moved:?}");
    let last = moved.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("servers stand in json: ") && last.contains(" 0 failed"),
        "{last}"
    );
    println!("{}", moved.stdout);
}

#[tokio::test]
async fn a_policy_of_ones_own_leaves_one_that_fails_alone() {
    let shown = run("policy", "").await;

    assert_eq!(shown.code, Some(0), "{shown:?}");
    let counts = |line: &str| line.split_once("c fails: ").unwrap().1.to_owned();
    let lines = shown.stdout.lines().map(counts);
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect();
    let [rehearsed, called] = &lines[..] else {
        panic!("{shown:?}");
    };
    for (counts, failing) in [(rehearsed, "c"), (called, "failed")] {
        assert!(counts[failing].as_u64().unwrap() <= 50, "{shown:?}");
        for good in ["a", "b", "d"] {
            assert!(counts[good].as_u64().unwrap() >= 200, "{shown:?}");
        }
    }
}

#[cfg(feature = "coord")]
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_finds_who_registers_and_leaves_nothing_behind() {
    let etcd = Etcd::start().await;

    let directory = run("directory", &etcd.url()).await;

    assert_eq!(directory.code, Some(0), "{directory:?}");
    for words in [
        "service demo/printer",
        "blue at 10.0.0.1:50051",
        "green at 10.0.0.2:50051",
        "blue is leaving",
        "blue is gone",
    ] {
        assert!(directory.stdout.contains(words), "{words}: {directory:?}");
    }
    assert_eq!(keys(&etcd, "demo/printer").await, BTreeSet::new());
}
