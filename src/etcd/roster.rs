//! Who is in a service, by what its keys say: the reducer between a watch and its readers.

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{known::KeyChange, kv::Kv, layout::Layout, watch::Seen};
use crate::{
    Error, ErrorKind, Instance, InstanceId, ServiceName,
    resolve::{Census, Change, Skipped, Update, Vanished},
};

/// The instances of one service.
#[derive(Debug)]
pub(super) struct Roster {
    service: ServiceName,
    layout: Arc<dyn Layout>,
    keys: HashMap<Bytes, Arc<Instance>>,
    /// The key that speaks for an id.
    ids: HashMap<InstanceId, Bytes>,
    /// Whether two keys ever had the same id.
    doubled: bool,
    vanished: Vanished,
    skipped: BTreeMap<Bytes, Skipped>,
    listed: bool,
    stale: Option<Error>,
}

impl Roster {
    pub(super) fn new(service: ServiceName, layout: Arc<dyn Layout>, grace: Duration) -> Self {
        Self {
            service,
            layout,
            keys: HashMap::new(),
            ids: HashMap::new(),
            doubled: false,
            vanished: Vanished::with_grace(grace),
            skipped: BTreeMap::new(),
            listed: false,
            stale: None,
        }
    }

    /// What the word of a watch means for those who read.
    pub(super) fn seen(&mut self, seen: Seen, now: Instant) -> Vec<Update> {
        match seen {
            Seen::Listed { all, .. } => {
                let skipped = all.into_iter().fold(false, |skipped, kv| {
                    let (_, changed) = self.put(kv);
                    skipped | changed
                });
                self.listed = true;
                self.stale = None;
                let set = self.speakers().map(Arc::clone).collect();
                self.with_skipped(Some(Update::Reset(set)), skipped)
            }
            Seen::Changed(changes) | Seen::Skipped { changes, .. } => {
                let fresh = changes.is_empty();
                if self.stale.take().is_some() {
                    tracing::info!(service = %self.service, "etcd in reach again");
                }
                let (mut told, mut skipped) = (Vec::new(), false);
                for change in changes {
                    let (some, changed) = match change {
                        KeyChange::Put(kv) => self.put(kv),
                        KeyChange::Delete { key, .. } => self.delete(&key, now),
                    };
                    told.extend(some);
                    skipped |= changed;
                }
                let news = fresh || !told.is_empty();
                self.with_skipped(news.then_some(Update::Delta(told)), skipped)
            }
            Seen::Stale(why) => {
                tracing::warn!(
                    service = %self.service, kept = self.keys.len(), why = why.chain(),
                    "etcd out of reach"
                );
                self.stale = Some(why.clone());
                vec![Update::Stale(why)]
            }
        }
    }

    /// What each id stands for, when two keys have one between them.
    fn speakers(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.ids.values().filter_map(|key| self.keys.get(key))
    }

    /// A person learns from the first few; the view shows them all.
    fn complain(&self, kv: &Kv, why: &Error) {
        let (service, key) = (&self.service, kv.name());
        match self.skipped.len() {
            0..LOUD => tracing::warn!(%service, %key, why = why.chain(), "record passed over"),
            LOUD => tracing::warn!(%service, "more records passed over; the view shows them all"),
            _ => tracing::debug!(%service, %key, why = why.chain(), "record passed over"),
        }
    }

    /// What a value changes, and whether what is passed over changed.
    fn put(&mut self, kv: Kv) -> (Vec<Change>, bool) {
        let Some(read) = self.read(&kv) else {
            return (Vec::new(), false);
        };
        let instance = match read {
            Ok(instance) => Arc::new(instance),
            Err(why) => {
                // What stood there before was good, and may well still be.
                self.complain(&kv, &why);
                let skipped = Skipped::new(kv.name(), why);
                self.skipped.insert(kv.key, skipped);
                return (Vec::new(), true);
            }
        };
        let skipped = self.skipped.remove(&kv.key).is_some();
        let id = instance.id.clone();
        let back = self.vanished.comes_back(&id);
        let before = self.keys.insert(kv.key.clone(), Arc::clone(&instance));
        let speaker = self.ids.insert(id.clone(), kv.key.clone());
        let other = speaker.is_some_and(|speaker| speaker != kv.key);
        self.doubled |= other;

        let mut changes = Vec::new();
        match before {
            Some(before) if before.id != id => {
                changes.extend(self.silent(&kv.key, &before.id, Change::Remove));
                changes.push(Change::Put(instance));
            }
            Some(before) if before == instance && !back && !other => {}
            _ => changes.push(Change::Put(instance)),
        }
        (changes, skipped)
    }

    fn delete(&mut self, key: &Bytes, now: Instant) -> (Vec<Change>, bool) {
        let skipped = self.skipped.remove(key).is_some();
        let Some(instance) = self.keys.remove(key) else {
            return (Vec::new(), skipped);
        };
        let left = instance.is_draining();
        let id = instance.id.clone();
        let change = self.silent(key, &id, if left { Change::Remove } else { Change::Vanish });
        if let Some(Change::Vanish(_)) = change {
            self.vanished.add(instance, now);
        }
        (change.into_iter().collect(), skipped)
    }

