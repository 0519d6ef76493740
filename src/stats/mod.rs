//! What calls came to: counted for each method and each endpoint, always.
//!
//! [`Channel::stats`](crate::Channel::stats) is what was counted so far:
//!
//! ```no_run
//! # fn example(channel: tonic_fleet::Channel) {
//! let stats = channel.stats();
//! println!("{stats}");
//! if stats.calls.lately.ten_seconds.success_rate() < Some(0.99) {
//!     println!("{}", stats.to_json());
//! }
//! # }
//! ```
//!
//! # What is counted
//!
//! A *call* is what a caller asks for, from when it is given to the channel to the last word of its response;
//! an *attempt* is what is sent for it, to one endpoint. A short answer is over when it came, however late it is
//! read. Most calls are one attempt. A call that is sent again,
//! or hedged, is one call and more attempts; one that finds nobody is a call and no attempt.
//!
//! Both end in one of four ways: *succeeded*, *failed*, *timed out*, *cancelled*. What is a failure is decided by
//! the one judgement that ejection and policies share ([`health::Outcome`](crate::health::Outcome)): a server
//! that says `NOT_FOUND` has answered. A call whose deadline came first has timed out, whoever noticed; one
//! whose future, or body, is dropped before its end was cancelled. How many ended with which status code is
//! counted beside that. Attempts that no server has looked at are *not sent* or *refused*; they have not ended
//! in any way.
//!
//! So `started` is always what is in flight, and what ended, and for attempts what was not sent or refused. When
//! nothing is in flight, what was [seen](Attempts::seen) is what the servers have counted.
//!
//! # What it costs
//!
//! A dozen additions to memory that threads do not share, for each call; no lock and no allocation, but for
//! the first call of a method, to an endpoint, or with a status code. A method takes 5 KiB for each thread that
//! calls it, up to eight at a time (those beyond share), and an endpoint that is called 3. A thousand methods are told apart; the rest are
//! counted together as `other`. Counters are read one by one, so that those of a busy channel may differ by
//! what happened meanwhile.

mod attempts;
mod bounds;
mod counted;
mod ends;
mod histogram;
mod look;
mod meter;
mod metrics;
mod norm;
mod print;
mod recent;
mod ring;
mod seat;
mod snapshot;
mod tallies;
mod tally;

use tonic::Code;

use crate::moment::Moment;

pub use histogram::Histogram;
pub use metrics::{Metric, Value};
pub use snapshot::{
    Again, Answered, Attempts, Calls, Ended, Lately, OfCode, OfEndpoint, OfMethod, Stats, Window,
};
pub(crate) use {
    attempts::Attempted,
    counted::Counted,
    ends::{Ending, Took, Why, usual},
    look::look,
    meter::Meter,
    tallies::Tallies,
    tally::Tally,
};

/// How a call, or an attempt at one, ended, and what it had come to by then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    pub(crate) code: Code,
    pub(crate) ending: Ending,
    pub(crate) at: Moment,
    pub(crate) took: Took,
    /// Bytes of messages.
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Why no server has looked at an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unseen {
    /// It never left.
    NotSent,
    /// The server says that it did nothing about it.
    Refused,
}

impl Past {
    /// Of one that took no time that is known of.
    fn new(code: Code, ending: Ending, at: Moment) -> Self {
        Self {
            code,
            ending,
            at,
            took: Took::default(),
            sent: 0,
            received: 0,
        }
    }
}
