//! A view as JSON, with all that its table shows.

use serde::{Serialize, Serializer, ser::SerializeStruct};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::View;
use crate::{Endpoint, resolve::Skipped, stage::Outside};

impl View {
    /// As JSON: what `Display` shows, and how many are ready. Times are in seconds.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic_fleet::Error> {
    /// let channel = tonic_fleet::Channel::builder("static://10.0.0.5:50051/greeter".parse()?).build()?;
    /// let view = channel.ready(0).await.to_json();
    /// assert_eq!(view["service"], "greeter");
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_json(&self) -> Value {
        // Nothing in it can fail: no map in it has keys that are no strings.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let now = Instant::now();
        let stale = self
            .stale(now)
            .map(|(error, age)| json!({"for": age.as_secs_f64(), "why": error.chain()}));
        let panic = self
            .panic()
            .map(|(well, of)| json!({"well": well, "of": of}));
        let endpoints: Vec<_> = self.known.iter().map(|one| endpoint(one, now)).collect();
        let skipped: Vec<_> = self.skipped.iter().map(passed_over).collect();
        let mut written = serializer.serialize_struct("View", 11)?;
        written.serialize_field("number", &self.number)?;
        written.serialize_field("service", &self.service)?;
        written.serialize_field("listed", &self.listed)?;
        written.serialize_field("ended", &self.ended)?;
        written.serialize_field("ready", &self.ready.len())?;
        written.serialize_field("stale", &stale)?;
        written.serialize_field("panic", &panic)?;
        let zones: serde_json::Map<_, _> = self
            .zones()
            .map(|(zone, share)| (zone.to_owned(), share.into()))
            .collect();
        written.serialize_field("zones", &zones)?;
        written.serialize_field("held", &self.held)?;
        written.serialize_field("endpoints", &endpoints)?;
        written.serialize_field("skipped", &skipped)?;
        written.end()
    }
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    let instance = endpoint.instance();
    let address = endpoint.address();
    let address = address.or_else(|| instance.addresses.first().cloned());
    json!({
        "id": endpoint.id(),
        "address": address.map(|address| address.to_string()),
        "state": endpoint.state().code(),
        "for": endpoint.since(now).as_secs_f64(),
        "outside": endpoint.outside().map(Outside::code),
        "suspect": endpoint.is_suspect(),
        "weight": instance.weight,
        "share": endpoint.share(),
        "connections": endpoint.connections(),
        "in_flight": endpoint.in_flight(),
        "calls": endpoint.calls(),
        "failures": endpoint.failures(),
        "failing": endpoint.failing(),
        "latency": endpoint.latency().map(|latency| latency.as_secs_f64()),
        "silent": endpoint.silent(now).map(|silent| silent.as_secs_f64()),
        "last_error": endpoint.last_error().map(|error| error.chain()),
    })
}

fn passed_over(skipped: &Skipped) -> Value {
    json!({"key": &*skipped.key, "why": skipped.why.chain()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind, balance::conform::endpoints};

    #[tokio::test(start_paused = true)]
    async fn a_view_says_in_json_what_its_table_shows() {
        let known = endpoints(&[1, 7]);
        let refused = Error::new(ErrorKind::Unavailable, "connection refused");
        known[1].vitals().failed(refused);
        let away = Error::new(ErrorKind::Unavailable, "list /services/greeter/");
        let view = View {
            known,
            stale: Some((away, Instant::now())),
            held: Some(3),
            ..View::empty("greeter".parse().unwrap())
        };
        tokio::time::advance(std::time::Duration::from_secs(12)).await;

        let json = view.to_json();

        assert_eq!(json["ready"], 0);
        assert_eq!(json["held"], 3);
        let why = "list /services/greeter/";
        assert_eq!(json["stale"], json!({"for": 12.0, "why": why}));
        let one = &json["endpoints"][1];
        assert_eq!((&one["id"], &one["weight"]), (&json!("i00001"), &json!(7)));
        assert_eq!(one["last_error"], "connection refused");
        assert_eq!(one["state"], "idle");
    }
}
