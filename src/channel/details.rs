//! Details of a status that nobody can read.

use http::{HeaderMap, HeaderName};

use crate::binary::bytes_of;

static DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Takes away details that are not base64: tonic, which reads them wherever there is a status, panics over them, and
/// a server is not to bring its callers down.
pub(super) fn tidy(metadata: &mut HeaderMap) {
    // Looked through, as there are few: to look a name up is to hash it.
    let are_unreadable = metadata
        .iter()
        .any(|(name, value)| *name == DETAILS && bytes_of(value).is_none());
    if are_unreadable {
        metadata.remove(&DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use tonic::{Code, Status};

    use super::*;

    fn trailers(details: &[u8]) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        trailers.insert(&DETAILS, HeaderValue::from_bytes(details).unwrap());
        trailers
    }

    #[test]
    fn details_that_can_be_read_are_kept_and_no_others() {
        for (details, kept) in [
            ("", true),
            ("CAU", true),
            ("CAU=", true),
            ("CAUSAA==", true),
            ("CAUSAA=", true),
            ("CAUSAA", true),
            ("+/+/", true),
            ("!!!", false),
            ("CAV", false),
            ("CAUSA", false),
            ("CAU==", false),
            ("CA=U", false),
            ("====", false),
            ("-_-_", false),
        ] {
            let mut trailers = trailers(details.as_bytes());

            tidy(&mut trailers);

            assert_eq!(trailers.contains_key(&DETAILS), kept, "{details:?}");
        }
    }

    proptest! {
        #[test]
        fn tonic_reads_whatever_is_kept(details in "[A-Ca+/=! \u{e9}-]{0,9}") {
            let mut trailers = trailers(details.as_bytes());

            tidy(&mut trailers);

            let status = Status::from_header_map(&trailers).unwrap();
            prop_assert_eq!(status.code(), Code::NotFound);
        }

        #[test]
        fn what_tonic_writes_is_kept(details in proptest::collection::vec(any::<u8>(), 1..9)) {
            let status = Status::with_details(Code::NotFound, "", details.clone().into());
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();

            tidy(&mut trailers);

            let read = Status::from_header_map(&trailers).unwrap();
            prop_assert_eq!(read.details(), &details[..]);
        }
    }
}
