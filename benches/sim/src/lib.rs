//! Policies against each other in simulated fleets: `scripts/sim --help`. The bench on loopback takes its scenarios
//! and its figures from here.

pub mod arguments;
pub mod balancer;
pub mod claims;
pub mod clock;
pub mod compare;
pub mod contenders;
pub mod dice;
#[path = "../../../examples/policy/best_of_three.rs"]
pub mod example;
pub mod figures;
pub mod herd;
pub mod ours;
pub mod picture;
pub mod reality;
pub mod rivals;
pub mod scenario;
pub mod server;
pub mod subsets;
pub mod table;
pub mod world;
