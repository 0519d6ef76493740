//! Which method is which.

use std::{collections::HashMap, sync::Arc};

use super::Method;
use crate::Error;

/// What is wanted of which method's calls.
///
/// The most specific entry says all: that of the method, or else of its service, or else of all. Entries are
/// not mixed.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::method::{Method, Methods};
///
/// let slow = Method::new().timeout(Duration::from_secs(60));
/// let methods = Methods::new()
///     .with("", Method::new().timeout(Duration::from_secs(1)))?
///     .with("shop.Report", slow.clone())?;
///
/// assert_eq!(methods.find("/shop.Report/Yearly"), Some(&slow));
/// assert_ne!(methods.find("/shop.Cart/Show"), Some(&slow));
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Methods {
    /// By path, `/service/method`.
    exact: HashMap<Box<str>, Arc<Method>>,
    /// By what paths of theirs start with, `/service/`.
    services: HashMap<Box<str>, Arc<Method>>,
    rest: Option<Arc<Method>>,
}

impl Methods {
    /// None of which anything is wanted.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with this entry, in the place of one of that name.
    ///
    /// The name is that of a method, `package.Service/Method`, of a service, `package.Service`, or empty for
    /// all that have no entry of their own.
    ///
    /// # Errors
    /// When the name is none, or the method makes no sense.
    pub fn with(mut self, name: &str, method: Method) -> Result<Self, Error> {
        let place = place(name)?;
        let wrong = |error: Error| Error::config(format!("method {name:?}: {error}"));
        method.check().map_err(wrong)?;
        let method = Arc::new(method);
        match place {
            Place::Method(path) => self.exact.insert(path, method),
            Place::Service(start) => self.services.insert(start, method),
            Place::Rest => self.rest.replace(method),
        };
        Ok(self)
    }

    /// What is wanted of calls to this path, as `/package.Service/Method`.
    pub fn find(&self, path: &str) -> Option<&Method> {
        self.lookup(path).map(|method| &**method)
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.rest.is_none() && self.exact.is_empty() && self.services.is_empty()
    }

    /// The same, without the reference count: this is asked once a call.
    pub(crate) fn lookup(&self, path: &str) -> Option<&Arc<Method>> {
        if !self.exact.is_empty()
            && let Some(method) = self.exact.get(path)
        {
            return Some(method);
        }
        if !self.services.is_empty()
            && let Some(end) = path.rfind('/')
            && let Some(method) = self.services.get(&path[..=end])
        {
            return Some(method);
        }
        self.rest.as_ref()
    }

    /// These, and of those what these do not name.
    pub(crate) fn or(mut self, others: &Self) -> Self {
        for (path, method) in &others.exact {
            let entry = self.exact.entry(path.clone());
            entry.or_insert_with(|| Arc::clone(method));
        }
        for (start, method) in &others.services {
            let entry = self.services.entry(start.clone());
            entry.or_insert_with(|| Arc::clone(method));
        }
        self.rest = self.rest.or_else(|| others.rest.clone());
        self
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Method> {
        let named = self.exact.values().chain(self.services.values());
        named.chain(&self.rest).map(|method| &**method)
    }

    /// The same, each sent so many times at most.
    pub(crate) fn at_most(mut self, attempts: u32) -> Self {
        let all = self.exact.values_mut().chain(self.services.values_mut());
        for method in all.chain(&mut self.rest) {
            *method = Arc::new(method.at_most(attempts));
        }
        self
    }
}

enum Place {
    Method(Box<str>),
    Service(Box<str>),
    Rest,
}

fn place(name: &str) -> Result<Place, Error> {
    if name.is_empty() {
        return Ok(Place::Rest);
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || "?#".contains(c);
    let bare = name.strip_prefix('/').unwrap_or(name);
    // The last one: a service's name may have slashes, a method's none.
    let (service, method) = bare.rsplit_once('/').unwrap_or((bare, ""));
    if service.is_empty() || service.ends_with('/') || name.contains(bad) {
        return Err(Error::config(format!(
            "method {name:?}: a name is `package.Service/Method`, `package.Service`, or empty for all"
        )));
    }
    Ok(match method {
        "" => Place::Service(format!("/{service}/").into()),
        _ => Place::Method(format!("/{service}/{method}").into()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seconds(n: u64) -> Method {
        Method::new().timeout(Duration::from_secs(n))
    }

    fn found(methods: &Methods, path: &str) -> Option<u64> {
        Some(methods.find(path)?.timeout?.as_secs())
    }

    #[test]
    fn the_most_specific_name_wins() {
        let methods = Methods::new()
            .with("", seconds(1))
            .and_then(|methods| methods.with("a.B", seconds(2)))
            .and_then(|methods| methods.with("a.B/C", seconds(3)))
            .unwrap();

        for (path, seconds) in [
            ("/a.B/C", 3),
            ("/a.B/D", 2),
            ("/a.Bee/C", 1),
            ("/a/B/C", 1),
            ("/", 1),
            ("", 1),
        ] {
            assert_eq!(found(&methods, path), Some(seconds), "{path}");
        }
    }

    #[test]
    fn nobody_is_found_where_nothing_was_said() {
        let methods = Methods::new().with("a.B/C", seconds(1)).unwrap();

        assert_eq!(methods.find("/a.B/D"), None);
        assert_eq!(Methods::new().find("/a.B/C"), None);
        assert!(Methods::new().is_empty() && !methods.is_empty());
    }

    #[test]
    fn a_name_may_be_written_as_a_path() {
        for name in ["a.B/C", "/a.B/C"] {
            let methods = Methods::new().with(name, seconds(1)).unwrap();
            assert_eq!(found(&methods, "/a.B/C"), Some(1), "{name}");
        }
        for name in ["a.B", "/a.B", "a.B/", "/a.B/"] {
            let methods = Methods::new().with(name, seconds(1)).unwrap();
            assert_eq!(found(&methods, "/a.B/C"), Some(1), "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["/", "//", "//C", "a b", "a.B//C", "a.B/C?x"] {
            let refused = Methods::new().with(name, seconds(1)).unwrap_err();
            assert!(
                refused.to_string().contains("package.Service"),
                "{name}: {refused}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_whose_it_is() {
        let refused = Methods::new().with("a.B", seconds(0)).unwrap_err();

        assert_eq!(
            refused.to_string(),
            "method \"a.B\": timeout is 0: no call could ever succeed"
        );
    }

    #[test]
    fn entries_of_others_fill_the_gaps_and_no_more() {
        let ours = Methods::new().with("a.B", seconds(1)).unwrap();
        let theirs = Methods::new().with("a.B", seconds(2)).unwrap();
        let theirs = theirs.with("a.C", seconds(3)).unwrap();

        let both = ours.or(&theirs);

        assert_eq!(found(&both, "/a.B/X"), Some(1));
        assert_eq!(found(&both, "/a.C/X"), Some(3));
    }
}
