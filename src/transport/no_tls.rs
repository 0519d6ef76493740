//! What stands for TLS in a build without it: nothing that could be.

use std::sync::Arc;

use super::Io;
use crate::{Address, Error, Instance};

/// No TLS; see the features `tls-ring` and `tls-aws-lc`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Tls {}

impl Tls {
    #[cfg(any(feature = "etcd", feature = "consul"))]
    pub(crate) fn check(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        match *self {}
    }

    pub(super) fn late(&self, _: &Address, _: &h2::Error) -> Option<Error> {
        match *self {}
    }

    #[cfg(feature = "consul")]
    #[expect(clippy::unused_async, reason = "as in the build that has TLS")]
    pub(crate) async fn over_http1(
        &self,
        _: Box<dyn Io>,
        _: &Address,
    ) -> Result<Box<dyn Io>, Error> {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "as in the build that has TLS")]
    pub(super) async fn over(
        &self,
        _: Box<dyn Io>,
        _: &Instance,
        _: &Address,
    ) -> Result<Box<dyn Io>, Error> {
        match *self {}
    }
}
