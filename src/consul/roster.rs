//! Who is in a service, by what Consul lists: the reducer between the lists and their readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use super::entry::{Entry, Health, Read, beside};
use crate::{
    Error, ErrorKind, Instance, InstanceId, Result, ServiceName,
    resolve::{Census, Change, Skipped, Suspect, Update, Vanished},
};

/// Everybody that Consul lists for a service, read.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Who may be called, or says that he wants no calls.
    pub(super) here: BTreeMap<InstanceId, Arc<Instance>>,
    /// Whose checks say that he is not well, or are not heard of.
    pub(super) ill: BTreeMap<InstanceId, Arc<Instance>>,
    /// Those of them whose checks are not heard of.
    pub(super) unheard: BTreeSet<InstanceId>,
    skipped: BTreeMap<String, Error>,
}

impl Listing {
    /// Reads the body of an answer. When they must be `passing`, those with a warning are ill, too.
    pub(super) fn read(service: &ServiceName, body: &[u8], passing: bool) -> Result<Self> {
        let all = serde_json::from_slice::<Option<Vec<Value>>>(body).map_err(|error| {
            let doing = format!("read what Consul lists for {service}");
            Error::new(ErrorKind::Decode, doing).because(error)
        })?;
        let mut listing = Self::default();
        let mut read: Vec<(_, Read)> = Vec::new();
        for (at, value) in all.unwrap_or_default().into_iter().enumerate() {
            let entry = serde_json::from_value::<Entry>(value);
            let found = entry.map(|entry| (entry.key(), entry.read(service, passing)));
            match found {
                Ok((key, Ok(one))) => read.push((key, one)),
                Ok((key, Err(why))) => drop(listing.skipped.insert(key, why)),
                Err(why) => {
                    let doing = format!("read entry {at} of {service}");
                    let why = Error::new(ErrorKind::Decode, doing).because(why);
                    listing.skipped.insert(format!("{service}[{at}]"), why);
                }
            }
        }
        // Whoever came first has the id, well or not: one whose health comes and goes keeps it.
        read.sort_by(|(_, a), (_, b)| a.since.cmp(&b.since).then_with(|| a.node.cmp(&b.node)));
        for (key, one) in read {
            if let Err(why) = listing.add(one) {
                listing.skipped.insert(key, why);
            }
        }
        listing.believe_most();
        Ok(listing)
    }

    /// When most are not heard of, it is the agents that are ill: their servers are taken to be as they were.
    fn believe_most(&mut self) {
        if self.unheard.len() * 2 <= self.here.len() + self.ill.len() {
            return;
        }
        for id in std::mem::take(&mut self.unheard) {
            if let Some((id, instance)) = self.ill.remove_entry(&id) {
                self.here.insert(id, instance);
            }
        }
    }

    fn add(&mut self, read: Read) -> Result<()> {
        let mut instance = read.instance;
        if self.has(&instance.id) {
            instance.id = beside(&instance.id, &read.node)?;
        }
        if self.has(&instance.id) {
            let doing = format!("read instance {}", instance.id);
            return Err(Error::new(ErrorKind::Decode, doing).because("the id stands there twice"));
        }
        let list = match read.health {
            Health::Well => &mut self.here,
            Health::Unheard | Health::Ill => &mut self.ill,
        };
        if read.health == Health::Unheard {
            self.unheard.insert(instance.id.clone());
        }
        list.insert(instance.id.clone(), Arc::new(instance));
        Ok(())
    }

    fn has(&self, id: &InstanceId) -> bool {
        self.here.contains_key(id) || self.ill.contains_key(id)
    }
}

/// The instances of one service, over time.
#[derive(Debug)]
pub(super) struct Roster {
    service: ServiceName,
    known: BTreeMap<InstanceId, Arc<Instance>>,
    vanished: Vanished,
    skipped: BTreeMap<String, Error>,
    listed: bool,
    stale: Option<Error>,
}

impl Roster {
    pub(super) fn new(service: ServiceName, grace: Duration) -> Self {
        Self {
            service,
            known: BTreeMap::new(),
            vanished: Vanished::with_grace(grace),
            skipped: BTreeMap::new(),
            listed: false,
            stale: None,
        }
    }

