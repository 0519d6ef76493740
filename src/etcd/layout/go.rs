//! JSON as Go's `encoding/json` reads and writes it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

/// The bytes that Go writes: what has a meaning in HTML is escaped.
///
/// Those characters stand in strings alone, so that no other part of the text is touched. Fields are in the
/// order of the struct, and maps by their keys, which is what a [`BTreeMap`] gives.
pub(super) fn write<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let text = serde_json::to_string(value)?;
    let escape = |c: char| match c {
        '<' => Some("\\u003c"),
        '>' => Some("\\u003e"),
        '&' => Some("\\u0026"),
        '\u{2028}' => Some("\\u2028"),
        '\u{2029}' => Some("\\u2029"),
        _ => None,
    };
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match escape(c) {
            Some(words) => escaped.push_str(words),
            None => escaped.push(c),
        }
    }
    Ok(escaped.into_bytes())
}

/// An object whose fields are found whatever the case of their names; unknown ones are passed over, and
/// `null` is as good as nothing.
#[derive(Debug)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    /// Reads a whole value, which must be an object.
    pub(super) fn read(value: &[u8]) -> Result<Self, String> {
        let value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        Self::of(value).ok_or_else(|| "it is no JSON object".into())
    }

    pub(super) fn of(value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Self(fields)),
            _ => None,
        }
    }

    /// The field of this name, if it is there and not `null`: the very name first, as Go has it.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let found = if self.0.contains_key(name) {
            name.to_owned()
        } else {
            let mut names = self.0.keys();
            names.find(|key| key.eq_ignore_ascii_case(name))?.clone()
        };
        self.0.remove(&found).filter(|value| !value.is_null())
    }

    /// A text; empty when it is missing.
    pub(super) fn text(&mut self, name: &str) -> Result<String, String> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(format!("its {name:?} is no string")),
        }
    }

    /// A whole number; zero when it is missing.
    pub(super) fn number(&mut self, name: &str) -> Result<i64, String> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .ok_or_else(|| format!("its {name:?} is no whole number")),
        }
    }

    /// A map of texts; empty when it is missing.
    pub(super) fn texts(&mut self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let refuse = || format!("its {name:?} is no map of strings");
        let Some(value) = self.take(name) else {
            return Ok(BTreeMap::new());
        };
        let Value::Object(fields) = value else {
            return Err(refuse());
        };
        let text = |(name, value)| match value {
            Value::String(text) => Ok((name, text)),
            Value::Null => Ok((name, String::new())),
            _ => Err(refuse()),
        };
        fields.into_iter().map(text).collect()
    }

    /// A list; empty when it is missing.
    pub(super) fn list(&mut self, name: &str) -> Result<Vec<Value>, String> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(format!("its {name:?} is no list")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_html_is_escaped() {
        let text = BTreeMap::from([("b", "<&>"), ("a", "\u{2028}\u{2029}\"\\é")]);

        let written = String::from_utf8(write(&text).unwrap()).unwrap();

        assert_eq!(
            written,
            "{\"a\":\"\\u2028\\u2029\\\"\\\\é\",\"b\":\"\\u003c\\u0026\\u003e\"}"
        );
    }

    #[test]
    fn names_are_found_in_any_case_and_null_is_nothing() {
        let mut object = Object::read(br#"{"addr":"x","ADDR":"y","Op":null,"n":7}"#).unwrap();

        assert_eq!(object.text("ADDR").unwrap(), "y");
        assert_eq!(object.text("Addr").unwrap(), "x");
        assert_eq!(object.number("op").unwrap(), 0);
        assert_eq!(object.number("N").unwrap(), 7);
        assert!(object.texts("none").unwrap().is_empty());
    }

    #[test]
    fn what_is_of_another_kind_is_refused_by_name() {
        let text = br#"{"a":1,"b":"x","c":[],"d":{"k":1},"e":{}}"#;
        let mut object = Object::read(text).unwrap();

        let refused = [
            object.text("a").unwrap_err(),
            object.number("b").unwrap_err(),
            object.texts("c").unwrap_err(),
            object.texts("d").unwrap_err(),
            object.list("e").unwrap_err(),
        ];

        for (name, why) in ["a", "b", "c", "d", "e"].into_iter().zip(refused) {
            assert!(why.contains(&format!("{name:?}")), "{why}");
        }
        assert!(Object::read(b"[]").unwrap_err().contains("no JSON object"));
    }
}
