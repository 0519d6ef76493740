//! Servers that say whether they are well, and what becomes of calls then.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/clinic.rs"]
mod clinic;
#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/net.rs"]
mod net;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use clinic::{Clinic, Patient, SOON, ask, becomes, builder};
use echo::Echo;
use net::{ByHand, Net};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tonic_fleet::{
    Builder, Channel, Error, ErrorKind, Event, Instance, State,
    health::{self, Checks, Grpc, Http, Probe, Probing, Tcp},
    resolve::{Change, Fixed},
};
use tonic_health::ServingStatus::{NotServing, Serving};

#[tokio::test]
async fn a_server_that_turns_not_serving_gets_its_last_new_call_within_50_ms_and_fails_none() {
    let clinic = Clinic::of(3, Duration::from_millis(20)).await;
    let channel = builder(&clinic)
        .health(Grpc::watch("echo"))
        .build()
        .unwrap();
    becomes(&channel, 3).await;
    let load = clinic::Load::on(&channel, 8);

    let mut last = Vec::new();
    for _ in 0..7 {
        sleep(Duration::from_millis(150)).await;
        let said = Instant::now();
        clinic.patients[0].says(NotServing).await;
        becomes(&channel, 2).await;
        sleep(Duration::from_millis(150)).await;
        let latest = load.latest("s0").filter(|at| *at > said);
        last.push(latest.map_or(Duration::ZERO, |at| at - said));

        clinic.patients[0].says(Serving).await;
        let back = Instant::now();
        becomes(&channel, 3).await;
        while load.latest("s0").is_none_or(|at| at < back) {
            assert!(Instant::now() - back < SOON, "{}", channel.view());
            sleep(Duration::from_millis(5)).await;
        }
    }

    assert!(load.failed().is_empty(), "{:?}", load.failed());
    last.sort();
    println!("the last new call came so long after: {last:?}");
    // A machine may be busy, but not each time; whoever asks now and then is late nearly each time.
    assert!(last[1] <= Duration::from_millis(50), "{last:?}");
}

#[tokio::test]
async fn a_server_takes_calls_when_it_says_so_and_not_before() {
    let clinic = Clinic::of(2, Duration::ZERO).await;
    let service = "later";
    clinic.patients[0].says_of(service, Serving).await;
    let channel = builder(&clinic)
        .health(Grpc::watch(service))
        .build()
        .unwrap();
    becomes(&channel, 1).await;

    for _ in 0..20 {
        assert_eq!(ask(&channel).await.unwrap(), "s0");
    }
    let view = channel.view();
    let other = view
        .known()
        .iter()
        .find(|e| e.id().as_str() == "s1")
        .unwrap();
    assert!(
        matches!(other.state(), State::Connecting | State::Unhealthy),
        "{view}"
    );
    clinic.patients[1].says_of(service, Serving).await;

    becomes(&channel, 2).await;
}

#[tokio::test]
async fn a_service_config_says_who_is_asked_unless_the_program_does() {
    let config = r#"{ "healthCheckConfig": { "serviceName": "later" } }"#;
    let clinic = Clinic::of(2, Duration::ZERO).await;
    clinic.patients[0].says_of("later", Serving).await;
    let configured = || builder(&clinic).service_config(config).unwrap();
    let by_config = configured().build().unwrap();
    let by_program = configured().health(Grpc::watch("echo")).build().unwrap();

    becomes(&by_program, 2).await;
    becomes(&by_config, 1).await;

    assert_eq!(ask(&by_config).await.unwrap(), "s0");
}

#[tokio::test]
async fn each_change_is_told_once_with_its_reason() {
    let clinic = Clinic::of(2, Duration::ZERO).await;
    let channel = builder(&clinic)
        .health(Grpc::watch("echo"))
        .build()
        .unwrap();
    becomes(&channel, 2).await;
    let mut events = channel.events();

    clinic.patients[0].says(NotServing).await;
    let event = clinic::next(&mut events).await;
    assert!(
        matches!(&event, Event::Unhealthy(id, _) if id.as_str() == "s0"),
        "{event}"
    );
    assert!(event.to_string().contains("NOT_SERVING"), "{event}");
    clinic.patients[0].says(Serving).await;
    let event = clinic::next(&mut events).await;

    assert!(
        matches!(&event, Event::Healthy(id) if id.as_str() == "s0"),
        "{event}"
    );
}

#[tokio::test]
async fn a_server_without_a_health_service_takes_calls() {
    let patient = Patient::without_health("s0").await;
    let servers = Fixed::new([patient.instance.clone()]);
    let channel = Channel::over("echo".parse().unwrap(), servers);
    let channel = channel.health(Grpc::watch("echo")).build().unwrap();

    becomes(&channel, 1).await;

    assert_eq!(ask(&channel).await.unwrap(), "s0");
}

