//! Questions to DNS, and answers in our words.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::{Either, select};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{Error, ErrorKind};

/// One way to ask, as the system is set up right now.
pub(super) struct Oracle(TokioResolver);

/// What comes back for one kind of record.
#[derive(Clone, Debug)]
pub(super) enum Answer<T> {
    /// These records, which are good for this long.
    Records(Vec<T>, Duration),
    /// There are none.
    Nothing(Error),
    /// Nobody knows.
    Failed(Error),
}

/// Where a service record points.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) host: String,
}

/// One question, with its repetitions.
const PATIENCE: Duration = Duration::from_secs(10);

/// When one family of addresses is known, the other is waited for this long: some servers never
/// answer for IPv6.
const GRACE: Duration = Duration::from_millis(500);

impl Oracle {
    /// Asks this server, or those that the system asks.
    pub(super) async fn new(server: Option<SocketAddr>) -> Result<Self, Error> {
        // Reads /etc/resolv.conf and /etc/hosts.
        let built = spawn_blocking(move || build(server)).await;
        let built = built.map_err(|error| failure("read how DNS is set up").because(error))?;
        built.map_err(|error| failure("read how DNS is set up").because(error))
    }

    /// The addresses of a name, in both families.
    pub(super) async fn addresses(&self, name: &str) -> [Answer<IpAddr>; 2] {
        let [v4, v6] = [RecordType::A, RecordType::AAAA];
        let addresses = |kind| self.ask(name, kind, |data| data.ip_addr());
        both(addresses(v4), addresses(v6), || {
            failure(format!("look up {name}: one family of addresses came late"))
        })
        .await
    }

    /// Where the services under a name are.
    pub(super) async fn services(&self, name: &str) -> Answer<Service> {
        self.ask(name, RecordType::SRV, |data| match data {
            RData::SRV(srv) => Some(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                host: srv.target.to_utf8().trim_end_matches('.').to_owned(),
            }),
            _ => None,
        })
        .await
    }

    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Answer<T> {
        let doing = format!("look up {kind} of {name}");
        match timeout(PATIENCE, self.0.lookup(name, kind)).await {
            Ok(Ok(lookup)) => read_all(&lookup, read)
                .unwrap_or_else(|| Answer::Nothing(failure(format!("{doing}: no records")))),
            Ok(Err(error)) if error.is_nx_domain() => {
                Answer::Nothing(failure(format!("{doing}: no such name (NXDOMAIN)")))
            }
            Ok(Err(error)) if error.is_no_records_found() => {
                Answer::Nothing(failure(format!("{doing}: no records")))
            }
            Ok(Err(error)) => Answer::Failed(failure(doing).because(error)),
            Err(_) => Answer::Failed(Error::new(ErrorKind::Timeout, doing)),
        }
    }
}

fn build(server: Option<SocketAddr>) -> Result<Oracle, NetError> {
    let builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => {
            let connection = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(connection);
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    Ok(Oracle(builder.build()?))
}

fn read_all<T>(lookup: &Lookup, read: impl Fn(&RData) -> Option<T>) -> Option<Answer<T>> {
    let answers = lookup.answers();
    let records: Vec<_> = answers
        .iter()
        .filter_map(|record| read(&record.data))
        .collect();
    // The aliases on the way count, too.
    let ttl = answers.iter().map(|record| record.ttl).min()?;
    let ttl = Duration::from_secs(ttl.into());
    (!records.is_empty()).then_some(Answer::Records(records, ttl))
}

/// Both answers; a late one is given up when the other has records.
async fn both<T>(
    first: impl Future<Output = Answer<T>>,
    second: impl Future<Output = Answer<T>>,
    late: impl FnOnce() -> Error,
) -> [Answer<T>; 2] {
    let (first, second) = (std::pin::pin!(first), std::pin::pin!(second));
    match select(first, second).await {
        Either::Left((first, second)) => {
            let second = wait(&first, second, late).await;
            [first, second]
        }
        Either::Right((second, first)) => {
            let first = wait(&second, first, late).await;
            [first, second]
        }
    }
}

async fn wait<T>(
    known: &Answer<T>,
    other: impl Future<Output = Answer<T>>,
    late: impl FnOnce() -> Error,
) -> Answer<T> {
    match known {
        Answer::Records(..) => {
            let other = timeout(GRACE, other).await;
            other.unwrap_or_else(|_| Answer::Failed(late()))
        }
        _ => other.await,
    }
}

fn failure(doing: impl Into<Box<str>>) -> Error {
    Error::new(ErrorKind::Unavailable, doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Answer<u8> {
        Answer::Records(vec![1], Duration::ZERO)
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_never_answers_delays_the_other_by_half_a_second() {
        let began = tokio::time::Instant::now();
        let never = std::future::pending;

        let first = both(never(), async { records() }, || failure("late")).await;
        let second = both(async { records() }, never(), || failure("late")).await;

        assert!(matches!(first, [Answer::Failed(_), Answer::Records(..)]));
        assert!(matches!(second, [Answer::Records(..), Answer::Failed(_)]));
        assert_eq!(tokio::time::Instant::now() - began, GRACE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_without_records_waits_for_the_other() {
        let slow = async {
            tokio::time::sleep(GRACE * 5).await;
            records()
        };

        let answers = both(async { Answer::Nothing(failure("none")) }, slow, || {
            failure("late")
        });

        assert!(matches!(
            answers.await,
            [Answer::Nothing(_), Answer::Records(..)]
        ));
    }
}
