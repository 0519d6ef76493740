//! What an agent's two keys hold.

use std::time::SystemTime;

use serde::{Deserialize, Serialize, de};
use serde_json::{Map, Value};

use super::moment;
use crate::{Error, ErrorKind, InstanceId, Result};

/// `{prefix}/{id}/info`: what stays when the agent is gone.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Info {
    pub(super) status: Status,
    #[serde(default, with = "moment")]
    pub(super) started_at: Option<SystemTime>,
    #[serde(default, with = "moment", skip_serializing_if = "Option::is_none")]
    pub(super) stopped_at: Option<SystemTime>,
    /// The agent's own fields.
    #[serde(flatten)]
    pub(super) own: Map<String, Value>,
}

/// `{prefix}/{id}/heartbeat`: what goes with the agent's lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Beat {
    #[serde(default)]
    pub(super) status: Status,
    #[serde(default, with = "moment")]
    pub(super) last_updated: Option<SystemTime>,
    #[serde(default)]
    pub(super) lease_id: Lease,
}

/// What an agent says of itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    #[default]
    Online,
    Offline,
}

/// A lease, written as a number; readers whose numbers are too small for it may have made a text of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Lease(pub(super) i64);

/// Which of an agent's two keys one is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Info,
    Heartbeat,
}

/// The names that are not the agent's to give.
const RESERVED: [&str; 3] = ["status", "started_at", "stopped_at"];

/// A record that is larger is a mistake: etcd takes a megabyte and a half in all.
const LARGEST: usize = 512 * 1024;

impl Info {
    /// An agent that has just started.
    pub(super) fn online(started: SystemTime, own: Map<String, Value>) -> Self {
        Self {
            status: Status::Online,
            started_at: Some(started),
            stopped_at: None,
            own,
        }
    }

    /// The same agent, stopped.
    pub(super) fn offline(self, stopped: SystemTime) -> Self {
        Self {
            status: Status::Offline,
            stopped_at: Some(stopped),
            ..self
        }
    }
}

/// What an agent says of itself, as fields of its record.
pub(super) fn fields<T: Serialize + ?Sized>(
    id: &InstanceId,
    own: &T,
) -> Result<Map<String, Value>> {
    let wrong = |why: String| Error::config(format!("write agent {id}")).because(why);
    let own = match serde_json::to_value(own).map_err(|why| wrong(why.to_string()))? {
        Value::Object(own) => own,
        Value::Null => Map::new(),
        _ => {
            return Err(wrong(
                "it is no object with fields: use a struct or a map".into(),
            ));
        }
    };
    let size = serde_json::to_vec(&own).map_or(0, |bytes| bytes.len());
    if size > LARGEST / 2 {
        return Err(wrong(format!(
            "{size} bytes: at most {} are allowed",
            LARGEST / 2
        )));
    }
    if let Some(name) = RESERVED.iter().find(|name| own.contains_key(**name)) {
        return Err(wrong(format!(
            "the field {name:?} is written by the heartbeat itself: rename it"
        )));
    }
    Ok(own)
}

impl Beat {
    /// A sign of life, now.
    pub(super) fn now(lease: i64) -> Self {
        Self {
            status: Status::Online,
            last_updated: Some(SystemTime::now()),
            lease_id: Lease(lease),
        }
    }

    /// A heartbeat that says nothing we understand.
    pub(super) fn unread() -> Self {
        Self {
            status: Status::Online,
            last_updated: None,
            lease_id: Lease::default(),
        }
    }
}

/// As it stands in etcd.
pub(super) fn write<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|why| Error::config(format!("write {key}")).because(why))
}

