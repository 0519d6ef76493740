//! Who takes part.

use std::path::PathBuf;

use serde::Serialize;

/// A contender: a program, and the way of working that it is told.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peer {
    /// What `--peers` calls it.
    pub name: &'static str,
    /// What a reader calls it.
    pub title: &'static str,
    #[serde(skip)]
    pub program: &'static str,
    /// How many servers it can take, where it cannot take any number.
    pub servers: Option<usize>,
    /// What must be said beside its figures.
    pub note: &'static str,
}

impl Peer {
    pub fn can(&self, servers: usize) -> bool {
        self.servers.is_none_or(|most| servers <= most)
    }

    /// Whether it balances between servers that come and go, and as nobody else here does.
    pub fn follows(&self) -> bool {
        self.servers.is_none() && !["peer-h2", "fleet-lean"].contains(&self.program)
    }
}

/// Others are compared with this one.
pub const BASE: &str = "balance";
/// Who this is all about.
pub const OURS: &str = "fleet";

pub const ALL: &[Peer] = &[
    Peer {
        name: OURS,
        title: "tonic-fleet",
        program: "fleet",
        servers: None,
        note: "everything on that is on by default",
    },
    Peer {
        name: "fleet-lean",
        title: "tonic-fleet, Lean codec",
        program: "fleet-lean",
        servers: None,
        note: "its own codec, which users choose where their client is generated",
    },
    Peer {
        name: "channel",
        title: "tonic Channel",
        program: "peer-tonic",
        servers: Some(1),
        note: "one connection, no balancing",
    },
    Peer {
        name: BASE,
        title: "tonic balance_channel",
        program: "peer-tonic",
        servers: None,
        note: "",
    },
    Peer {
        name: "p2c",
        title: "tower p2c, peak EWMA",
        program: "peer-tonic",
        servers: None,
        note: "over tonic Channels, shared through a Buffer",
    },
    Peer {
        name: "ginepro",
        title: "ginepro",
        program: "peer-ginepro",
        servers: None,
        note: "asks for changes every second, which would be ten unless said",
    },
    Peer {
        name: "volo",
        title: "volo-grpc",
        program: "peer-volo",
        servers: None,
        note: "its own codec, weighted random; turns on tracing's log itself",
    },
    Peer {
        name: "grpc",
        title: "grpc (official)",
        program: "peer-grpc",
        servers: Some(1),
        note: "as published: its round robin cannot be had from outside, nor can TCP_NODELAY",
    },
    Peer {
        name: "codec",
        title: "bare h2, tonic's codec",
        program: "peer-h2",
        servers: None,
        note: "no balancer: what there is to be reached with a generated client",
    },
    Peer {
        name: "raw",
        title: "bare h2",
        program: "peer-h2",
        servers: None,
        note: "no balancer, no codec: the floor",
    },
];

/// Who takes part this time, and who does not.
#[derive(Debug, Serialize)]
pub struct Peers {
    pub here: Vec<Peer>,
    pub left_out: Vec<(&'static str, String)>,
}

/// Whether all that were asked for are contenders.
pub fn known(wanted: Option<&[String]>) -> Result<(), String> {
    if let Some(stranger) = wanted
        .into_iter()
        .flatten()
        .find(|name| !ALL.iter().any(|peer| peer.name == **name))
    {
        let known: Vec<_> = ALL.iter().map(|peer| peer.name).collect();
        let known = known.join(", ");
        return Err(format!(
            "no contender is called {stranger}: there are {known}"
        ));
    }
    Ok(())
}

/// Those that were asked for and have been built.
pub fn chosen(wanted: Option<&[String]>) -> Result<Peers, String> {
    known(wanted)?;
    let asked_for = |peer: &&Peer| wanted.is_none_or(|names| names.iter().any(|n| n == peer.name));
    let (mut here, mut left_out) = (Vec::new(), Vec::new());
    for peer in ALL.iter().filter(asked_for) {
        if program(peer.program).is_file() {
            here.push(*peer);
        } else {
            left_out.push((peer.name, "its program was not built".to_owned()));
        }
    }
    if here.is_empty() {
        return Err("no contender was built: run scripts/bench-peers, which builds them".into());
    }
    Ok(Peers { here, left_out })
}

/// Where a program of this workspace is: beside this one.
pub fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap_or_default();
    path.set_file_name(name);
    path
}
