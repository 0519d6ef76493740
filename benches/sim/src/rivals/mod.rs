//! Policies to compare with, each to the rule that its authors published.

mod frameworks;
mod oracle;
mod peak_ewma;
mod plain;
mod prequal;
mod weighted;

pub use frameworks::{Framework, Frameworks};
pub use oracle::Oracle;
pub use peak_ewma::{PeakEwma, Whose};
pub use plain::{LeastRequest, Random, RoundRobin, Shares};
pub use prequal::{PREQUAL_RS, PUBLISHED, Prequal};
pub use weighted::Weighted;
