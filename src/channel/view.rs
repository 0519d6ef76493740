//! What calls pick from: an immutable snapshot, swapped in one pointer.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Endpoint, Endpoints, Error, ServiceName, State, balance::Pick, endpoint::Wellness,
    resolve::Skipped, stage::Spread,
};

/// A service as a channel sees it at one moment: who is known, who takes calls, and why the others do not.
///
/// `Display` prints it as a table, and it serialises to the same as JSON. The sets do not change; the endpoints' counters and states go on.
pub struct View {
    pub(super) number: u64,
    pub(super) service: ServiceName,
    pub(super) known: Endpoints,
    pub(super) ready: Endpoints,
    /// Those that were ejected and are tried, beside the others.
    pub(super) on_trial: Endpoints,
    pub(super) panic: Option<Wellness>,
    /// How calls are shared out over zones, if more than one is needed.
    pub(super) spread: Option<Spread>,
    /// Shared with the views before it that have the same ready ones.
    pub(super) pick: Option<Arc<dyn Pick>>,
    pub(super) stale: Option<(Error, Instant)>,
    pub(super) held: Option<usize>,
    pub(super) skipped: Arc<[Skipped]>,
    pub(super) listed: bool,
    /// Why nothing changes any more.
    pub(super) ended: Option<&'static str>,
}

/// So many endpoints are named in a status; the view has all of them.
const NAMED: usize = 3;
/// One of which nothing has been heard for longer than this while calls wait is said to be silent.
const LONG: Duration = Duration::from_secs(1);

impl View {
    pub(super) fn empty(service: ServiceName) -> Self {
        Self {
            number: 0,
            service,
            known: Endpoints::default(),
            ready: Endpoints::default(),
            on_trial: Endpoints::default(),
            panic: None,
            spread: None,
            pick: None,
            stale: None,
            held: None,
            skipped: Arc::new([]),
            listed: false,
            ended: None,
        }
    }

    /// Which view this is; each new one has a greater number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// All endpoints, in the order of their ids.
    pub fn known(&self) -> &Endpoints {
        &self.known
    }

    /// Those that calls are shared among.
    pub fn ready(&self) -> &Endpoints {
        &self.ready
    }

    /// How many are well and how many there are to choose among, when so few are well that calls go to all
    /// that are connected; see [`Builder::panic_threshold`](crate::Builder::panic_threshold).
    pub fn panic(&self) -> Option<(usize, usize)> {
        self.panic.map(|Wellness { well, of }| (well, of))
    }

    /// How many of a hundred calls go to each zone, by its name, and `elsewhere`; nothing while one zone gets all,
    /// and during a panic. See [`Zones`](crate::stage::Zones).
    pub fn zones(&self) -> impl Iterator<Item = (&str, u8)> {
        self.spread.iter().flat_map(Spread::iter)
    }

    /// Whether the registry has ever said what there is.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Why the registry is out of reach, and for how long it has been at that time.
    pub fn stale(&self, now: Instant) -> Option<(&Error, Duration)> {
        let (error, since) = self.stale.as_ref()?;
        Some((error, now.saturating_duration_since(*since)))
    }

    /// How many have vanished from the registry, if that is so many that the set is held.
    pub fn held(&self) -> Option<usize> {
        self.held
    }

    /// Records in the registry that were passed over, and why.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Why a call finds nobody, in one line.
    pub(super) fn outlook(&self, now: Instant) -> String {
        let mut line = format!(
            "{}: {} of {} endpoints ready",
            self.service,
            self.ready.len(),
            self.known.len()
        );
        if let Some(why) = self.ended {
            line += &format!("; {why}");
            return line;
        }
        for endpoint in self
            .known
            .iter()
            .filter(|e| !matches!(e.state(), State::Ready | State::Outside))
            .take(NAMED)
        {
            let why = endpoint.last_error().map(|error| error.chain());
            let why = why.unwrap_or_else(|| endpoint.state().to_string());
            line += &format!("; {}: {why}", endpoint.id());
        }
        line += &self.left_out();
        if let Some((error, age)) = self.stale(now) {
            line += &format!(
                "; registry out of reach for {}: {}",
                seconds(age),
                error.chain()
            );
        } else if !self.listed {
            line += "; the registry has not answered yet";
        } else if self.known.is_empty() && self.skipped.is_empty() {
            line += "; the registry knows nobody of this name";
        }
        if let Some(skipped) = self.skipped.first() {
            line += &format!(
                "; {} records passed over, {}: {}",
                self.skipped.len(),
                skipped.key,
                skipped.why.chain()
            );
        }
        line
    }

