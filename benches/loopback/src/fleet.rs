//! The process of the servers, as the callers hold it.

use std::{error::Error, net::SocketAddr, process::Stdio};

use sim::reality::timeline::{Change, Timeline};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

use crate::servers::SERVE;

/// It ends when this is dropped.
pub struct Fleet {
    _child: Child,
    orders: ChildStdin,
    pub addresses: Vec<SocketAddr>,
}

impl Fleet {
    pub async fn start(servers: usize, permits: usize) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .args([servers.to_string(), permits.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = child.stdin.take().ok_or("its input is piped")?;
        let stdout = child.stdout.take().ok_or("its output is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut addresses = Vec::new();
        for _ in 0..servers {
            let line = lines.next_line().await?;
            addresses.push(line.ok_or("the servers ended")?.parse()?);
        }
        Ok(Self {
            _child: child,
            orders,
            addresses,
        })
    }

    /// All servers are as the timeline has them at first.
    pub async fn begin(&mut self, timeline: &Timeline) -> std::io::Result<()> {
        for server in 0..self.addresses.len() {
            self.order(&format!("speed {server} {}\n", timeline.speed(server)))
                .await?;
        }
        Ok(())
    }

    /// One server changes.
    pub async fn change(
        &mut self,
        timeline: &Timeline,
        server: usize,
        change: Change,
    ) -> std::io::Result<()> {
        if let Change::Fails(fails) = change {
            return self.order(&format!("fails {server} {fails}\n")).await;
        }
        self.order(&format!("speed {server} {}\n", timeline.speed(server)))
            .await
    }

    async fn order(&mut self, line: &str) -> std::io::Result<()> {
        self.orders.write_all(line.as_bytes()).await
    }
}