    /// A key no longer speaks for an id: another one does, or none.
    fn silent(
        &mut self,
        key: &Bytes,
        id: &InstanceId,
        without: fn(InstanceId) -> Change,
    ) -> Option<Change> {
        if self.ids.get(id) != Some(key) {
            return None;
        }
        self.ids.remove(id);
        let mut others = self.keys.iter().filter(|(_, other)| other.id == *id);
        match self.doubled.then(|| others.next()).flatten() {
            Some((key, other)) => {
                self.ids.insert(id.clone(), key.clone());
                Some(Change::Put(Arc::clone(other)))
            }
            None => Some(without(id.clone())),
        }
    }

    /// The instance in a key, if the key is ours at all.
    fn read(&self, kv: &Kv) -> Option<Result<Instance, Error>> {
        let Ok(key) = std::str::from_utf8(&kv.key) else {
            let error = Error::new(ErrorKind::Decode, format!("read {}", kv.name()));
            return Some(Err(error.because("the key is not UTF-8")));
        };
        let read = || {
            let owns = self.layout.owns(&self.service, key);
            owns.then(|| self.layout.decode(&self.service, key, &kv.value))
        };
        // A layout may be a user's own, and one record it stumbles over is not to end the watch.
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::Decode, format!("read {key}"));
            Some(Err(error.because("the layout panicked")))
        })
    }

    fn with_skipped(&self, first: impl IntoIterator<Item = Update>, changed: bool) -> Vec<Update> {
        let mut updates: Vec<_> = first.into_iter().collect();
        if changed {
            updates.push(Update::Skipped(self.skipped.values().cloned().collect()));
        }
        updates
    }
}

impl Census for Roster {
    fn so_far(&self) -> Vec<Update> {
        let mut updates = if self.listed {
            self.vanished.and(self.speakers())
        } else {
            Vec::new()
        };
        updates.extend(self.stale.clone().map(Update::Stale));
        self.with_skipped(updates, !self.skipped.is_empty())
    }

    fn vanished(&self) -> &Vanished {
        &self.vanished
    }

    fn vanished_mut(&mut self) -> &mut Vanished {
        &mut self.vanished
    }
}

