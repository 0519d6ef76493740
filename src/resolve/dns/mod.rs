//! Addresses from DNS, asked for again when they expire.

mod ask;
mod seen;
#[cfg(test)]
mod server;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use rand::RngExt;
use tokio::time::{sleep, timeout};

use self::{
    ask::{Answer, Oracle},
    seen::{Seen, at_address, at_host, foremost},
};
use super::{
    Fixed, Publisher, Resolve, Skipped, Updates,
    known::{Found, Known},
    publish,
};
use crate::{Backoff, Error, ErrorKind, Instance, ServiceName, Target, target::check_name};

/// Every service is where DNS says that a name is. Needs the feature `dns`.
///
/// With a port, each A and AAAA record is an instance. Without one, SRV records are asked for: each
/// record of the lowest priority is an instance, at all addresses of its host, with the record's weight.
/// They are asked for again when they expire, but not within 5 s nor later than after 5 min. A failure,
/// an empty answer and NXDOMAIN leave the last set, which is stale then. An IP address is not looked up.
#[derive(Clone, Debug)]
pub struct Dns {
    name: Arc<str>,
    /// Without one, it comes from SRV records.
    port: Option<u16>,
    server: Option<SocketAddr>,
    pace: Pace,
}

/// How often DNS is asked.
#[derive(Clone, Debug)]
struct Pace {
    shortest: Duration,
    longest: Duration,
    retry: Backoff,
}

/// All questions for one set together.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many hosts of SRV records are looked up at a time.
const AT_ONCE: usize = 16;

impl Dns {
    /// The A and AAAA records of a name.
    ///
    /// ```
    /// let greeter = tonic_fleet::resolve::Dns::new("greeter.svc", 50051)?;
    /// # Ok::<(), tonic_fleet::Error>(())
    /// ```
    pub fn new(name: impl AsRef<str>, port: u16) -> Result<Self, Error> {
        Self::checked(name.as_ref(), Some(port))
    }

    /// The SRV records of a name, such as `_grpc._tcp.greeter.svc`.
    pub fn srv(name: impl AsRef<str>) -> Result<Self, Error> {
        Self::checked(name.as_ref(), None)
    }

    fn checked(name: &str, port: Option<u16>) -> Result<Self, Error> {
        if port == Some(0) {
            return Err(Error::config(format!(
                "DNS name {name:?}: port 0 is no port"
            )));
        }
        if port.is_none() || name.parse::<IpAddr>().is_err() {
            let checked = check_name(name);
            checked.map_err(|why| Error::config(format!("DNS name {name:?}: {why}")))?;
        }
        Ok(Self {
            name: name.into(),
            port,
            server: None,
            pace: Pace::default(),
        })
    }

    /// The records that a `dns://` target asks for.
    pub(super) fn of(target: &Target) -> Result<Self, Error> {
        let registry = target.registry();
        let (name, port) = registry.name().unwrap_or_default();
        let port = port.filter(|_| !registry.srv());
        let dns = Self::checked(name, port)?;
        Ok(Self {
            server: registry.server(),
            ..dns
        })
    }

    /// Asks this server, and not those that the system asks.
    #[must_use]
    pub fn server(mut self, server: SocketAddr) -> Self {
        self.server = Some(server);
        self
    }
}

impl Resolve for Dns {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, _service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let dns = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = dns.watch(&publisher) => {}
            }
        });
        updates
    }
}

impl Dns {
    async fn watch(self, publisher: &Publisher) {
        if let (Ok(ip), Some(port)) = (self.name.parse::<IpAddr>(), self.port) {
            return match Fixed::at([SocketAddr::new(ip, port)]) {
                Ok(fixed) => fixed.tell(publisher),
                Err(why) => publisher.stale(why),
            };
        }
        let mut known = Known::of(format_args!("dns {}", self.name));
        let mut hosts = Hosts::new();
        let mut retry = self.pace.retry.clone();
        loop {
            let asked = timeout(PATIENCE, self.ask(&mut hosts)).await;
            let asked = asked.unwrap_or_else(|_| {
                let doing = format!("look up {}: no answer in {PATIENCE:?}", self.name);
                Err(Error::new(ErrorKind::Timeout, doing))
            });
            let wait = match &asked {
                Ok((_, good_for)) => {
                    retry.reset();
                    self.pace.after(*good_for)
                }
                Err(_) => retry.next(),
            };
            known.tell(asked.map(|(found, _)| found), publisher);
            sleep(wait).await;
        }
    }