/// What stands in etcd.
pub(super) fn read<'a, T: Deserialize<'a>>(key: &str, bytes: &'a [u8]) -> Result<T> {
    let refuse = || Error::new(ErrorKind::Decode, format!("read {key}"));
    if bytes.len() > LARGEST {
        return Err(refuse().because(format!("{} bytes: at most {LARGEST}", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|why| refuse().because(why))
}

/// The key of one of an agent's records.
pub(super) fn key(prefix: &str, id: &InstanceId, part: Part) -> String {
    let part = match part {
        Part::Info => "info",
        Part::Heartbeat => "heartbeat",
    };
    format!("{prefix}{id}/{part}")
}

/// Whose record a key is; none, when it is something else that stands there.
pub(super) fn whose(prefix: &str, key: &[u8]) -> Option<(InstanceId, Part)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let (id, part) = rest.rsplit_once('/')?;
    let part = match part {
        "info" => Part::Info,
        "heartbeat" => Part::Heartbeat,
        _ => return None,
    };
    InstanceId::new(id).ok().map(|id| (id, part))
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match &*text.to_ascii_lowercase() {
            "online" => Ok(Self::Online),
            "offline" => Ok(Self::Offline),
            _ => Err(de::Error::custom(format!(
                "status {text:.40?} is neither \"online\" nor \"offline\""
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Lease {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Nothing hangs on it: etcd itself says which lease a key has.
        Ok(match Value::deserialize(from)? {
            Value::Number(number) => Self(number.as_i64().unwrap_or_default()),
            Value::String(text) => Self(text.parse().unwrap_or_default()),
            _ => Self::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn id() -> InstanceId {
        "eu-1".parse().unwrap()
    }

    fn text(record: &impl Serialize) -> String {
        String::from_utf8(write("k", record).unwrap()).unwrap()
    }

    #[test]
    fn records_are_written_with_times_in_utc_and_the_agents_own_fields() {
        let own = fields(&id(), &json!({"zone": "b", "capacity": 7})).unwrap();
        let info = Info::online(UNIX_EPOCH, own);

        let online = text(&info);
        let offline = text(&info.offline(UNIX_EPOCH + Duration::from_secs(1)));

        assert_eq!(
            online,
            r#"{"status":"online","started_at":"1970-01-01T00:00:00.000Z","capacity":7,"zone":"b"}"#
        );
        assert_eq!(
            offline,
            r#"{"status":"offline","started_at":"1970-01-01T00:00:00.000Z","stopped_at":"1970-01-01T00:00:01.000Z","capacity":7,"zone":"b"}"#
        );
        let beat = Beat {
            status: Status::Online,
            last_updated: Some(UNIX_EPOCH),
            lease_id: Lease(i64::MAX),
        };
        assert_eq!(
            text(&beat),
            r#"{"status":"online","last_updated":"1970-01-01T00:00:00.000Z","lease_id":9223372036854775807}"#
        );
    }

    #[test]
    fn what_others_write_is_read_tolerantly() {
        let info: Info = read(
            "k",
            br#"{"status":"Online","started_at":"2026-11-21T20:00:00+08:00","stopped_at":null,"x":[1]}"#,
        )
        .unwrap();
        let zero: Info = read(
            "k",
            br#"{"status":"online","started_at":"0001-01-01T00:00:00Z"}"#,
        )
        .unwrap();
        let beat: Beat = read("k", br#"{"lease_id":"12","more":{}}"#).unwrap();

        assert_eq!(info.started_at, moment::read("2026-11-21T12:00:00Z"));
        assert_eq!((info.stopped_at, &info.own["x"]), (None, &json!([1])));
        assert_eq!(zero.started_at, None);
        assert_eq!((beat.lease_id, beat.status), (Lease(12), Status::Online));
    }

    #[test]
    fn what_is_broken_is_refused_with_the_key_and_the_reason() {
        for (value, why) in [
            ("", "EOF"),
            ("[]", "invalid type"),
            (r#"{"status":"asleep"}"#, "neither"),
            (r#"{"started_at":"2026-11-21T12:00:00Z"}"#, "status"),
            (
                r#"{"status":"online","started_at":"yesterday"}"#,
                "RFC 3339",
            ),
        ] {
            let error = read::<Info>("/agents/a/info", value.as_bytes())
                .unwrap_err()
                .chain();
            assert!(
                error.starts_with("read /agents/a/info") && error.contains(why),
                "{error}"
            );
        }
        let large = format!(r#"{{"status":"online","x":"{}"}}"#, "x".repeat(LARGEST));
        assert!(read::<Info>("k", large.as_bytes()).is_err());
    }

    #[test]
    fn an_agents_own_fields_do_not_pass_for_ours() {
        for own in [json!({"status": 1}), json!([1]), json!("eu")] {
            assert_eq!(
                fields(&id(), &own).unwrap_err().kind(),
                ErrorKind::Config,
                "{own}"
            );
        }
        assert!(fields(&id(), &()).unwrap().is_empty());
    }

    #[test]
    fn keys_belong_to_agents_or_to_nobody() {
        let found = |key: &str| whose("/os/region/", key.as_bytes());

        assert_eq!(
            key("/os/region/", &id(), Part::Info),
            "/os/region/eu-1/info"
        );
        assert_eq!(found("/os/region/eu-1/info"), Some((id(), Part::Info)));
        assert_eq!(
            found("/os/region/eu-1/heartbeat"),
            Some((id(), Part::Heartbeat))
        );
        for other in [
            "eu-1",
            "eu-1/config",
            "a/b/info",
            "/info",
            "../info",
            "info",
        ] {
            assert_eq!(found(&format!("/os/region/{other}")), None, "{other}");
        }
    }
}
