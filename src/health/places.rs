//! At which of its addresses a server is asked.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    Address, Error, ErrorKind, Instance, Result,
    transport::{Connect, Io, race},
};

/// Asks at each of an instance's addresses, or at another port of them; the first good answer will do, as the
/// first connection does for calls.
pub(super) async fn any<F>(
    instance: &Instance,
    port: Option<u16>,
    ask: impl Fn(Address) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let places = instance.addresses.iter().map(|address| at(address, port));
    let places = places.collect::<Result<Vec<_>>>()?;
    let answers = race(places.into_iter().map(ask).collect()).await;
    answers.map_err(|mut failed| {
        let nowhere = || Error::config(format!("instance {} has no address", instance.id));
        failed.pop().unwrap_or_else(nowhere)
    })
}

pub(super) async fn connect(connect: &dyn Connect, address: &Address) -> Result<Box<dyn Io>> {
    connect.connect(address).await.map_err(|cause| {
        let what = format!("connect to {address} to ask whether it is well");
        Error::new(ErrorKind::Unavailable, what).because(cause)
    })
}

fn at(address: &Address, port: Option<u16>) -> Result<Address> {
    match (address, port) {
        (address, None) => Ok(address.clone()),
        (Address::Ip(addr), Some(port)) => Ok(Address::Ip(SocketAddr::new(addr.ip(), port))),
        (Address::Name(name, _), Some(port)) => Ok(Address::Name(Arc::clone(name), port)),
        (Address::Unix(_), Some(port)) => Err(Error::config(format!(
            "{address} has no port {port} to be asked at"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, timeout},
    };

    use super::*;
    use crate::{
        health::{Http, Probe, Tcp},
        transport::Connecting,
    };

    /// Servers in memory: who listens at which port, and what he answers.
    #[derive(Clone, Debug)]
    struct Fake(&'static [(u16, Answer)]);

    #[derive(Clone, Copy, Debug)]
    enum Answer {
        Says(&'static str),
        Nothing,
    }

    impl Connect for Fake {
        fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
            Box::pin(async move {
                let at = |(port, _): &&(u16, Answer)| Some(*port) == address.port();
                let refused = io::ErrorKind::ConnectionRefused;
                let (_, answer) = self.0.iter().find(at).ok_or(refused)?;
                let (ours, mut theirs) = duplex(4096);
                let answer = *answer;
                tokio::spawn(async move {
                    let mut heard = Vec::new();
                    while !heard.ends_with(b"\r\n\r\n") {
                        if theirs.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    assert!(heard.starts_with(b"GET /health HTTP/1.1\r\nhost: 10.0.0."));
                    match answer {
                        Answer::Says(text) => drop(theirs.write_all(text.as_bytes()).await),
                        Answer::Nothing => std::future::pending().await,
                    }
                });
                Ok(Box::new(ours) as Box<dyn Io>)
            })
        }
    }

    const FAKE: Fake = Fake(&[
        (
            80,
            Answer::Says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK"),
        ),
        (81, Answer::Says("HTTP/1.1 503 Service Unavailable\r\n\r\n")),
        (82, Answer::Says("SSH-2.0-OpenSSH_9.6\r\n")),
        (83, Answer::Nothing),
    ]);

    async fn asked(probe: impl Probe, addresses: &[&str]) -> Result<(), String> {
        let mut instance = Instance::at(addresses[0]).unwrap();
        for address in &addresses[1..] {
            instance = instance.also_at(*address).unwrap();
        }
        let limit = Duration::from_secs(2);
        let answer = timeout(limit, probe.probe(&instance)).await;
        answer
            .map_err(|late| late.to_string())?
            .map_err(|e| e.chain())
    }

    #[tokio::test(start_paused = true)]
    async fn an_http_status_of_200_to_299_is_a_good_answer() {
        let http = || Http::get("/health").connect_with(FAKE);

        assert_eq!(asked(http(), &["10.0.0.1:80"]).await, Ok(()));
        for (address, why) in [
            ("10.0.0.1:81", "GET /health at 10.0.0.1:81: it says 503"),
            (
                "10.0.0.1:82",
                "GET /health at 10.0.0.1:82: the answer is not HTTP/1.1",
            ),
            ("10.0.0.1:83", "deadline has elapsed"),
            (
                "10.0.0.1:84",
                "connect to 10.0.0.1:84 to ask whether it is well: connection refused",
            ),
        ] {
            assert_eq!(asked(http(), &[address]).await, Err(why.into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_port_is_asked_if_one_is_named() {
        let http = Http::get("/health").connect_with(FAKE).port(80);
        let tcp = Tcp::default().connect_with(FAKE).port(80);

        assert_eq!(asked(http, &["10.0.0.1:50051"]).await, Ok(()));
        assert_eq!(asked(tcp.clone(), &["10.0.0.1:50051"]).await, Ok(()));
        let refused = asked(tcp, &["unix:/run/a.sock"]).await.unwrap_err();
        assert_eq!(refused, "unix:/run/a.sock has no port 80 to be asked at");
    }

    #[tokio::test(start_paused = true)]
    async fn one_good_address_will_do_and_a_silent_one_does_not_hold_it_up() {
        let http = Http::get("/health").connect_with(FAKE);
        let began = Instant::now();

        let answer = asked(http, &["10.0.0.1:83", "10.0.0.2:81", "10.0.0.3:80"]).await;

        assert_eq!(answer, Ok(()));
        assert!(Instant::now() - began < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_listens_is_well_for_tcp() {
        let tcp = Tcp::default().connect_with(FAKE);

        assert_eq!(asked(tcp.clone(), &["10.0.0.1:83"]).await, Ok(()));
        assert!(asked(tcp, &["10.0.0.1:84"]).await.is_err());
    }
}
