//! What every contender is put through: callers, their latencies, and what they cost the process.
//!
//! A contender is a program whose `main` is [`run`]. It is told what to do by lines on its standard input, and answers
//! each with lines of JSON; so all of them can live side by side and take turns.

mod allocations;
mod histogram;
mod process;
mod round;
mod run;
mod words;

use std::{error::Error, net::SocketAddr, sync::Arc};

pub use histogram::Histogram;
pub use process::{cpu, pin, resident};
pub use round::{Callers, Tally};
pub use run::run;
pub use words::{Ask, Burden, Figures, Sample, Work};

/// Whatever went wrong, for a person to read.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A client for the echo service, over servers that it balances between.
pub trait Peer: Sized + 'static {
    type Caller: Caller;

    /// A client for these servers. It may connect later: the first round is not counted.
    fn open(servers: &[SocketAddr]) -> impl Future<Output = Result<Self, Failure>>;

    /// One that makes calls with this message, over the connections that all share.
    fn caller(&self, message: Arc<str>) -> Self::Caller;

    /// What the registry says from now on.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    fn change(&mut self, servers: &[SocketAddr]) -> Result<(), Failure> {
        let _ = servers;
        Err("follows no registry".into())
    }
}

/// Makes one call after the other.
pub trait Caller: Send + 'static {
    type Talk: Talk;

    /// One unary call; gives the length of what came back.
    fn ask(&mut self) -> impl Future<Output = Result<usize, Failure>> + Send;

    /// Opens a stream in both directions.
    fn talk(&mut self) -> impl Future<Output = Result<Self::Talk, Failure>> + Send;
}

/// A stream in both directions.
pub trait Talk: Send {
    /// One message there, and its echo back; gives the echo's length.
    fn say(&mut self) -> impl Future<Output = Result<usize, Failure>> + Send;

    /// Ends the stream, and waits until the server has.
    fn end(self) -> impl Future<Output = Result<(), Failure>> + Send;
}
