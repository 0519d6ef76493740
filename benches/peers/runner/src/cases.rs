//! The work that contenders are compared at.

use std::{fmt, str::FromStr};

use load::{Burden, Work};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    pub work: Work,
    pub servers: usize,
    pub callers: usize,
    /// Of the message, each way.
    pub bytes: usize,
    pub server: &'static str,
}

const LEAN: &str = "lean";
const TONIC: &str = "tonic";

const SERVERS: [usize; 4] = [1, 4, 16, 64];
const CALLERS: [usize; 4] = [1, 16, 64, 256];
const BYTES: [usize; 3] = [16, 4 << 10, 1 << 20];

impl Case {
    const fn lean(work: Work, servers: usize, callers: usize, bytes: usize) -> Self {
        Self {
            work,
            servers,
            callers,
            bytes,
            server: LEAN,
        }
    }

    /// As a contender is told it.
    pub fn burden(&self, rate: Option<u32>) -> Burden {
        let Self {
            work,
            callers,
            bytes: size,
            ..
        } = *self;
        Burden {
            work,
            callers,
            size,
            rate,
        }
    }

    /// For a person to read.
    pub fn title(&self) -> String {
        format!(
            "{} echo of {}, {}, {}, {} server",
            match self.work {
                Work::Unary => "Unary",
                Work::Stream => "Stream",
            },
            size(self.bytes),
            many(self.servers, "server"),
            many(self.callers, "caller"),
            self.server
        )
    }

    /// The same where there is little room.
    pub fn short(&self) -> String {
        let (servers, callers) = (many(self.servers, "server"), many(self.callers, "caller"));
        format!("{servers}, {callers}, {}", size(self.bytes))
    }
}

/// `1 server`, `4 servers`.
pub fn many(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `16 B`, `4 KiB`, `1 MiB`.
pub fn size(bytes: usize) -> String {
    match bytes {
        mib if mib >= 1 << 20 && mib % (1 << 20) == 0 => format!("{} MiB", mib >> 20),
        kib if kib >= 1 << 10 && kib % (1 << 10) == 0 => format!("{} KiB", kib >> 10),
        bytes => format!("{bytes} B"),
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            work,
            servers,
            callers,
            bytes,
            server,
        } = self;
        write!(f, "{}/{servers}/{callers}/{bytes}/{server}", work.name())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        let wrong =
            || format!("the case {said} is not WORK/SERVERS/CALLERS/BYTES, as in unary/4/64/16");
        let parts: Vec<&str> = said.split('/').collect();
        let (work, numbers, server) = match parts[..] {
            [work, a, b, c] => (work, [a, b, c], LEAN),
            [work, a, b, c, LEAN] => (work, [a, b, c], LEAN),
            [work, a, b, c, TONIC] => (work, [a, b, c], TONIC),
            _ => return Err(wrong()),
        };
        let work = match work {
            "unary" => Work::Unary,
            "stream" => Work::Stream,
            _ => return Err(wrong()),
        };
        let mut parsed = [0; 3];
        for (number, said) in parsed.iter_mut().zip(numbers) {
            *number = said.parse().map_err(|_| wrong())?;
        }
        let [servers, callers, bytes] = parsed;
        if servers == 0 || callers == 0 || servers > 1000 || callers > 10_000 || bytes > 3 << 20 {
            return Err(format!(
                "the case {said} is out of bounds: 1 to 1000 servers, 1 to 10000 callers, at most 3 MiB"
            ));
        }
        Ok(Self {
            work,
            servers,
            callers,
            bytes,
            server,
        })
    }
}

/// What shows most in two minutes.
pub fn quick() -> Vec<Case> {
    use Work::{Stream, Unary};
    vec![
        Case::lean(Unary, 4, 1, 16),
        Case::lean(Unary, 4, 64, 16),
        Case::lean(Unary, 16, 64, 16),
        Case::lean(Unary, 4, 64, 4 << 10),
        Case::lean(Stream, 4, 64, 16),
    ]
}

/// Small calls at every size of fleet; every size of message, both kinds of work and both servers at one.
pub fn usual() -> Vec<Case> {
    let mut cases = Vec::new();
    for servers in SERVERS {
        cases.extend(CALLERS.map(|callers| Case::lean(Work::Unary, servers, callers, 16)));
    }
    for callers in [1, 64] {
        cases.extend([4 << 10, 1 << 20].map(|bytes| Case::lean(Work::Unary, 4, callers, bytes)));
        cases.extend(BYTES.map(|bytes| Case::lean(Work::Stream, 4, callers, bytes)));
        cases.push(Case {
            server: TONIC,
            ..Case::lean(Work::Unary, 4, callers, 16)
        });
    }
    cases
}

/// All there is.
pub fn full() -> Vec<Case> {
    let mut cases = Vec::new();
    for server in [LEAN, TONIC] {
        for work in [Work::Unary, Work::Stream] {
            for bytes in BYTES {
                for servers in SERVERS {
                    cases.extend(CALLERS.map(|callers| Case {
                        work,
                        servers,
                        callers,
                        bytes,
                        server,
                    }));
                }
            }
        }
    }
    cases
}
