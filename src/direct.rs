//! Where one call goes, when its caller knows better than the policy.

use std::{fmt, sync::Arc};

use crate::{Endpoint, InstanceId};

/// Where a call goes, and where it does not: an extension of its request.
///
/// Of the servers that are ready those that fit all that is asked for are taken, in the policy's way where it
/// picks one of them; a call that nobody fits waits for one, as a call waits that finds nobody ready.
///
/// Directing costs a little more the fewer servers fit. A policy suits what all calls are to do.
///
/// ```
/// use tonic::Request;
/// use tonic_fleet::Direct;
///
/// # struct Show;
/// let mut request = Request::new(Show);
/// // Nearby if anybody there is ready, and else anywhere.
/// request.extensions_mut().insert(Direct::zone("eu-1").or_any());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Direct(Arc<Wish>);

#[derive(Clone, Debug, Default)]
struct Wish {
    to: Option<InstanceId>,
    not: Vec<InstanceId>,
    zone: Option<Arc<str>>,
    tags: Vec<(Arc<str>, Arc<str>)>,
    or_any: bool,
    key: Option<Arc<[u8]>>,
}

impl Direct {
    /// Anywhere, until more is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// To this instance, as long as it is connected: even when it drains, or is not well. Fails at once with
    /// `UNAVAILABLE` when the registry does not have it.
    pub fn to(id: InstanceId) -> Self {
        Self::new().with(|wish| wish.to = Some(id))
    }

    /// To an instance in this zone.
    pub fn zone(zone: impl Into<Arc<str>>) -> Self {
        Self::new().with(|wish| wish.zone = Some(zone.into()))
    }

    /// To an instance with this tag.
    pub fn tag(name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        Self::new().and_tag(name, value)
    }

    /// Not to these, even if nobody else is there.
    pub fn avoiding(ids: impl IntoIterator<Item = InstanceId>) -> Self {
        Self::new().and_avoiding(ids)
    }

    /// With a key for policies that send what has the same key to the same server; see
    /// [`Call::key`](crate::balance::Call::key).
    pub fn by_key(key: impl AsRef<[u8]>) -> Self {
        Self::new().and_key(key)
    }

    /// In this zone as well.
    #[must_use]
    pub fn and_zone(self, zone: impl Into<Arc<str>>) -> Self {
        self.with(|wish| wish.zone = Some(zone.into()))
    }

    /// With this tag as well.
    #[must_use]
    pub fn and_tag(self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.with(|wish| wish.tags.push((name.into(), value.into())))
    }

    /// Not to these either.
    #[must_use]
    pub fn and_avoiding(self, ids: impl IntoIterator<Item = InstanceId>) -> Self {
        self.with(|wish| wish.not.extend(ids))
    }

    /// With this key as well.
    #[must_use]
    pub fn and_key(self, key: impl AsRef<[u8]>) -> Self {
        self.with(|wish| wish.key = Some(key.as_ref().into()))
    }

    /// Anywhere when nobody in the zone, or with the tags, is ready. What is to be avoided still is, and
    /// one [instance](Self::to) is none other.
    #[must_use]
    pub fn or_any(self) -> Self {
        self.with(|wish| wish.or_any = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Wish)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    pub(crate) fn pinned(&self) -> Option<&InstanceId> {
        self.0.to.as_ref()
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    pub(crate) fn falls_back(&self) -> bool {
        self.0.or_any
    }

    /// Whether there is anybody it must not go to, or need not.
    pub(crate) fn restricts(&self) -> bool {
        let wish = &*self.0;
        wish.to.is_some() || wish.zone.is_some() || !wish.not.is_empty() || !wish.tags.is_empty()
    }

    /// Whether it may go there at all.
    pub(crate) fn permits(&self, endpoint: &Endpoint) -> bool {
        let pinned = self.0.to.as_ref();
        pinned.is_none_or(|id| id == endpoint.id()) && !self.0.not.contains(endpoint.id())
    }

    /// Whether it is to go there rather than elsewhere.
    pub(crate) fn prefers(&self, endpoint: &Endpoint) -> bool {
        let instance = endpoint.instance();
        let has_tag = |(name, value): &(Arc<str>, Arc<str>)| {
            instance
                .tags
                .get(&**name)
                .is_some_and(|has| **has == **value)
        };
        let zone = self.0.zone.as_ref();
        zone.is_none_or(|zone| instance.zone.as_ref() == Some(zone))
            && self.0.tags.iter().all(has_tag)
            && self.permits(endpoint)
    }
}

/// What is asked for, in words.
impl fmt::Display for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wish = &*self.0;
        let mut words: Vec<String> = Vec::new();
        words.extend(wish.to.iter().map(|id| format!("instance {id}")));
        words.extend(wish.zone.iter().map(|zone| format!("zone {zone}")));
        words.extend(
            wish.tags
                .iter()
                .map(|(name, value)| format!("tag {name}={value}")),
        );
        words.extend(wish.not.iter().map(|id| format!("not {id}")));
        words.extend(wish.or_any.then(|| "or any".to_owned()));
        match words.is_empty() {
            true => f.write_str("anywhere"),
            false => f.write_str(&words.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instance;

    fn endpoint(id: &str, zone: &str, tag: &str) -> Endpoint {
        let instance = Instance::at("10.0.0.1:1")
            .and_then(|one| one.id(id))
            .unwrap();
        Endpoint::idle(instance.zone(zone).tag("tier", tag))
    }

    fn id(id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    #[test]
    fn all_that_is_asked_for_must_fit() {
        let (here, there) = (endpoint("a", "eu", "gold"), endpoint("b", "us", "gold"));
        for (direct, fits) in [
            (Direct::new(), [true, true]),
            (Direct::to(id("a")), [true, false]),
            (Direct::zone("us"), [false, true]),
            (Direct::tag("tier", "gold"), [true, true]),
            (Direct::tag("tier", "gold").and_zone("eu"), [true, false]),
            (Direct::tag("tier", "iron"), [false, false]),
            (Direct::tag("mood", "gold"), [false, false]),
            (Direct::avoiding([id("a")]), [false, true]),
            (Direct::zone("eu").and_avoiding([id("a")]), [false, false]),
            (Direct::by_key("k"), [true, true]),
        ] {
            let found = [&here, &there].map(|endpoint| direct.prefers(endpoint));
            assert_eq!(found, fits, "{direct}");
        }
    }

    #[test]
    fn a_key_alone_restricts_nothing() {
        assert!(!Direct::by_key("k").restricts() && !Direct::new().or_any().restricts());
        assert!(Direct::zone("eu").restricts() && Direct::avoiding([id("a")]).restricts());
        assert_eq!(Direct::by_key("k").key(), Some(&b"k"[..]));
    }

    #[test]
    fn what_is_asked_for_is_said() {
        let direct = Direct::zone("eu")
            .and_tag("tier", "gold")
            .and_avoiding([id("a")]);

        assert_eq!(
            direct.or_any().to_string(),
            "zone eu, tag tier=gold, not a, or any"
        );
        assert_eq!(Direct::to(id("a")).to_string(), "instance a");
        assert_eq!(Direct::by_key("k").to_string(), "anywhere");
    }
}
