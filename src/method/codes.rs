//! A set of status codes.

use std::fmt;

use tonic::Code;

/// Some of gRPC's seventeen status codes.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub(crate) struct Codes(u32);

/// Every code by its name, each at the place that is its number.
pub(super) const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a code, as gRPC writes it everywhere.
pub(crate) fn name(code: Code) -> &'static str {
    NAMES[code as usize % NAMES.len()]
}

impl Codes {
    pub(crate) fn contains(self, code: Code) -> bool {
        self.0 & bit(code) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let all = NAMES.into_iter().enumerate();
        all.filter_map(move |(number, name)| (self.0 >> number & 1 == 1).then_some(name))
    }
}

fn bit(code: Code) -> u32 {
    1 << code as i32
}

impl FromIterator<Code> for Codes {
    fn from_iter<I: IntoIterator<Item = Code>>(codes: I) -> Self {
        Self(codes.into_iter().fold(0, |all, code| all | bit(code)))
    }
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// The code of this number, or of this name in any case.
pub(super) fn numbered(number: i64) -> Option<Code> {
    (0..=16)
        .contains(&number)
        .then(|| Code::from_i32(number as i32))
}

pub(super) fn named(name: &str) -> Option<Code> {
    let mut names = NAMES.iter();
    let at = names.position(|known| known.eq_ignore_ascii_case(name))?;
    numbered(at as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name_at_its_number() {
        for (number, name) in NAMES.into_iter().enumerate() {
            let code = named(name).unwrap();

            assert_eq!(code as usize, number);
            assert_eq!(named(&name.to_lowercase()), Some(code));
            // `InvalidArgument` and `INVALID_ARGUMENT` differ by case and underscores alone.
            assert_eq!(format!("{code:?}").to_uppercase(), name.replace('_', ""));
        }
        assert_eq!(
            (numbered(17), numbered(-1), named("NOPE")),
            (None, None, None)
        );
    }

    #[test]
    fn a_set_has_what_it_was_given_and_nothing_else() {
        let codes: Codes = [Code::Unavailable, Code::Ok].into_iter().collect();

        assert!(codes.contains(Code::Unavailable) && codes.contains(Code::Ok));
        assert!(!codes.contains(Code::Unauthenticated) && !codes.contains(Code::Aborted));
        assert_eq!(format!("{codes:?}"), r#"{"OK", "UNAVAILABLE"}"#);
        assert!(Codes::default().is_empty());
    }
}
