//! What is written as text may be given as text, wherever one of these is wanted.

/// Makes `TryFrom` for `&str` and `String` of a type's `FromStr`.
macro_rules! from_text {
    ($name:ident) => {
        impl TryFrom<&str> for $name {
            type Error = $crate::Error;

            fn try_from(text: &str) -> Result<Self, $crate::Error> {
                text.parse()
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::Error;

            fn try_from(text: String) -> Result<Self, $crate::Error> {
                text.parse()
            }
        }
    };
}

pub(crate) use from_text;
