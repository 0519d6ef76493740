//! Checks that the agent itself runs.

use std::time::Duration;

use serde_json::{Value, json};

use super::definition::duration;
use crate::{Address, Error, Result, backoff::countable};

/// A check that the agent runs against a server, beside what the server says of itself.
///
/// It asks the first address of the instance, which it must reach. While a check fails, Consul says that the
/// server is critical, to all who ask. It counts as passed until it ran first.
///
/// ```
/// use std::time::Duration;
/// use tonic_fleet::consul::Check;
///
/// let check = Check::grpc("").every(Duration::from_secs(5));
/// let port = Check::tcp().timeout(Duration::from_secs(1));
/// ```
#[derive(Clone, Debug)]
pub struct Check {
    kind: Kind,
    every: Duration,
    timeout: Duration,
    tls: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Grpc(String),
    Tcp,
    Http(String),
}

impl Check {
    /// Asks `grpc.health.v1` for this service; for the whole server, if it is empty.
    pub fn grpc(service: impl Into<String>) -> Self {
        Self::of(Kind::Grpc(service.into()))
    }

    /// Connects.
    pub fn tcp() -> Self {
        Self::of(Kind::Tcp)
    }

    /// `GET`s this path: 2xx is good, 429 a warning.
    pub fn http(path: impl Into<String>) -> Self {
        Self::of(Kind::Http(path.into()))
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            tls: false,
        }
    }

    /// Sets how often it is run. Every ten seconds, unless set; at least once a second.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = countable(every).max(Duration::from_secs(1));
        self
    }

    /// Sets how long an answer may take. Five seconds, unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = countable(timeout).max(Duration::from_millis(1));
        self
    }

    /// The server speaks TLS, with a certificate that the agent trusts.
    #[must_use]
    pub fn over_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    pub(super) fn verify(&self) -> Result<()> {
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        match &self.kind {
            Kind::Http(path) if !path.starts_with('/') || !printable(path) => {
                Err(Error::config(format!(
                    "Consul check of {path:?}: give a path that begins with `/`, without spaces"
                )))
            }
            Kind::Grpc(service) if !printable(service) => Err(Error::config(format!(
                "Consul check of {service:?}: it is no name of a gRPC service"
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn definition(
        &self,
        id: &str,
        address: &Address,
        forget: Option<Duration>,
    ) -> Value {
        let mut check = json!({
            "CheckID": id,
            "Name": self.name(),
            "Interval": duration(self.every),
            "Timeout": duration(self.timeout),
            "Status": "passing",
        });
        match &self.kind {
            Kind::Grpc(service) => {
                let slash = if service.is_empty() { "" } else { "/" };
                check["GRPC"] = json!(format!("{address}{slash}{service}"));
                check["GRPCUseTLS"] = json!(self.tls);
            }
            Kind::Tcp => check["TCP"] = json!(address.to_string()),
            Kind::Http(path) => {
                let scheme = if self.tls { "https" } else { "http" };
                check["HTTP"] = json!(format!("{scheme}://{address}{path}"));
            }
        }
        if let Some(forget) = forget {
            check["DeregisterCriticalServiceAfter"] = json!(duration(forget));
        }
        check
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Grpc(_) => "grpc",
            Kind::Tcp => "tcp",
            Kind::Http(_) => "http",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_written_in_consuls_words() {
        let address = "10.0.0.5:50051".parse().unwrap();
        let written = |check: Check| check.definition("c", &address, None);

        assert_eq!(written(Check::grpc(""))["GRPC"], "10.0.0.5:50051");
        let named = written(Check::grpc("shop.Cart").over_tls());
        assert_eq!(named["GRPC"], "10.0.0.5:50051/shop.Cart");
        assert_eq!(named["GRPCUseTLS"], true);
        assert_eq!(written(Check::tcp())["TCP"], "10.0.0.5:50051");
        assert_eq!(
            written(Check::http("/up"))["HTTP"],
            "http://10.0.0.5:50051/up"
        );
        assert_eq!(
            written(Check::tcp().every(Duration::ZERO))["Interval"],
            "1000ms"
        );
    }

    #[test]
    fn what_no_agent_could_ask_is_refused() {
        assert!(Check::http("up").verify().is_err());
        assert!(Check::http("/a b").verify().is_err());
        assert!(Check::grpc("a\nb").verify().is_err());
        assert!(Check::grpc("").verify().is_ok());
    }
}
