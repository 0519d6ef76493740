//! What services and their instances are called.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, parse::from_text};

/// The name of a service: `greeter`, or several segments, `shop/cart`.
///
/// Checked once, when made: no empty segment, no `.` or `..`, no white space or control character,
/// none of `?#\`, at most 255 bytes.
///
/// ```
/// let cart: tonic_fleet::ServiceName = "shop/cart".parse()?;
/// assert_eq!(cart.as_str(), "shop/cart");
/// assert!("shop//cart".parse::<tonic_fleet::ServiceName>().is_err());
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Arc<str>")]
pub struct ServiceName(Arc<str>);

/// What tells one instance of a service from another: one segment, no `/`.
///
/// Checked when made, as [`ServiceName`] is.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Arc<str>")]
pub struct InstanceId(Arc<str>);

/// The longest a name may be, in bytes.
const LONGEST: usize = 255;

impl ServiceName {
    /// Checks and keeps a name.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        check("service name", name)?;
        for segment in name.split('/') {
            check_segment("service name", name, segment)?;
        }
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl InstanceId {
    /// Checks and keeps an id.
    pub fn new(id: impl AsRef<str>) -> Result<Self, Error> {
        let id = id.as_ref();
        check("instance id", id)?;
        if id.contains('/') {
            return Err(Error::config(format!(
                "instance id {id:?} has a `/`: an id is one segment, so leave it out"
            )));
        }
        check_segment("instance id", id, id)?;
        Ok(Self(id.into()))
    }

    /// An id that no other instance has: sixteen random hexadecimal digits.
    pub fn random() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()).into())
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::config(format!(
            "the {what} is empty: give it a name"
        )));
    }
    if name.len() > LONGEST {
        return Err(Error::config(format!(
            "the {what} starting {:?} has {} bytes: at most {LONGEST} are allowed",
            name.chars().take(24).collect::<String>(),
            name.len()
        )));
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "?#\\".contains(c);
    if let Some((at, c)) = name.char_indices().find(|&(_, c)| forbidden(c)) {
        return Err(Error::config(format!(
            "{what} {name:?} has {c:?} at byte {at}: white space, control characters and ?#\\ are not allowed"
        )));
    }
    Ok(())
}

fn check_segment(what: &str, name: &str, segment: &str) -> Result<(), Error> {
    match segment {
        "" => Err(Error::config(format!(
            "{what} {name:?} has an empty segment: leave out the extra `/`"
        ))),
        "." | ".." => Err(Error::config(format!(
            "{what} {name:?} has the segment {segment:?}: relative segments are not allowed"
        ))),
        _ => Ok(()),
    }
}

macro_rules! a_name {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self, Error> {
                Self::new(name)
            }
        }

        from_text!($name);

        impl From<$name> for Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

a_name!(ServiceName);
a_name!(InstanceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_kept_as_given() {
        for name in [
            "greeter",
            "shop/cart",
            "services/echo",
            "a.b-c_d",
            "grüße/мир",
            "a:1",
        ] {
            assert_eq!(ServiceName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn bad_names_are_refused_with_what_and_where() {
        for (name, words) in [
            ("", "empty"),
            ("/a", "empty segment"),
            ("a/", "empty segment"),
            ("a//b", "empty segment"),
            ("a/../b", "\"..\""),
            (".", "\".\""),
            ("a b", "at byte 1"),
            ("a\n", "at byte 1"),
            ("a?b", "at byte 1"),
        ] {
            let error = ServiceName::new(name).unwrap_err().to_string();
            assert!(error.contains(words), "{name:?}: {error}");
        }
        assert!(ServiceName::new("x".repeat(256)).is_err());
        assert!(ServiceName::new("x".repeat(255)).is_ok());
    }

    #[test]
    fn an_id_is_one_segment() {
        assert!(InstanceId::new("a/b").is_err());
        assert!(InstanceId::new("127.0.0.1:50051").is_ok());
        assert_ne!(InstanceId::random(), InstanceId::random());
    }
}
