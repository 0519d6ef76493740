//! Servers of other systems beside ours in a real etcd: found together, and told apart from what is broken.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/reader.rs"]
mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd::Etcd;
use etcd_client::{EventType, GetOptions, Permission, WatchOptions};
use reader::Reader;
use tokio::{net::TcpListener, time::timeout};
use tonic_fleet::{
    Instance, Registrar, Registration, RegistryUrl, ServiceName,
    register::{self, State},
    resolve::{self, Updates},
};

/// A system: its layout, a service as it calls it, and a server that it wrote.
struct System {
    layout: &'static str,
    service: &'static str,
    key: &'static str,
    value: &'static str,
    /// What the server is called by us.
    id: &'static str,
    /// The key that a server of ours at 10.0.0.9:1 gets, with the id `ours`, and its name for readers.
    ours: (&'static str, &'static str),
    /// Whether the value has room for the mark of a server that leaves.
    marks: bool,
}

const SYSTEMS: [System; 7] = [
    System {
        layout: "etcd-naming",
        service: "services/echo",
        key: "services/echo/127.0.0.1:50051",
        value: r#"{"Op":0,"Addr":"127.0.0.1:50051","Metadata":null}"#,
        id: "127.0.0.1:50051",
        ours: ("services/echo/10.0.0.9:1", "ours"),
        marks: true,
    },
    System {
        layout: "go-zero",
        service: "echo.rpc",
        key: "echo.rpc/884009535655636636",
        value: "10.0.0.7:8080",
        id: "10.0.0.7:8080",
        ours: ("echo.rpc/ours", "10.0.0.9:1"),
        marks: false,
    },
    System {
        layout: "kratos",
        service: "echo",
        key: "/microservices/echo/0b5c6f4e-0001",
        value: r#"{"id":"0b5c6f4e-0001","name":"echo","version":"v1.2.3","metadata":{},"endpoints":["grpc://127.0.0.1:9000"]}"#,
        id: "0b5c6f4e-0001",
        ours: ("/microservices/echo/ours", "ours"),
        marks: true,
    },
    System {
        layout: "kitex",
        service: "example.shop.item",
        key: "kitex/registry-etcd/example.shop.item/10.0.0.5:8888",
        value: r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}"#,
        id: "10.0.0.5:8888",
        ours: ("kitex/registry-etcd/example.shop.item/10.0.0.9:1", "ours"),
        marks: true,
    },
    System {
        layout: "go-micro",
        service: "greeter",
        key: "/micro/registry/greeter/greeter-3f1c",
        value: r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"metadata":{"protocol":"grpc"},"id":"greeter-3f1c","address":"10.0.0.5:9090"}]}"#,
        id: "greeter-3f1c",
        ours: ("/micro/registry/greeter/ours", "ours"),
        marks: true,
    },
    System {
        layout: "rpcx",
        service: "rpcx_test/Arith",
        key: "rpcx_test/Arith/tcp@10.0.0.5:8972",
        value: "state=active&weight=10",
        id: "tcp@10.0.0.5:8972",
        ours: ("rpcx_test/Arith/tcp@10.0.0.9:1", "ours"),
        marks: true,
    },
    System {
        layout: "gochat",
        service: "chat",
        key: "/services/chat/a",
        value: r#"{"id":"a","name":"chat","address":"10.0.0.5","port":50051,"metadata":{},"ttl":10}"#,
        id: "a",
        ours: ("/services/chat/ours", "ours"),
        marks: true,
    },
];

async fn value(etcd: &Etcd, key: &str) -> String {
    let got = etcd.client().await.get(key, None).await.unwrap();
    got.kvs()[0].value_str().unwrap().to_owned()
}

