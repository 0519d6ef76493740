//! Policies to compare with, each to the rule that its authors published.

mod oracle;
mod peak_ewma;
mod plain;

pub use oracle::Oracle;
pub use peak_ewma::PeakEwma;
pub use plain::{LeastRequest, Random, RoundRobin};