    /// What a list means for those who read.
    pub(super) fn listed(&mut self, listing: Listing, now: Instant) -> Vec<Update> {
        let fresh = self.stale.take().is_some();
        if fresh {
            tracing::info!(service = %self.service, "Consul in reach again");
        }
        let skipped = self.skip(listing.skipped);
        let unheard = listing.unheard;
        let mut updates = if self.listed {
            let changes = self.compare(listing.here, now);
            let news = fresh || !changes.is_empty();
            news.then_some(Update::Delta(changes)).into_iter().collect()
        } else {
            self.begin(listing.here, listing.ill, now)
        };
        self.vanished.unheard(&unheard, now);
        updates.extend(skipped);
        updates
    }

    /// The first list. When nobody is well in it, those who are not are all there is: suspects.
    fn begin(
        &mut self,
        here: BTreeMap<InstanceId, Arc<Instance>>,
        ill: BTreeMap<InstanceId, Arc<Instance>>,
        since: Instant,
    ) -> Vec<Update> {
        self.listed = true;
        if here.values().all(|instance| instance.is_draining()) {
            let ill = ill.into_values();
            ill.for_each(|instance| self.vanished.add(instance, since));
        }
        self.known = here;
        self.vanished.and(self.known.values())
    }

    /// What is different from what was known.
    fn compare(&mut self, here: BTreeMap<InstanceId, Arc<Instance>>, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, instance) in &here {
            let back = self.vanished.comes_back(id);
            if back || self.known.get(id) != Some(instance) {
                changes.push(Change::Put(Arc::clone(instance)));
            }
        }
        for (id, instance) in std::mem::replace(&mut self.known, here) {
            if self.known.contains_key(&id) {
                continue;
            }
            if instance.is_draining() {
                changes.push(Change::Remove(id));
                continue;
            }
            changes.push(Change::Vanish(id));
            self.vanished.add(instance, now);
        }
        changes
    }

    /// Why nothing new can be learnt.
    pub(super) fn failed(&mut self, why: Error) -> Option<Update> {
        let words = why.chain();
        match &self.stale {
            Some(before) if before.chain() == words => return None,
            Some(_) => {}
            None => {
                let (service, kept) = (&self.service, self.known.len());
                tracing::warn!(%service, kept, why = words, "Consul out of reach");
            }
        }
        self.stale = Some(why.clone());
        Some(Update::Stale(why))
    }

    /// What is passed over now, if that changed.
    fn skip(&mut self, skipped: BTreeMap<String, Error>) -> Option<Update> {
        let new = skipped.iter().filter(|(key, why)| {
            let before = self.skipped.get(*key);
            before.is_none_or(|before| before.chain() != why.chain())
        });
        let new: Vec<_> = new.collect();
        if new.is_empty() && skipped.len() == self.skipped.len() {
            return None;
        }
        let service = &self.service;
        for (key, why) in new.iter().take(LOUD) {
            tracing::warn!(%service, key, why = why.chain(), "entry passed over");
        }
        if new.len() > LOUD {
            tracing::warn!(%service, "more entries passed over; the view shows them all");
        }
        self.skipped = skipped;
        Some(self.passed_over())
    }

    fn passed_over(&self) -> Update {
        let skipped = self.skipped.iter();
        let skipped = skipped.map(|(key, why)| Skipped::new(key.as_str(), why.clone()));
        Update::Skipped(skipped.collect())
    }
}

impl Census for Roster {
    fn so_far(&self) -> Vec<Update> {
        let mut updates = if self.listed {
            self.vanished.and(self.known.values())
        } else {
            Vec::new()
        };
        updates.extend(self.stale.clone().map(Update::Stale));
        if !self.skipped.is_empty() {
            updates.push(self.passed_over());
        }
        updates
    }

    fn vanished(&self) -> &Vanished {
        &self.vanished
    }

    fn vanished_mut(&mut self) -> &mut Vanished {
        &mut self.vanished
    }
}

/// So many bad entries of a list are complained about one by one.
const LOUD: usize = 16;

