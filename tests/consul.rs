//! Our resolver and registrar with a real Consul agent: the one that `CONSUL_BIN` names, or that is on the PATH.
#![cfg(all(feature = "consul", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/consul.rs"]
mod consul;
#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/entered.rs"]
mod entered;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reader.rs"]
mod reader;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use consul::Consul;
use entered::Entered;
use fleet::Fleet;
use proxy::Proxy;
use reader::Reader;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    ErrorKind, Instance, Register, Registrar, Registration, ServiceName,
    consul::{Check, Registry},
    health::{self, Checks},
    register::State,
    resolve::Resolve,
    testing::conform,
};

const TTL: Duration = Duration::from_secs(4);

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

fn a() -> Instance {
    Instance::at("10.0.0.5:9000").unwrap().id("a").unwrap()
}

/// A registry with a short time to live and a short grace.
fn short(address: &str) -> Registry {
    let registry = Registry::at(address).unwrap();
    registry.ttl(TTL).grace(Duration::from_millis(500))
}

fn read(registry: &Registry) -> Reader {
    Reader::of(registry.resolve(&greeter()))
}

async fn until(registration: &Registration, state: State) {
    let reached = timeout(Duration::from_secs(60), registration.until(state)).await;
    reached
        .unwrap_or_else(|_| panic!("not {state}: {registration:?}"))
        .unwrap();
}

