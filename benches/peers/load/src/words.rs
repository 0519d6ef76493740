//! The lines between a contender and whoever runs it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a caller does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// One call after the other.
    Unary,
    /// One stream after the other, a hundred messages and echoes on each.
    Stream,
}

impl Work {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Stream => "stream",
        }
    }
}

/// How much a contender is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burden {
    pub work: Work,
    pub callers: usize,
    /// Of each message, in bytes.
    pub size: usize,
    /// Unary calls a second, from all callers together; none when each calls as soon as it has its answer.
    pub rate: Option<u32>,
}

/// What a contender is told, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Connect to these. Answered by `"open"`.
    Open(Vec<SocketAddr>),
    /// Work for so long. Answered by [`Figures`].
    Round {
        burden: Burden,
        millis: u64,
        /// Count allocations, which costs time: such a round's times are worth nothing.
        count: bool,
    },
    /// Work for so long, and answer with a [`Sample`] every so often.
    Watch {
        burden: Burden,
        millis: u64,
        every: u64,
    },
    /// The registry says this from now on. Not answered.
    Change(Vec<SocketAddr>),
}

/// What one round has shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub calls: u64,
    pub failed: u64,
    pub error: Option<String>,
    pub seconds: f64,
    /// Of this process, user and system time.
    pub cpu_micros: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub allocations: u64,
    pub allocated: u64,
}

/// What happened since the sample before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub at_millis: u64,
    pub calls: u64,
    pub failed: u64,
    pub p50: f64,
    pub p99: f64,
    pub error: Option<String>,
    /// The last one.
    pub last: bool,
}
