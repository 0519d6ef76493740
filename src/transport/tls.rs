//! TLS between a connection and its byte stream.

use super::Io;
use crate::{Address, Error, Instance};

/// What TLS needs to know; without a feature for it, there is none.
#[derive(Clone, Debug)]
pub(crate) enum Tls {}

impl Tls {
    /// Lays TLS over a byte stream.
    pub(super) async fn over(
        &self,
        _: Box<dyn Io>,
        _: &Instance,
        _: &Address,
    ) -> Result<Box<dyn Io>, Error> {
        match *self {}
    }
}
