//! Servers that come and go, each in a process of its own.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use load::Failure;
use rand::RngExt;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tonic_fleet::{Instance, InstanceId, ServiceName, resolve::Memory};

pub struct Fleet {
    pub registry: Memory,
    pub service: ServiceName,
    /// How many have gone, and been followed by another.
    pub replaced: usize,
    servers: Vec<Server>,
}

struct Server {
    id: InstanceId,
    process: Child,
}

impl Fleet {
    pub async fn start(servers: usize) -> Result<Self, Failure> {
        let mut fleet = Self {
            registry: Memory::default(),
            service: "soaked".parse()?,
            replaced: 0,
            servers: Vec::new(),
        };
        for _ in 0..servers {
            fleet.add().await?;
        }
        Ok(fleet)
    }

    async fn add(&mut self) -> Result<(), Failure> {
        let mut program = std::env::current_exe()?;
        program.set_file_name("server");
        let mut process = Command::new(program)
            .args(["lean", "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("a server without its output")?;
        let mut lines = BufReader::new(output).lines();
        let line = timeout(Duration::from_secs(20), lines.next_line()).await??;
        let address: SocketAddr = line.ok_or("a server that says no address")?.parse()?;
        let instance = Instance::at(address)?.id(address.to_string())?;
        let id = instance.id.clone();
        self.registry.put(&self.service, instance);
        self.servers.push(Server { id, process });
        Ok(())
    }

    /// One goes, in one of the ways in which servers go, and another comes.
    pub async fn replace_one(&mut self) -> Result<(), Failure> {
        let (place, way, pause) = {
            let mut dice = rand::rng();
            let place = dice.random_range(0..self.servers.len());
            (place, dice.random_range(0..3), dice.random_range(300..900))
        };
        let mut gone = self.servers.swap_remove(place);
        match way {
            // In order: it leaves the registry, then it ends.
            0 => {
                self.registry.remove(&self.service, &gone.id);
                sleep(Duration::from_millis(pause)).await;
                gone.process.kill().await?;
            }
            // It dies, and its lease runs out later.
            1 => {
                gone.process.kill().await?;
                sleep(Duration::from_millis(pause)).await;
                self.registry.vanish(&self.service, &gone.id);
            }
            // Its lease runs out while it lives.
            _ => {
                self.registry.vanish(&self.service, &gone.id);
                sleep(Duration::from_millis(pause)).await;
                gone.process.kill().await?;
            }
        }
        self.add().await?;
        self.replaced += 1;
        sleep(Duration::from_millis(pause / 2)).await;
        Ok(())
    }
}