/// Those of the suspects that this list does not have well either, and can say so.
pub(super) fn missing(suspects: Vec<Suspect>, listing: &Listing) -> Vec<Suspect> {
    let missing =
        |(id, _): &Suspect| !listing.here.contains_key(id) && !listing.unheard.contains(id);
    suspects.into_iter().filter(missing).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resolve::testing::said;

    const GRACE: Duration = Duration::from_secs(10);

    fn greeter() -> ServiceName {
        "greeter".parse().unwrap()
    }

    /// One of ours, on a node, with a status and more metadata.
    fn server(id: &str, status: &str) -> Value {
        on("n1", id, status, 7)
    }

    /// The same, whose node's agent is gone.
    fn unheard(id: &str) -> Value {
        let mut server = server(id, "passing");
        server["Checks"][0]["Status"] = json!("critical");
        server
    }

    fn on(node: &str, id: &str, status: &str, created: u64) -> Value {
        json!({
            "Node": { "Node": node, "Address": "10.0.0.1" },
            "Service": { "ID": format!("greeter/{id}"), "Port": 1, "CreateIndex": created },
            "Checks": [{ "CheckID": "serfHealth", "Status": "passing" }, { "Status": status }],
        })
    }

    fn leaving(id: &str) -> Value {
        let mut leaving = server(id, "critical");
        leaving["Service"]["Meta"] = json!({ "serving": "false" });
        leaving
    }

    fn list(entries: &[Value]) -> Listing {
        let body = serde_json::to_vec(entries).unwrap();
        Listing::read(&greeter(), &body, false).unwrap()
    }

    fn with(entries: &[Value]) -> Roster {
        let mut roster = Roster::new(greeter(), GRACE);
        roster.listed(list(entries), Instant::now());
        roster
    }

    fn failure(what: &str) -> Error {
        Error::new(ErrorKind::Unavailable, what)
    }

    #[tokio::test(start_paused = true)]
    async fn who_said_goodbye_has_left_and_who_did_not_or_is_critical_is_missed() {
        let now = Instant::now();
        let [a, b, c] = ["a", "b", "c"].map(|id| server(id, "passing"));
        let mut roster = with(&[a, b.clone(), c]);

        let marked = roster.listed(list(&[leaving("a"), b, server("c", "critical")]), now);
        assert_eq!(said(marked), ["~+a?c"]);
        let gone = roster.listed(list(&[server("c", "critical")]), now);
        assert_eq!(said(gone), ["~-a?b"]);

        assert_eq!(roster.vanished.due(), Some(now + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_list_again_is_no_news() {
        let all = [server("a", "passing"), server("b", "critical")];
        let mut roster = with(&all);

        assert!(roster.listed(list(&all), Instant::now()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_well_again_is_no_suspect_and_who_is_missing_twice_has_gone() {
        let now = Instant::now();
        let all = ["a", "b"].map(|id| server(id, "passing"));
        let mut roster = with(&all);
        roster.listed(list(&[]), now);
        let suspects = roster.vanished.suspects(now + GRACE);
        assert_eq!(
            (suspects.len(), roster.vanished.suspects(now).len()),
            (2, 0)
        );

        let back = roster.listed(list(&all[..1]), now);
        let missed = missing(suspects, &list(&[server("b", "critical")]));

        assert_eq!(said(back), ["~+a"]);
        assert_eq!(said(roster.vanished.gone(&missed)), ["~-b"]);
        assert_eq!(roster.vanished.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_vanishes_again_is_given_a_new_grace() {
        let now = Instant::now();
        let all = [server("a", "passing")];
        let mut roster = with(&all);
        roster.listed(list(&[]), now);
        let suspects = roster.vanished.suspects(now + GRACE);

        roster.listed(list(&all), now + GRACE);
        roster.listed(list(&[]), now + GRACE);

        assert!(roster.vanished.gone(&suspects).is_none());
        assert_eq!(roster.vanished.due(), Some(now + GRACE + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_agent_is_gone_is_doubted_and_not_removed_until_somebody_can_say() {
        let now = Instant::now();
        let others = ["b", "c"].map(|id| server(id, "passing"));
        let [b, c] = &others;
        let all = [server("a", "passing"), b.clone(), c.clone()];
        let mut roster = with(&all);
        let unheard = [unheard("a"), b.clone(), c.clone()];

        assert_eq!(said(roster.listed(list(&unheard), now)), ["~?a"]);
        assert_eq!(roster.vanished.due(), None);
        assert!(roster.vanished.suspects(now + 9 * GRACE).is_empty());
        let suspect = vec![("a".parse().unwrap(), now)];
        assert!(missing(suspect, &list(&unheard)).is_empty());

        // The agent is back, with nothing.
        let later = now + 9 * GRACE;
        assert!(roster.listed(list(&others), later).is_empty());
        assert_eq!(roster.vanished.due(), Some(later + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn when_most_agents_are_gone_their_servers_are_not_doubted() {
        let now = Instant::now();
        let all = ["a", "b", "c"].map(|id| server(id, "passing"));
        let mut roster = with(&all);
        let [_, b, c] = &all;

        let few = roster.listed(list(&[unheard("a"), b.clone(), c.clone()]), now);
        let most = roster.listed(list(&[unheard("a"), unheard("b"), c.clone()]), now);
        let none = roster.listed(list(&["a", "b", "c"].map(unheard)), now);

        assert_eq!(said(few), ["~?a"]);
        assert_eq!(said(most), ["~+a"]);
        assert!(none.is_empty());
        let mut late = Roster::new(greeter(), GRACE);
        assert_eq!(said(late.listed(list(&[unheard("a")]), now)), ["=a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_start_those_who_are_ill_are_told_of_when_nobody_is_well() {
        let now = Instant::now();
        let ill = server("b", "critical");
        let mut some = Roster::new(greeter(), GRACE);
        let mut none = Roster::new(greeter(), GRACE);

        let one = some.listed(list(&[server("a", "passing"), ill.clone()]), now);
        let all = none.listed(list(&[leaving("a"), ill]), now);

        assert_eq!(said(one), ["=a"]);
        assert_eq!(said(all), ["=ab", "~?b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_once_and_so_is_its_end() {
        let now = Instant::now();
        let all = [server("a", "passing")];
        let mut roster = with(&all);

        assert_eq!(said(roster.failed(failure("refused"))), ["stale"]);
        assert!(roster.failed(failure("refused")).is_none());
        assert_eq!(said(roster.failed(failure("no leader"))), ["stale"]);
        assert_eq!(said(roster.so_far()), ["=a", "stale"]);
        assert_eq!(said(roster.listed(list(&all), now)), ["~"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_passed_over_is_told_when_it_changes() {
        let now = Instant::now();
        let mut broken = server("b", "passing");
        broken["Service"]["Port"] = json!(0);
        let bad = [server("a", "passing"), broken, json!({ "Service": 7 })];
        let mut roster = Roster::new(greeter(), GRACE);

        assert_eq!(said(roster.listed(list(&bad), now)), ["=a", "skipped 2"]);
        assert!(roster.listed(list(&bad), now).is_empty());
        assert_eq!(said(roster.so_far()), ["=a", "skipped 2"]);

        let right = [server("a", "passing"), server("b", "passing")];
        assert_eq!(said(roster.listed(list(&right), now)), ["~+b", "skipped 0"]);
    }

    #[test]
    fn of_those_with_one_id_the_first_has_it_whether_it_is_well_or_not() {
        for status in ["passing", "critical"] {
            let young = on("n2", "a", "passing", 9);
            let old = on("n1", "a", "passing", 8);
            let first = on("n3", "a", status, 7);

            let listing = list(&[young, first, old]);

            let others = ["a@n1", "a@n2"].map(|id| InstanceId::new(id).unwrap());
            assert!(others.iter().all(|id| listing.here.contains_key(id)));
            let of_first = match status {
                "passing" => &listing.here,
                _ => &listing.ill,
            };
            assert!(of_first.contains_key("a"), "{status}");
            assert_eq!(listing.here.len() + listing.ill.len(), 3);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for body in [&b""[..], b"{}", b"[", b"7", &[b'['; 4096]] {
            assert!(Listing::read(&greeter(), body, false).is_err());
        }
        assert!(Listing::read(&greeter(), b"null", false).is_ok());
    }
}
