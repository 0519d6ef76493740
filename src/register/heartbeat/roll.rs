//! Who is there, by the keys of all agents.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    record::{self, Beat, Info, Part, Status},
    seen::{Event, Presence, Seen},
};
use crate::{
    Error, InstanceId,
    etcd::{KeyChange, Kv, Told},
    resolve::Skipped,
};

/// All agents under a prefix, fed with what a watch tells.
#[derive(Debug)]
pub(super) struct Roll {
    prefix: Arc<str>,
    entries: BTreeMap<InstanceId, Entry>,
    skipped: BTreeMap<Arc<str>, Error>,
    stale: Option<Error>,
    /// Whether the registry has said anything, and whether it was a list.
    spoken: bool,
    listed: bool,
}

#[derive(Debug)]
struct Entry {
    /// With the revision at which it was written.
    info: Option<(Arc<Info>, i64)>,
    beat: Option<Beat>,
    /// Since when it has no heartbeat, as far as we saw.
    silent: SystemTime,
}

/// What a reader was told last.
#[derive(Debug, Default)]
pub(super) struct Heard {
    agents: BTreeMap<InstanceId, Seen>,
    stale: bool,
}

/// An agent that may be cleaned away: while its record is as it was, and no heartbeat stands beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Gone {
    pub(super) id: InstanceId,
    pub(super) revision: i64,
}

impl Roll {
    pub(super) fn new(prefix: Arc<str>) -> Self {
        Self {
            prefix,
            entries: BTreeMap::new(),
            skipped: BTreeMap::new(),
            stale: None,
            spoken: false,
            listed: false,
        }
    }

    /// Takes in what a watch tells; says whether a reader would notice, which he does not when an agent
    /// only goes on beating.
    pub(super) fn hear(&mut self, told: Told, now: SystemTime) -> bool {
        let first = !std::mem::replace(&mut self.spoken, true);
        match told {
            Told::Stale(error) => {
                self.stale = Some(error);
                true
            }
            Told::Listed { all, .. } => {
                self.listed = true;
                self.stale = None;
                for kv in all {
                    self.put(&kv, now);
                }
                true
            }
            Told::Changed(changes) | Told::Skipped { changes, .. } => {
                let fresh = self.stale.take().is_some();
                let mut news = false;
                for change in changes {
                    news |= match change {
                        KeyChange::Put(kv) => self.put(&kv, now),
                        KeyChange::Delete { key, .. } => self.delete(&key, now),
                    };
                }
                news || fresh || first
            }
        }
    }

    fn put(&mut self, kv: &Kv, now: SystemTime) -> bool {
        let Some((id, part)) = record::whose(&self.prefix, &kv.key) else {
            return false;
        };
        let name: Arc<str> = kv.name().into();
        let entry = self.entries.entry(id).or_insert(Entry {
            info: None,
            beat: None,
            silent: now,
        });
        let error = match part {
            Part::Info => match record::read::<Info>(&name, &kv.value) {
                Ok(info) => {
                    entry.info = Some((Arc::new(info), kv.mod_revision));
                    None
                }
                Err(error) => {
                    entry.info = None;
                    Some(error)
                }
            },
            // That it is there says all; what it says, only when.
            Part::Heartbeat => match record::read::<Beat>(&name, &kv.value) {
                Ok(beat) => {
                    let news = entry.beat.replace(beat).is_none();
                    let mended = self.skipped.remove(&name).is_some();
                    return news || mended;
                }
                Err(error) => {
                    entry.beat = Some(Beat::unread());
                    Some(error)
                }
            },
        };
        match error {
            None => self.skipped.remove(&name),
            Some(error) => {
                tracing::debug!(key = %name, why = error.chain(), "an agent's record was passed over");
                self.skipped.insert(name, error)
            }
        };
        true
    }

