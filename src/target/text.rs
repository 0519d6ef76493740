//! How the pieces of a URL are written, read and shown.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::query::is_public;
use crate::Error;

/// What stands for itself in users, passwords and query values; `/` and `:` are harmless in the last two.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const PATH: &AsciiSet = &PLAIN
    .remove(b'/')
    .remove(b':')
    .remove(b',')
    .remove(b'=')
    .remove(b'+')
    .remove(b'!')
    .remove(b'[')
    .remove(b']');

/// More of a wrong URL than this is not shown.
const SHOWN: usize = 200;

/// A user or password, so that it can be read back.
pub(super) fn hidden_word(word: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(word, PLAIN)
}

/// A path or the value of a parameter, so that it can be read back.
pub(super) fn word(word: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(word, PATH)
}

/// Puts `%2F` and the like right. The part itself is not in the error: it may be secret.
pub(super) fn decode(part: &str) -> Result<String, String> {
    let mut rest = part;
    while let Some((_, after)) = rest.split_once('%') {
        let digits = after.as_bytes().get(..2);
        if !digits.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)) {
            return Err("a `%` without two hexadecimal digits; write `%25` for the sign".into());
        }
        rest = after;
    }
    let decoded = percent_decode_str(part).decode_utf8();
    let decoded = decoded.map_err(|_| "the percent-encoded bytes are not UTF-8".to_owned())?;
    if decoded.contains(char::is_control) {
        return Err("a control character".into());
    }
    Ok(decoded.into_owned())
}

/// A URL as it may be shown: nothing of what may be a user's password, or a token, is left.
pub(super) fn shown(text: &str) -> String {
    let masked = match text.rsplit_once('@') {
        None => public(text),
        Some((before, after)) => {
            // What comes behind a token's own `@` is the token's, and behind a `?` there are parameters.
            let after = match after.split_once('&') {
                Some((_, more)) if has_secret(before) => public(&format!("?{more}")),
                None if has_secret(before) => String::new(),
                Some((one, more)) if before.contains('?') => {
                    format!("{}{}", public(one), public(&format!("?{more}")))
                }
                _ => public(after),
            };
            match before.split_once("://") {
                Some((scheme, _)) if is_scheme(scheme) => format!("{scheme}://***@{after}"),
                _ => format!("***@{after}"),
            }
        }
    };
    match masked.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &masked[..end]),
        None => masked,
    }
}

/// Whether a parameter stands there that may be the token, even if it is misspelt.
fn has_secret(text: &str) -> bool {
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let mut names = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, _)| name);
    text.contains(TOKEN) || names.any(|name| !is_public(name))
}

const TOKEN: &str = "token=";

/// The same without the values of parameters that nobody knows: it may be the token, misspelt.
fn public(text: &str) -> String {
    let Some((before, query)) = text.split_once('?') else {
        return text.to_owned();
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if !is_public(name) => format!("{name}=***"),
        _ => pair.to_owned(),
    });
    format!("{before}?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// Whether it could be the name of a scheme.
pub(super) fn is_scheme(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    !text.is_empty() && text.len() <= 24 && text.chars().all(fits)
}

/// A refusal that names the URL, without its secrets, and what is wrong with it.
pub(super) fn refuse(url: &str, what: impl fmt::Display) -> Error {
    Error::config(format!("registry URL {:?}: {what}", shown(url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_password_is_not_shown() {
        for (text, masked) in [
            ("etcd://h:1/greeter", "etcd://h:1/greeter"),
            ("etcd://user:secret@h:1", "etcd://***@h:1"),
            ("etcd://user:sec@ret@h:1", "etcd://***@h:1"),
            ("etcd://user:sec://ret@h:1", "etcd://***@h:1"),
            ("etcd:/user:secret@h:1", "***@h:1"),
            ("user:secret://x@h", "***@h"),
            ("consul://h/a?token=x&dc=b", "consul://h/a?token=***&dc=b"),
            ("consul://h/a?Token=x", "consul://h/a?Token=***"),
            ("consul://h/a?token=x@y&dc=b", "consul://***@?dc=b"),
            ("consul://h/a?token=x@y", "consul://***@"),
            ("consul://h/a?Token=a@secret", "consul://***@"),
            (
                "consul://h/a?dc=b&tokn=a@secret&tag=c",
                "consul://***@?tag=c",
            ),
            (
                "consul://h/a?dc=b@c?Token=secret&tag=c",
                "consul://***@c?Token=***?tag=c",
            ),
        ] {
            assert_eq!(shown(text), masked);
        }
        assert!(shown(&"x".repeat(5000)).len() < 300);
    }

    #[test]
    fn words_are_written_so_that_they_are_read_back() {
        for text in ["a/b:c", "ü@%+&=#? ", "p:w/@"] {
            assert_eq!(decode(&word(text).to_string()).unwrap(), text);
            assert_eq!(decode(&hidden_word(text).to_string()).unwrap(), text);
        }
    }

    #[test]
    fn half_an_escape_is_refused() {
        for text in ["%", "%2", "a%zz", "%ff", "%00", "%25%"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
