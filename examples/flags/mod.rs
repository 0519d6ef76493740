//! What was given on the command line, and one sentence about what is wrong with it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each program that takes this in uses a part of it"
)]

use std::{
    collections::BTreeMap,
    env, fmt,
    io::{self, Write as _},
    ops::RangeInclusive,
    process::ExitCode,
    str::FromStr,
};

/// The flags of one run.
#[derive(Debug)]
pub struct Flags {
    given: BTreeMap<String, String>,
}

/// Why a program ends before its time, or what it ends with.
#[derive(Debug)]
pub enum Stop {
    /// It was asked how it is used.
    Help(&'static str),
    /// It was used wrongly: what, where, and what to do.
    Wrong(String),
    /// It could not do what it should.
    Failed(String),
}

impl Flags {
    /// Reads `--name value` and `--name=value`, for the names that stand in the usage text.
    ///
    /// There, a line that starts with two spaces and a flag describes it; a word in capitals after it says
    /// that it takes a value.
    pub fn read(usage: &'static str) -> Result<Self, Stop> {
        let args = env::args_os().skip(1).map(|arg| {
            arg.into_string().map_err(|arg| {
                let what = shown(&arg.to_string_lossy());
                Stop::Wrong(format!("{what} is not UTF-8: write it in UTF-8"))
            })
        });
        Self::of(usage, args.collect::<Result<Vec<_>, _>>()?.into_iter())
    }

    fn of(usage: &'static str, mut args: impl Iterator<Item = String>) -> Result<Self, Stop> {
        let known = known(usage);
        let mut given = BTreeMap::new();
        while let Some(arg) = args.next() {
            if arg == "--help" || arg == "-h" {
                return Err(Stop::Help(usage));
            }
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            let Some(takes) = known.get(&*name) else {
                let names: Vec<_> = known.keys().copied().collect();
                return Err(Stop::Wrong(format!(
                    "{} is not a flag: use {}",
                    shown(&name),
                    names.join(", ")
                )));
            };
            let value = match (takes, value) {
                (None, None) => String::new(),
                (None, Some(_)) => {
                    return Err(Stop::Wrong(format!(
                        "{name} takes no value: write it alone"
                    )));
                }
                (Some(_), Some(value)) => value,
                (Some(what), None) => args
                    .next()
                    .filter(|value| !known.contains_key(&**value))
                    .ok_or_else(|| {
                        Stop::Wrong(format!("{name} lacks its value: write {name} {what}"))
                    })?,
            };
            if given.insert(name.clone(), value).is_some() {
                return Err(Stop::Wrong(format!("{name} is given twice: give it once")));
            }
        }
        Ok(Self { given })
    }

    /// Whether a flag is there.
    pub fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A flag's value as it was written.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str)
    }

    /// The value of a flag that must be there.
    pub fn needed(&self, name: &str, example: &str) -> Result<&str, Stop> {
        self.text(name)
            .ok_or_else(|| Stop::Wrong(format!("{name} is missing: write {name} {example}")))
    }

    /// A flag's value as what it stands for.
    pub fn parsed<T>(&self, name: &str) -> Result<Option<T>, Stop>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Stop::Wrong(format!("{name} {}: {error}", shown(text)))),
        }
    }

    /// A flag's value as a whole number within limits.
    pub fn number(&self, name: &str, limits: RangeInclusive<u64>) -> Result<Option<u64>, Stop> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if limits.contains(&number) => Ok(Some(number)),
            _ => Err(Stop::Wrong(format!(
                "{name} {} is not a whole number from {} to {}: write {name} {}",
                shown(text),
                limits.start(),
                limits.end(),
                limits.start()
            ))),
        }
    }
}

/// The flags in a usage text, and the word for each one's value.
fn known(usage: &str) -> BTreeMap<&str, Option<&str>> {
    let lines = usage.lines().filter_map(|line| line.strip_prefix("  "));
    lines
        .filter(|line| line.starts_with("--"))
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let value = words.next().filter(|word| is_placeholder(word));
            (name, value)
        })
        .collect()
}

fn is_placeholder(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_uppercase())
}

/// What was given, in quotes: its beginning, where it is long.
pub fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

impl Stop {
    /// Says why, and gives the exit code: 0 for help, 2 for wrong use, 1 for the rest.
    pub fn end(self, program: &str) -> ExitCode {
        match self {
            Self::Help(usage) => {
                print(&usage);
                ExitCode::SUCCESS
            }
            Self::Wrong(sentence) => {
                eprintln!("{program}: {sentence} (--help says more)");
                ExitCode::from(2)
            }
            Self::Failed(sentence) => {
                eprintln!("{program}: {sentence}");
                ExitCode::FAILURE
            }
        }
    }

    /// A flag whose value the library refuses.
    pub fn refused(flag: &str) -> impl FnOnce(tonic_fleet::Error) -> Self + '_ {
        move |error| Self::Wrong(format!("{flag}: {}", error.chain()))
    }
}

/// A registry URL with one more parameter, unless there is nothing to add.
pub fn with_parameter(url: &str, name: &str, value: Option<&str>) -> String {
    match value {
        None => url.to_owned(),
        Some(value) => {
            let joint = if url.contains('?') { '&' } else { '?' };
            format!("{url}{joint}{name}={value}")
        }
    }
}

/// One line on standard output. A reader that has gone away is no reason to fail.
pub fn print(line: &impl fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Shows on standard error what `RUST_LOG` asks for.
pub fn trace() {
    if env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(io::stderr)
            .init();
    }
}
