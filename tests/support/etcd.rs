//! Real etcd servers, to be killed, frozen, wiped and started again.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

#[path = "process.rs"]
mod process;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, LeaseGrantOptions, PutOptions};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub use process::free_port;

/// One etcd process, on ports of its own; killed when dropped. Its data is in memory where there is
/// such a place.
#[derive(Debug)]
pub struct Etcd {
    name: String,
    port: u16,
    peer_port: u16,
    peers: String,
    flags: Vec<String>,
    dir: TempDir,
    child: Option<Child>,
    /// `http` or `https`.
    scheme: &'static str,
    /// How this test's own clients are let in.
    options: ConnectOptions,
}

/// Three members of one cluster.
#[derive(Debug)]
pub struct Cluster(pub Vec<Etcd>);

/// How long a server may take to be ready, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

impl Etcd {
    /// A server alone, ready.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server alone, ready, with more flags.
    pub async fn with(flags: &[&str]) -> Self {
        let mut etcd = Self::prepared(flags);
        etcd.restart().await;
        etcd
    }

    /// A server that does not run yet, but has its address.
    pub fn prepared(flags: &[&str]) -> Self {
        let mut etcd = Self::named(
            "alone",
            &["--heartbeat-interval=10", "--election-timeout=50"],
        );
        etcd.flags.extend(flags.iter().map(ToString::to_string));
        etcd.peers = etcd.peer();
        etcd
    }

    fn named(name: &str, flags: &[&str]) -> Self {
        Self {
            name: name.into(),
            port: free_port(),
            peer_port: free_port(),
            peers: String::new(),
            flags: flags.iter().map(ToString::to_string).collect(),
            dir: process::dir("fleet-etcd-"),
            child: None,
            scheme: "http",
            options: ConnectOptions::default().with_connect_timeout(Duration::from_secs(1)),
        }
    }

    /// Speaks TLS with its clients: with this certificate and key, and, when there is an authority
    /// to check them, only with those who show a certificate. `options` let this test in.
    pub fn over_tls(
        &mut self,
        (certificate, key): (&str, &str),
        clients: Option<&str>,
        options: ConnectOptions,
    ) {
        let file = |name: &str, pem: &str| {
            let path = self.dir.path().join(name);
            fs::write(&path, pem).unwrap();
            path.display().to_string()
        };
        let (certificate, key) = (file("cert.pem", certificate), file("key.pem", key));
        let mut flags = vec![
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
        ];
        if let Some(ca) = clients {
            flags.push("--client-cert-auth".into());
            flags.push(format!("--trusted-ca-file={}", file("ca.pem", ca)));
        }
        self.flags.extend(flags);
        self.scheme = "https";
        self.options = options;
    }

    /// Lets in only those who log in, of whom `root` is the first.
    pub async fn lock_up(&mut self, password: &str) {
        let mut client = self.client().await;
        client.user_add("root", password, None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.auth_enable().await.unwrap();
        self.options = self.options.clone().with_user("root", password);
    }

    fn peer(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer_port)
    }

    /// Where clients reach it, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same as a registry URL.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.address())
    }

    /// Starts the process, and does not wait for it.
    pub fn spawn(&mut self) {
        let client = format!("{}://127.0.0.1:{}", self.scheme, self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = process::command(&binary());
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        command
            .args([
                format!("--name={}", self.name),
                format!("--data-dir={}", self.data().display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", self.peers),
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().expect("etcd can be run"));
    }

    /// Starts the process on the same ports and data, and waits until it answers.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.ready().await;
    }

    /// Returns when it answers a question that needs a leader.
    pub async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let asking = async { self.connect().await?.get("ready", None).await };
            if let Ok(Ok(_)) = timeout(Duration::from_secs(1), asking).await {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "etcd is not ready: {ended:?} {}",
                fs::read_to_string(self.dir.path().join("log")).unwrap()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A client of its own, which asks nobody else.
    pub async fn client(&self) -> Client {
        until_done(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, etcd_client::Error> {
        let url = format!("{}://{}", self.scheme, self.address());
        Client::connect([url], Some(self.options.clone())).await
    }

    /// Kills it at once (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Asks it to end (SIGTERM), and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Freezes it: connections stay, and nothing is answered.
    ///
    /// Returns when it stands still: the signal goes to one thread, and the others run on until that one
    /// has had its turn.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        while !self.stands_still() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn stands_still(&self) -> bool {
        let child = self.child.as_ref().expect("it runs");
        let mut threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        threads.all(|thread| {
            // A thread that has gone since does nothing more.
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it and throws its data away.
    pub fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
    }

    async fn leads(&self) -> bool {
        let asking = async { self.connect().await?.status().await };
        let Ok(Ok(status)) = timeout(Duration::from_secs(1), asking).await else {
            return false;
        };
        let header = status.header();
        header.is_some_and(|header| header.member_id() == status.leader())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        process::signal(child, signal);
    }

    /// Puts a key, without a lease.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        let (client, value) = (self.client().await, value.into());
        until_done(async || client.clone().put(key, value.clone(), None).await).await;
    }

    /// Puts a key under a new lease, and answers with the lease.
    pub async fn put_leased(&self, key: &str, value: impl Into<Vec<u8>>, ttl: i64) -> i64 {
        let (client, value) = (self.client().await, value.into());
        let grant = async || {
            let mut client = client.clone();
            client.lease_grant(ttl, None::<LeaseGrantOptions>).await
        };
        let lease = until_done(grant).await.id();
        let options = || Some(PutOptions::new().with_lease(lease));
        until_done(async || client.clone().put(key, value.clone(), options()).await).await;
        lease
    }

    /// Deletes a key.
    pub async fn delete(&self, key: &str) {
        let client = self.client().await;
        until_done(async || client.clone().delete(key, None).await).await;
    }

    /// A number that the server counts, as `/metrics` names it; 0 when it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(self.address())
            .await
            .unwrap();
        let ask = "GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n";
        socket.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let line = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Cluster {
    /// Three members, ready.
    pub async fn start() -> Self {
        // Not the fastest: under load, that would elect leaders all the time.
        let flags = ["--heartbeat-interval=20", "--election-timeout=200"];
        let mut members: Vec<_> = ["a", "b", "c"].map(|name| Etcd::named(name, &flags)).into();
        let peers: Vec<_> = members.iter().map(Etcd::peer).collect();
        for member in &mut members {
            member.peers = peers.join(",");
            member.spawn();
        }
        let mut cluster = Self(members);
        cluster.ready().await;
        cluster
    }

    /// Returns when every member answers.
    pub async fn ready(&mut self) {
        for member in &mut self.0 {
            member.ready().await;
        }
    }

    /// Where clients reach the members.
    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(Etcd::address).collect()
    }

    /// The same as a registry URL.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.addresses().join(","))
    }

    /// Which member leads.
    pub async fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            for (at, member) in self.0.iter().enumerate() {
                if member.leads().await {
                    return at;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the cluster has no leader");
    }

    /// The member at this address.
    pub fn at(&mut self, address: &str) -> &mut Etcd {
        let found = self.0.iter_mut().find(|member| member.address() == address);
        found.expect("a member of this cluster")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks until it is done: where a machine is busy, a cluster elects another leader at any time, and says so.
/// What is asked may be done twice.
async fn until_done<T>(mut ask: impl AsyncFnMut() -> Result<T, etcd_client::Error>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < until, "{why}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn binary() -> PathBuf {
    let found = process::named("ETCD_BIN", "etcd");
    found.expect("these tests need etcd: set ETCD_BIN, or put etcd on the PATH; scripts/test does")
}
