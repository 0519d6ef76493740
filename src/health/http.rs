//! Asking a server over HTTP/1.1, as load balancers and kubelets do.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Probe, Probing, places, rule::Said};
use crate::{
    Address, Error, ErrorKind, Instance, Result,
    transport::{Connect, Io, Tcp},
};

/// `GET /health`: a status of 200 to 299 is a good answer.
///
/// In plain text, on a connection for each question. What a gRPC server listens at usually speaks HTTP/2
/// alone: name the [port](Self::port) that answers.
///
/// ```
/// use tonic_fleet::health::Http;
///
/// let probe = Http::get("/healthz").port(8080).host("greeter.internal");
/// ```
// HTTP/1.1 by hand: a request of four lines, and of its answer only the first. An HTTP client for that would
// be the largest dependency there is.
#[derive(Clone, Debug)]
pub struct Http {
    path: String,
    port: Option<u16>,
    host: Option<String>,
    connect: Arc<dyn Connect>,
}

/// A status line is shorter than this, or it is none.
const LONGEST: usize = 1024;

impl Http {
    /// Asks for this path, with its query if it has one.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            port: None,
            host: None,
            connect: Arc::new(Tcp::default()),
        }
    }

    /// Asks at this port instead of that of the calls.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Says this host in the request. The address that is asked, unless set.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// What connects instead of TCP and Unix sockets.
    #[must_use]
    pub fn connect_with(mut self, connect: impl Connect) -> Self {
        self.connect = Arc::new(connect);
        self
    }

    async fn ask(&self, address: Address) -> Result<()> {
        let mut io = places::connect(&*self.connect, &address).await?;
        let status = self.exchange(&mut io, &address).await.map_err(|cause| {
            Error::new(ErrorKind::Unavailable, self.doing(&address)).because(cause)
        })?;
        if (200..300).contains(&status) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Unavailable, self.doing(&address));
        Err(error.because(Said(status.to_string())))
    }

    /// The status of one request.
    async fn exchange(&self, io: &mut Box<dyn Io>, address: &Address) -> std::io::Result<u16> {
        let own = match address {
            Address::Unix(_) => address.host(),
            _ => address.to_string(),
        };
        let host = self.host.as_ref().unwrap_or(&own);
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: {host}\r\nuser-agent: tonic-fleet/{}\r\naccept: */*\r\nconnection: close\r\n\r\n",
            self.path,
            env!("CARGO_PKG_VERSION"),
        );
        io.write_all(request.as_bytes()).await?;
        io.flush().await?;
        let mut heard = Vec::new();
        while !heard.contains(&b'\n') && heard.len() < LONGEST {
            if io.read_buf(&mut heard).await? == 0 {
                break;
            }
        }
        let refuse = || std::io::Error::other("the answer is not HTTP/1.1");
        status(&heard).ok_or_else(refuse)
    }

    fn doing(&self, address: &Address) -> String {
        format!("GET {} at {address}", self.path)
    }
}

impl Probe for Http {
    fn probe<'a>(&'a self, instance: &'a Instance) -> Probing<'a> {
        Box::pin(places::any(instance, self.port, |address| {
            self.ask(address)
        }))
    }

    fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: &str, want: &str| {
            Err(Error::config(format!(
                "health checks: {name} is {value:?}: {want}"
            )))
        };
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.path.starts_with('/') || !printable(&self.path) {
            return refuse(
                "path",
                &self.path,
                "give one that begins with `/`, without spaces",
            );
        }
        match &self.host {
            Some(host) if host.is_empty() || !printable(host) => {
                refuse("host", host, "give a name or an address")
            }
            _ => Ok(()),
        }
    }
}

/// The status that the first line of an answer has.
fn status(answer: &[u8]) -> Option<u16> {
    let end = answer.iter().position(|&byte| byte == b'\n')?;
    let line = std::str::from_utf8(&answer[..end]).ok()?;
    let rest = line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let digits = rest.trim_end().split(' ').next()?;
    let three = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    three.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_the_first_line() {
        for (answer, read) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (
                b"HTTP/1.0 503 Service Unavailable\r\nretry-after: 1\r\n\r\n",
                Some(503),
            ),
            (b"HTTP/1.1 204\n", Some(204)),
            (b"HTTP/1.1 200 OK", None),
            (b"HTTP/1.1 2000 OK\r\n", None),
            (b"HTTP/1.1  200\r\n", None),
            (b"HTTP/2 200\r\n", None),
            (b"\0\0\x12\x04\0\0\0\0\0\n", None),
            (b"", None),
        ] {
            assert_eq!(status(answer), read, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for path in ["", "health", "/a b", "/a\r\nhost: b"] {
            assert!(Http::get(path).check().is_err(), "{path:?}");
        }
        for host in ["", "a b", "a\r\nb"] {
            assert!(Http::get("/").host(host).check().is_err(), "{host:?}");
        }
        assert!(Http::get("/health?full=1").host("a:80").check().is_ok());
    }
}