#[tokio::test]
async fn a_server_that_stops_is_not_held_up_by_those_who_watch_it() {
    let mut clinic = Clinic::of(2, Duration::ZERO).await;
    let channel = builder(&clinic)
        .health(Grpc::watch("echo"))
        .build()
        .unwrap();
    becomes(&channel, 2).await;

    let stopped = timeout(SOON, clinic.patients.remove(0).stop()).await;

    assert!(stopped.is_ok(), "it waits for a watch: {}", channel.view());
    becomes(&channel, 1).await;
}

#[tokio::test]
async fn a_channel_that_goes_leaves_no_watch_behind() {
    let mut clinic = Clinic::of(1, Duration::ZERO).await;
    let channel = builder(&clinic)
        .health(Grpc::watch("echo"))
        .build()
        .unwrap();
    becomes(&channel, 1).await;

    drop(channel);

    let stopped = timeout(SOON, clinic.patients.remove(0).stop()).await;
    assert!(stopped.is_ok(), "it waits for a watch");
}

#[tokio::test]
async fn polling_finds_who_is_unwell_and_who_is_well_again() {
    let clinic = Clinic::of(2, Duration::ZERO).await;
    let quick = Checks::new(Grpc::check("echo")).every(Duration::from_millis(50));
    let channel = builder(&clinic).health(quick).build().unwrap();
    becomes(&channel, 2).await;

    clinic.patients[1].says(NotServing).await;
    becomes(&channel, 1).await;
    assert_eq!(channel.view().ready().get(0).unwrap().id().as_str(), "s0");
    clinic.patients[1].says(Serving).await;

    becomes(&channel, 2).await;
}

#[tokio::test]
async fn a_server_whose_connection_is_full_of_calls_is_not_unwell() {
    let slow = Echo::new("s0").delay(Duration::from_millis(700));
    let patient = Patient::allowing("s0", slow, Some(1)).await;
    let quick = Checks::new(Grpc::check("echo"))
        .every(Duration::from_millis(20))
        .timeout(Duration::from_millis(400));
    let servers = Fixed::new([patient.instance.clone()]);
    let channel = Channel::over("echo".parse().unwrap(), servers);
    let channel = channel.health(quick).build().unwrap();
    becomes(&channel, 1).await;
    let mut events = channel.events();

    let calls = (0..3).map(|_| ask(&channel));
    let answers = futures_util::future::join_all(calls).await;

    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let unwell =
        async { while !matches!(clinic::next(&mut events).await, Event::Unhealthy(..)) {} };
    assert!(
        timeout(Duration::ZERO, unwell).await.is_err(),
        "{}",
        channel.view()
    );
}

