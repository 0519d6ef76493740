//! Services behind a Consul agent: found by blocking queries, and kept with it through everything.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use tonic_fleet::{consul, resolve::Resolve};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tonic_fleet::Result<()> {
//! let registry = consul::Registry::open(&"consul://127.0.0.1:8500?dc=dc1".parse()?)?;
//! let mut updates = registry.resolve(&"greeter".parse()?);
//! while let Some(update) = updates.next().await {
//!     println!("{update:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The URL
//!
//! `consul://host:8500/service`, with one agent, that of the machine. What may stand behind its `?`:
//!
//! | parameter | means | unless given |
//! |---|---|---|
//! | `dc` | find instances in this datacenter | the agent's |
//! | `tag` | find only those who have this tag; `a,b`: both | all |
//! | `passing` | `true`: a check that warns is as bad as one that fails | `false` |
//! | `near` | have the agent sort its list by the distance from this node, which changes nobody's share of calls | unsorted |
//! | `wait` | how long a query waits for a change | `30s` |
//! | `ttl` | how long a server passes that says nothing, and how long one who vanished is doubted | `10s` |
//! | `ns` | the namespace (Consul Enterprise) | that of the token |
//! | `token` | sent as `X-Consul-Token`; shown to nobody | none |
//! | `tls`, `ca`, `cert`, `key` | as for etcd | plain text |
//!
//! # Finding
//!
//! One request at a time for a service, however many read: it waits in the agent until something changes, or
//! `wait` is over, and so costs one request a change and one a `wait`, at most five a second. While the agent
//! is away, or knows no leader, the last set serves and is [stale](crate::resolve::Update::Stale); nothing
//! ends.
//!
//! | what Consul lists | what it means |
//! |---|---|
//! | every check passes | an instance, with `Weights.Passing`, or the weight in its metadata if it has no weights |
//! | the worst check warns | the same with `Weights.Warning`; 0 takes no new calls |
//! | maintenance, of the service or its node | an instance that takes no new calls: draining |
//! | critical, and marked by its server as draining | the same |
//! | critical, and nobody said why | a *suspect*, as one that is gone |
//! | the agent of its node is gone (`serfHealth`), and its own checks were not critical | a *suspect*, and not removed here: nobody can say how it is, and calling it shows. A channel gives it the [grace](crate::Builder::grace) of every suspect. When most of a service's agents are gone, it is the agents that are ill, and nobody is doubted |
//! | gone, after it was draining | it has left |
//! | gone otherwise | a *suspect*: it serves while its connection is well and nobody better is there. It is removed when two consistent lists, after the [grace](Registry::grace), do not have it well either. Most of a set at once is held longer; see [`Event`](crate::Event) |
//!
//! Consul tells what is, not what was: one who marks itself and leaves between two answers is a suspect, too,
//! and goes at the latest when its grace ends. The address is the service's tagged address `grpc` where there
//! is one (kratos writes them), else its own, else its node's. Version, zone and tags are read from
//! `version=…` and other tags and from the metadata. An id is unique on one agent alone: of two services with
//! one id, the younger, well or not, is called `id@node`, and so is one that has no id but its service's name.
//! Entries that cannot be used are passed over, and shown with the reason.
//!
//! # Registering
//!
//! A service stands with the agent under the id `service/instance`, with a TTL check: passing while it
//! serves, a warning at weight 0, critical while it drains or is unwell. It is renewed every third of its
//! time to live, and every three seconds at least. An agent that has lost it, because it was started again or
//! somebody deregistered it, is given it again at the next renewal; there is never more than the one, because
//! its id is the same. A living stranger who has the id is left alone, and named. On leaving it is marked, left
//! for half a second so that readers see it, and deregistered. One who dies is critical after the time to live,
//! and is forgotten by the agent after [ten minutes](Registry::forget). [`Check`]s are run by the agent beside.
//!
//! # Why no Consul crate
//!
//! The one that is maintained, `rs-consul` (0.7 was read), brings a pooling HTTP client with a TLS of its own, a
//! second, blocking client, and a logger; the others stand still, or block. What is needed is six requests, each
//! with a time limit, and three headers of their answers: HTTP/1.1 by `hyper`, over the sockets and the TLS that
//! this crate has already.

mod agent;
mod check;
mod claim;
mod cursor;
mod definition;
mod entry;
#[cfg(test)]
mod fuzz;
mod register;
mod registry;
mod resolve;
mod roster;

pub use check::Check;
pub use registry::Registry;