    /// Who is there, and for how long that is good.
    async fn ask(&self, hosts: &mut Hosts) -> Result<(Found, Duration), Error> {
        let oracle = Oracle::new(self.server).await?;
        let Some(port) = self.port else {
            return self.ask_services(&oracle, hosts).await;
        };
        let seen = hosts.entry(self.name.to_string()).or_default();
        let good_for = seen.add(oracle.addresses(&self.name).await)?;
        let at = |ip| at_address(&self.name, ip, port);
        let found = gather(
            seen.addresses()
                .into_iter()
                .map(|ip| (ip.to_string(), at(ip))),
        );
        Ok((found, good_for))
    }

    async fn ask_services(
        &self,
        oracle: &Oracle,
        hosts: &mut Hosts,
    ) -> Result<(Found, Duration), Error> {
        let (services, mut good_for) = match oracle.services(&self.name).await {
            Answer::Records(services, ttl) => (foremost(services), ttl),
            Answer::Nothing(why) | Answer::Failed(why) => return Err(why),
        };
        if services.is_empty() {
            let doing = format!(
                "look up SRV of {}: it says that there is no such service",
                self.name
            );
            return Err(Error::new(ErrorKind::Unavailable, doing));
        }
        let asking: Vec<_> = services
            .iter()
            .map(|service| oracle.addresses(&service.host))
            .collect();
        let answers: Vec<_> = stream::iter(asking).buffered(AT_ONCE).collect().await;
        let mut before = std::mem::take(hosts);
        let mut instances = Vec::new();
        for (service, answers) in services.iter().zip(answers) {
            let seen = before.remove(&service.host).unwrap_or_default();
            let seen = hosts.entry(service.host.clone()).or_insert(seen);
            // A host that cannot be looked up now is where it was; whoever connects finds out.
            good_for = good_for.min(seen.add(answers).unwrap_or_default());
            instances.push((service.host.clone(), at_host(service, &seen.addresses())));
        }
        Ok((gather(instances), good_for))
    }
}

/// The addresses of each host that was asked for.
type Hosts = BTreeMap<String, Seen>;

fn gather(instances: impl IntoIterator<Item = (String, Result<Instance, Error>)>) -> Found {
    let mut found = Found::default();
    for (place, instance) in instances {
        match instance.and_then(|instance| instance.check().map(|()| instance)) {
            Ok(instance) => found.set.push(Arc::new(instance)),
            Err(why) => found.skipped.push(Skipped::new(place, why)),
        }
    }
    found
}

