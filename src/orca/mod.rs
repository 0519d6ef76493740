//! What servers report of their load, and what they weigh by it.
//!
//! A server knows better than its clients how busy it is. Open Request Cost Aggregation (ORCA) is how it says so: a
//! [`Report`] in the trailers of each response, as gRPC's own and Envoy have it. [`balance::Orca`](crate::balance::Orca)
//! shares calls out by them. A server with the layer also answers when it is asked how busy it is this moment, as
//! [`balance::Probing`](crate::balance::Probing) does before it calls.
//!
//! On the server a [`Recorder`] counts calls and failures, measures the processor where it can, is told what else there
//! is to say, and has a [`Layer`] that puts it all into the trailers:
//!
//! ```no_run
//! # async fn example(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! use tonic_fleet::orca::Recorder;
//!
//! let recorder = Recorder::new();
//! // `tonic::transport::Server::builder().layer(recorder.layer())`, or around all routes:
//! let reporting = tower::Layer::layer(&recorder.layer(), routes);
//! // Whenever the application knows better than the processor how much it is used:
//! recorder.application_utilization(0.7);
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! A report is some thirty bytes in the trailers of each call. It says how things were in the last seconds. Whoever can
//! see trailers can read it: do not report to strangers.

mod ask;
mod cpu;
mod load;
mod messages;
mod probe;
mod rate;
mod recorder;
mod report;
mod serve;
#[cfg(feature = "server")]
mod service;
mod weight;

pub(crate) use ask::stream;
pub use load::Load;
pub(crate) use probe::probe;
pub use recorder::Recorder;
pub use report::Report;
pub use serve::{Layer, Reported, Reporting, Serving};
#[cfg(feature = "server")]
pub use service::OpenRca;
pub(crate) use weight::{Metric, Rule, Weight};
