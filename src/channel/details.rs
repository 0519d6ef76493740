//! Details of a status that nobody can read.

use http::{HeaderMap, HeaderName};

static DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Takes away details that are not base64: tonic, which reads them wherever there is a status, panics over them, and
/// a server is not to bring its callers down.
pub(super) fn tidy(metadata: &mut HeaderMap) {
    // Looked through, as there are few: to look a name up is to hash it.
    let are_unreadable = metadata
        .iter()
        .any(|(name, value)| *name == DETAILS && !is_base64(value.as_bytes()));
    if are_unreadable {
        metadata.remove(&DETAILS);
    }
}

/// Whether tonic can read it: with all of its padding, some, or none.
fn is_base64(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
    let symbols = &text[..text.len() - padding];
    // What the last symbol says beyond the last byte must be nothing.
    let (most, beyond) = match symbols.len() % 4 {
        0 => (0, 0b0000),
        2 => (2, 0b1111),
        3 => (1, 0b0011),
        _ => return false,
    };
    let last = symbols.last().map_or(Some(0), |&symbol| value(symbol));
    padding <= most
        && symbols.iter().all(|&symbol| value(symbol).is_some())
        && last.is_some_and(|last| last & beyond == 0)
}

/// What a symbol of base64 stands for.
fn value(symbol: u8) -> Option<u8> {
    Some(match symbol {
        b'A'..=b'Z' => symbol - b'A',
        b'a'..=b'z' => symbol - b'a' + 26,
        b'0'..=b'9' => symbol - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
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
