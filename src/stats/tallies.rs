//! The methods that a channel's calls named: as many as are worth telling apart.

use std::{
    array,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, Hasher},
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::{norm::Norm, tally::Tally};

/// Finds a method by its path, without a lock and without an allocation, once it is known.
///
/// Most channels call a few methods: those that came first are looked through. The others are in a table that
/// is replaced as a whole when a method is called for the first time. It is bounded, so that callers who pass
/// on paths of others' making cannot fill the memory: what comes when it is full is counted together, as
/// `other`.
#[derive(Debug)]
pub(crate) struct Tallies {
    since: Instant,
    /// Filled in order.
    first: [OnceLock<Arc<Tally>>; FIRST],
    known: ArcSwap<HashMap<Box<str>, Arc<Tally>, Seed>>,
    other: Arc<Tally>,
    /// What calls of all of them usually take.
    all: Arc<Norm>,
}

/// To look through so many takes no longer than to hash.
const FIRST: usize = 6;

/// How many methods are told apart.
pub(super) const MOST: usize = 1_000;

/// The name of the rest, as gRPC's metrics have it.
pub(super) const OTHER: &str = "other";

impl Tallies {
    pub(crate) fn new() -> Self {
        let (since, all) = (Instant::now(), Arc::default());
        Self {
            since,
            first: array::from_fn(|_| OnceLock::new()),
            known: ArcSwap::from_pointee(HashMap::with_hasher(Seed(rand::random()))),
            other: Arc::new(Tally::new(OTHER, since, &all)),
            all,
        }
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// The method with this path: `/package.Service/Method`.
    #[inline]
    pub(crate) fn method(&self, path: &str) -> Arc<Tally> {
        for first in &self.first {
            match first.get() {
                Some(tally) if tally.path() == path => return Arc::clone(tally),
                Some(_) => {}
                None => return self.learn(path),
            }
        }
        let known = self.known.load();
        match known.get(path) {
            Some(known) => Arc::clone(known),
            None if is_full(&known) => Arc::clone(&self.other),
            None => self.learn(path),
        }
    }

    #[cold]
    fn learn(&self, path: &str) -> Arc<Tally> {
        let new = Arc::new(Tally::new(path, self.since, &self.all));
        // Whoever else is at it finds the same place, and one of them fills it.
        let mut first = self.first.iter();
        let first = first.find_map(|first| {
            let there = first.get_or_init(|| Arc::clone(&new));
            (there.path() == path).then(|| Arc::clone(there))
        });
        first.unwrap_or_else(|| self.learn_more(new))
    }

    fn learn_more(&self, new: Arc<Tally>) -> Arc<Tally> {
        let path = new.path();
        self.known.rcu(|known| {
            if is_full(known) || known.contains_key(path) {
                return Arc::clone(known);
            }
            let mut more = HashMap::clone(known);
            more.insert(path.into(), Arc::clone(&new));
            Arc::new(more)
        });
        // Another may have been quicker.
        let known = self.known.load().get(path).cloned();
        known.unwrap_or_else(|| Arc::clone(&self.other))
    }

    /// All of them by their paths, and the rest if there is any.
    pub(super) fn all(&self) -> Vec<Arc<Tally>> {
        let known = self.known.load();
        let first = self.first.iter().filter_map(OnceLock::get);
        let all = first.chain(known.values());
        let sorted: BTreeMap<_, _> = all.map(|tally| (tally.path(), tally)).collect();
        let rest = is_full(&known).then_some(&self.other);
        sorted.into_values().chain(rest).cloned().collect()
    }
}

/// Whether what comes now is counted with the rest.
fn is_full<S>(known: &HashMap<Box<str>, Arc<Tally>, S>) -> bool {
    known.len() >= MOST - FIRST
}

/// Hashes a path eight bytes at a time: each call looks its own up, and the usual hash takes several times as
/// long to withstand tables without a bound. Another seed for each channel.
#[derive(Clone, Copy, Debug)]
struct Seed(u64);

struct Words(u64);

impl BuildHasher for Seed {
    type Hasher = Words;

    fn build_hasher(&self) -> Words {
        Words(self.0)
    }
}

impl Hasher for Words {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last));
    }

    #[inline]
    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    /// Both halves of the product: the table looks at the low bits and at the high ones.
    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn methods_beyond_the_most_are_one() {
        let methods = Tallies::new();
        for n in 0..MOST {
            let path = format!("/a.B/{n}");
            assert_eq!(methods.method(&path).path(), path);
        }

        let one_more = methods.method("/a.B/one-more");

        assert_eq!(one_more.path(), OTHER);
        assert!(Arc::ptr_eq(&one_more, &methods.method("/a.B/and-another")));
        assert_eq!(methods.all().len(), MOST + 1);
        assert_eq!(methods.method("/a.B/7").path(), "/a.B/7");
    }

    #[tokio::test]
    async fn who_call_a_method_first_at_once_count_together() {
        let methods = Tallies::new();
        let both = std::sync::Barrier::new(2);
        let find = || {
            both.wait();
            methods.method("/a.B/C")
        };

        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(find);
            (find(), one.join().unwrap())
        });

        assert!(Arc::ptr_eq(&one, &other));
    }
}
