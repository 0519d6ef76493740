//! What keeps a connection going.

use std::time::Duration;

#[cfg(feature = "tonic-channel")]
use super::lent::Keeper;
use super::{driver::Driver, driver::Told};
use crate::Error;

/// A connection of our own, or a channel of tonic's.
#[derive(Debug)]
pub(crate) enum Drive {
    /// Nothing moves unless this runs.
    Own(Box<Driver>),
    /// It moves by itself.
    #[cfg(feature = "tonic-channel")]
    Lent(Keeper),
}

impl Drive {
    /// As [`Driver::tell_idle`]; a lent channel is the only one, and need not tell.
    #[must_use]
    pub(crate) fn tell_idle(self, every: Duration) -> Self {
        match self {
            Self::Own(driver) => Self::Own(driver.tell_idle(every)),
            #[cfg(feature = "tonic-channel")]
            lent @ Self::Lent(_) => lent,
        }
    }

    /// Carries the connection until it ends, and returns why it did.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future breaks the connection, with all calls on it.
    pub(crate) async fn run(self, told: impl FnMut(Told) + Send) -> Error {
        match self {
            Self::Own(driver) => driver.run(told).await,
            #[cfg(feature = "tonic-channel")]
            Self::Lent(keeper) => keeper.run().await,
        }
    }
}
