//! Metadata whose values are bytes.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tonic::metadata::MetadataMap;

/// The bytes that the value of a `-bin` header stands for, as tonic reads base64, which some pad and others do not;
/// none if it is no base64.
pub(crate) fn bytes_of(value: &HeaderValue) -> Option<Bytes> {
    const NAME: &str = "one-bin";
    let mut one = HeaderMap::with_capacity(1);
    one.insert(NAME, value.clone());
    let one = MetadataMap::from_headers(one);
    one.get_bin(NAME)?.to_bytes().ok()
}
