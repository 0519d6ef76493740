//! Which of an instance's addresses a connection leads to.

use std::{collections::HashMap, sync::Mutex};

use super::*;

/// What becomes of an attempt to connect to an address, after a while.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Serves(Duration),
    Refuses(Duration),
    Hangs,
}

/// A network in which each address has its fate; it notes when each was tried.
#[derive(Debug)]
struct Net {
    fates: HashMap<String, Fate>,
    tried: Mutex<Vec<(String, Duration)>>,
    began: Instant,
}

impl Net {
    fn new(fates: &[(&str, Fate)]) -> Arc<Self> {
        let fates = fates
            .iter()
            .map(|(address, fate)| ((*address).to_owned(), *fate));
        Arc::new(Self {
            fates: fates.collect(),
            tried: Mutex::default(),
            began: Instant::now(),
        })
    }

    async fn dial(self: &Arc<Self>, addresses: &[&str]) -> Result<String, Error> {
        let mut instance = Instance::at(addresses[0]).unwrap().id("a").unwrap();
        for address in &addresses[1..] {
            instance = instance.also_at(*address).unwrap();
        }
        let dialer = Dialer::new(Arc::clone(self) as _, None, Settings::default());
        let (connection, _driver) = dialer.dial(&instance).await?;
        Ok(connection.address().to_string())
    }

    fn tried(&self) -> Vec<(String, u128)> {
        let tried = self.tried.lock().unwrap();
        tried
            .iter()
            .map(|(address, after)| (address.clone(), after.as_millis()))
            .collect()
    }
}

impl Connect for Net {
    fn connect<'a>(&'a self, address: &'a Address) -> Connecting<'a> {
        let address = address.to_string();
        let fate = self.fates[&address];
        self.tried
            .lock()
            .unwrap()
            .push((address, Instant::now() - self.began));
        Box::pin(async move {
            match fate {
                Fate::Hangs => std::future::pending().await,
                Fate::Refuses(after) => {
                    tokio::time::sleep(after).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Fate::Serves(after) => {
                    tokio::time::sleep(after).await;
                    let (ours, theirs) = duplex(64 << 10);
                    tokio::spawn(async {
                        let mut server = h2::server::handshake(theirs).await.unwrap();
                        while server.accept().await.is_some() {}
                    });
                    Ok(Box::new(ours) as _)
                }
            }
        })
    }
}

const NOW: Duration = Duration::ZERO;

#[tokio::test(start_paused = true)]
async fn the_first_address_is_used_alone_when_it_is_quick() {
    let net = Net::new(&[
        ("1.1.1.1:1", Fate::Serves(NOW)),
        ("2.2.2.2:2", Fate::Serves(NOW)),
    ]);

    let reached = net.dial(&["1.1.1.1:1", "2.2.2.2:2"]).await.unwrap();

    assert_eq!(reached, "1.1.1.1:1");
    assert_eq!(net.tried(), [("1.1.1.1:1".into(), 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_keeps_us_waiting_is_overtaken_after_250_ms() {
    let net = Net::new(&[("1.1.1.1:1", Fate::Hangs), ("2.2.2.2:2", Fate::Serves(NOW))]);

    let reached = net.dial(&["1.1.1.1:1", "2.2.2.2:2"]).await.unwrap();

    assert_eq!(reached, "2.2.2.2:2");
    assert_eq!(
        net.tried(),
        [("1.1.1.1:1".into(), 0), ("2.2.2.2:2".into(), 250)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_address_still_wins_when_the_next_is_slower() {
    let slow = Fate::Serves(Duration::from_millis(300));
    let slower = Fate::Serves(Duration::from_millis(300));
    let net = Net::new(&[("1.1.1.1:1", slow), ("2.2.2.2:2", slower)]);

    let reached = net.dial(&["1.1.1.1:1", "2.2.2.2:2"]).await.unwrap();

    assert_eq!(reached, "1.1.1.1:1");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_is_followed_by_the_next_at_once() {
    let refuses = Fate::Refuses(NOW);
    let net = Net::new(&[
        ("1.1.1.1:1", refuses),
        ("2.2.2.2:2", refuses),
        ("3.3.3.3:3", Fate::Serves(NOW)),
    ]);

    let reached = net
        .dial(&["1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3"])
        .await
        .unwrap();

    assert_eq!(reached, "3.3.3.3:3");
    assert!(net.tried().iter().all(|(_, after)| *after == 0));
}

#[tokio::test(start_paused = true)]
async fn when_all_addresses_fail_each_says_why() {
    let net = Net::new(&[
        ("1.1.1.1:1", Fate::Hangs),
        ("unix:/run/a.sock", Fate::Refuses(NOW)),
    ]);
    let began = Instant::now();

    let error = net
        .dial(&["1.1.1.1:1", "unix:/run/a.sock"])
        .await
        .unwrap_err();

    assert_eq!(
        error.chain(),
        "connect to instance a: connect to 1.1.1.1:1: no answer from the network within 5s; \
         connect to unix:/run/a.sock: connection refused"
    );
    assert_eq!(Instant::now() - began, secs(5));
}

#[tokio::test]
async fn tcp_names_and_unix_sockets_are_reached() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("echo.sock");
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    tokio::spawn(async move {
        let stream = unix.accept().await.unwrap().0;
        let mut server = h2::server::handshake(stream).await.unwrap();
        while server.accept().await.is_some() {}
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            let mut server = h2::server::handshake(stream).await.unwrap();
            tokio::spawn(async move { while server.accept().await.is_some() {} });
        }
    });
    let dialer = Dialer::new(
        Arc::new(super::super::Tcp::default()),
        None,
        Settings::default(),
    );
    for address in [
        at.to_string(),
        format!("localhost:{}", at.port()),
        format!("unix:{}", path.display()),
    ] {
        let instance = Instance::at(&*address).unwrap();

        let (connection, _driver) = dialer.dial(&instance).await.unwrap();

        assert_eq!(connection.address().to_string(), address);
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_says_so() {
    let dialer = Dialer::new(
        Arc::new(super::super::Tcp::default()),
        None,
        Settings::default(),
    );
    let instance = Instance::at("no-such-host.invalid:1").unwrap();

    let error = dialer.dial(&instance).await.unwrap_err().chain();

    assert!(
        error.contains("the name no-such-host.invalid cannot be looked up"),
        "{error}"
    );
}