/// The only instance that a reader knows, and that is no suspect, once it is so.
async fn knows(reader: &mut Reader, what: &str, is: impl Fn(&Instance) -> bool) {
    reader
        .until(what, |reader| {
            let mut known = reader.known.values();
            let one = known.next().is_some_and(|instance| is(instance));
            one && known.next().is_none() && reader.suspects.is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_check_is_critical_while_the_server_is_unwell_and_says_why() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let registry = short(&consul.address());
    let well = Arc::new(AtomicBool::new(true));
    let own = Arc::clone(&well);
    let ask = health::ask(move || {
        let well = own.load(SeqCst);
        async move {
            if well {
                Ok(())
            } else {
                Err("the queue is full")
            }
        }
    });
    let checks = Checks::new(ask).every(Duration::from_millis(200));
    let registrar = Registrar::on(registry.clone()).check(false).health(checks);
    let registration = registrar.register("greeter", a()).await.unwrap();
    let mut reader = read(&registry);
    knows(&mut reader, "well", |instance| instance.serving).await;
    consul.lists("greeter", &[("greeter/a", "passing")]).await;

    well.store(false, SeqCst);
    knows(&mut reader, "unwell", |instance| !instance.serving).await;
    consul.lists("greeter", &[("greeter/a", "critical")]).await;
    let checks = consul.get("/v1/health/checks/greeter").await;
    let output = checks[0]["Output"].as_str().unwrap();
    assert!(output.contains("the queue is full"), "{checks}");
    well.store(true, SeqCst);

    knows(&mut reader, "well again", |instance| instance.serving).await;
    assert!(reader.told().iter().all(|word| !word.starts_with('?')));
    registration.close().await.unwrap();
}

#[tokio::test]
async fn what_the_agent_itself_finds_out_makes_a_suspect() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let check = Check::grpc("").every(Duration::from_secs(1));
    let registry = short(&consul.address()).check(check);
    let mut reader = read(&registry);

    // It says that it is well, and nobody listens there.
    let nowhere = Instance::at("127.0.0.1:1").and_then(|i| i.id("a")).unwrap();
    let registration = registry.register(&greeter(), nowhere).await.unwrap();

    let critical = |reader: &Reader| reader.words.contains(&"?a".to_owned());
    reader.until("a suspect", critical).await;
    consul.lists("greeter", &[("greeter/a", "critical")]).await;
    assert_eq!(registration.state(), State::Registered);
    registration.close().await.unwrap();
}

#[cfg(feature = "tls-ring")]
#[tokio::test]
async fn over_tls_both_sides_prove_who_they_are() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tonic_fleet::transport::Tls;

    if !consul::exists() {
        return;
    }
    let authority = || {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ca, other) = (authority(), authority());
    let identity = || {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        (
            params.signed_by(&key, &ca).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let (chain, key) = identity();
    let mut consul = Consul::prepared(json!({ "verify_incoming_https": true }));
    let https = consul.over_tls((&chain, &key), &ca.pem());
    consul.restart().await;
    let (chain, key) = identity();
    let trusting = |ca: String| Tls::new().ca_pem(ca).identity_pem(&chain, &key);

    let refused = short(&https).tls(trusting(other.pem())).unwrap();
    let refused = refused.register(&greeter(), a()).await.unwrap_err();
    let right = short(&https).tls(trusting(ca.pem())).unwrap();
    let registration = right.register(&greeter(), a()).await.unwrap();
    let mut reader = read(&right);

    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert!(
        refused.chain().contains("no CA that is trusted"),
        "{}",
        refused.chain()
    );
    knows(&mut reader, "registered", |i| *i == a()).await;
    registration.close().await.unwrap();
}

#[tokio::test]
async fn a_registry_behind_an_agent_keeps_its_word() {
    if !consul::exists() {
        return;
    }
    let consul = Arc::new(Consul::start().await);

    let report = conform(async || Entered::before(&consul, short).await).await;

    println!("{report}");
    report.assert_held_but(&[]);
}

#[tokio::test]
async fn a_registration_passes_drains_and_leaves_with_nothing_left_behind() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let registry = short(&consul.address()).tag("primary").check(Check::tcp());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Instance::at(listener.local_addr().unwrap()).unwrap();
    let server = server.id("a").unwrap();

    let registration = registry
        .register(&greeter(), server.weight(3))
        .await
        .unwrap();
    assert_eq!(registration.state(), State::Registered);
    assert_eq!(registration.key(), "greeter/a");
    consul.lists("greeter", &[("greeter/a", "passing")]).await;
    // Longer than its time to live, and the check of the agent ran, too.
    sleep(TTL + Duration::from_secs(1)).await;
    consul.lists("greeter", &[("greeter/a", "passing")]).await;
    registration
        .update(|instance| instance.weight(0))
        .await
        .unwrap();
    consul.lists("greeter", &[("greeter/a", "warning")]).await;
    registration.drain().await.unwrap();
    consul.lists("greeter", &[("greeter/a", "critical")]).await;
    registration
        .also(&"shop/cart".parse().unwrap())
        .await
        .unwrap();
    consul
        .lists("shop/cart", &[("shop/cart/a", "critical")])
        .await;
    registration.close().await.unwrap();

    consul.lists("greeter", &[]).await;
    consul.lists("shop/cart", &[]).await;
    let services = consul.get("/v1/agent/services").await;
    assert_eq!(services, json!({}));
}

#[tokio::test]
async fn what_others_registered_is_found_with_its_weight_and_health() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let registry = short(&consul.address());
    let mut reader = read(&registry);
    // As kratos writes it.
    let theirs = json!({
        "ID": "8a5f", "Name": "greeter", "Tags": ["version=v1.0.0"], "Port": 8000, "Address": "10.0.0.5",
        "TaggedAddresses": {
            "grpc": { "Address": "grpc://10.0.0.5:9000", "Port": 9000 },
            "http": { "Address": "http://10.0.0.5:8000", "Port": 8000 },
        },
        "Meta": { "weight": "10" },
        "Checks": [{ "CheckID": "service:8a5f", "TTL": "20s", "DeregisterCriticalServiceAfter": "600s" }],
    });
    let says = |status: &'static str| {
        let update = json!({ "Status": status });
        let consul = &consul;
        async move {
            consul
                .put("/v1/agent/check/update/service:8a5f", &update)
                .await
        }
    };
    consul.put("/v1/agent/service/register", &theirs).await;
    says("passing").await;

    let is_it = |instance: &Instance| {
        let wanted = Instance::at("10.0.0.5:9000").and_then(|i| i.id("8a5f"));
        *instance == wanted.unwrap().weight(10).version("v1.0.0")
    };
    knows(&mut reader, "what kratos wrote", is_it).await;
    says("critical").await;
    let critical = |reader: &Reader| reader.suspects.contains("8a5f");
    reader.until("a suspect", critical).await;
    says("warning").await;
    knows(&mut reader, "well again", is_it).await;
    let maintain = "/v1/agent/service/maintenance/8a5f?enable=true";
    consul.put(maintain, &Value::Null).await;
    let drains = |instance: &Instance| instance.is_draining();
    knows(&mut reader, "maintained, and so draining", drains).await;
    reader.told();
    consul
        .put("/v1/agent/service/deregister/8a5f", &Value::Null)
        .await;
    reader.until("gone", |reader| reader.known.is_empty()).await;

    assert_eq!(reader.changes(), ["-8a5f"], "nobody was suspected");
}

