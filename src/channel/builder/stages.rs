//! Whom the channel uses at all.

use std::sync::Arc;

use super::Builder;
use crate::{
    Error, RegistryUrl,
    stage::{Filter, Stages, Subset, Zones},
};

impl Builder {
    /// Uses those instances alone that fit. All, unless set here or by `?filter=` in the target's URL; see
    /// [`Filter`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// use tonic_fleet::{Channel, stage::Filter};
    ///
    /// let canary = Channel::builder("static://10.0.0.5:50051/greeter".parse()?)
    ///     .filter(Filter::version("2").or_any())
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn filter(mut self, filter: Filter) -> Self {
        self.limits.stages.filter = Some(filter);
        self
    }

    /// Connects to so many of those, and not to all. All, unless set here or by `?subset=` in the target's URL;
    /// see [`Subset`].
    pub fn subset(mut self, subset: Subset) -> Self {
        self.limits.stages.subset = Some(subset);
        self
    }

    /// Prefers the servers of the channel's own zone. Zones make no difference, unless set here or by `?zone=` in
    /// the target's URL; see [`Zones`].
    pub fn zones(mut self, zones: Zones) -> Self {
        self.limits.stages.zones = Some(zones);
        self
    }

    /// What a registry's URL says of stages; it has been checked.
    pub(super) fn stages_of(registry: &RegistryUrl) -> Stages {
        let filter = registry
            .filter()
            .and_then(|text| text.parse::<Filter>().ok());
        let filter = match registry.or_else() {
            Some("any") => filter.map(Filter::or_any),
            Some(other) => filter.map(|filter| match other.parse() {
                Ok(other) => filter.or(other),
                Err(_) => filter,
            }),
            None => filter,
        };
        let mut zones = registry.zones().iter();
        let zones = zones.next().map(|mine| {
            let order = zones.clone();
            order.fold(Zones::mine(Arc::clone(mine)), |zones, zone| {
                zones.then(Arc::clone(zone))
            })
        });
        Stages {
            filter,
            zones,
            subset: registry.subset().map(Subset::of),
        }
    }

    pub(super) fn check_stages(&self) -> Result<(), Error> {
        self.limits.stages.check()
    }
}