#[tokio::test]
async fn servers_of_other_systems_and_ours_come_and_go_side_by_side() {
    let etcd = Etcd::start().await;
    for system in SYSTEMS {
        let url = format!("{}?layout={}&ttl=20s", etcd.url(), system.layout);
        let url: RegistryUrl = url.parse().unwrap();
        let service: ServiceName = system.service.parse().unwrap();
        let target = url.service(system.service).unwrap();
        let mut reader = Reader::of(resolve::open(&target).unwrap().resolve(&service));
        let server = Instance::at("10.0.0.9:1").unwrap().id("ours").unwrap();

        etcd.put(system.key, system.value).await;
        let registration = register::open(&url).unwrap();
        let registration = registration.register(&service, server).await.unwrap();
        assert_eq!(registration.key(), system.ours.0, "{}", system.layout);
        let mut both = [system.id, system.ours.1];
        both.sort_unstable();
        reader.until("both are there", |r| r.ids() == both).await;

        // With rpcx no value is broken: the address is in the key.
        if system.layout != "rpcx" {
            etcd.put(system.ours.0, "[broken").await;
            while value(&etcd, system.ours.0).await == "[broken" {}
            // What is broken for a moment only may be seen, or not.
            let mended = |r: &Reader| r.skipped.is_empty() && r.ids() == both;
            reader.until("its owner puts it right", mended).await;
        }

        registration.close().await.unwrap();
        if system.marks {
            let gone = |r: &Reader| r.ids() == [system.id] && r.suspects.is_empty();
            reader.until("who leaves in order is gone", gone).await;
        } else {
            let gone = |r: &Reader| r.suspects.contains(system.ours.1);
            reader.until("who cannot say so is a suspect", gone).await;
        }
        etcd.delete(system.key).await;
        let gone = |r: &Reader| r.suspects.contains(system.id) || !r.known.contains_key(system.id);
        reader.until("who vanishes is a suspect", gone).await;
    }
}

/// A resolver as Go's endpoint manager has one: a list, and then every event, of which it decodes `Addr`.
struct GoReader {
    stream: etcd_client::WatchStream,
    addresses: BTreeMap<String, String>,
    _client: etcd_client::Client,
}

#[derive(serde::Deserialize)]
struct GoUpdate {
    #[serde(rename = "Addr")]
    addr: String,
}

impl GoReader {
    async fn of(etcd: &Etcd, target: &str) -> Self {
        let mut client = etcd.client().await;
        let prefix = format!("{target}/");
        let list = GetOptions::new().with_prefix();
        let got = client.get(prefix.as_str(), Some(list)).await.unwrap();
        let from = got.header().unwrap().revision() + 1;
        let watch = WatchOptions::new().with_prefix().with_start_revision(from);
        let stream = client.watch(prefix, Some(watch)).await.unwrap();
        let mut reader = Self {
            stream,
            addresses: BTreeMap::new(),
            _client: client,
        };
        got.kvs().iter().for_each(|kv| reader.put(kv));
        reader
    }

    fn put(&mut self, kv: &etcd_client::KeyValue) {
        let update: GoUpdate = serde_json::from_slice(kv.value()).unwrap();
        let key = kv.key_str().unwrap().to_owned();
        self.addresses.insert(key, update.addr);
    }

    async fn until(&mut self, set: &BTreeSet<String>) {
        let reading = async {
            while self.addresses.values().cloned().collect::<BTreeSet<_>>() != *set {
                let message = self.stream.message().await.unwrap().unwrap();
                for event in message.events() {
                    let kv = event.kv().unwrap();
                    match event.event_type() {
                        EventType::Put => self.put(kv),
                        EventType::Delete => {
                            self.addresses.remove(kv.key_str().unwrap());
                        }
                    }
                }
            }
        };
        let read = timeout(Duration::from_secs(60), reading).await;
        read.unwrap_or_else(|_| panic!("{set:?} is not {:?}", self.addresses));
    }
}

