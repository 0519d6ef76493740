//! What a server says first: how much metadata it takes.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::overheard::Ear;

/// Listens to a peer's first frame.
///
/// That must be its settings, and has in it how large a head it takes. h2 keeps to the other settings by itself; a
/// head that is too large it sends, and many servers break the connection for it, with all calls that are on it.
pub(super) struct Greeting {
    /// Until the frame is over.
    words: Option<Words>,
    takes: Takes,
}

/// The most bytes that a request's head may have, as HTTP/2 counts them; all there can be until something else is
/// said.
#[derive(Clone, Debug)]
pub(super) struct Takes(Arc<AtomicU32>);

/// As much of the first frame as has come.
#[derive(Debug, Default)]
struct Words(Vec<u8>);

/// A frame's length, kind, flags and stream.
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// A number and a value.
const SETTING: usize = 6;
/// No call fits into less, so it cannot be meant; and an endpoint that no call ever leaves for is never found out.
const LEAST: u32 = 512;
/// Who has more to say than this about settings is no longer listened to.
const MOST: usize = 1024;

impl Greeting {
    pub(super) fn new() -> (Self, Takes) {
        let takes = Takes(Arc::new(AtomicU32::new(u32::MAX)));
        let greeting = Self {
            words: Some(Words::default()),
            takes: takes.clone(),
        };
        (greeting, takes)
    }
}

impl Ear for Greeting {
    fn read(&mut self, bytes: &[u8]) {
        let heard = self.words.as_mut().and_then(|words| words.hear(bytes));
        if let Some(takes) = heard {
            self.takes.0.store(takes, Relaxed);
            self.words = None;
        }
    }
}

impl Takes {
    pub(super) fn bytes(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

impl Words {
    /// What the frame says, once it is over.
    fn hear(&mut self, bytes: &[u8]) -> Option<u32> {
        let room = (HEAD + MOST).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let (head, payload) = self.0.split_at_checked(HEAD)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if head[3] != SETTINGS || length > MOST {
            return Some(u32::MAX);
        }
        let settings = payload.get(..length)?.chunks_exact(SETTING);
        let mut size = settings.filter_map(|setting| {
            let (id, value) = setting.split_first_chunk()?;
            let is_size = u16::from_be_bytes(*id) == MAX_HEADER_LIST_SIZE;
            let value = value.first_chunk().filter(|_| is_size)?;
            Some(u32::from_be_bytes(*value))
        });
        Some(
            size.next_back()
                .filter(|size| *size >= LEAST)
                .unwrap_or(u32::MAX),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::frame, *};

    fn settings(all: &[(u16, u32)]) -> Vec<u8> {
        let bytes =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame(
            SETTINGS,
            0,
            0,
            &all.iter().flat_map(bytes).collect::<Vec<_>>(),
        )
    }

    /// What is heard of words that come in pieces of this size, and in how many of them.
    fn heard(words: &[u8], piece: usize) -> Option<(u32, usize)> {
        let mut ear = Words::default();
        let mut pieces = words.chunks(piece).enumerate();
        pieces.find_map(|(n, piece)| Some((ear.hear(piece)?, n + 1)))
    }

    #[test]
    fn the_size_is_heard_however_the_words_are_cut() {
        let mut words = settings(&[(3, 100), (6, 16_384), (4, 65_535)]);
        let whole = words.len();
        words.extend(frame(6, 0, 0, &[0; 8]));

        for piece in 1..words.len() {
            assert_eq!(heard(&words, piece), Some((16_384, whole.div_ceil(piece))));
        }
    }

    #[test]
    fn who_says_nothing_about_it_or_what_cannot_be_meant_takes_all() {
        let large = frame(SETTINGS, 0, 0, &[0; 2 * MOST]);

        assert_eq!(heard(&settings(&[]), 64), Some((u32::MAX, 1)));
        assert_eq!(heard(&settings(&[(3, 1)]), 64), Some((u32::MAX, 1)));
        assert_eq!(heard(b"HTTP/1.1 400 Bad Request", 64), Some((u32::MAX, 1)));
        assert_eq!(heard(&large, 4096), Some((u32::MAX, 1)));
        assert_eq!(heard(&settings(&[(6, 0)]), 64), Some((u32::MAX, 1)));
        assert_eq!(
            heard(&settings(&[(6, 1_000), (6, 512)]), 64),
            Some((512, 1))
        );
    }

    proptest! {
        #[test]
        fn whatever_is_said_it_is_over_and_little_is_kept(words in proptest::collection::vec(any::<u8>(), 0..3_000), piece in 1_usize..500) {
            let mut ear = Words::default();

            let over = words.chunks(piece).any(|piece| ear.hear(piece).is_some());

            prop_assert!(over || words.len() < HEAD + MOST);
            prop_assert!(ear.0.len() <= HEAD + MOST);
        }
    }
}
