//! What answers add up to, with what was known before.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::ask::{Answer, Service};
use crate::{Address, Error, Instance, resolve::fixed::named_after};

/// The addresses of one name, by family: one family's failure does not take the other's away.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    families: [Vec<IpAddr>; 2],
}

impl Seen {
    /// How long what is known now is good for; or why nothing is known anew.
    pub(super) fn add(&mut self, answers: [Answer<IpAddr>; 2]) -> Result<Duration, Error> {
        let mut good_for = None;
        let (mut reason, mut failure) = (None, None);
        let mut families = self.families.clone();
        for (family, answer) in families.iter_mut().zip(answers) {
            match answer {
                Answer::Records(records, ttl) => {
                    *family = records;
                    good_for = Some(good_for.map_or(ttl, |other: Duration| other.min(ttl)));
                }
                Answer::Nothing(why) => {
                    family.clear();
                    reason.get_or_insert(why);
                }
                Answer::Failed(why) => drop(failure.get_or_insert(why)),
            }
        }
        // That nobody knows says more than that there are none.
        match (good_for, failure.or(reason)) {
            (None, Some(why)) => Err(why),
            (good_for, _) => {
                self.families = families;
                Ok(good_for.unwrap_or_default())
            }
        }
    }

    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.families.concat()
    }
}

/// The services to be used: those of the first priority, each place once.
pub(super) fn foremost(services: Vec<Service>) -> Vec<Service> {
    // The root as a host says that there is no such service; so does port 0.
    let usable = services
        .into_iter()
        .filter(|service| !service.host.is_empty() && service.port > 0);
    let mut tiers = BTreeMap::<u16, BTreeMap<(String, u16), Service>>::new();
    for service in usable {
        let tier = tiers.entry(service.priority).or_default();
        tier.insert((service.host.to_ascii_lowercase(), service.port), service);
    }
    let first = tiers.pop_first();
    first.map_or_else(Vec::new, |(_, tier)| tier.into_values().collect())
}

/// An instance at one address of a name.
pub(super) fn at_address(name: &str, ip: IpAddr, port: u16) -> Result<Instance, Error> {
    Ok(named_after(Address::Ip((ip, port).into()))?.server_name(name))
}

/// An instance for a service, at its host's addresses; at the host itself when none are known.
pub(super) fn at_host(service: &Service, addresses: &[IpAddr]) -> Result<Instance, Error> {
    let mut instance = named_after(format!("{}:{}", service.host, service.port).parse()?)?;
    if !addresses.is_empty() {
        let address = |ip: &IpAddr| Address::Ip((*ip, service.port).into());
        instance.addresses = addresses.iter().map(address).take(MOST).collect();
    }
    // DNS gives weight 0 a small share, where ours would drain.
    let weight = u32::from(service.weight).max(1);
    Ok(instance.weight(weight).server_name(&*service.host))
}

/// As many addresses as one instance may have.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn why(what: &str) -> Error {
        Error::new(ErrorKind::Unavailable, what)
    }

    fn at(ip: &str, seconds: u64) -> Answer<IpAddr> {
        Answer::Records(vec![ip.parse().unwrap()], Duration::from_secs(seconds))
    }

    fn none() -> Answer<IpAddr> {
        Answer::Nothing(why("none"))
    }

    fn failed() -> Answer<IpAddr> {
        Answer::Failed(why("failed"))
    }

    fn service(host: &str, priority: u16, weight: u16) -> Service {
        Service {
            priority,
            weight,
            port: 1,
            host: host.into(),
        }
    }

    #[test]
    fn a_family_that_fails_keeps_what_was_known_and_one_without_records_does_not() {
        let mut seen = Seen::default();
        assert_eq!(
            seen.add([at("10.0.0.1", 30), at("::1", 20)])
                .unwrap()
                .as_secs(),
            20
        );
        assert_eq!(seen.addresses().len(), 2);

        assert_eq!(
            seen.add([at("10.0.0.2", 30), failed()]).unwrap().as_secs(),
            30
        );
        let kept: Vec<_> = seen.addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(kept, ["10.0.0.2", "::1"]);
        seen.add([at("10.0.0.2", 30), none()]).unwrap();

        assert_eq!(seen.addresses().len(), 1);
    }

    #[test]
    fn no_answer_at_all_keeps_everything_and_says_why() {
        let mut seen = Seen::default();
        seen.add([at("10.0.0.1", 30), none()]).unwrap();

        for (answers, why) in [
            ([none(), none()], "none"),
            ([none(), failed()], "failed"),
            ([failed(), none()], "failed"),
        ] {
            assert_eq!(seen.add(answers).unwrap_err().to_string(), why);
            assert_eq!(seen.addresses().len(), 1);
        }
    }

    #[test]
    fn only_the_first_priority_is_used_and_each_place_once() {
        let services = vec![
            service("c", 20, 1),
            service("a", 10, 1),
            service("A", 10, 2),
            service("b", 10, 1),
            service("", 0, 1),
        ];

        let hosts: Vec<_> = foremost(services).into_iter().map(|s| s.host).collect();

        assert_eq!(hosts, ["A", "b"]);
        assert!(foremost(vec![]).is_empty());
    }

    #[test]
    fn a_service_is_at_all_addresses_of_its_host_or_at_the_host() {
        let ips = ["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];

        let known = at_host(&service("h", 0, 0), &ips).unwrap();
        let unknown = at_host(&service("h", 0, 7), &[]).unwrap();

        assert_eq!(
            (known.id.as_str(), known.weight, known.addresses.len()),
            ("h:1", 1, 2)
        );
        assert_eq!(
            (unknown.weight, unknown.addresses[0].to_string()),
            (7, "h:1".into())
        );
    }
}
