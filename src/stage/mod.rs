//! Whom a channel uses at all, before its policy picks one of them.
//!
//! Three stages stand between the registry and every [policy](crate::balance), in this order, and each is off
//! unless set:
//!
//! | stage | who stays | set by | in the target's URL |
//! |---|---|---|---|
//! | [`Filter`] | who has a version, a zone or tags | [`Builder::filter`](crate::Builder::filter) | `?filter=version:2,tier:gold&else=any` |
//! | [`Zones`] | who is near, and others as far as the near cannot bear it | [`Builder::zones`](crate::Builder::zones) | `?zone=eu-1a` |
//! | [`Subset`] | so many, others for each client | [`Builder::subset`](crate::Builder::subset) | `?subset=20` |
//!
//! Whoever is left out is not connected, and so costs a record and no socket. The [`View`](crate::View) has all
//! of them, each with the reason: [`Endpoint::outside`](crate::Endpoint::outside).
//!
//! # What is guaranteed, and what is not
//!
//! - A filter without a fallback is strict: no call goes to anybody whom it does not fit, even when nobody else
//!   is there. Zones and subsets are not: whoever they leave out, and is still connected, serves before those
//!   who are doubted, drain or are unwell.
//! - Whom the zones or the subset let go of keeps its connection for a while (a minute and five seconds), and
//!   until somebody inside serves; calls in flight always end in peace.
//! - Too few are well: the subset and the zones look at who is well of those inside, and take in more; each says
//!   by which rule. An instance that nobody has tried yet counts as well, one that has lost its connection does
//!   not.
//! - [Panic](crate::Builder::panic_threshold) looks at those inside that are connected. While it lasts, calls go
//!   to all of these, whatever their zone. [Slow start](crate::Builder::slow_start) is for each endpoint alone:
//!   one that is taken in under load comes to its weight like any newcomer, among those of its zone; how many
//!   calls its zone gets does not wait for it.
//! - A call that asks for a zone or a tag finds those inside alone, and waits for one of them.
//! - A call that asks for [one instance](crate::Direct::to) which is left out fails at once, and says so.

mod filter;
mod rocksteadier;
mod seat;
mod selection;
mod spread;
mod subset;
mod zones;

use std::fmt;

pub use filter::Filter;
pub use seat::Seat;
pub(crate) use selection::{Fitness, Selection};
pub(crate) use spread::Spread;
#[cfg(feature = "etcd")]
pub(crate) use subset::ORDINAL;
pub use subset::Subset;
pub use zones::Zones;

use crate::Error;

/// The stages of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stages {
    pub(crate) filter: Option<Filter>,
    pub(crate) zones: Option<Zones>,
    pub(crate) subset: Option<Subset>,
}

/// Which stage leaves an endpoint out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Outside {
    /// It does not fit the channel's [`Filter`].
    Filter,
    /// It is in another zone than the channel's, which can do without; see [`Zones`].
    Zone,
    /// Others are in the channel's [`Subset`].
    Subset,
}

impl Stages {
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.filter.as_ref().map_or(Ok(()), Filter::check)?;
        self.zones.as_ref().map_or(Ok(()), Zones::check)?;
        self.subset.as_ref().map_or(Ok(()), Subset::check)
    }

    /// Whether there is any.
    pub(crate) fn is_any(&self) -> bool {
        self.filter.is_some() || self.zones.is_some() || self.subset.is_some()
    }
}

impl Outside {
    /// A stable, lower-case word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Zone => "zone",
            Self::Subset => "subset",
        }
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "does not fit the filter",
            Self::Zone => "not needed from another zone",
            Self::Subset => "not in the subset",
        })
    }
}
