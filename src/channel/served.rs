//! Which server a call went to.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tonic::Status;

use crate::{Address, InstanceId, transport::Peer};

/// The server that a call went to: in the extensions of every response, and to be read off every status.
///
/// ```no_run
/// # fn example<T>(response: tonic::Response<T>, status: tonic::Status) {
/// use tonic_fleet::ServedBy;
///
/// if let Some(server) = response.extensions().get::<ServedBy>() {
///     println!("answered by {} at {}", server.id(), server.address());
/// }
/// if let Some(server) = ServedBy::of(&status) {
///     println!("failed at {}", server.id());
/// }
/// # }
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct ServedBy(Arc<Peer>);

/// The metadata in which a status says it: the id and the address.
const KEY: &str = "fleet-served-by";

/// What would not survive in metadata, or would be taken for the gap between id and address.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

impl ServedBy {
    /// The one at the other end of a connection.
    pub(super) fn by(peer: &Arc<Peer>) -> Self {
        Self(Arc::clone(peer))
    }

    /// One with this id, somewhere.
    #[cfg(test)]
    pub(super) fn at(id: &InstanceId) -> Self {
        Self(Arc::new(Peer {
            id: id.clone(),
            address: "10.0.0.1:1".parse().expect("an address"),
        }))
    }

    /// The server that this status came from, or that was called when it came about.
    ///
    /// None when the call never got as far as a server.
    pub fn of(status: &Status) -> Option<Self> {
        let (id, address) = status.metadata().get(KEY)?.to_str().ok()?.split_once(' ')?;
        let decoded = |text| percent_decode_str(text).decode_utf8().ok();
        Some(Self(Arc::new(Peer {
            id: InstanceId::new(decoded(id)?).ok()?,
            address: decoded(address)?.parse().ok()?,
        })))
    }

    /// Whether a status says that there was one.
    pub(super) fn is_in(status: &Status) -> bool {
        status.metadata().contains_key(KEY)
    }

    /// The instance's id.
    pub fn id(&self) -> &InstanceId {
        &self.0.id
    }

    /// The address at which it was connected.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Says so in the headers or trailers of a failure.
    pub(super) fn note(&self, metadata: &mut HeaderMap) {
        if let Some(value) = self.value() {
            metadata.insert(KEY, value);
        }
    }

    /// Says so in a status.
    pub(super) fn note_in(&self, status: &mut Status) {
        let value = self
            .value()
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(value) = value {
            status.metadata_mut().insert(KEY, value);
        }
    }

    fn value(&self) -> Option<HeaderValue> {
        let address = self.0.address.to_string();
        let [id, address] =
            [self.0.id.as_str(), &address].map(|text| utf8_percent_encode(text, ESCAPED));
        HeaderValue::try_from(format!("{id} {address}")).ok()
    }
}

impl fmt::Debug for ServedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedBy")
            .field("id", self.id())
            .field("address", self.address())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_what_was_noted_in_it() {
        for (id, address) in [
            ("a", "10.0.0.1:1"),
            ("grüße-100%", "unix:/run/a b.sock"),
            ("i", "[::1]:5"),
        ] {
            let served = ServedBy(Arc::new(Peer {
                id: id.parse().unwrap(),
                address: address.parse().unwrap(),
            }));
            let mut status = Status::unavailable("gone");

            served.note_in(&mut status);

            assert_eq!(ServedBy::of(&status), Some(served));
        }
        assert_eq!(ServedBy::of(&Status::unavailable("nobody")), None);
    }
}
