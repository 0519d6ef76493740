//! A value in a JSON document, which knows where it stands.

use std::time::Duration;

use serde_json::Value;

use super::duration;
use crate::Error;

/// A value that is there; what is `null` counts as absent, as in protobuf's JSON.
pub(super) struct Node<'v> {
    value: &'v Value,
    /// As `methodConfig[2].retryPolicy`; empty for the document.
    pub(super) path: String,
}

impl<'v> Node<'v> {
    pub(super) fn root(value: &'v Value) -> Self {
        let path = String::new();
        Self { value, path }
    }

    /// This is wrong with it.
    pub(super) fn wrong(&self, what: impl AsRef<str>) -> Error {
        let what = what.as_ref();
        Error::config(match &*self.path {
            "" => format!("service config: {what}"),
            path => format!("service config: {path}: {what}"),
        })
    }

    fn is_no(&self, wanted: &str) -> Error {
        self.wrong(format!("{} is not {wanted}", shown(self.value)))
    }

    /// The member of this name, if there is one.
    pub(super) fn get(&self, name: &str) -> Result<Option<Self>, Error> {
        let object = self
            .value
            .as_object()
            .ok_or_else(|| self.is_no("an object"))?;
        let value = object.get(name).filter(|value| !value.is_null());
        Ok(value.map(|value| self.member(name, value)))
    }

    /// The member of this name, which there must be.
    pub(super) fn need(&self, name: &str) -> Result<Self, Error> {
        let missing = || self.member(name, self.value).wrong("it is required");
        self.get(name)?.ok_or_else(missing)
    }

    /// The one member there is, and its name.
    pub(super) fn only(&self) -> Result<(&'v str, Self), Error> {
        let members = self
            .value
            .as_object()
            .ok_or_else(|| self.is_no("an object"))?;
        let mut members = members.iter();
        match (members.next(), members.next()) {
            (Some((name, value)), None) => Ok((name, self.member(name, value))),
            _ => Err(self.wrong("it has exactly one name")),
        }
    }

    fn member(&self, name: &str, value: &'v Value) -> Self {
        let path = match &*self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        Self { value, path }
    }

    pub(super) fn list(&self) -> Result<impl Iterator<Item = Node<'v>> + use<'v>, Error> {
        let values = self.value.as_array().ok_or_else(|| self.is_no("a list"))?;
        let path = self.path.clone();
        Ok(values.iter().enumerate().map(move |(place, value)| Node {
            value,
            path: format!("{path}[{place}]"),
        }))
    }

    pub(super) fn text(&self) -> Result<&'v str, Error> {
        self.value.as_str().ok_or_else(|| self.is_no("a text"))
    }

    pub(super) fn truth(&self) -> Result<bool, Error> {
        self.value
            .as_bool()
            .ok_or_else(|| self.is_no("true or false"))
    }

    /// A number; protobuf lets it be written as text, too.
    pub(super) fn number(&self) -> Result<f64, Error> {
        let number = match self.value {
            Value::String(text) => text.parse().ok(),
            value => value.as_f64(),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| self.is_no("a number"))
    }

    /// A whole number from 0 to 4,294,967,295.
    pub(super) fn whole(&self) -> Result<u32, Error> {
        let number = self.number()?;
        if number.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&number) {
            return Err(self.is_no("a whole number from 0 to 4294967295"));
        }
        Ok(number as u32)
    }

    pub(super) fn duration(&self) -> Result<Duration, Error> {
        let text = self.text()?;
        duration::read(text).map_err(|why| self.wrong(format!("{text:?}: {why}")))
    }

    /// A duration of more than nothing.
    pub(super) fn positive_duration(&self) -> Result<Duration, Error> {
        let duration = self.duration()?;
        if duration.is_zero() {
            return Err(self.wrong("it is 0: it must be more"));
        }
        Ok(duration)
    }

    pub(super) fn value(&self) -> &'v Value {
        self.value
    }
}

/// A value in an error: short ones in full.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        value => value.to_string().chars().take(64).collect(),
    }
}
