//! Where, and with what, the figures were taken.

use std::{collections::BTreeMap, fmt, fs, process::Command, thread::available_parallelism};

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
    /// Of the last minute, before anything was run.
    pub load: String,
    pub rust: String,
    /// The commit that is measured.
    pub commit: String,
    pub versions: BTreeMap<String, String>,
}

/// Whose versions matter.
const NAMED: &[&str] = &[
    "tonic-fleet",
    "tonic",
    "tower",
    "ginepro",
    "volo-grpc",
    "grpc",
    "h2",
    "hyper",
    "tokio",
    "tracing",
];

impl Machine {
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cores: available_parallelism().map_or(0, usize::from),
            cpu: model
                .map_or("unknown", |m| m.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            kernel: said_by("uname", &["-sr"]),
            load: load.split(' ').next().unwrap_or("unknown").to_owned(),
            rust: said_by("rustc", &["--version"]),
            commit: said_by("git", &["describe", "--always", "--dirty"]),
            versions: versions(include_str!("../../Cargo.lock")),
        }
    }
}

impl Machine {
    /// For the foot of a picture.
    pub fn line(&self) -> String {
        let Self {
            cores,
            cpu,
            kernel,
            load,
            commit,
            ..
        } = self;
        format!("{cores} cores of {cpu}, {kernel}, load {load} at the start; commit {commit}")
    }
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let said = output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    said.map_or("unknown".to_owned(), |said| said.trim().to_owned())
}

/// Those that matter, from what cargo has locked; two where there are two.
fn versions(lock: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            let line = package.lines().find_map(|line| line.strip_prefix(&start));
            line.map(|value| value.trim_end_matches('"'))
        };
        let (Some(name), Some(version)) = (field("name"), field("version")) else {
            continue;
        };
        if NAMED.contains(&name) {
            let versions = found.entry(name.to_owned()).or_default();
            if !versions.is_empty() {
                versions.push_str(" and ");
            }
            versions.push_str(version);
        }
    }
    found
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cores,
            cpu,
            kernel,
            load,
            rust,
            commit,
            ..
        } = self;
        writeln!(
            f,
            "{cores} cores of {cpu}, {kernel}, {rust}, load {load} at the start"
        )?;
        write!(f, "commit {commit}")?;
        for (name, version) in &self.versions {
            write!(f, ", {name} {version}")?;
        }
        Ok(())
    }
}
