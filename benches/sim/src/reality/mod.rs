//! What the bench on loopback is told and tells: all of it that needs no servers.

pub mod arguments;
pub mod report;
pub mod timeline;

use serde::Serialize;

/// Who is compared; the first is the base of ratios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Rival {
    Tower,
    Tonic,
    LeastLoaded,
    Adaptive,
}

/// What a machine that is too busy does to a run, in milliseconds on average.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    /// Calls began so much later than they should.
    pub begins: f64,
    /// Servers slept so much longer than a call's work takes.
    pub works: f64,
}

impl Rival {
    pub const ALL: [Self; 4] = [Self::Tower, Self::Tonic, Self::LeastLoaded, Self::Adaptive];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tower => "tower P2C + PeakEWMA",
            Self::Tonic => "tonic balance_channel",
            Self::LeastLoaded => "ours, least_loaded",
            Self::Adaptive => "ours, adaptive",
        }
    }

    /// The simulator's name for it.
    pub fn in_sim(self) -> &'static str {
        match self {
            Self::Tower => "tower",
            Self::Tonic => "plain_random",
            Self::LeastLoaded => "least_loaded",
            Self::Adaptive => "adaptive",
        }
    }
}
