//! Keys and values as etcd holds them.

use std::fmt;

use bytes::Bytes;

/// Which keys a question is about.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Span {
    /// Every key that starts with this.
    Prefix(String),
    /// This key alone.
    Key(String),
}

/// A key and its value, at some revision.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Kv {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    /// When the key came into being; it tells a new key from an old one of the same name.
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    /// The lease that it hangs on, or 0.
    pub(crate) lease: i64,
}

/// All of a span at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) all: Vec<Kv>,
    pub(crate) revision: i64,
}

impl Span {
    /// Its first key; etcd takes none that is empty.
    pub(crate) fn start(&self) -> &[u8] {
        match self {
            Self::Prefix(all) if all.is_empty() => b"\0",
            Self::Prefix(text) | Self::Key(text) => text.as_bytes(),
        }
    }

    /// The first key behind the span, in the form that etcd expects; none for a single key.
    pub(crate) fn end(&self) -> Option<Vec<u8>> {
        let Self::Prefix(prefix) = self else {
            return None;
        };
        let mut end = prefix.clone().into_bytes();
        // UTF-8 has no byte 0xFF, so the last byte can always grow.
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end.push(0),
        }
        Some(end)
    }
}

impl Kv {
    /// The key as text, for people.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.key)
    }
}

impl From<etcd_client::KeyValue> for Kv {
    fn from(kv: etcd_client::KeyValue) -> Self {
        let (create_revision, mod_revision, lease) =
            (kv.create_revision(), kv.mod_revision(), kv.lease());
        let (key, value) = kv.into_key_value();
        Self {
            key: key.into(),
            value: value.into(),
            create_revision,
            mod_revision,
            lease,
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(text) | Self::Key(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets of a configuration.
        f.debug_struct("Kv")
            .field("key", &self.name())
            .field("bytes", &self.value.len())
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .field("lease", &self.lease)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_begin_with_the_first_that_etcd_takes() {
        assert_eq!(Span::Prefix(String::new()).start(), b"\0");
        assert_eq!(Span::Prefix("/a/".into()).start(), b"/a/");
    }

    #[test]
    fn a_prefix_ends_before_its_neighbour() {
        let span = Span::Prefix("/services/greeter/".into());

        assert_eq!(span.end().unwrap(), b"/services/greeter0");
        assert_eq!(Span::Prefix(String::new()).end().unwrap(), [0]);
        assert_eq!(Span::Key("a".into()).end(), None);
    }
}
