//! Hostile input for everything that reads: mutated from good input, for as long as one likes.
//!
//! `FLEET_FUZZ_SECONDS` says how long each reader is tried, one second unless set. A failure prints its
//! seed; `FLEET_FUZZ_SEED` tries the same inputs again. All these tests have `fuzz` in their path.

use std::{env, time::Duration};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::Instant;

/// Calls a check with inputs made from these until the time is up. The check says whether its reader
/// took the input: what was taken is mutated further.
pub(crate) fn bytes(good: &[&[u8]], words: &[&str], mut check: impl FnMut(&[u8]) -> bool) {
    campaign(|rng, until| {
        let mut pool: Vec<Vec<u8>> = good.iter().map(|input| input.to_vec()).collect();
        for input in &pool {
            Witness(input).see(&mut check);
        }
        while until() {
            let input = mutate(rng, &pool, words);
            if !Witness(&input).see(&mut check) {
                continue;
            }
            if pool.len() < POOL {
                pool.push(input);
            } else {
                // The good ones, at the front, stay.
                let place = rng.random_range(good.len()..POOL);
                pool[place] = input;
            }
        }
    });
}

/// As [`bytes`], for readers of text.
pub(crate) fn text(good: &[&str], words: &[&str], mut check: impl FnMut(&str) -> bool) {
    let good: Vec<_> = good.iter().map(|text| text.as_bytes()).collect();
    bytes(&good, words, |input| check(&String::from_utf8_lossy(input)));
}

/// Calls a check with a source of chance until the time is up.
pub(crate) fn rounds(mut check: impl FnMut(&mut StdRng)) {
    campaign(|rng, until| {
        while until() {
            check(rng);
        }
    });
}

fn campaign(run: impl FnOnce(&mut StdRng, &dyn Fn() -> bool)) {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let seed = Seed(number("FLEET_FUZZ_SEED").unwrap_or_else(rand::random));
    let end = Instant::now() + Duration::from_secs(number("FLEET_FUZZ_SECONDS").unwrap_or(1));
    run(&mut StdRng::seed_from_u64(seed.0), &|| Instant::now() < end);
}

/// Says its number when a check panics.
struct Seed(u64);

/// Says what the input was when a check panics.
struct Witness<'a>(&'a [u8]);

/// So many inputs that were taken are kept.
const POOL: usize = 500;

/// Inputs do not grow beyond this.
const LARGEST: usize = 20_000;

/// Signs that readers stumble over.
const SIGNS: [&str; 24] = [
    "/",
    ":",
    "@",
    "?",
    "&",
    "=",
    "%",
    "%2",
    "%00",
    "%ff",
    "#",
    "[",
    "]",
    "{",
    "}",
    ",",
    "..",
    "\"",
    "\\",
    "\0",
    "é",
    "\u{202e}",
    "\u{10ffff}",
    "0",
];

fn mutate(rng: &mut StdRng, pool: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let chosen = |rng: &mut StdRng| pool.choose(rng).cloned().unwrap_or_default();
    let mut input = chosen(rng);
    for _ in 0..rng.random_range(1..=6) {
        let (from, to) = stretch(rng, input.len());
        match rng.random_range(0..9) {
            0 if from < input.len() => input[from] ^= 1 << rng.random_range(0..8),
            1 => insert(&mut input, from, &[rng.next_u32() as u8]),
            2 => insert(&mut input, from, pick(rng, &SIGNS).as_bytes()),
            3 | 4 => insert(&mut input, from, pick(rng, words).as_bytes()),
            5 => drop(input.drain(from..to)),
            6 => input.truncate(to),
            7 => {
                let again = input[from..to].repeat(rng.random_range(1..=8));
                insert(&mut input, from, &again);
            }
            _ => {
                let other = chosen(rng);
                let (first, last) = stretch(rng, other.len());
                insert(&mut input, from, &other[first..last]);
            }
        }
    }
    input.truncate(LARGEST);
    input
}

fn insert(input: &mut Vec<u8>, at: usize, what: &[u8]) {
    input.splice(at..at, what.iter().copied());
}

fn pick<'a>(rng: &mut StdRng, words: &[&'a str]) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}

fn stretch(rng: &mut StdRng, len: usize) -> (usize, usize) {
    let (one, other) = (rng.random_range(0..=len), rng.random_range(0..=len));
    (one.min(other), one.max(other))
}

impl Witness<'_> {
    fn see(&self, check: &mut impl FnMut(&[u8]) -> bool) -> bool {
        check(self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("try it again with FLEET_FUZZ_SEED={}", self.0);
        }
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {:?}", String::from_utf8_lossy(self.0));
        }
    }
}

mod tests {
    use super::text;
    use crate::{Address, Instance, InstanceId, ServiceName};

    #[test]
    fn addresses_are_refused_with_a_reason_or_read_back() {
        let good = [
            "10.0.0.5:50051",
            "[::1%3]:1",
            "greeter.svc:1",
            "unix:/run/a.sock",
        ];
        text(
            &good,
            &["unix:", "[::ffff:1.2.3.4]", ":65535", "0.0.0.0"],
            |input| match input.parse::<Address>() {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    false
                }
                Ok(address) => {
                    assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
                    assert_ne!(address.port(), Some(0));
                    assert!(!address.host().is_empty());
                    true
                }
            },
        );
    }

    #[test]
    fn names_are_refused_with_a_reason_or_kept_as_they_are() {
        text(
            &["greeter", "shop/cart", "127.0.0.1:50051"],
            &["..", "./"],
            |input| {
                match input.parse::<ServiceName>() {
                    Err(error) => assert!(!error.to_string().is_empty()),
                    Ok(name) => assert_eq!(name.as_str(), input),
                }
                match input.parse::<InstanceId>() {
                    Err(error) => assert!(!error.to_string().is_empty()),
                    Ok(id) => assert!(!id.as_str().contains('/')),
                }
                input.parse::<ServiceName>().is_ok()
            },
        );
    }

    #[test]
    fn instances_are_refused_or_written_so_that_they_are_read_back() {
        let good = [
            r#"{"id":"a","addresses":["10.0.0.5:50051"]}"#,
            r#"{"id":"b","addresses":["h:1","unix:/x"],"weight":3,"zone":"z","version":"1","server_name":"s","tags":{"k":"v"},"serving":false}"#,
        ];
        let words = [
            "null",
            "-1",
            "1e9",
            "[[[[",
            r#""weight":"#,
            r#""tags":{}"#,
            r#"\u0000"#,
            "\"h:1\"",
        ];
        text(&good, &words, |input| {
            let Ok(instance) = serde_json::from_str::<Instance>(input) else {
                return false;
            };
            assert!(instance.check().is_ok());
            let written = serde_json::to_string(&instance).unwrap();
            assert_eq!(
                serde_json::from_str::<Instance>(&written).unwrap(),
                instance
            );
            true
        });
    }
}
