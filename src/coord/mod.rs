//! How servers agree: locks, elections, configuration and synchronised entities on etcd, on the same watch and the same leases as discovery.
//!
//! ```no_run
//! use tonic_fleet::coord::Coordinator;
//!
//! # async fn send_reports() {}
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tonic_fleet::Result<()> {
//! let coordinator = Coordinator::connect("etcd://127.0.0.1:2379".parse()?).await?;
//! let guard = coordinator.lock("locks/report")?.acquire().await?;
//! // Dropped when the lock is lost.
//! guard.run(send_reports()).await?;
//! guard.unlock().await?;
//! coordinator.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a lock holds, and what it cannot
//!
//! | | |
//! |---|---|
//! | one at a time | etcd never has two oldest keys. Who holds the lock learns that it is lost *by its own clock*, a fiftieth of the lease before etcd can give it to the next: etcd counts from when it heard the last renewal, we from when we asked for it |
//! | first come, first served | over all processes, by the order in which etcd heard them. Losing the lease while waiting costs the place |
//! | hand-over | one to three milliseconds on a quiet network: each waits for the deletion of the key just before its own |
//! | a holder that dies | its key ends with its lease: the next has the lock up to half a second after that time |
//! | a holder that stands still | for longer than its lease (a stopped process, a suspended machine) **may go on writing after the next has begun**, before it has looked at any clock. No lock on leases can prevent that; [`Guard::guarded`] does for what is written to etcd, and [`Guard::fence`] for what refuses smaller numbers than it has seen |
//! | etcd that stands still | for longer than the lease: every holder has lost, and the next comes when etcd moves again. A leader that comes back after that may delete leases that others renewed meanwhile: then the holder learns it from its key, a few milliseconds *after* it is gone, if it listens for [`Guard::lost`] |
//! | cancelling | at any point leaves nothing behind: a place that nobody waits for is left, and a key that etcd writes late, after the question for it was given up, is deleted as it appears |
//! | Go | `concurrency.NewMutex(session, name)` stands in the same line |
//!
//! An [`Election`] is a lock whose holder says something, so that all of this is true of it, too. Those who
//! observe learn of a change a moment after it happened, which may be after the next has begun to lead: who
//! must not be led by two, asks whoever claims to lead for its fence.
//!
//! # What configuration holds
//!
//! A [`Config`] keeps JSON values under a prefix, each with a version. Reading is linearizable: it sees every
//! write that was acknowledged before. A write on a condition, an [`update`](Config::update) and a
//! [`Transaction`] happen as a whole or not at all, and at most once. Those who watch are told how values stand
//! and then each change, once and in order, through cuts, restarts, leader changes and members that are behind the
//! others. What etcd compacted before it could be heard nobody can tell any more: then, and where a reader is more
//! than 32 MiB of changes behind, [`Changed::Skipped`] says between which versions, and only the outcome is told.
//! However many watch a prefix, one watch is open. A change reaches them a moment after it was made, and no bound
//! on that moment is promised: who must act on the very latest value asks for it.
//!
//! A [`Sync`] is all of a prefix in the memory of every node: what [`Config`] tells of changes is true of it, so
//! that all nodes are equal to etcd once they have heard the same; until then, each is as etcd was a moment ago,
//! and an outage leaves it as it was, which [`Sync::stale`] says. Every two minutes or so all of it is compared
//! with etcd, once the changes until then were heard, and what differs is repaired and counted: none is
//! expected. A chunk of a [`Batch`] happens as a whole; a batch of several chunks does not.
//!
//! A [`Directory`] is the registry for those who do not balance. What it says of a deletion is what etcd says;
//! the channel knows better, as it keeps who can be called.
//!
//! # Errors
//!
//! Every failure is an [`Error`] whose [`kind`](crate::Error::kind) has a stable code:
//! `connection` (nothing was sent), `timeout`, `not_found`, `conflict`, `validation`, `unavailable`, `denied`,
//! `lost`, besides `config`, `decode` and `no_space`; [`is_transient`](crate::Error::is_transient) says whether
//! trying again may help. [`Retry`] is how often that was done already. After `timeout` and `unavailable`, a
//! write may have happened.

mod config;
mod coordinator;
mod directory;
mod election;
mod hub;
mod leases;
mod lock;
mod log;
mod queue;
mod retry;
mod sync;

pub use config::{Bound, Changed, Changes, Config, Entry, Transaction};
pub use coordinator::Coordinator;
pub use directory::{Directory, Event, EventKind, Events};
pub use election::{Election, Leader, Leaders, Leadership};
#[doc(no_inline)]
pub use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnResponse};
pub use lock::{Guard, Lock};
pub use retry::Retry;
pub use sync::{Batch, Chunk, OnConflict, Snapshot, Sync};

use crate::{Error, ErrorKind, Result};

/// Refuses what is no name of anything here.
fn check_name(name: &str) -> Result<()> {
    let why = match name {
        "" => "it is empty",
        name if name.ends_with('/') => "it ends in `/`: leave that out",
        name if name.len() > LONGEST_NAME => "it is longer than 1,024 bytes",
        _ => return Ok(()),
    };
    let shown: String = name.chars().take(64).collect();
    Err(Error::new(ErrorKind::Validation, format!("use the name {shown:?}")).because(why))
}

const LONGEST_NAME: usize = 1024;
