//! A DNS server for tests: one socket, one task, answers from a table.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// Serves a zone while it lives.
pub(super) struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _task: AbortOnDropHandle<()>,
}

/// What the server knows.
#[derive(Clone, Default)]
pub(super) struct Zone {
    records: Vec<Record>,
    /// The kinds of record that it fails for.
    failing: Vec<u16>,
}

#[derive(Clone)]
struct Record {
    name: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

impl Zone {
    /// Answers every question with a failure.
    pub(super) fn broken() -> Self {
        Self {
            failing: vec![A, AAAA, SRV],
            ..Self::default()
        }
    }

    pub(super) fn failing_ipv6(mut self) -> Self {
        self.failing.push(AAAA);
        self
    }

    pub(super) fn address(self, name: &str, ttl: u32, ip: &str) -> Self {
        match ip.parse().unwrap() {
            IpAddr::V4(ip) => self.record(name, A, ttl, ip.octets().to_vec()),
            IpAddr::V6(ip) => self.record(name, AAAA, ttl, ip.octets().to_vec()),
        }
    }

    /// A service: priority, weight, port and host.
    pub(super) fn service(self, name: &str, ttl: u32, srv: (u16, u16, u16, &str)) -> Self {
        let mut data = [srv.0, srv.1, srv.2].map(u16::to_be_bytes).concat();
        data.extend(labels(srv.3));
        self.record(name, SRV, ttl, data)
    }

    fn record(mut self, name: &str, kind: u16, ttl: u32, data: Vec<u8>) -> Self {
        let name = labels(name);
        self.records.push(Record {
            name,
            kind,
            ttl,
            data,
        });
        self
    }

    /// The answer to a question, as it goes over the wire.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
        let name = question[12..end].to_ascii_lowercase();
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        let of_name = self.records.iter().filter(|record| record.name == name);
        let code = match (self.failing.contains(&kind), of_name.clone().count()) {
            (true, _) => SERVER_FAILURE,
            (false, 0) => NO_SUCH_NAME,
            _ => 0,
        };
        let found: Vec<_> = of_name
            .filter(|record| code == 0 && record.kind == kind)
            .collect();
        let mut answer = question[..2].to_vec();
        // An authoritative answer; recursion wished for and to be had.
        answer.extend([0x85, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
        answer.extend(&question[12..end + 4]);
        for record in found {
            answer.extend([0xc0, 12]);
            answer.extend([record.kind, 1].map(u16::to_be_bytes).concat());
            answer.extend(record.ttl.to_be_bytes());
            answer.extend((record.data.len() as u16).to_be_bytes());
            answer.extend(&record.data);
        }
        Some(answer)
    }
}

fn labels(name: &str) -> Vec<u8> {
    let mut labels = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        labels.push(label.len() as u8);
        labels.extend(label.as_bytes());
    }
    labels.push(0);
    labels
}

impl Server {
    pub(super) async fn start(zone: Zone) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(zone));
        let served = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question).await {
                let answer = served.lock().unwrap().answer(&question[..len]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self {
            address,
            zone,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves this from now on.
    pub(super) fn serve(&self, zone: Zone) {
        *self.zone.lock().unwrap() = zone;
    }
}