#[tokio::test]
async fn a_reader_of_etcd_naming_and_ours_find_the_same_servers_while_both_kinds_come_and_go() {
    let etcd = Etcd::start().await;
    let url: RegistryUrl = format!("{}?layout=etcd-naming&ttl=20s", etcd.url())
        .parse()
        .unwrap();
    let service: ServiceName = "services/echo".parse().unwrap();
    let target = url.service("services/echo").unwrap();
    let registrar = register::open(&url).unwrap();
    let mut go = GoReader::of(&etcd, "services/echo").await;
    let mut reader = Reader::of(resolve::open(&target).unwrap().resolve(&service));
    let mut client = etcd.client().await;
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());

    for round in 0..24u16 {
        let at = |host: u16| format!("10.0.{host}.{}:1", round % 4);
        // One of ours and one of theirs, each of which comes or goes; some of theirs crash.
        let (mine, other) = (at(1), at(2));
        match ours.remove(&mine) {
            Some(registration) => Registration::close(registration).await.unwrap(),
            None => {
                let server = Instance::at(mine.as_str())
                    .unwrap()
                    .weight(u32::from(round) + 1);
                let registration = registrar.register(&service, server).await.unwrap();
                ours.insert(mine, registration);
            }
        }
        let key = format!("services/echo/{other}");
        match theirs.remove(&other) {
            Some(lease) if round % 3 == 0 => drop(client.lease_revoke(lease).await.unwrap()),
            Some(_) => etcd.delete(&key).await,
            None => {
                let value = format!(r#"{{"Op":0,"Addr":"{other}","Metadata":null}}"#);
                let lease = etcd.put_leased(&key, value, 60).await;
                theirs.insert(other, lease);
            }
        }

        let all = ours.keys().chain(theirs.keys()).cloned();
        let all: BTreeSet<String> = all.collect();
        go.until(&all).await;
        let here = |reader: &Reader| {
            let known = reader.known.iter();
            let known = known.filter(|(id, _)| !reader.suspects.contains(*id));
            known.map(|(_, i)| i.addresses[0].to_string()).collect()
        };
        reader
            .until("the same are found", |reader| all == here(reader))
            .await;
    }
}

const NAMED: &str = "/microservices/greeter/a";
const OURS: &str = "/services/greeter/a";

/// A registry with these layouts, and short leases.
fn registry(etcd: &Etcd, layouts: &str) -> RegistryUrl {
    let url = format!("{}?layout={layouts}&ttl=20s", etcd.url());
    url.parse().unwrap()
}

fn read(url: &RegistryUrl, service: &str) -> Updates {
    let target = url.service(service).unwrap();
    resolve::open(&target).unwrap().resolve(target.service())
}

/// The leases of the keys that stand, 0 for one that does not.
async fn leases(etcd: &Etcd, keys: [&str; 2]) -> [i64; 2] {
    let mut client = etcd.client().await;
    let mut leases = [0; 2];
    for (lease, key) in leases.iter_mut().zip(keys) {
        let got = client.get(key, None).await.unwrap();
        *lease = got.kvs().first().map_or(0, etcd_client::KeyValue::lease);
    }
    leases
}

#[tokio::test]
async fn a_server_stands_in_two_layouts_on_one_lease_and_is_one_to_who_reads_both() {
    let etcd = Etcd::start().await;
    let both = registry(&etcd, "kratos,json");
    let mut readers = ["kratos,json", "kratos", "json"]
        .map(|layouts| Reader::of(read(&registry(&etcd, layouts), "greeter")));
    let server = Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();
    let greeter = "greeter".parse().unwrap();

    let registration = register::open(&both).unwrap();
    let registration = registration.register(&greeter, server).await.unwrap();
    assert_eq!(registration.key(), format!("{NAMED}, {OURS}"));
    let [lease, same] = leases(&etcd, [NAMED, OURS]).await;
    assert!(lease != 0 && lease == same, "{lease} {same}");
    registration.update(|i| i.weight(3)).await.unwrap();
    for reader in &mut readers {
        let heavy = |r: &Reader| r.known.get("a").is_some_and(|a| a.weight == 3);
        reader.until("all see it", heavy).await;
        assert_eq!(reader.ids(), ["a"]);
    }
    etcd.delete(NAMED).await;
    while leases(&etcd, [NAMED, OURS]).await != [lease; 2] {}
    registration.close().await.unwrap();

    for reader in &mut readers {
        let gone = |r: &Reader| r.known.is_empty() && r.suspects.is_empty();
        reader.until("it left in order everywhere", gone).await;
    }
    assert_eq!(leases(&etcd, [NAMED, OURS]).await, [0; 2]);
}

