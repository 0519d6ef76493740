//! The example programs as processes, which can be signalled, and what they print.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command as Build, Stdio},
    sync::OnceLock,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

/// Longer than anything a program is waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// A program that prints a JSON object a line.
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What a program that ran to its end left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// An echo server; the words are its flags.
    pub fn server(flags: &str) -> Self {
        let mut child = command("echo_server", flags).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// A server of this id that is in the registry.
    pub async fn registered(registry: &str, id: &str, more: &str) -> Self {
        let mut server = Self::server(&format!(
            "--registry {registry} --service services-echo --id {id} {more}"
        ));
        server.says("registered").await;
        server
    }

    /// The next line about this event; those before it are passed over.
    pub async fn says(&mut self, event: &str) -> Value {
        loop {
            let line = timeout(LIMIT, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("nothing about {event:?} within {LIMIT:?}"));
            let Some(line) = line.unwrap() else {
                panic!("it ended without a word about {event:?}");
            };
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["event"] == event {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(pid(&self.child), signal).unwrap();
    }

    /// The exit code, once it has one.
    pub async fn ended(mut self) -> Option<i32> {
        let status = timeout(LIMIT, self.child.wait()).await;
        status.expect("it should have ended").unwrap().code()
    }

    /// Asks it to leave, and waits until it has.
    pub async fn leave(self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended().await, Some(0));
    }
}

/// A program under way whose whole output counts.
pub struct Running {
    pid: Pid,
    ended: JoinHandle<Ended>,
}

impl Running {
    pub fn start(name: &str, flags: &str) -> Self {
        Self::spawn(command(name, flags))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let pid = pid(&child);
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let ended = tokio::spawn(async move {
            let (mut stdout, mut stderr) = (String::new(), String::new());
            let (_, _) = tokio::join!(
                out.read_to_string(&mut stdout),
                err.read_to_string(&mut stderr)
            );
            let code = child.wait().await.unwrap().code();
            Ended {
                code,
                stdout,
                stderr,
            }
        });
        Self { pid, ended }
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    pub async fn ended(self) -> Ended {
        let ended = timeout(3 * LIMIT, self.ended).await;
        ended.expect("it should have ended").unwrap()
    }

    /// Ends a client as Ctrl-C does, and gives its summary.
    pub async fn interrupted(self) -> Value {
        self.signal(Signal::SIGINT);
        self.ended().await.summary()
    }
}

impl Ended {
    /// The last line, which is the summary.
    pub fn summary(&self) -> Value {
        let last = self.stdout.lines().last();
        let last = last.unwrap_or_else(|| panic!("no summary: {self:?}"));
        serde_json::from_str(last).unwrap()
    }
}

/// Runs a program to its end.
pub async fn run(name: &str, flags: &str) -> Ended {
    Running::start(name, flags).ended().await
}

/// Runs a program to its end with one argument, which need not be text.
pub async fn run_with(name: &str, argument: &OsStr) -> Ended {
    let mut command = command(name, "");
    command.arg(argument);
    Running::spawn(command).ended().await
}

fn command(name: &str, flags: &str) -> Command {
    let mut command = Command::new(built().join(name));
    command
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().unwrap().try_into().unwrap())
}

/// Where the programs are, built from what is being tested.
fn built() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // The very features of this test, so that nothing is built twice.
        let features = [
            ("default", cfg!(feature = "default")),
            ("full", cfg!(feature = "full")),
            ("coord", cfg!(feature = "coord")),
            ("dns", cfg!(feature = "dns")),
            ("tonic-channel", cfg!(feature = "tonic-channel")),
            ("tls-ring", cfg!(feature = "tls-ring")),
            ("tls-aws-lc", cfg!(feature = "tls-aws-lc")),
            ("tls-webpki-roots", cfg!(feature = "tls-webpki-roots")),
        ];
        let features = features.iter().filter(|(_, on)| *on);
        let features: String = features.map(|(name, _)| format!(",{name}")).collect();
        // target/debug/deps/programs-…
        let own = env::current_exe().unwrap();
        let profile = own.ancestors().nth(2).unwrap();
        let status = Build::new(env!("CARGO"))
            .args(["build", "--quiet", "--no-default-features", "--features"])
            .arg(format!("etcd,server{features}"))
            .args([
                "--example",
                "echo_server",
                "--example",
                "echo_client",
                "--example",
                "demo",
                "--example",
                "agent",
                "--example",
                "migrate",
                "--example",
                "policy",
            ])
            .args(if cfg!(feature = "coord") {
                &["--example", "directory"][..]
            } else {
                &[]
            })
            .args(if cfg!(debug_assertions) {
                &[][..]
            } else {
                &["--release"]
            })
            .env("CARGO_TARGET_DIR", profile.parent().unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "the example programs do not build");
        profile.join("examples")
    })
}
