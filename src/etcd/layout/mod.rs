//! How instances stand in etcd: which key, which value.

mod json;
mod plain;

use std::{fmt, sync::Arc};

pub use json::Json;
pub use plain::Plain;

use crate::{Error, Instance, Result, ServiceName};

/// Maps instances to keys and values, and back.
///
/// ```
/// use tonic_fleet::{Instance, etcd::layout::{Json, Layout}};
///
/// let (greeter, layout) = ("greeter".parse()?, Json::default());
/// let instance = Instance::at("10.0.0.5:50051")?.id("a")?;
///
/// let key = layout.key(&greeter, &instance);
/// let value = layout.encode(&greeter, &instance)?;
///
/// assert_eq!(key, "/services/greeter/a");
/// assert_eq!(layout.decode(&greeter, &key, &value)?, instance);
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// What every key of a service starts with. Keys of others may, too: see [`owns`](Self::owns).
    fn prefix(&self, service: &ServiceName) -> String;

    /// Whether a key is where an instance of this very service stands, and not one of `shop/cart` when the
    /// service is `shop`, or of `greeter-v2` when it is `greeter`.
    fn owns(&self, service: &ServiceName, key: &str) -> bool;

    /// The key that an instance is written to.
    fn key(&self, service: &ServiceName, instance: &Instance) -> String;

    /// The value that an instance is written as.
    fn encode(&self, service: &ServiceName, instance: &Instance) -> Result<Vec<u8>>;

    /// The instance that stands in a key which the service [owns](Self::owns).
    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance>;
}

/// The layout that a URL names: `json`, which is ours and the default, or `plain`.
pub fn named(name: Option<&str>, prefix: Option<&str>) -> Result<Arc<dyn Layout>> {
    match name.unwrap_or("json") {
        "json" => Ok(Arc::new(prefix.map_or_else(Json::default, Json::under))),
        "plain" => Ok(Arc::new(prefix.map_or_else(Plain::default, Plain::under))),
        other => Err(Error::config(format!(
            "layout {other:?} is not known: use `json` or `plain`"
        ))),
    }
}

/// A prefix ends in `/`, so that `/services` does not run into the service's name; or it is empty.
fn ending_in_slash(prefix: &str) -> Arc<str> {
    match prefix {
        "" => "".into(),
        _ if prefix.ends_with('/') => prefix.into(),
        _ => format!("{prefix}/").into(),
    }
}

/// What stands behind a prefix, when it is a single segment.
fn one_segment<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    let rest = key.strip_prefix(prefix)?;
    (!rest.is_empty() && !rest.contains('/')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_go_by_their_names() {
        let greeter = "greeter".parse().unwrap();

        let ours = named(None, None).unwrap();
        let moved = named(Some("json"), Some("/prod")).unwrap();
        let bare = named(Some("plain"), Some("")).unwrap();

        assert_eq!(ours.prefix(&greeter), "/services/greeter/");
        assert_eq!(moved.prefix(&greeter), "/prod/greeter/");
        assert_eq!(bare.prefix(&greeter), "greeter");
        let error = named(Some("yaml"), None).unwrap_err().to_string();
        assert!(error.contains("`json` or `plain`"), "{error}");
    }
}