    /// How many each stage leaves out.
    fn left_out(&self) -> String {
        let mut counts = BTreeMap::new();
        for outside in self.known.iter().filter_map(Endpoint::outside) {
            *counts.entry(outside.to_string()).or_insert(0_usize) += 1;
        }
        let words = counts
            .iter()
            .map(|(why, count)| format!("; {count} left out: {why}"));
        words.collect()
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = Instant::now();
        write!(
            f,
            "{}: {} of {} ready",
            self.service,
            self.ready.len(),
            self.known.len()
        )?;
        if let Some(why) = self.ended {
            write!(f, ", {why}")?;
        }
        if let Some((error, age)) = self.stale(now) {
            write!(f, ", stale for {}: {}", seconds(age), error.chain())?;
        }
        if let Some((well, of)) = self.panic() {
            write!(f, ", panic: {well} of {of} are well, calls go to all")?;
        }
        if let Some(spread) = &self.spread {
            write!(f, ", zones: {spread}")?;
        }
        if let Some(held) = self.held {
            write!(f, ", held: {held} vanished from the registry")?;
        }
        for endpoint in self.known.iter() {
            let address = endpoint
                .address()
                .or_else(|| endpoint.instance().addresses.first().cloned());
            let address = address
                .map(|address| address.to_string())
                .unwrap_or_default();
            let doubt = if endpoint.is_suspect() {
                "suspect "
            } else {
                ""
            };
            let share = match endpoint.share() {
                100 => String::new(),
                share => format!(" at {share} %"),
            };
            write!(
                f,
                "\n  {:<20} {:<22} {:<10} {doubt}for {:>6}  weight {}{share}  in flight {}  calls {}  failures {}",
                endpoint.id().as_str(),
                address,
                endpoint.state(),
                seconds(endpoint.since(now)),
                endpoint.instance().weight,
                endpoint.in_flight(),
                endpoint.calls(),
                endpoint.failures(),
            )?;
            if let Some(latency) = endpoint.latency() {
                write!(f, "  answers in {latency:.1?}")?;
            }
            if endpoint.failing() > 0 {
                write!(f, "  failed {} in a row", endpoint.failing())?;
            }
            if let Some(silent) = endpoint.silent(now).filter(|silent| *silent > LONG) {
                write!(f, "  silent for {}", seconds(silent))?;
            }
            let connections = endpoint.connections();
            if connections > 1 {
                write!(f, "  connections {connections}")?;
            }
            if let Some(outside) = endpoint.outside() {
                write!(f, "  {outside}")?;
            }
            if let Some(error) = endpoint
                .last_error()
                .filter(|_| endpoint.state() != State::Ready)
            {
                write!(f, "  {}", error.chain())?;
            }
        }
        for skipped in self.skipped.iter() {
            write!(
                f,
                "\n  passed over {}: {}",
                skipped.key,
                skipped.why.chain()
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("number", &self.number)
            .field("service", &self.service)
            .field("known", &self.known)
            .field("ready", &self.ready.len())
            .field("stale", &self.stale)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        ErrorKind, balance::conform::endpoints, health::EndedBy, moment::Moment, stage::Outside,
    };

    #[test]
    fn the_outlook_says_who_and_why_and_since_when() {
        let known = endpoints(&[1; 5]);
        known[1]
            .vitals()
            .failed(Error::new(ErrorKind::Unavailable, "connection refused"));
        let error = Error::new(ErrorKind::Unavailable, "list /services/greeter/");
        let now = Instant::now();
        let view = View {
            known,
            stale: Some((error, now)),
            ..View::empty("greeter".parse().unwrap())
        };

        let outlook = view.outlook(now + Duration::from_secs(12));

        assert_eq!(
            outlook,
            "greeter: 0 of 5 endpoints ready; i00000: idle; i00001: connection refused; i00002: idle; \
             registry out of reach for 12.0 s: list /services/greeter/"
        );
    }

    #[test]
    fn the_outlook_tells_who_is_unknown_from_who_is_away() {
        let unanswered = View::empty("greter".parse().unwrap());
        let unknown = View {
            listed: true,
            ..View::empty("greter".parse().unwrap())
        };

        let [unanswered, unknown] = [unanswered, unknown].map(|view| view.outlook(Instant::now()));

        assert!(unanswered.ends_with("; the registry has not answered yet"));
        assert!(unknown.ends_with("; the registry knows nobody of this name"));
    }

    #[test]
    fn the_outlook_and_the_table_say_who_is_left_out_and_why() {
        let known = endpoints(&[1; 3]);
        for endpoint in known.iter().skip(1) {
            endpoint.vitals().leave_out(Some(Outside::Filter));
            endpoint.vitals().enter(State::Outside, Instant::now());
        }
        let view = View {
            known,
            listed: true,
            ..View::empty("greeter".parse().unwrap())
        };

        let (outlook, table) = (view.outlook(Instant::now()), view.to_string());

        assert!(
            outlook.ends_with("i00000: idle; 2 left out: does not fit the filter"),
            "{outlook}"
        );
        assert_eq!(table.matches("outside").count(), 2, "{table}");
        assert_eq!(
            table.matches("does not fit the filter").count(),
            2,
            "{table}"
        );
        assert_eq!(view.to_json()["endpoints"][2]["outside"], "filter");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_says_how_soon_each_answers_and_who_fails_or_does_not_answer() {
        let known = endpoints(&[1; 4]);
        let mut calls: Vec<_> = known.iter().map(Endpoint::begin).collect();
        calls.truncate(3);
        tokio::time::advance(Duration::from_millis(20)).await;
        calls[0].is_answered(Moment::now());
        calls[1].ended_by(EndedBy::Status, Code::Internal);
        tokio::time::advance(Duration::from_secs(3)).await;
        let view = View {
            known,
            ..View::empty("greeter".parse().unwrap())
        };

        let (table, json) = (view.to_string(), view.to_json());

        let says = ["answers in 20.0ms", "failed 1 in a row", "silent for 3.0 s"];
        for (line, says) in table.lines().skip(1).zip(says) {
            assert!(line.contains(says), "{table}");
            assert!(says_of(line).count() == 1, "{table}");
        }
        assert_eq!(says_of(table.lines().nth(4).unwrap()).count(), 0);
        assert_eq!(json["endpoints"][1]["failing"], 1);
        assert_eq!(json["endpoints"][2]["latency"], serde_json::Value::Null);
    }

    fn says_of(line: &str) -> impl Iterator<Item = &str> {
        let all = ["answers in", "in a row", "silent for"];
        all.into_iter().filter(|says| line.contains(*says))
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let view = View {
            known: endpoints(&[1, 7]),
            ..View::empty("greeter".parse().unwrap())
        };

        let table = view.to_string();

        assert_eq!(table.lines().count(), 3);
        assert!(
            table.contains("0 of 2 ready") && table.contains("weight 7"),
            "{table}"
        );
    }
}