#[tokio::test]
async fn a_watch_leaves_room_for_calls_on_a_server_that_allows_one_at_a_time() {
    let slow = Echo::new("s0").delay(Duration::from_millis(20));
    let patient = Patient::allowing("s0", slow, Some(1)).await;
    let servers = Fixed::new([patient.instance.clone()]);
    let channel = Channel::over("echo".parse().unwrap(), servers);
    let channel = channel.health(Grpc::watch("echo")).build().unwrap();
    becomes(&channel, 1).await;

    for _ in 0..3 {
        let calls = (0..5).map(|_| ask(&channel));
        let answers = timeout(SOON, futures_util::future::join_all(calls)).await;
        let answers = answers.expect("calls wait for the place that the watch has");
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
}

/// All are well but those named here.
struct But(Arc<Mutex<Vec<&'static str>>>);

impl Probe for But {
    fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a> {
        let unwell = self.0.lock().unwrap().contains(&instance.id.as_str());
        let what = Error::new(ErrorKind::Unavailable, "named");
        Box::pin(async move { if unwell { Err(what) } else { Ok(()) } })
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_set_in_a_storm_of_changes_is_rid_of_an_unwell_server_at_once() {
    let net = Net::default();
    let all: Vec<_> = (0..300).map(|n| net.serve(&format!("s{n}"))).collect();
    let (registry, resolve) = ByHand::new();
    let instance = |n: usize| Arc::new(all[n].instance.clone());
    registry.reset((0..300).map(instance));
    let unwell = Arc::<Mutex<Vec<_>>>::default();
    let quick = Checks::new(But(Arc::clone(&unwell))).every(Duration::from_millis(20));
    let channel = Channel::over("echo".parse().unwrap(), resolve)
        .connect_with(net)
        .health(quick.fall(1).at_once(300))
        .build()
        .unwrap();
    becomes(&channel, 300).await;
    let mut events = channel.events();
    let storm = async {
        for n in 1.. {
            let changed = all[n % 299 + 1].instance.clone().weight(n as u32 % 9 + 1);
            registry.delta([Change::Put(Arc::new(changed))]);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let told = async {
        sleep(Duration::from_secs(1)).await;
        unwell.lock().unwrap().push("s0");
        while !matches!(clinic::next(&mut events).await, Event::Unhealthy(..)) {}
    };

    tokio::select! {
        () = storm => {}
        () = told => {}
    }

    let view = channel.view();
    let ready = view.ready();
    assert_eq!(ready.len(), 299);
    assert!(ready.iter().all(|e| e.id().as_str() != "s0"));
}

/// An HTTP server that answers 200 or 503.
async fn http(well: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let status = if well.load(SeqCst) {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            let mut heard = vec![0; 1024];
            let n = io.read(&mut heard).await.unwrap_or(0);
            if !heard[..n].starts_with(b"GET /healthz HTTP/1.1\r\n") {
                continue;
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            let _ = io.write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn http_and_tcp_are_asked_at_ports_of_their_own() {
    let clinic = Clinic::of(1, Duration::ZERO).await;
    let well = Arc::new(AtomicBool::new(true));
    let port = http(Arc::clone(&well)).await;
    let quick = |checks: Checks| checks.every(Duration::from_millis(50));
    let channel = builder(&clinic)
        .health(quick(Http::get("/healthz").port(port).into()))
        .health(quick(Tcp::default().port(port).into()))
        .build()
        .unwrap();
    becomes(&channel, 1).await;
    let mut events = channel.events();

    well.store(false, SeqCst);

    let event = clinic::next(&mut events).await;
    assert!(event.to_string().ends_with("it says 503"), "{event}");
}

/// Says that all are well, and counts.
struct Counted(Arc<AtomicUsize>);

impl Probe for Counted {
    fn probe<'a>(&'a self, _: &'a Instance) -> Probing<'a> {
        self.0.fetch_add(1, SeqCst);
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn channels_that_share_their_checks_ask_once() {
    let clinic = Clinic::of(3, Duration::ZERO).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let checks = Checks::new(Counted(Arc::clone(&asked))).every(Duration::from_secs(3600));

    let channels = [(); 4].map(|()| builder(&clinic).health(checks.clone()).build().unwrap());
    for channel in &channels {
        becomes(channel, 3).await;
    }

    // Once more if somebody's first wait is over at once.
    let asked = asked.load(SeqCst);
    assert!((3..6).contains(&asked), "{asked}");
}

#[test]
fn what_is_out_of_range_is_refused_when_built_with_its_name_and_limits() {
    let checks = || Checks::new(Grpc::watch("echo"));
    let refused = |checks: Checks| {
        let builder = |b: Builder| b.health(checks).build().unwrap_err().to_string();
        builder(Channel::builder(
            "static://127.0.0.1:1/echo".parse().unwrap(),
        ))
    };

    for (checks, said) in [
        (
            checks().every(Duration::ZERO),
            "every is 0ns: it is from 10ms to 3600s",
        ),
        (checks().timeout(Duration::MAX), "it is from 1ms to 3600s"),
        (checks().rise(0), "rise is 0: it is from 1 to 1000"),
        (checks().fall(0), "fall is 0: it is from 1 to 1000"),
        (checks().at_once(0), "at_once is 0: it is from 1 to 100000"),
        (
            Http::get("health").into(),
            "path is \"health\": give one that begins with `/`, without spaces",
        ),
    ] {
        let refused = refused(checks);
        assert!(refused.ends_with(said), "{refused}");
    }
}

#[tokio::test]
async fn a_check_of_ones_own_keeps_calls_away() {
    let clinic = Clinic::of(1, Duration::ZERO).await;
    let why = Arc::new(Mutex::new(Some("no disk")));
    let reason = Arc::clone(&why);
    let own = health::ask(move || {
        let why = *reason.lock().unwrap();
        async move { why.map_or(Ok(()), Err) }
    });
    let quick = Checks::new(own).every(Duration::from_millis(20));
    let channel = builder(&clinic).health(quick).build().unwrap();
    let mut events = channel.events();

    loop {
        let event = clinic::next(&mut events).await;
        if let Event::Unhealthy(..) = event {
            assert!(event.to_string().ends_with("no disk"), "{event}");
            break;
        }
    }
    *why.lock().unwrap() = None;

    loop {
        if let Event::Healthy(_) = clinic::next(&mut events).await {
            break;
        }
    }
}