impl Pace {
    /// How long to wait when an answer is good for this long, so that a fleet does not ask in step.
    fn after(&self, good_for: Duration) -> Duration {
        let wait = good_for.clamp(self.shortest, self.longest);
        wait.mul_f64(rand::rng().random_range(0.9..=1.1))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            shortest: Duration::from_secs(5),
            longest: Duration::from_secs(5 * 60),
            retry: Backoff::between(Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::words,
        server::{Server, Zone},
        *,
    };
    use crate::Address;

    /// Asks often, so that tests need not wait.
    fn watch(server: &Server, dns: Dns) -> Updates {
        let pace = Pace {
            shortest: Duration::from_millis(5),
            longest: Duration::from_millis(50),
            retry: Backoff::between(Duration::from_millis(5), Duration::from_millis(50)),
        };
        let dns = Dns { pace, ..dns };
        dns.server(server.address())
            .resolve(&"greeter".parse().unwrap())
    }

    fn a(ip: &str) -> Zone {
        Zone::default().address("greeter.svc", 1, ip)
    }

    #[tokio::test]
    async fn every_address_is_an_instance_and_changes_follow_the_time_to_live() {
        let server = Server::start(a("10.0.0.1").address("greeter.svc", 1, "::1")).await;
        let mut updates = watch(&server, Dns::new("greeter.svc", 50051).unwrap());
        assert_eq!(
            words(&mut updates).await,
            "reset 10.0.0.1:50051 [::1]:50051"
        );

        server.serve(a("10.0.0.2"));

        assert_eq!(words(&mut updates).await, "reset 10.0.0.2:50051");
    }

    #[tokio::test]
    async fn no_name_no_records_and_failure_leave_the_last_set() {
        let server = Server::start(Zone::default()).await;
        let mut updates = watch(&server, Dns::new("greeter.svc", 50051).unwrap());
        let said = words(&mut updates).await;
        assert_eq!(
            said,
            "stale look up A of greeter.svc: no such name (NXDOMAIN)"
        );
        server.serve(a("10.0.0.1"));
        assert_eq!(words(&mut updates).await, "reset 10.0.0.1:50051");

        for (zone, why) in [
            (Zone::default(), "NXDOMAIN"),
            (
                Zone::default().service("greeter.svc", 1, (0, 0, 1, "x")),
                "no records",
            ),
            (Zone::broken(), "look up A of greeter.svc: "),
        ] {
            server.serve(zone);
            loop {
                let said = words(&mut updates).await;
                assert!(said.starts_with("stale look up A"), "{said}");
                if said.contains(why) {
                    break;
                }
            }
        }
        server.serve(a("10.0.0.1"));

        assert_eq!(words(&mut updates).await, "delta ");
    }

    #[tokio::test]
    async fn a_server_that_fails_for_one_family_keeps_its_addresses() {
        let both = a("10.0.0.1").address("greeter.svc", 1, "::1");
        let server = Server::start(both).await;
        let mut updates = watch(&server, Dns::new("greeter.svc", 1).unwrap());
        assert_eq!(words(&mut updates).await, "reset 10.0.0.1:1 [::1]:1");

        server.serve(a("10.0.0.2").failing_ipv6());

        assert_eq!(words(&mut updates).await, "reset 10.0.0.2:1 [::1]:1");
    }

    #[tokio::test]
    async fn services_have_their_port_weight_and_priority() {
        let zone = Zone::default()
            .service("_grpc._tcp.svc", 1, (1, 5, 50051, "a.svc"))
            .service("_grpc._tcp.svc", 1, (1, 0, 50052, "b.svc"))
            .service("_grpc._tcp.svc", 1, (2, 9, 50053, "c.svc"))
            .address("a.svc", 1, "10.0.0.1")
            .address("a.svc", 1, "10.0.0.2");
        let server = Server::start(zone).await;
        let target = format!("dns://_grpc._tcp.svc?server={}", server.address());
        let dns = Dns::of(&target.parse().unwrap()).unwrap();

        let (found, good_for) = dns.ask(&mut Hosts::new()).await.unwrap();

        let words: Vec<_> = found
            .set
            .iter()
            .map(|i| {
                format!(
                    "{} x{} at {:?}",
                    i.id,
                    i.weight,
                    i.addresses
                        .iter()
                        .map(Address::to_string)
                        .collect::<Vec<_>>()
                )
            })
            .collect();
        assert_eq!(
            words,
            [
                "a.svc:50051 x5 at [\"10.0.0.1:50051\", \"10.0.0.2:50051\"]",
                "b.svc:50052 x1 at [\"b.svc:50052\"]",
            ]
        );
        assert_eq!(good_for, Duration::ZERO);
    }

    #[tokio::test]
    async fn a_service_that_says_it_is_not_there_is_stale() {
        let zone = Zone::default().service("greeter.svc", 1, (0, 0, 0, ""));
        let server = Server::start(zone).await;
        let mut updates = watch(&server, Dns::srv("greeter.svc").unwrap());

        let said = words(&mut updates).await;

        assert!(
            said.ends_with("it says that there is no such service"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn an_address_is_not_looked_up() {
        let dns = Dns::of(&"dns://[::1]:50051".parse().unwrap()).unwrap();

        let mut updates = dns.resolve(&"greeter".parse().unwrap());

        assert_eq!(words(&mut updates).await, "reset [::1]:50051");
        assert_eq!(words(&mut updates).await, "end");
    }

    #[tokio::test]
    async fn nobody_asks_when_nobody_reads() {
        let server = Server::start(a("10.0.0.1")).await;
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let before = tasks();
        let mut updates = watch(&server, Dns::new("greeter.svc", 1).unwrap());
        words(&mut updates).await;

        drop(updates);

        while tasks() > before {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn answers_are_good_for_five_seconds_to_five_minutes_give_or_take_a_tenth() {
        let pace = Pace::default();

        for (ttl, least, most) in [(0, 4.5, 5.5), (60, 54.0, 66.0), (86_400, 270.0, 330.0)] {
            for _ in 0..100 {
                let wait = pace.after(Duration::from_secs(ttl)).as_secs_f64();
                assert!((least..=most).contains(&wait), "{ttl}: {wait}");
            }
        }
    }

    #[test]
    fn names_are_checked_when_given() {
        assert!(Dns::new("a/b", 1).is_err());
        assert!(Dns::new("", 1).is_err());
        assert!(Dns::new("a", 0).is_err());
        assert!(Dns::srv("10.0.0.1:1").is_err());
        assert!(Dns::new("::1", 1).is_ok());
    }
}