#[tokio::test]
async fn a_layout_where_a_stranger_stands_does_not_keep_a_server_out_of_the_other() {
    let etcd = Etcd::start().await;
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stranger.local_addr().unwrap();
    let value = format!(
        r#"{{"id":"a","name":"greeter","version":"","metadata":null,"endpoints":["grpc://{address}"]}}"#
    );
    etcd.put(NAMED, value).await;
    let server = || Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();
    let registrar = || {
        Registrar::new(registry(&etcd, "kratos,json"))
            .unwrap()
            .check(false)
    };

    let refused = registrar()
        .required(true)
        .register("greeter", server())
        .await;
    let registration = registrar().register("greeter", server()).await.unwrap();

    assert!(refused.unwrap_err().to_string().contains(NAMED));
    assert_eq!(registration.state(), State::Conflict);
    let why = registration.error().unwrap().chain();
    assert!(why.contains(NAMED) && why.contains("answers"), "{why}");
    let mut reader = Reader::of(read(&registry(&etcd, "json"), "greeter"));
    reader
        .until("it is found by the other layout", |r| r.ids() == ["a"])
        .await;
    drop(stranger);
    registration.until(State::Registered).await.unwrap();
    let [named, ours] = leases(&etcd, [NAMED, OURS]).await;
    assert!(named != 0 && named == ours);
}

#[tokio::test]
async fn layouts_that_would_read_each_other_are_refused_before_anything_is_written() {
    let etcd = Etcd::start().await;
    let server = Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();
    let greeter = "greeter".parse().unwrap();

    for (layouts, why) in [("json,gochat", "another prefix"), ("json,kratos", "unix")] {
        let server = match layouts {
            "json,kratos" => Instance::at("unix:/run/a.sock").unwrap().id("a").unwrap(),
            _ => server.clone(),
        };
        let registrar = register::open(&registry(&etcd, layouts)).unwrap();
        let refused = registrar.register(&greeter, server).await.unwrap_err();
        assert!(refused.chain().contains(why), "{}", refused.chain());
    }

    assert_eq!(leases(&etcd, [NAMED, OURS]).await, [0; 2]);
}

#[tokio::test]
async fn a_layout_that_may_not_be_written_does_not_keep_a_server_out_of_the_other() {
    let mut etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let ours = Permission::read_write("/services/").with_prefix();
    client.role_add("ours").await.unwrap();
    client.role_grant_permission("ours", ours).await.unwrap();
    client.user_add("greeter", "hunter2", None).await.unwrap();
    client.user_grant_role("greeter", "ours").await.unwrap();
    etcd.lock_up("hunter3").await;
    let login = format!("etcd://greeter:hunter2@{}", etcd.address());
    let url = format!("{login}?layout=kratos,json&ttl=20s")
        .parse()
        .unwrap();
    let registrar = Registrar::new(url).unwrap().check(false);
    let server = Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();

    let registration = registrar.register("greeter", server).await.unwrap();

    assert_eq!(registration.state(), State::Denied);
    let why = registration.error().unwrap().chain();
    assert!(why.contains(NAMED) && !why.contains("hunter"), "{why}");
    let [named, ours] = leases(&etcd, [NAMED, OURS]).await;
    assert!(named == 0 && ours != 0);
    registration.close().await.unwrap();
    assert_eq!(leases(&etcd, [NAMED, OURS]).await, [0; 2]);
}
