//! Keys and values that nobody meant to write, and any history of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::time::Instant;

use super::{
    known::KeyChange,
    kv::Kv,
    layout::{Json, Layout, Plain},
    roster::Roster,
    watch::Seen,
};
use crate::{
    Instance, InstanceId, ServiceName, fuzz,
    resolve::{Census, Change, Update},
};

fn greeter() -> ServiceName {
    "greeter".parse().unwrap()
}

/// Key and value with a line between them, so that both are mutated.
fn split(input: &[u8]) -> (String, &[u8]) {
    let line = input.iter().position(|byte| *byte == b'\n');
    let (key, value) = input.split_at(line.unwrap_or(input.len()));
    let value = value.strip_prefix(b"\n").unwrap_or(value);
    (String::from_utf8_lossy(key).into_owned(), value)
}

/// Whether a layout took it. What it takes can be used, and is taken again as it writes it.
fn takes(layout: &impl Layout, input: &[u8]) -> bool {
    let (key, value) = split(input);
    if !layout.owns(&greeter(), &key) {
        return false;
    }
    assert!(key.starts_with(&layout.prefix(&greeter())));
    let instance = match layout.decode(&greeter(), &key, value) {
        Ok(instance) => instance,
        Err(error) => {
            assert!(!error.chain().is_empty());
            return false;
        }
    };
    assert!(instance.check().is_ok());
    let key = layout.key(&greeter(), &instance);
    let value = layout.encode(&greeter(), &instance).unwrap();
    // What is called after its address may have a name that is no key's last segment.
    if layout.owns(&greeter(), &key) {
        assert_eq!(layout.decode(&greeter(), &key, &value).unwrap(), instance);
    }
    true
}

#[test]
fn what_our_layout_takes_can_be_used_and_is_taken_again() {
    let good: [&[u8]; 2] = [
        b"/services/greeter/a\n{\"id\":\"a\",\"addresses\":[\"10.0.0.5:1\"]}",
        b"/services/greeter/b\n{\"id\":\"b\",\"addresses\":[\"h:1\"],\"weight\":3,\"tags\":{\"k\":\"v\"},\"serving\":false}",
    ];
    let words = [
        "/services/greeter/",
        "\"id\":",
        "null",
        "[[[[",
        "1e99",
        "\\u0000",
    ];
    fuzz::bytes(&good, &words, |input| takes(&Json::default(), input));
}

#[test]
fn what_the_plain_layout_takes_can_be_used_and_is_taken_again() {
    let good: [&[u8]; 3] = [
        b"/services/greeter\n10.0.0.5:50051",
        b"/services/greeter/a\n[::1]:1",
        b"/services/greeter/b\nunix:/run/a.sock",
    ];
    let words = ["/services/greeter/", "unix:", "\n", ":1", "0.0.0.0"];
    fuzz::bytes(&good, &words, |input| takes(&Plain::default(), input));
}

/// Somebody who reads.
#[derive(Debug, Default, PartialEq)]
struct Reader {
    known: BTreeMap<InstanceId, Arc<Instance>>,
    suspects: BTreeSet<InstanceId>,
    skipped: usize,
}

impl Reader {
    fn take(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            match update {
                Update::Reset(all) => {
                    self.suspects.clear();
                    self.known = all.into_iter().map(|i| (i.id.clone(), i)).collect();
                }
                Update::Delta(changes) => {
                    changes.into_iter().for_each(|change| self.change(change))
                }
                Update::Skipped(skipped) => self.skipped = skipped.len(),
                Update::Stale(_) => {}
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Put(instance) => {
                self.suspects.remove(&instance.id);
                self.known.insert(instance.id.clone(), instance);
            }
            Change::Remove(id) => {
                self.suspects.remove(&id);
                self.known.remove(&id);
            }
            Change::Vanish(id) => {
                assert!(self.known.contains_key(&id), "a stranger vanished: {id}");
                self.suspects.insert(id);
            }
        }
    }
}

/// Two keys of the plain layout may have one id between them.
fn plain(rng: &mut StdRng) -> Kv {
    let key = ["", "/a", "/h:1", "/h:2", "/deep/a"].choose(rng).unwrap();
    let value = ["h:1", "h:2", "h:3", "nonsense"].choose(rng).unwrap();
    kv(&format!("/services/greeter{key}"), value)
}

fn json(rng: &mut StdRng) -> Kv {
    let id = ["a", "b", "c"].choose(rng).unwrap();
    let value = match rng.random_range(0..5) {
        0 => "nonsense".into(),
        port => {
            let serving: bool = rng.random();
            format!(r#"{{"id":"{id}","addresses":["h:{port}"],"serving":{serving}}}"#)
        }
    };
    kv(&format!("/services/greeter/{id}"), &value)
}

fn kv(key: &str, value: &str) -> Kv {
    Kv {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: 1,
        mod_revision: 1,
        lease: 0,
    }
}

fn change(rng: &mut StdRng, some: fn(&mut StdRng) -> Kv) -> KeyChange {
    let last = some(rng);
    match rng.random_range(0..3) {
        0 => KeyChange::Delete {
            key: last.key.clone(),
            mod_revision: 1,
            last,
        },
        _ => KeyChange::Put(last),
    }
}

/// Whoever reads from the start knows what one knows who begins to read now.
fn history(rng: &mut StdRng, layout: Arc<dyn Layout>, some: fn(&mut StdRng) -> Kv) {
    let mut roster = Roster::new(greeter(), layout, Duration::from_secs(10));
    let mut now = Instant::now();
    let all: BTreeMap<_, _> = (0..rng.random_range(0..4))
        .map(|_| some(rng))
        .map(|kv| (kv.key.clone(), kv))
        .collect();
    let mut reader = Reader::default();
    let all = all.into_values().collect();
    reader.take(roster.seen(Seen::Listed { all, revision: 1 }, now));
    let mut told = Vec::new();
    for _ in 0..rng.random_range(1..25) {
        now += Duration::from_secs(rng.random_range(0..12));
        if rng.random_ratio(1, 4) {
            let suspects = roster.vanished().suspects(now);
            reader.take(roster.vanished_mut().gone(&suspects));
            told.push(format!("gone {suspects:?}"));
        } else {
            let changes: Vec<_> = (0..rng.random_range(0..3))
                .map(|_| change(rng, some))
                .collect();
            told.push(format!("{changes:?}"));
            reader.take(roster.seen(Seen::Changed(changes), now));
        }
        let mut late = Reader::default();
        late.take(roster.so_far());
        assert_eq!(reader, late, "after {told:#?}");
    }
}

#[test]
fn whenever_one_begins_to_read_our_layout_one_knows_the_same() {
    fuzz::rounds(|rng| history(rng, Arc::new(Json::default()), json));
}

#[test]
fn whenever_one_begins_to_read_the_plain_layout_one_knows_the_same() {
    fuzz::rounds(|rng| history(rng, Arc::new(Plain::default()), plain));
}
