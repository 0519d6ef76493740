//! What the terminal shows.

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Status;
use tonic_fleet::{Endpoint, State, View};

/// Redraws a picture on a terminal; writes plain lines elsewhere.
pub(crate) struct Picture {
    began: Instant,
    title: String,
    living: bool,
    rows: BTreeMap<String, Row>,
    news: VecDeque<String>,
    /// So many lines are on the screen, to be drawn over.
    drawn: usize,
    told: Instant,
}

/// One server, also after it has gone.
#[derive(Default)]
struct Row {
    address: String,
    state: String,
    why: String,
    calls: u64,
    /// Calls of its earlier lives: a server that comes back is a new endpoint.
    before: u64,
    rate: f64,
}

/// The numbers below the servers.
#[derive(Clone, Copy)]
pub(crate) struct Score {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) repeated: u64,
    pub(crate) gap: Duration,
}

const NEWS: usize = 8;
/// No line is longer, so that none wraps in a terminal of 80 columns.
const WIDTH: usize = 79;
/// A plain line so often.
const PLAIN: Duration = Duration::from_secs(1);

impl Picture {
    pub(crate) fn new(title: String, began: Instant) -> Self {
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            began,
            title,
            living: io::stdout().is_terminal() && !dumb,
            rows: BTreeMap::new(),
            news: VecDeque::new(),
            drawn: 0,
            told: began,
        }
    }

    /// Something happened.
    pub(crate) fn tell(&mut self, what: &str, now: Instant) {
        let line = format!("{:>6.1} s  {what}", (now - self.began).as_secs_f64());
        if self.living {
            self.news.push_back(line);
            if self.news.len() > NEWS {
                self.news.pop_front();
            }
        } else {
            self.write(&format!("{line}\n"));
        }
    }

    /// Shows how things stand; `since` is how long ago they were last shown.
    pub(crate) fn show(&mut self, view: &View, score: Score, since: Duration, now: Instant) {
        self.learn(view, since);
        if self.living {
            self.draw(view, score, now);
        } else if now - self.told >= PLAIN {
            self.told = now;
            self.write(&self.line(score, now));
        }
    }

    /// What it came to.
    pub(crate) fn end(&self, score: Score, error: Option<&Status>, now: Instant) {
        let mut text = format!(
            "\n{} in {:.1} s\n",
            totals(score),
            (now - self.began).as_secs_f64()
        );
        for (id, row) in &self.rows {
            let _ = writeln!(text, "  {id:<4} {:>8} calls", row.before + row.calls);
        }
        if let Some(status) = error {
            let _ = writeln!(text, "the last call that failed: {status}");
        }
        self.write(&text);
    }

    fn learn(&mut self, view: &View, since: Duration) {
        for (id, row) in &mut self.rows {
            if !view.known().iter().any(|e| e.id().as_str() == id) {
                row.before += std::mem::take(&mut row.calls);
                row.state = "gone".into();
                row.why.clear();
                row.rate = 0.0;
            }
        }
        for endpoint in view.known().iter() {
            let row = self.rows.entry(endpoint.id().to_string()).or_default();
            row.learn(endpoint, since);
        }
    }

    fn draw(&mut self, view: &View, score: Score, now: Instant) {
        let stale = view
            .stale(now)
            .map(|(_, age)| format!("   stale for {} s", age.as_secs()));
        let mut lines = vec![format!(
            "{}   {:.0} s   {} of {} ready{}",
            self.title,
            (now - self.began).as_secs_f64(),
            view.ready().len(),
            view.known().len(),
            stale.unwrap_or_default()
        )];
        lines.push(String::new());
        let most = self.rows.values().map(|row| row.rate).fold(1.0, f64::max);
        lines.extend(self.rows.iter().map(|(id, row)| row.line(id, most)));
        lines.push(String::new());
        lines.push(totals(score));
        lines.push(String::new());
        lines.extend(self.news.iter().cloned());

        let mut text = String::new();
        if self.drawn > 0 {
            // Up to the first line, and everything below it away.
            let _ = write!(text, "\x1b[{}A\x1b[J", self.drawn);
        }
        self.drawn = lines.len();
        for line in lines {
            let cut: String = line.chars().take(WIDTH).collect();
            let _ = writeln!(text, "{}", coloured(&cut));
        }
        self.write(&text);
    }

    fn line(&self, score: Score, now: Instant) -> String {
        let mut text = format!("{:>6.1} s ", (now - self.began).as_secs_f64());
        for (id, row) in &self.rows {
            let _ = write!(text, " {id} {} {:.0}/s ", row.state, row.rate);
        }
        let _ = writeln!(text, " {}", totals(score));
        text
    }

    /// A reader that has gone away is no reason to fail.
    fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Row {
    fn learn(&mut self, endpoint: &Endpoint, since: Duration) {
        let calls = endpoint.calls();
        // Fewer calls than before: it is another life of the same server.
        if calls < self.calls {
            self.before += self.calls;
            self.calls = 0;
        }
        self.rate = (calls - self.calls) as f64 / since.as_secs_f64().max(0.001);
        self.calls = calls;
        let address = endpoint.instance().addresses.first();
        self.address = address.map(ToString::to_string).unwrap_or_default();
        self.state = endpoint.state().to_string();
        let ready = endpoint.state() == State::Ready;
        let error = endpoint.last_error().filter(|_| !ready);
        self.why = error.map(|error| error.chain()).unwrap_or_default();
    }

    fn line(&self, id: &str, most: f64) -> String {
        const BAR: f64 = 12.0;
        let bar = "#".repeat((self.rate / most * BAR).round() as usize);
        format!(
            "  {id:<4} {:<16} {:<10} {bar:<12} {:>5.0}/s {:>8} calls  {}",
            self.address,
            self.state,
            self.rate,
            self.before + self.calls,
            self.why
        )
    }
}

fn totals(score: Score) -> String {
    let calls = score.ok + score.failed;
    let repeated = match score.repeated {
        0 => String::new(),
        n => format!(", {n} cut off by a kill and called again"),
    };
    format!(
        "{calls} calls, {} failed{repeated}, longest gap {} ms",
        score.failed,
        score.gap.as_millis()
    )
}

/// A server's state in its colour.
fn coloured(line: &str) -> String {
    let paint = [
        (" ready ", 32),
        (" broken ", 31),
        (" draining ", 33),
        (" connecting ", 33),
        (" gone ", 90),
    ];
    for (word, colour) in paint {
        if line.starts_with("  ") && line.contains(word) {
            let painted = format!("\x1b[{colour}m{word}\x1b[0m");
            return line.replacen(word, &painted, 1);
        }
    }
    line.to_owned()
}
