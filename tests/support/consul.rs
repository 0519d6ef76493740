//! Real Consul agents, to be killed, frozen, wiped and started again.
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
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use process::free_port;

/// One agent, a server alone, on ports of its own; killed when dropped. It keeps nothing when it ends.
#[derive(Debug)]
pub struct Consul {
    http: u16,
    dir: TempDir,
    child: Option<Child>,
    node: &'static str,
    pub token: Option<String>,
}

/// How long an agent may take to be ready, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is a Consul to test with; says so aloud when there is none.
pub fn exists() -> bool {
    let exists = binary().is_some();
    if !exists {
        println!("not tested: no Consul; set CONSUL_BIN, or run scripts/test, which gets one");
    }
    exists
}

impl Consul {
    /// An agent, ready.
    pub async fn start() -> Self {
        Self::with(json!({})).await
    }

    /// An agent, ready, with more configuration.
    pub async fn with(more: Value) -> Self {
        let mut consul = Self::prepared(more);
        consul.restart().await;
        consul
    }

    /// An agent that does not run yet, but has its address.
    pub fn prepared(more: Value) -> Self {
        let dir = process::dir("fleet-consul-");
        let http = free_port();
        let mut config = json!({
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "node_name": "agent",
            "disable_update_check": true,
            "log_level": "warn",
            "limits": { "http_max_conns_per_client": 10_000 },
            "ports": {
                "http": http, "dns": -1, "grpc": -1, "serf_wan": -1,
                "server": free_port(), "serf_lan": free_port(),
            },
        });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Self {
            http,
            dir,
            child: None,
            node: "agent",
            token: None,
        }
    }

    /// Offers TLS with this certificate and key, to those who show a certificate of this authority; at the
    /// address that it gives.
    pub fn over_tls(&mut self, (certificate, key): (&str, &str), ca: &str) -> String {
        let path = self.dir.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let files = [
            ("cert_file", certificate),
            ("key_file", key),
            ("ca_file", ca),
        ];
        for (name, pem) in files {
            let file = self.dir.path().join(name);
            fs::write(&file, pem).unwrap();
            config[name] = json!(file);
        }
        let port = free_port();
        config["ports"]["https"] = json!(port);
        fs::write(path, config.to_string()).unwrap();
        format!("127.0.0.1:{port}")
    }

    /// An agent that is no server, joined to this one; they notice soon when one of them is gone.
    pub async fn joined_to(server: &Self) -> Self {
        let mut agent = Self::prepared(json!({
            "server": false,
            "node_name": "beside",
            "node_id": "0d4bf67a-0d3c-4b1e-9d8c-4e4f6a3f7b11",
            "retry_join": [format!("127.0.0.1:{}", server.gossip())],
            "gossip_lan": gossip(),
        }));
        agent.node = "beside";
        agent.restart().await;
        agent
    }

    fn gossip(&self) -> u64 {
        let config = fs::read_to_string(self.dir.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        config["ports"]["serf_lan"].as_u64().unwrap()
    }

    /// Where clients reach it, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// The same as a registry URL.
    pub fn url(&self) -> String {
        format!("consul://{}", self.address())
    }

    /// Starts the process anew, with nothing left of before, and waits until it answers.
    pub async fn restart(&mut self) {
        self.kill();
        let consul = binary().expect("a Consul to test with");
        let mut command = process::command(&consul);
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        command.arg("agent");
        if self.node == "agent" {
            command.arg("-dev");
        } else {
            let data = self.dir.path().join("data");
            let _ = fs::remove_dir_all(&data);
            command.arg("-data-dir").arg(data);
        }
        command
            .arg("-config-file")
            .arg(self.dir.path().join("config.json"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null());
        self.child = Some(command.spawn().expect("Consul can be run"));
        self.ready().await;
    }

    /// Returns when it has a leader, and has registered itself.
    pub async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        let own = format!("/v1/health/node/{}", self.node);
        loop {
            let asking = self.try_ask("GET", &own, "");
            if let Ok(Ok((200, body))) = timeout(Duration::from_secs(1), asking).await
                && body.contains("serfHealth")
            {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "Consul is not ready: {ended:?} {}",
                fs::read_to_string(self.dir.path().join("log")).unwrap()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends the process, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        process::signal(child, signal);
    }

    /// Changes something.
    pub async fn put(&self, path: &str, body: &Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, said) = self.try_ask("PUT", path, &body).await.unwrap();
        assert_eq!(status, 200, "PUT {path}: {said}");
    }

    /// Asks for something; `null` when it is not there.
    pub async fn get(&self, path: &str) -> Value {
        let (status, said) = self.try_ask("GET", path, "").await.unwrap();
        match status {
            404 => Value::Null,
            _ => serde_json::from_str(&said)
                .unwrap_or_else(|_| panic!("GET {path}: {status} {said}")),
        }
    }

    /// Whom it lists under a service: the ids, each with the worst of its own checks.
    pub async fn listed(&self, service: &str) -> Vec<(String, String)> {
        let all = self.get(&format!("/v1/health/service/{service}")).await;
        let entry = |entry: &Value| {
            let checks = entry["Checks"].as_array().unwrap().iter();
            let of = |status: &str| match status {
                "passing" => 0,
                "warning" => 1,
                _ => 2,
            };
            let own = checks.filter(|check| check["ServiceID"] != "");
            let worst = own
                .map(|check| check["Status"].as_str().unwrap())
                .max_by_key(|s| of(s));
            let id = entry["Service"]["ID"].as_str().unwrap();
            (id.to_owned(), worst.unwrap_or("none").to_owned())
        };
        let mut listed: Vec<_> = all.as_array().unwrap().iter().map(entry).collect();
        listed.sort();
        listed
    }

    /// Returns when it knows that the agents of so many of a service's servers are gone.
    pub async fn misses_agents_of(&self, service: &str, wanted: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let all = self.get(&format!("/v1/health/service/{service}")).await;
            let is_gone =
                |check: &Value| check["CheckID"] == "serfHealth" && check["Status"] == "critical";
            let is_missed =
                |entry: &&Value| entry["Checks"].as_array().unwrap().iter().any(is_gone);
            let missed = all.as_array().unwrap().iter().filter(is_missed).count();
            if missed == wanted {
                return;
            }
            assert!(Instant::now() < until, "{missed} of {wanted} are missed");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns when it lists these.
    pub async fn lists(&self, service: &str, wanted: &[(&str, &str)]) {
        let until = Instant::now() + PATIENCE;
        loop {
            let listed = self.listed(service).await;
            let pairs = listed.iter().map(|(id, status)| (&**id, &**status));
            if pairs.eq(wanted.iter().copied()) {
                return;
            }
            assert!(Instant::now() < until, "{listed:?}, and not {wanted:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut io = TcpStream::connect(self.address()).await?;
        let token = self.token.as_ref();
        let token = token.map_or(String::new(), |token| {
            format!("x-consul-token: {token}\r\n")
        });
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: consul\r\n{token}content-length: {length}\r\n\r\n{body}"
        );
        io.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whoever is gone is noticed within seconds.
pub fn gossip() -> Value {
    json!({ "probe_interval": "300ms", "probe_timeout": "150ms", "suspicion_mult": 2 })
}

fn binary() -> Option<PathBuf> {
    // Where scripts/setup puts it.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/consul-1.8/usr/bin/consul");
    process::named("CONSUL_BIN", "consul").or_else(|| own.is_file().then_some(own))
}