#[tokio::test]
async fn one_who_is_critical_for_longer_than_the_grace_is_gone() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let registry = short(&consul.address());
    let theirs = json!({
        "Name": "greeter", "Port": 9000, "Address": "10.0.0.5",
        "Weights": { "Passing": 7, "Warning": 2 },
        "Checks": [{ "CheckID": "alive", "TTL": "600s", "Status": "warning" }],
    });
    consul.put("/v1/agent/service/register", &theirs).await;
    let mut reader = read(&registry);
    let strict = registry.passing(true);
    knows(&mut reader, "the weight of a warning", |i| i.weight == 2).await;
    assert_eq!(reader.ids(), ["greeter@agent"]);

    let critical = json!({ "Status": "critical" });
    consul.put("/v1/agent/check/update/alive", &critical).await;

    reader.until("gone", |reader| reader.known.is_empty()).await;
    assert_eq!(reader.changes()[1..], ["?greeter@agent", "-greeter@agent"]);
    let passing = json!({ "Status": "warning" });
    consul.put("/v1/agent/check/update/alive", &passing).await;
    knows(&mut reader, "back", |i| i.weight == 2).await;
    let mut strict = read(&strict);
    strict.until("told of", |reader| reader.begun).await;
    strict.until("gone", |reader| reader.known.is_empty()).await;
}

#[tokio::test]
async fn a_query_costs_one_request_a_change_and_one_a_wait() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let proxy = Proxy::before(&consul.address()).await;
    let wait = Duration::from_secs(2);
    let registry = short(&proxy.address()).wait(wait);
    // Renewed several times a second, which is no change.
    let other = short(&consul.address());
    let registration = other.register(&greeter(), a()).await.unwrap();
    let mut readers = [(); 4].map(|()| read(&registry));
    for reader in &mut readers {
        knows(reader, "registered", |i| i.weight == 1).await;
    }

    // A connection is a request.
    let (before, began) = (proxy.attempts(), Instant::now());
    let changes = 5;
    for weight in 2..2 + changes {
        registration.update(|i| i.weight(weight)).await.unwrap();
        for reader in &mut readers {
            knows(reader, "updated", |i| i.weight == weight).await;
        }
        sleep(Duration::from_millis(300)).await;
    }
    sleep(3 * wait).await;

    let requests = proxy.attempts() - before;
    // A change of a definition is one in the catalog, and so is the note that the check has of it.
    let waits = (Instant::now() - began).as_secs() / wait.as_secs() + 1;
    let most = 2 * u64::from(changes) + waits;
    println!("{requests} requests for {changes} changes and {waits} waits");
    assert!(
        requests as u64 <= most,
        "{requests} requests, at most {most}"
    );
    assert!(
        requests as u64 >= u64::from(changes) + 2,
        "{requests} requests"
    );
    registration.close().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_stands_still_is_stale_when_the_wait_is_over() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let registry = short(&consul.address()).wait(Duration::from_secs(1));
    let registration = registry.register(&greeter(), a()).await.unwrap();
    let mut reader = read(&registry);
    knows(&mut reader, "registered", |i| *i == a()).await;

    consul.signal(nix::sys::signal::Signal::SIGSTOP);
    reader.until("stale", |reader| reader.stale.is_some()).await;
    until(&registration, State::Lost).await;
    assert_eq!((reader.ids(), reader.suspects.len()), (vec!["a"], 0));
    consul.signal(nix::sys::signal::Signal::SIGCONT);

    until(&registration, State::Registered).await;
    let fresh = |reader: &Reader| reader.stale.is_none() && reader.suspects.is_empty();
    reader.until("fresh", fresh).await;
    assert_eq!(reader.ids(), ["a"]);
}

