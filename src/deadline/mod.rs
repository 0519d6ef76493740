//! How long a call may take, on its way from one server to the next.

mod header;

pub(crate) use header::{TIMEOUT, read, write};
