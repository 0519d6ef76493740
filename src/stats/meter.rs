//! How much of a body is messages.

/// Adds up the messages in a body: what is between their prefixes, as it is sent, be it compressed.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: u64,
    /// Of the message that is under way.
    left: u32,
    /// How much of the next prefix has come, and what it says so far.
    prefix: u8,
    length: u32,
}

/// A flag, and the length.
const PREFIX: usize = 5;

impl Meter {
    /// The bytes of messages so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next part of the body.
    #[inline]
    pub(crate) fn read(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let some = data.len().min(self.left as usize);
                self.bytes += some as u64;
                self.left -= some as u32;
                data = &data[some..];
            } else if let (0, Some(([_, length @ ..], rest))) =
                (self.prefix, data.split_first_chunk::<PREFIX>())
            {
                self.left = u32::from_be_bytes(*length);
                data = rest;
            } else {
                self.read_prefix(data[0]);
                data = &data[1..];
            }
        }
    }

    /// A prefix that comes in parts.
    #[cold]
    fn read_prefix(&mut self, byte: u8) {
        if self.prefix > 0 {
            self.length = (self.length << 8) | u32::from(byte);
        }
        self.prefix += 1;
        if usize::from(self.prefix) == PREFIX {
            self.left = self.length;
            (self.prefix, self.length) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_body_has_as_many_bytes_of_messages_however_it_is_cut(
            lengths in proptest::collection::vec(0_usize..300, 0..8),
            cuts in proptest::collection::vec(1_usize..20, 1..8),
        ) {
            let mut body = Vec::new();
            for &length in &lengths {
                body.push(0);
                body.extend((length as u32).to_be_bytes());
                body.extend(std::iter::repeat_n(7, length));
            }
            let mut meter = Meter::default();

            let mut cuts = cuts.into_iter().cycle();
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                meter.read(part);
                rest = after;
            }

            prop_assert_eq!(meter.bytes(), lengths.iter().sum::<usize>() as u64);
        }
    }
}