#[tokio::test]
async fn a_token_opens_and_a_wrong_one_is_told_once_and_recovers() {
    if !consul::exists() {
        return;
    }
    let acl = json!({
        "enabled": true, "default_policy": "deny",
        "tokens": { "master": "5ecre7", "agent": "5ecre7" },
    });
    let mut consul = Consul::prepared(json!({ "acl": acl }));
    consul.token = Some("5ecre7".into());
    consul.restart().await;

    let wrong = short(&consul.address()).token("wr0ng").unwrap();
    let refused = wrong.register(&greeter(), a()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    let mut shut_out = read(&wrong);
    let stale = |reader: &Reader| reader.stale.is_some() || reader.begun;
    shut_out.until("an answer", stale).await;
    let said = format!("{} {refused:?} {:?}", refused.chain(), shut_out.stale);
    assert!(said.contains("403") && !said.contains("wr0ng"), "{said}");

    let right = short(&consul.address()).token("5ecre7").unwrap();
    let registration = right.register(&greeter(), a()).await.unwrap();
    let mut reader = read(&right);
    knows(&mut reader, "registered", |i| *i == a()).await;
    registration.close().await.unwrap();
}

/// An agent that is killed under load, and started again with nothing left of before.
async fn killed_and_started_again(away: Duration) {
    let mut consul = Consul::start().await;
    let fleet = Fleet::of(5, &consul.url(), "4s").await;

    consul.kill();
    fleet.during(away).await;
    fleet.stale().await;
    consul.restart().await;
    fleet.whole().await;
    fleet.during(Duration::from_secs(3)).await;
    fleet.whole().await;

    let all = ["s0", "s1", "s2", "s3", "s4"].map(|id| format!("greeter/{id}"));
    let all = all.each_ref().map(|id| (&**id, "passing"));
    consul.lists("greeter", &all).await;
    let answered = fleet.unharmed().await;
    println!("{answered} calls answered, none failed, with the agent away for {away:?}");
}

#[tokio::test]
async fn an_agent_that_is_killed_for_many_times_to_live_harms_nobody() {
    if consul::exists() {
        killed_and_started_again(Duration::from_secs(8)).await;
    }
}

#[tokio::test]
#[ignore = "a minute: scripts/test heavy"]
async fn an_agent_that_is_killed_for_a_minute_harms_nobody() {
    if consul::exists() {
        killed_and_started_again(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn servers_whose_agent_is_killed_serve_on_and_are_not_doubted() {
    if !consul::exists() {
        return;
    }
    let server = Consul::with(json!({ "gossip_lan": consul::gossip() })).await;
    let mut agent = Consul::joined_to(&server).await;
    // Found by the one agent, registered with the other.
    let fleet = Fleet::between(5, &agent.url(), &server.url(), "6s").await;

    agent.kill();
    server.misses_agents_of("greeter", 5).await;
    // Many graces long, in which nobody can say how they are.
    fleet.during(Duration::from_secs(10)).await;
    let view = fleet.channel.view();
    assert_eq!(view.ready().len(), 5);
    assert!(!view.known().iter().any(|e| e.is_suspect()), "{view}");
    agent.restart().await;
    fleet.whole().await;

    let answered = fleet.unharmed().await;
    println!("{answered} calls answered, none failed, with the servers' agent away");
}

#[tokio::test]
async fn a_server_that_leaves_under_load_is_missed_by_nobody() {
    if !consul::exists() {
        return;
    }
    let consul = Consul::start().await;
    let mut fleet = Fleet::of(3, &consul.url(), "6s").await;

    let leaver = fleet.servers.pop().unwrap();
    leaver.registration.close().await.unwrap();
    fleet.whole().await;
    consul
        .lists(
            "greeter",
            &[("greeter/s0", "passing"), ("greeter/s1", "passing")],
        )
        .await;

    fleet.unharmed().await;
}