    fn delete(&mut self, key: &[u8], now: SystemTime) -> bool {
        let Some((id, part)) = record::whose(&self.prefix, key) else {
            return false;
        };
        let name: Arc<str> = String::from_utf8_lossy(key).into();
        self.skipped.remove(&name);
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        match part {
            Part::Info => entry.info = None,
            Part::Heartbeat => {
                entry.beat = None;
                entry.silent = now;
            }
        }
        if entry.info.is_none() && entry.beat.is_none() {
            self.entries.remove(&id);
        }
        true
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.spoken
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(super) fn stale(&self) -> Option<Error> {
        self.stale.clone()
    }

    pub(super) fn skipped(&self) -> Vec<Skipped> {
        let skipped = self.skipped.iter();
        skipped
            .map(|(key, why)| Skipped::new(Arc::clone(key), why.clone()))
            .collect()
    }

    pub(super) fn all(&self) -> Vec<Seen> {
        let seen = self.entries.iter();
        seen.filter_map(|(id, entry)| entry.seen(id)).collect()
    }

    pub(super) fn get(&self, id: &str) -> Option<Seen> {
        let (id, entry) = self.entries.get_key_value(id)?;
        entry.seen(id)
    }

    /// Who has been gone for at least so long.
    pub(super) fn gone(&self, age: Duration, now: SystemTime) -> Vec<Gone> {
        let gone = |(id, entry): (&InstanceId, &Entry)| {
            let (_, revision) = entry.info.as_ref()?;
            let since = match entry.presence()? {
                Presence::Online => return None,
                Presence::Offline { since } | Presence::Lost { since } => since,
            };
            // One who stopped in the future, by a clock of its own, has not been gone for any time.
            let gone = now.duration_since(since).unwrap_or_default();
            (gone >= age).then(|| Gone {
                id: id.clone(),
                revision: *revision,
            })
        };
        self.entries.iter().filter_map(gone).collect()
    }

    /// What has changed since this reader was last told, who is told it now.
    pub(super) fn news(&self, heard: &mut Heard) -> VecDeque<Event> {
        let mut events = VecDeque::new();
        if self.stale.is_some() != heard.stale {
            heard.stale = self.stale.is_some();
            events.push_back(match &self.stale {
                Some(error) => Event::Stale(error.clone()),
                None => Event::Fresh,
            });
        }
        let now: BTreeMap<_, _> = self
            .all()
            .into_iter()
            .map(|seen| (seen.id().clone(), seen))
            .collect();
        for id in heard.agents.keys().filter(|id| !now.contains_key(*id)) {
            events.push_back(Event::Removed(id.clone()));
        }
        for (id, seen) in &now {
            events.extend(seen.news(heard.agents.get(id)));
        }
        heard.agents = now;
        events
    }
}

impl Entry {
    fn presence(&self) -> Option<Presence> {
        let status = self.info.as_ref().map(|(info, _)| info.status);
        match (status, &self.beat) {
            (Some(Status::Offline), _) => {
                let stopped = self.info.as_ref().and_then(|(info, _)| info.stopped_at);
                Some(Presence::Offline {
                    since: stopped.unwrap_or(self.silent),
                })
            }
            (_, Some(_)) => Some(Presence::Online),
            (Some(Status::Online), None) => Some(Presence::Lost { since: self.silent }),
            (None, None) => None,
        }
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        let info = self.info.as_ref().map(|(info, _)| Arc::clone(info));
        let beaten = self.beat.as_ref().and_then(|beat| beat.last_updated);
        Some(Seen::new(id.clone(), self.presence()?, info, beaten))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;

    use super::*;

    const ONLINE: &str = r#"{"status":"online","started_at":"2026-11-21T12:00:00Z","zone":"b"}"#;
    const OFFLINE: &str = r#"{"status":"offline","started_at":"2026-11-21T12:00:00Z","stopped_at":"1970-01-01T00:00:50Z"}"#;
    const BEAT: &str = r#"{"status":"online","last_updated":"2026-11-21T12:00:00Z","lease_id":7}"#;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn kv(key: &str, value: &str, revision: i64) -> Kv {
        Kv {
            key: Bytes::copy_from_slice(format!("/agents/{key}").as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: revision,
            mod_revision: revision,
            lease: 0,
        }
    }

    fn put(key: &str, value: &str) -> KeyChange {
        KeyChange::Put(kv(key, value, 5))
    }

    fn delete(key: &str) -> KeyChange {
        let last = kv(key, "", 6);
        KeyChange::Delete {
            key: last.key.clone(),
            mod_revision: 6,
            last,
        }
    }

    /// A reader's words about what changes.
    fn words(roll: &Roll, heard: &mut Heard) -> Vec<String> {
        let word = |event: Event| match event {
            Event::Online(seen) => format!("online {}", seen.id()),
            Event::Offline(seen) => format!("offline {}", seen.id()),
            Event::Lost(seen) => format!("lost {}", seen.id()),
            Event::Changed(seen) => format!("changed {}", seen.id()),
            Event::Removed(id) => format!("removed {id}"),
            Event::Stale(_) => "stale".into(),
            Event::Fresh => "fresh".into(),
        };
        roll.news(heard).into_iter().map(word).collect()
    }

    fn listed(all: Vec<Kv>) -> (Roll, Heard) {
        let mut roll = Roll::new("/agents/".into());
        assert!(roll.hear(Told::Listed { all, revision: 9 }, at(10)));
        (roll, Heard::default())
    }

    fn running() -> (Roll, Heard) {
        let (roll, mut heard) = listed(vec![kv("a/heartbeat", BEAT, 5), kv("a/info", ONLINE, 5)]);
        assert_eq!(words(&roll, &mut heard), ["online a"]);
        (roll, heard)
    }

    #[test]
    fn the_first_words_are_about_all_who_are_known() {
        let (roll, mut heard) = listed(vec![
            kv("a/info", ONLINE, 5),
            kv("a/heartbeat", BEAT, 5),
            kv("b/info", OFFLINE, 5),
            kv("c/info", ONLINE, 5),
            kv("d/config", "whatever", 5),
        ]);

        assert_eq!(
            words(&roll, &mut heard),
            ["online a", "offline b", "lost c"]
        );
        assert!(words(&roll, &mut heard).is_empty());
        assert_eq!(
            roll.get("b").unwrap().presence(),
            Presence::Offline { since: at(50) }
        );
        assert_eq!(
            roll.get("c").unwrap().presence(),
            Presence::Lost { since: at(10) }
        );
    }

    #[test]
    fn one_who_goes_on_beating_is_no_news() {
        let (mut roll, mut heard) = running();

        let later = BEAT.replace("12:00:00", "12:00:10");
        let news = roll.hear(Told::Changed(vec![put("a/heartbeat", &later)]), at(20));

        assert!(!news && words(&roll, &mut heard).is_empty());
        let beaten = roll.get("a").unwrap().last_updated().unwrap();
        assert_eq!(
            super::super::moment::text(beaten),
            "2026-11-21T12:00:10.000Z"
        );
    }

    #[test]
    fn a_crash_loses_only_the_heartbeat_and_a_stop_is_told_apart() {
        let (mut roll, mut heard) = running();

        roll.hear(Told::Changed(vec![delete("a/heartbeat")]), at(20));
        assert_eq!(words(&roll, &mut heard), ["lost a"]);
        assert_eq!(
            roll.get("a").unwrap().presence(),
            Presence::Lost { since: at(20) }
        );
        roll.hear(Told::Changed(vec![put("a/heartbeat", BEAT)]), at(30));
        assert_eq!(words(&roll, &mut heard), ["online a"]);
        roll.hear(
            Told::Changed(vec![put("a/info", OFFLINE), delete("a/heartbeat")]),
            at(60),
        );

        assert_eq!(words(&roll, &mut heard), ["offline a"]);
        assert_eq!(
            roll.get("a").unwrap().presence(),
            Presence::Offline { since: at(50) }
        );
    }

    #[test]
    fn a_restart_between_two_looks_is_told_and_so_is_another_field() {
        let (mut roll, mut heard) = running();

        let changes = vec![put("a/info", &ONLINE.replace("\"b\"", "\"c\""))];
        roll.hear(Told::Changed(changes), at(20));
        assert_eq!(words(&roll, &mut heard), ["changed a"]);
        roll.hear(Told::Changed(vec![delete("a/heartbeat")]), at(30));
        let again = ONLINE.replace("12:00", "12:05");
        roll.hear(
            Told::Changed(vec![put("a/heartbeat", BEAT), put("a/info", &again)]),
            at(31),
        );

        assert_eq!(words(&roll, &mut heard), ["online a"]);
    }

    #[test]
    fn an_outage_is_told_and_changes_nobody() {
        let (mut roll, mut heard) = running();
        let cut = Error::new(crate::ErrorKind::Unavailable, "cut");

        assert!(roll.hear(Told::Stale(cut), at(20)));
        assert_eq!(words(&roll, &mut heard), ["stale"]);
        assert_eq!(roll.get("a").unwrap().presence(), Presence::Online);
        assert!(roll.hear(Told::Changed(Vec::new()), at(30)));

        assert_eq!(words(&roll, &mut heard), ["fresh"]);
    }

    #[test]
    fn who_has_no_key_left_is_removed() {
        let (mut roll, mut heard) = running();

        roll.hear(
            Told::Changed(vec![delete("a/info"), delete("a/heartbeat")]),
            at(20),
        );

        assert_eq!(words(&roll, &mut heard), ["removed a"]);
        assert!(roll.all().is_empty());
    }

    #[test]
    fn a_broken_record_is_passed_over_with_its_key_and_harms_nobody() {
        let (mut roll, _) = listed(vec![
            kv("a/info", "[broken", 5),
            kv("a/heartbeat", "7", 5),
            kv("b/info", "{}", 5),
            kv("c/info", ONLINE, 5),
        ]);

        let keys: Vec<_> = roll
            .skipped()
            .iter()
            .map(|one| one.key.to_string())
            .collect();
        assert_eq!(
            keys,
            ["/agents/a/heartbeat", "/agents/a/info", "/agents/b/info"]
        );
        // Something keeps a lease alive there, whatever it says.
        assert_eq!(roll.get("a").unwrap().presence(), Presence::Online);
        assert_eq!(roll.get("b"), None);
        roll.hear(
            Told::Changed(vec![put("a/info", ONLINE), put("a/heartbeat", BEAT)]),
            at(20),
        );
        roll.hear(Told::Changed(vec![delete("b/info")]), at(20));

        assert!(roll.skipped().is_empty());
    }

    #[test]
    fn only_who_has_been_gone_for_long_enough_is_cleaned() {
        let (mut roll, _) = listed(vec![
            kv("a/info", ONLINE, 5),
            kv("a/heartbeat", BEAT, 5),
            kv("b/info", OFFLINE, 6),
            kv("c/info", ONLINE, 7),
            kv("d/info", &OFFLINE.replace("1970", "2970"), 8),
        ]);
        let age = Duration::from_secs(40);

        let ids = |roll: &Roll, now| {
            let gone = roll.gone(age, at(now)).into_iter();
            gone.map(|gone| format!("{}@{}", gone.id, gone.revision))
                .collect::<Vec<_>>()
        };

        assert_eq!(ids(&roll, 49), Vec::<String>::new());
        assert_eq!(ids(&roll, 50), ["c@7"]);
        assert_eq!(ids(&roll, 90), ["b@6", "c@7"]);
        roll.hear(Told::Changed(vec![put("c/heartbeat", BEAT)]), at(95));
        assert_eq!(ids(&roll, 95), ["b@6"]);
    }
}
