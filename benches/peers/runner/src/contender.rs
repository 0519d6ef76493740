//! Processes that work for us, and end with the value that stands for them.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use load::{Ask, Burden, Failure, Figures};
use serde::de::DeserializeOwned;

use crate::peers::{Peer, program};

/// Clients on one core and servers on another, where there are two.
const CLIENT_CORE: &str = "0";
const SERVER_CORE: &str = "1";

/// How long an answer may take, beyond the work that was asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that is spoken to in lines.
struct Process {
    child: Child,
    /// Closed when it is to end.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self, Failure> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child's pipes are missing".into());
        };
        let (tell, lines) = sync_channel(64);
        // Ends with the child.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input: Some(input),
            lines,
        })
    }

    fn line(&self, patience: Duration) -> Result<String, Failure> {
        self.lines.recv_timeout(patience).map_err(|error| {
            Failure::from(match error {
                RecvTimeoutError::Timeout => format!("no answer within {patience:?}"),
                RecvTimeoutError::Disconnected => "it has died".to_owned(),
            })
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Servers in a process of their own.
pub struct Servers {
    pub addresses: Vec<SocketAddr>,
    _process: Process,
}

impl Servers {
    pub fn start(kind: &str, servers: usize) -> Result<Self, Failure> {
        Self::slow(kind, servers, Duration::ZERO)
    }

    /// Each takes so long to answer.
    pub fn slow(kind: &str, servers: usize, delay: Duration) -> Result<Self, Failure> {
        let mut command = Command::new(program("server"));
        command.args([kind, &servers.to_string(), SERVER_CORE]);
        command.arg(delay.as_millis().to_string());
        let process = Process::start(&mut command)?;
        let addresses = (0..servers)
            .map(|_| Ok(process.line(PATIENCE)?.parse()?))
            .collect::<Result<_, Failure>>()?;
        Ok(Self {
            addresses,
            _process: process,
        })
    }
}

/// A contender that has opened its connections.
pub struct Contender(Process);

impl Contender {
    pub fn start(peer: &Peer, servers: &[SocketAddr]) -> Result<Self, Failure> {
        Self::open(Command::new(program(peer.program)), peer, servers)
    }

    /// Its instructions are counted, and stand in the log when it has ended.
    pub fn counted(peer: &Peer, servers: &[SocketAddr], log: &Path) -> Result<Self, Failure> {
        let mut command = Command::new("valgrind");
        command.args([
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
        ]);
        command.arg(format!("--log-file={}", log.display()));
        command.arg(program(peer.program));
        Self::open(command, peer, servers)
    }

    fn open(mut command: Command, peer: &Peer, servers: &[SocketAddr]) -> Result<Self, Failure> {
        command.args([peer.name, CLIENT_CORE]);
        let mut contender = Self(Process::start(&mut command)?);
        contender.tell(&Ask::Open(servers.to_vec()))?;
        let _: String = contender.hear(PATIENCE)?;
        Ok(contender)
    }

    /// Counts allocations or takes times: both at once would be worth nothing.
    pub fn round(
        &mut self,
        burden: Burden,
        time: Duration,
        count: bool,
    ) -> Result<Figures, Failure> {
        let millis = u64::try_from(time.as_millis())?;
        self.tell(&Ask::Round {
            burden,
            millis,
            count,
        })?;
        self.hear(time + PATIENCE)
    }

    /// Lets it end by itself.
    pub fn end(mut self) -> Result<(), Failure> {
        self.0.input = None;
        match self.0.lines.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Disconnected) => {
                self.0.child.wait()?;
                Ok(())
            }
            Ok(line) => Err(format!("it said {line} at its end").into()),
            Err(RecvTimeoutError::Timeout) => Err("it does not end".into()),
        }
    }

    pub fn tell(&mut self, ask: &Ask) -> Result<(), Failure> {
        let input = self.0.input.as_mut().ok_or("it was told to end")?;
        writeln!(input, "{}", serde_json::to_string(ask)?)?;
        Ok(())
    }

    pub fn hear<T: DeserializeOwned>(&self, patience: Duration) -> Result<T, Failure> {
        Ok(serde_json::from_str(&self.0.line(patience)?)?)
    }
}
