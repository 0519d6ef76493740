//! Everything that is logged on a test's own thread, where all of its tasks run.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs"
)]

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::EnvFilter;

/// What was logged; it stops listening when it is dropped.
pub struct Log {
    text: Sink,
    _listening: DefaultGuard,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Listens to all that this filter lets pass, such as `tonic_fleet=info`.
    pub fn of(filter: &str) -> Self {
        let text = Sink::default();
        let sink = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .finish();
        Self {
            text,
            _listening: tracing::subscriber::set_default(subscriber),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.0.lock().unwrap()).into_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// What is logged unless somebody asks for more.
    pub fn said(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| !line.contains(" DEBUG ") && !line.contains(" TRACE "));
        lines
    }

    /// What a person may have to act on.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        lines
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
