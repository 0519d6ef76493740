//! Where a layout's keys begin, and what stands behind that.

use std::{fmt::Display, sync::Arc};

/// What stands before the service in every key.
///
/// It ends in `/`, so that `/services` does not run into the service's name; or it is empty.
#[derive(Clone, Debug)]
pub(super) struct Root(Arc<str>);

impl Root {
    pub(super) fn new(prefix: &str) -> Self {
        Self(match prefix {
            "" => "".into(),
            _ if prefix.ends_with('/') => prefix.into(),
            _ => format!("{prefix}/").into(),
        })
    }

    /// What every key of a service begins with: `/services/greeter/`.
    pub(super) fn of(&self, service: impl Display) -> String {
        format!("{}{service}/", self.0)
    }

    /// The key of the service itself: `/services/greeter`.
    pub(super) fn itself(&self, service: impl Display) -> String {
        format!("{}{service}", self.0)
    }

    /// What a key has behind its service, when it is a single segment.
    pub(super) fn segment<'a>(&self, service: impl Display, key: &'a str) -> Option<&'a str> {
        self.below(service, key).filter(|rest| !rest.contains('/'))
    }

    /// What a key has behind its service, however many segments it has.
    pub(super) fn below<'a>(&self, service: impl Display, key: &'a str) -> Option<&'a str> {
        let rest = key.strip_prefix(&self.of(service))?;
        (!rest.is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_what_stands_behind_it_and_nothing_of_its_neighbours() {
        for root in [Root::new("/services"), Root::new("/services/")] {
            assert_eq!(root.of("shop"), "/services/shop/");
            assert_eq!(root.itself("shop"), "/services/shop");
            assert_eq!(root.segment("shop", "/services/shop/a"), Some("a"));
            assert_eq!(root.segment("shop", "/services/shop/cart/a"), None);
            assert_eq!(root.below("shop", "/services/shop/cart/a"), Some("cart/a"));
            for key in [
                "/services/shop/",
                "/services/shop",
                "/services/shopping/a",
                "",
            ] {
                assert_eq!(root.below("shop", key), None, "{key}");
            }
        }
        assert_eq!(Root::new("").of("shop"), "shop/");
    }
}