/// So many bad records are complained about one by one.
const LOUD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        etcd::layout::{Json, Plain},
        resolve::testing::said,
    };

    const GRACE: Duration = Duration::from_secs(10);

    fn kv(key: &str, value: impl AsRef<[u8]>) -> Kv {
        Kv {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_ref()),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        }
    }

    fn server(id: &str, serving: bool) -> Kv {
        let value = format!(r#"{{"id":"{id}","addresses":["10.0.0.5:1"],"serving":{serving}}}"#);
        kv(&format!("/services/greeter/{id}"), value)
    }

    fn put(kv: Kv) -> Seen {
        Seen::Changed(vec![KeyChange::Put(kv)])
    }

    fn delete(kv: Kv) -> Seen {
        Seen::Changed(vec![KeyChange::Delete {
            key: kv.key.clone(),
            mod_revision: 9,
            last: kv,
        }])
    }

    fn greeter(layout: impl Layout) -> Roster {
        Roster::new("greeter".parse().unwrap(), Arc::new(layout), GRACE)
    }

    fn with(all: Vec<Kv>) -> Roster {
        let mut roster = greeter(Json::default());
        roster.seen(Seen::Listed { all, revision: 1 }, Instant::now());
        roster
    }

    #[tokio::test(start_paused = true)]
    async fn who_said_goodbye_has_left_and_who_did_not_is_missed() {
        let now = Instant::now();
        let mut roster = with(vec![server("a", true), server("b", true)]);

        assert_eq!(said(roster.seen(put(server("a", false)), now)), ["~+a"]);
        assert_eq!(said(roster.seen(delete(server("a", false)), now)), ["~-a"]);
        assert_eq!(said(roster.seen(delete(server("b", true)), now)), ["~?b"]);

        assert_eq!(roster.vanished.due(), Some(now + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_ends_when_the_key_is_back_or_the_cluster_agrees_that_it_is_gone() {
        let now = Instant::now();
        let mut roster = with(vec![server("a", true), server("b", true)]);
        roster.seen(delete(server("a", true)), now);
        roster.seen(delete(server("b", true)), now);

        let suspects = roster.vanished.suspects(now + GRACE);
        assert!(roster.vanished.suspects(now).is_empty());
        let back = roster.seen(put(server("a", true)), now);

        assert_eq!(said(back), ["~+a"]);
        assert_eq!(said(roster.vanished.gone(&suspects)), ["~-b"]);
        assert_eq!(roster.vanished.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_vanishes_again_is_given_a_new_grace() {
        let now = Instant::now();
        let mut roster = with(vec![server("a", true)]);
        roster.seen(delete(server("a", true)), now);
        let suspects = roster.vanished.suspects(now + GRACE);

        roster.seen(put(server("a", true)), now + GRACE);
        roster.seen(delete(server("a", true)), now + GRACE);

        assert!(roster.vanished.gone(&suspects).is_none());
        assert_eq!(roster.vanished.due(), Some(now + GRACE + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_reader_is_told_all_that_is_known() {
        let now = Instant::now();
        let mut roster = with(vec![server("a", true), server("b", true)]);
        roster.seen(delete(server("b", true)), now);
        roster.seen(put(kv("/services/greeter/c", "{")), now);
        roster.seen(
            Seen::Stale(Error::new(ErrorKind::Unavailable, "watch")),
            now,
        );

        assert_eq!(said(roster.so_far()), ["=ab", "~?b", "stale", "skipped 1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_first_list_only_an_outage_is_worth_telling() {
        let mut roster = greeter(Json::default());
        assert!(roster.so_far().is_empty());

        let stale = Seen::Stale(Error::new(ErrorKind::Unavailable, "list"));
        roster.seen(stale, Instant::now());

        assert_eq!(said(roster.so_far()), ["stale"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_value_is_passed_over_and_shown_until_it_is_put_right() {
        let now = Instant::now();
        let mut roster = greeter(Json::default());

        let all = vec![server("a", true), kv("/services/greeter/b", b"\xff")];
        let listed = roster.seen(Seen::Listed { all, revision: 1 }, now);
        assert_eq!(said(listed), ["=a", "skipped 1"]);
        let spoilt = roster.seen(put(kv("/services/greeter/a", "junk")), now);
        assert_eq!(said(spoilt), ["skipped 2"], "what was good stays");

        let right = roster.seen(put(server("b", true)), now);
        assert_eq!(said(right), ["~+b", "skipped 1"]);
        let removed = roster.seen(delete(server("a", true)), now);
        assert_eq!(said(removed), ["~?a", "skipped 0"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_value_again_is_no_news() {
        let mut roster = with(vec![server("a", true)]);

        let again = roster.seen(put(server("a", true)), Instant::now());

        assert!(again.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_of_others_are_none_of_our_business() {
        let now = Instant::now();
        let mut roster = with(Vec::new());

        let deeper = roster.seen(put(kv("/services/greeter/cart/a", "junk")), now);
        let gone = roster.seen(delete(kv("/services/greeter/cart/a", "junk")), now);

        assert!(deeper.is_empty() && gone.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn two_keys_with_one_id_are_one_instance_until_both_are_gone() {
        let now = Instant::now();
        let mut roster = greeter(Plain::default());
        let itself = kv("/services/greeter", "10.0.0.5:1");
        let below = kv("/services/greeter/10.0.0.5:1", "10.0.0.5:1");
        let all = vec![itself.clone(), below.clone()];
        roster.seen(Seen::Listed { all, revision: 1 }, now);

        let first = roster.seen(delete(below), now);
        let second = roster.seen(delete(itself), now);

        assert_eq!(said(first), ["~+10.0.0.5:1"]);
        assert_eq!(said(second), ["~?10.0.0.5:1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_names_another_instance_replaces_the_first() {
        let now = Instant::now();
        let mut roster = greeter(Plain::default());
        let all = vec![kv("/services/greeter", "10.0.0.5:1")];
        roster.seen(Seen::Listed { all, revision: 1 }, now);

        let moved = roster.seen(put(kv("/services/greeter", "10.0.0.6:1")), now);

        assert_eq!(said(moved), ["~-10.0.0.5:1+10.0.0.6:1"]);
    }

    /// A layout that does not like what it reads.
    #[derive(Debug)]
    struct Brittle;

    impl Layout for Brittle {
        fn prefix(&self, service: &ServiceName) -> String {
            format!("{service}/")
        }

        fn owns(&self, _: &ServiceName, _: &str) -> bool {
            true
        }

        fn key(&self, service: &ServiceName, instance: &Instance) -> String {
            format!("{service}/{}", instance.id)
        }

        fn encode(&self, _: &ServiceName, _: &Instance) -> crate::Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn decode(&self, _: &ServiceName, _: &str, value: &[u8]) -> crate::Result<Instance> {
            assert_ne!(value, b"x");
            Instance::at("10.0.0.5:1").and_then(|instance| instance.id("a"))
        }
    }

    #[test]
    fn a_layout_that_panics_costs_the_record_and_not_the_watch() {
        let mut roster = greeter(Brittle);

        let updates = roster.seen(put(kv("greeter/a", "x")), Instant::now());
        let after = roster.seen(put(kv("greeter/a", "y")), Instant::now());

        assert!(
            matches!(&updates[..], [Update::Skipped(all)] if all[0].why.chain().contains("panicked"))
        );
        assert_eq!(said(after)[0], "~+a");
    }
}
