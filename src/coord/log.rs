//! What is told to many, each of whom reads at a pace of his own.

use std::collections::VecDeque;

/// Words in order, each kept until all who were there when it was said have read it, or until there are too many
/// bytes of them.
#[derive(Debug)]
pub(super) struct Log<T> {
    words: VecDeque<Word<T>>,
    /// The place of the first of them; those before it are gone.
    first: u64,
    /// Of all of them together.
    bytes: usize,
    most: usize,
    readers: usize,
}

#[derive(Debug)]
struct Word<T> {
    word: T,
    bytes: usize,
    /// How many have yet to read it.
    left: usize,
}

/// What there is to read.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Next<T> {
    Word(T),
    /// What came next is gone: whoever asks is too far behind.
    Gone,
    Nothing,
}

impl<T: Clone> Log<T> {
    /// Keeps no more bytes than this; but the newest word, however large.
    pub(super) fn of(most: usize) -> Self {
        Self {
            words: VecDeque::new(),
            first: 0,
            bytes: 0,
            most,
            readers: 0,
        }
    }

    /// One more reads, from here on; answers with the place.
    pub(super) fn join(&mut self) -> u64 {
        self.readers += 1;
        self.end()
    }

    /// The one who has read up to here reads no more.
    pub(super) fn leave(&mut self, mut at: u64) {
        self.skip(&mut at);
        self.readers -= 1;
    }

    /// Says something to all who read.
    pub(super) fn push(&mut self, word: T, bytes: usize) {
        if self.readers == 0 {
            return;
        }
        let left = self.readers;
        self.words.push_back(Word { word, bytes, left });
        self.bytes = self.bytes.saturating_add(bytes);
        while self.bytes > self.most && self.words.len() > 1 {
            self.forget();
        }
    }

    /// The next word for who has read up to here.
    pub(super) fn next(&mut self, at: &mut u64) -> Next<T> {
        let Some(nth) = at.checked_sub(self.first) else {
            return Next::Gone;
        };
        let nth = usize::try_from(nth).unwrap_or(usize::MAX);
        let Some(next) = self.words.get_mut(nth) else {
            return Next::Nothing;
        };
        *at += 1;
        next.left -= 1;
        let word = next.word.clone();
        self.tidy();
        Next::Word(word)
    }

    /// The one who has read up to here passes over the rest.
    pub(super) fn skip(&mut self, at: &mut u64) {
        let read = usize::try_from(at.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for word in self.words.iter_mut().skip(read) {
            word.left -= 1;
        }
        *at = self.end();
        self.tidy();
    }

    fn end(&self) -> u64 {
        self.first + self.words.len() as u64
    }

    /// Lets go of what all have read.
    fn tidy(&mut self) {
        while self.words.front().is_some_and(|word| word.left == 0) {
            self.forget();
        }
    }

    fn forget(&mut self) {
        if let Some(word) = self.words.pop_front() {
            self.first += 1;
            self.bytes -= word.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_reads_what_was_said_since_they_came() {
        let mut log = Log::of(100);
        log.push("nobody hears it", 1);
        let mut early = log.join();
        log.push("a", 1);
        let mut late = log.join();
        log.push("b", 1);

        assert_eq!(log.next(&mut early), Next::Word("a"));
        assert_eq!(log.next(&mut early), Next::Word("b"));
        assert_eq!(log.next(&mut early), Next::Nothing);
        assert_eq!(log.next(&mut late), Next::Word("b"));
        assert_eq!((log.words.len(), log.bytes), (0, 0), "all have read it");
    }

    #[test]
    fn who_is_too_many_bytes_behind_is_told_so_and_holds_nobody_up() {
        let mut log = Log::of(10);
        let (mut slow, mut quick) = (log.join(), log.join());

        for word in 0..5 {
            log.push(word, 4);
            assert_eq!(log.next(&mut quick), Next::Word(word));
        }
        assert_eq!((log.words.len(), log.bytes), (2, 8));
        assert_eq!(log.next(&mut slow), Next::Gone);
        log.skip(&mut slow);
        log.push(5, 1_000);

        assert_eq!(log.next(&mut slow), Next::Word(5), "however large it is");
        log.leave(quick);
        assert_eq!((log.words.len(), log.bytes), (0, 0));
    }

    proptest! {
        /// However they come, read, skip and go: nobody hears a word twice or out of order, or misses one unsaid.
        #[test]
        fn nobody_misses_a_word_without_being_told(
            steps in prop::collection::vec((0..5u8, 0..4usize), 0..200)
        ) {
            let mut log = Log::of(12);
            // Of each who reads: the place, and the next word to be heard.
            let mut readers: Vec<(u64, usize)> = Vec::new();
            let mut said = 0;
            for (step, which) in steps {
                let one = which % readers.len().max(1);
                match step {
                    0 => readers.push((log.join(), said)),
                    1 if !readers.is_empty() => log.leave(readers.swap_remove(one).0),
                    2 => {
                        log.push(said, which + 1);
                        said += 1;
                    }
                    _ => if let Some((at, next)) = readers.get_mut(one) {
                        match log.next(at) {
                            Next::Word(word) => {
                                prop_assert_eq!(word, *next);
                                *next += 1;
                            }
                            Next::Gone => {
                                log.skip(at);
                                *next = said;
                            }
                            Next::Nothing => prop_assert_eq!(*next, said),
                        }
                    }
                }
                prop_assert!(log.bytes <= 12 || log.words.len() == 1);
                prop_assert!(log.words.iter().all(|word| word.left > 0));
            }
            for (at, _) in readers.drain(..) {
                log.leave(at);
            }
            prop_assert_eq!((log.words.len(), log.bytes, log.readers), (0, 0, 0));
        }
    }
}
