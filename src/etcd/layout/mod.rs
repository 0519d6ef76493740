//! How instances stand in etcd: which key, which value.

mod go;
mod go_micro;
mod go_zero;
mod gochat;
mod json;
mod kitex;
mod kratos;
mod naming;
mod plain;
mod root;
mod rpcx;

use std::{collections::BTreeMap, error::Error as StdError, fmt, sync::Arc};

pub use go_micro::GoMicro;
pub use go_zero::GoZero;
pub use gochat::Gochat;
pub use json::Json;
pub use kitex::Kitex;
pub use kratos::Kratos;
pub use naming::EtcdNaming;
pub use plain::Plain;
pub use rpcx::Rpcx;

use crate::{Address, Error, ErrorKind, Instance, InstanceId, Result, ServiceName};

/// Maps instances to keys and values, and back.
///
/// ```
/// use tonic_fleet::{Instance, etcd::layout::{Json, Layout}};
///
/// let (greeter, layout) = ("greeter".parse()?, Json::default());
/// let instance = Instance::at("10.0.0.5:50051")?.id("a")?;
///
/// let key = layout.key(&greeter, &instance);
/// let value = layout.encode(&greeter, &instance)?;
///
/// assert_eq!(key, "/services/greeter/a");
/// assert_eq!(layout.decode(&greeter, &key, &value)?, instance);
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// What every key of a service starts with. Keys of others may, too: see [`owns`](Self::owns).
    fn prefix(&self, service: &ServiceName) -> String;

    /// Whether a key is where an instance of this very service stands, and not one of `shop/cart` when the
    /// service is `shop`, or of `greeter-v2` when it is `greeter`.
    fn owns(&self, service: &ServiceName, key: &str) -> bool;

    /// The key that an instance is written to.
    fn key(&self, service: &ServiceName, instance: &Instance) -> String;

    /// The value that an instance is written as.
    fn encode(&self, service: &ServiceName, instance: &Instance) -> Result<Vec<u8>>;

    /// The instance that stands in a key which the service [owns](Self::owns).
    fn decode(&self, service: &ServiceName, key: &str, value: &[u8]) -> Result<Instance>;
}

/// The layouts that a URL can name.
const NAMES: [&str; 9] = [
    "json",
    "plain",
    "etcd-naming",
    "go-zero",
    "kratos",
    "kitex",
    "go-micro",
    "rpcx",
    "gochat",
];

/// The layout that a URL names with `?layout=`, and `?prefix=` where that is given.
///
/// | name | layout | keys begin with, unless `prefix` says otherwise |
/// |---|---|---|
/// | `json` | [ours](Json), the default | `/services/` |
/// | `plain` | [an address and nothing else](Plain) | `/services/` |
/// | `etcd-naming` | [etcd's own Go client](EtcdNaming) | the service |
/// | `go-zero` | [go-zero](GoZero) | the service |
/// | `kratos` | [kratos](Kratos) | `/microservices/` |
/// | `kitex` | [kitex](Kitex) | `kitex/registry-etcd/` |
/// | `go-micro` | [go-micro](GoMicro) | `/micro/registry/` |
/// | `rpcx` | [rpcx](Rpcx) | the service |
/// | `gochat` | [gochat](Gochat) | `/services/` |
pub fn named(name: Option<&str>, prefix: Option<&str>) -> Result<Arc<dyn Layout>> {
    fn under<L: Layout + Default>(prefix: Option<&str>, make: fn(&str) -> L) -> Arc<dyn Layout> {
        Arc::new(prefix.map_or_else(L::default, make))
    }
    Ok(match name.unwrap_or("json") {
        "json" => under(prefix, Json::under),
        "plain" => under(prefix, Plain::under),
        "etcd-naming" => under(prefix, EtcdNaming::under),
        "go-zero" => under(prefix, GoZero::under),
        "kratos" => under(prefix, Kratos::under),
        "kitex" => under(prefix, Kitex::under),
        "go-micro" => under(prefix, GoMicro::under),
        "rpcx" => under(prefix, Rpcx::under),
        "gochat" => under(prefix, Gochat::under),
        other => {
            let known = NAMES.join("`, `");
            let what = format!("layout {other:?} is not known: it is one of `{known}`");
            return Err(Error::config(what));
        }
    })
}

/// The layouts that a URL names with `?layout=json,kratos`: several, for a fleet that moves from one to another.
///
/// # Errors
/// `Config` when one is not known or stands twice, and when a prefix is given for several.
pub fn all_named(names: Option<&str>, prefix: Option<&str>) -> Result<Vec<Arc<dyn Layout>>> {
    let names: Vec<_> = names.unwrap_or("json").split(',').collect();
    if let Some((at, name)) = names
        .iter()
        .enumerate()
        .find(|(at, name)| names[..*at].contains(name))
    {
        let what = format!("layout {} is {name:?} again: leave it out", at + 1);
        return Err(Error::config(what));
    }
    if let (true, Some(prefix)) = (names.len() > 1, prefix) {
        let what = format!(
            "the prefix {prefix:?} for {} layouts: leave it out, or give each its own in code, by `etcd::Registry::also`",
            names.len()
        );
        return Err(Error::config(what));
    }
    names
        .into_iter()
        .map(|name| named(Some(name), prefix))
        .collect()
}

/// What keeps an instance from standing in all of these layouts at once, if anything does: who reads one
/// would find what is written for another.
pub(super) fn clash(
    layouts: &[Arc<dyn Layout>],
    service: &ServiceName,
    instance: &Instance,
) -> Result<()> {
    for (at, one) in layouts.iter().enumerate() {
        let key = one.key(service, instance);
        for (_, other) in layouts.iter().enumerate().filter(|(nth, _)| *nth != at) {
            if other.owns(service, &key) {
                let doing = format!("write {key} as {one:?}");
                let why = format!(
                    "readers of {other:?} would look there, too: give one of the two another prefix"
                );
                return Err(Error::config(doing).because(why));
            }
        }
    }
    Ok(())
}

/// A part of a key as one segment, which an id is.
fn segment(name: &str) -> String {
    name.replace('/', "%2F")
}

/// The instance under the id that it gives itself, or else under that of its key.
fn called(instance: Instance, own: Option<&str>, name: &str) -> Result<Instance, String> {
    let own = own.and_then(|own| InstanceId::new(own).ok());
    let id = own.map_or_else(|| InstanceId::new(segment(name)), Ok);
    let id = id.map_err(|error| error.to_string())?;
    Ok(Instance { id, ..instance })
}

/// The longest that is said of one record, in characters.
const LONGEST_REASON: usize = 300;

/// A weight in decimal; none if it is not one.
fn weighing(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    let weight = text.parse().ok().filter(|_| digits);
    weight.filter(|weight| *weight <= Instance::GREATEST_WEIGHT)
}

/// What a map of texts says of an instance: `zone`, `serving`, and tags. What else the layout keeps there
/// is taken out before.
fn described(instance: Instance, mut texts: BTreeMap<String, String>) -> Instance {
    Instance {
        zone: texts.remove("zone").map(Into::into),
        serving: texts.remove("serving").as_deref() != Some("false"),
        tags: texts,
        ..instance
    }
}

/// The same, to be written.
fn description(instance: &Instance) -> BTreeMap<&str, String> {
    let tags = instance.tags.iter();
    let mut texts: BTreeMap<&str, String> = tags
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    if let Some(zone) = &instance.zone {
        texts.insert("zone", zone.to_string());
    }
    if !instance.serving {
        texts.insert("serving", false.to_string());
    }
    texts
}

/// Takes the weight out, if it is one; else it is a tag like any other.
fn take_weight(texts: &mut BTreeMap<String, String>) -> Option<u32> {
    let weight = weighing(texts.get("weight")?)?;
    texts.remove("weight");
    Some(weight)
}

/// What was read, if a client can use it; the error bears the key.
fn usable(key: &str, read: Result<Instance, String>) -> Result<Instance> {
    let refuse = || Error::new(ErrorKind::Decode, format!("read {key}"));
    // A value of a megabyte may be quoted in it, and people read this.
    let short = |why: String| match why.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why,
    };
    let instance = read.map_err(|why| refuse().because(short(why)))?;
    instance.check().map_err(|why| refuse().because(why))?;
    Ok(instance)
}

/// The address that stands for an instance which clients can use.
fn writable(instance: &Instance) -> Result<&Address> {
    instance.check()?;
    let first = instance.addresses.first();
    first.ok_or_else(|| refused(instance, "it has no address"))
}

/// A tag of one of these names would be read as something else.
fn reserved(instance: &Instance, names: &[&str]) -> Result<()> {
    match names.iter().find(|name| instance.tags.contains_key(**name)) {
        Some(name) => {
            let why = format!("the tag {name:?} means something else in this layout: rename it");
            Err(refused(instance, why))
        }
        None => Ok(()),
    }
}

fn refused(instance: &Instance, why: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::config(format!("write {}", instance.id)).because(why)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, option, prelude::*, sample};

    use super::*;

    /// What another system wrote: see `tests/fixtures`.
    pub(super) struct Fixture {
        pub(super) key: String,
        pub(super) value: String,
    }

    pub(super) fn fixture(name: &str) -> Fixture {
        let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let [key, value] = ["key", "value"].map(|name| record[name].as_str().unwrap().to_owned());
        Fixture { key, value }
    }

    /// Instances with everything in them that a layout may stumble over.
    pub(super) fn any_instance() -> impl Strategy<Value = Instance> {
        let address = sample::select(vec![
            "10.0.0.5:50051",
            "[::1]:1",
            "greeter.svc:65535",
            "unix:/run/echo.sock",
        ]);
        let text = "[ -~é<>&\u{2028}]{1,12}";
        let facts = (
            option::of(text),
            option::of(text),
            0..1_000_u32,
            any::<bool>(),
        );
        (
            "[a-z0-9.:_@-]{1,20}",
            prop::collection::vec(address, 1..4),
            facts,
            btree_map("[a-c<&+= é]{1,6}", text, 0..4),
        )
            .prop_filter("relative", |(id, ..)| id != "." && id != "..")
            .prop_map(|(id, addresses, (zone, version, weight, serving), tags)| {
                let mut instance = Instance::at(addresses[0]).unwrap().id(id).unwrap();
                for address in &addresses[1..] {
                    instance = instance.also_at(*address).unwrap();
                }
                instance.zone = zone.map(Into::into);
                instance.version = version.map(Into::into);
                instance.tags = tags;
                instance.weight(weight).serving(serving)
            })
    }

    /// What is written is owned, and read as what it was.
    pub(super) fn round_trip(
        layout: &dyn Layout,
        instance: &Instance,
    ) -> Result<(), TestCaseError> {
        let greeter = "greeter".parse().unwrap();

        let key = layout.key(&greeter, instance);
        let value = layout.encode(&greeter, instance).unwrap();

        prop_assert!(layout.owns(&greeter, &key), "{}", key);
        prop_assert!(key.starts_with(&layout.prefix(&greeter)));
        let read = layout.decode(&greeter, &key, &value).unwrap();
        prop_assert_eq!(&read, instance);
        Ok(())
    }

    #[test]
    fn layouts_go_by_their_names() {
        let greeter = "greeter".parse().unwrap();

        let ours = named(None, None).unwrap();
        let moved = named(Some("json"), Some("/prod")).unwrap();
        let bare = named(Some("plain"), Some("")).unwrap();

        assert_eq!(ours.prefix(&greeter), "/services/greeter/");
        assert_eq!(moved.prefix(&greeter), "/prod/greeter/");
        assert_eq!(bare.prefix(&greeter), "greeter");
        let error = named(Some("yaml"), None).unwrap_err().to_string();
        assert!(error.contains("`json`, `plain`, `etcd-naming`"), "{error}");
        for name in NAMES {
            let layout = named(Some(name), Some("base")).unwrap();
            assert!(
                layout.prefix(&greeter).starts_with("base/greeter"),
                "{name}"
            );
        }
    }

    #[test]
    fn several_layouts_go_by_a_list_of_names() {
        let both = all_named(Some("json,kratos"), None).unwrap();
        assert_eq!(both.len(), 2);

        for (names, prefix, why) in [
            ("json,json", None, "again"),
            ("json,", None, "is not known"),
            ("json,kratos", Some("/a/"), "give each its own in code"),
        ] {
            let error = all_named(Some(names), prefix).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_one_layout_writes_no_other_may_find() {
        let greeter = "greeter".parse().unwrap();
        let a = Instance::at("10.0.0.5:1").unwrap().id("a").unwrap();
        let clash = |names| clash(&all_named(Some(names), None).unwrap(), &greeter, &a);

        for names in ["json,gochat", "plain,json", "etcd-naming,go-zero"] {
            let error = clash(names).unwrap_err().chain();
            assert!(error.contains("another prefix"), "{error}");
        }
        for names in [
            "json",
            "json,kratos,kitex,go-micro,rpcx",
            "gochat,etcd-naming",
        ] {
            clash(names).unwrap();
        }
    }

    #[test]
    fn nobody_owns_what_is_of_another_service() {
        let greeter = "greeter".parse().unwrap();
        for name in NAMES {
            let layout = named(Some(name), None).unwrap();
            let prefix = layout.prefix(&greeter).trim_end_matches('/').to_owned();
            for key in ["-v2/a@b", "2", "/", "-v2", ".old/a"] {
                let key = format!("{prefix}{key}");
                assert!(!layout.owns(&greeter, &key), "{name}: {key}");
            }
        }
    }

    #[test]
    fn hostile_values_are_refused_and_harm_nothing() {
        let greeter = "greeter".parse().unwrap();
        let long = "x".repeat(1 << 20);
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        let stuffed = format!(r#"{{"Addr":"h:1","Metadata":{{"k":"{long}"}}}}"#);
        for name in NAMES {
            let layout = named(Some(name), None).unwrap();
            let at = |address: &str| Instance::at(address).unwrap().id("a").unwrap();
            let key = layout.key(&greeter, &at("10.0.0.5:1"));
            for value in [
                &long,
                &deep,
                &stuffed,
                "file:///etc/passwd",
                "u:p@h:1",
                "\0",
            ] {
                let read = layout.decode(&greeter, &key, value.as_bytes());
                // The address of rpcx is its key.
                if name != "rpcx" {
                    assert_eq!(
                        read.unwrap_err().to_string(),
                        format!("read {key}"),
                        "{name}"
                    );
                }
            }
        }
    }

    /// How each layout writes an address, a weight and a text; `\u{1}`, `\u{2}` and `\u{3}` stand for them.
    const FORMS: [(&str, &str, &str); 9] = [
        (
            "json",
            "/services/greeter/a",
            "{\"id\":\"a\",\"addresses\":[\"\u{1}\"],\"weight\":\u{2},\"zone\":\"\u{3}\"}",
        ),
        ("plain", "/services/greeter/a", "\u{1}"),
        (
            "etcd-naming",
            "greeter/a",
            "{\"Op\":0,\"Addr\":\"\u{1}\",\"Metadata\":{\"weight\":\u{2},\"zone\":\"\u{3}\"}}",
        ),
        ("go-zero", "greeter/1", "\u{1}"),
        (
            "kratos",
            "/microservices/greeter/a",
            "{\"id\":\"a\",\"name\":\"greeter\",\"metadata\":{\"weight\":\"\u{2}\",\"k\":\"\u{3}\"},\"endpoints\":[\"grpc://\u{1}\"]}",
        ),
        (
            "kitex",
            "kitex/registry-etcd/greeter/a",
            "{\"network\":\"tcp\",\"address\":\"\u{1}\",\"weight\":\u{2},\"tags\":{\"k\":\"\u{3}\"}}",
        ),
        (
            "go-micro",
            "/micro/registry/greeter/a",
            "{\"name\":\"greeter\",\"nodes\":[{\"metadata\":{\"weight\":\"\u{2}\",\"k\":\"\u{3}\"},\"id\":\"a\",\"address\":\"\u{1}\"}]}",
        ),
        ("rpcx", "greeter/tcp@\u{1}", "weight=\u{2}&k=\u{3}"),
        (
            "gochat",
            "/services/greeter/a",
            "{\"id\":\"a\",\"name\":\"greeter\",\"address\":\"\u{1}\",\"metadata\":{\"weight\":\"\u{2}\",\"k\":\"\u{3}\"}}",
        ),
    ];

    fn filled(
        (name, key, value): (&str, &str, &str),
        address: &str,
        weight: &str,
        text: &str,
    ) -> Result<Instance> {
        let greeter = "greeter".parse().unwrap();
        let fill = |form: &str| {
            let form = form.replace('\u{1}', address).replace('\u{2}', weight);
            form.replace('\u{3}', text)
        };
        let layout = named(Some(name), None).unwrap();
        layout.decode(&greeter, &fill(key), fill(value).as_bytes())
    }

    #[test]
    fn what_is_well_is_read_in_every_form() {
        for form in FORMS {
            let read = filled(form, "10.0.0.5:1", "7", "x").unwrap();

            assert_eq!(read.addresses[0].to_string(), "10.0.0.5:1", "{}", form.0);
            let bare = ["plain", "go-zero"].contains(&form.0);
            assert_eq!(read.weight, if bare { 1 } else { 7 }, "{}", form.0);
        }
    }

    #[test]
    fn hostile_addresses_are_refused_in_every_layout_and_say_no_secret() {
        let long = format!("{}:1", "h".repeat(1 << 20));
        for address in [
            "",
            "file:///etc/passwd",
            "http://10.0.0.5:1",
            "fleet:secret@10.0.0.5:1",
            "10.0.0.5:1\\r\\nauthorization: x",
            "10.0.0.5:1 evil",
            "h\\u0000:1",
            "0.0.0.0:1",
            "10.0.0.5:0",
            "10.0.0.5:99999",
            "h:1/../x",
            long.as_str(),
        ] {
            for form in FORMS {
                let read = filled(form, address, "1", "x");

                let shown: String = address.chars().take(40).collect();
                let error = read.expect_err(&format!("{}: {shown:?}", form.0));
                assert_eq!(error.kind(), ErrorKind::Decode, "{}", form.0);
                let chain = error.chain().replace(&form.1.replace('\u{1}', address), "");
                assert!(!chain.contains("secret"), "{}: {chain}", form.0);
                assert!(chain.len() < 2_000, "{}: {} bytes", form.0, chain.len());
            }
        }
    }

    #[test]
    fn hostile_weights_and_texts_never_reach_a_client() {
        let long = "x".repeat(1 << 20);
        let deep = "[".repeat(10_000);
        for (weight, text) in [
            ("NaN", "x"),
            ("-1", "x"),
            ("1e400", "x"),
            ("Infinity", "x"),
            ("99999999999999999999", "x"),
            ("1", "\\u0000"),
            ("1", "a\\r\\nb: c"),
            ("1", long.as_str()),
            ("1", "\\ud800"),
            (deep.as_str(), "x"),
        ] {
            for form in FORMS {
                match filled(form, "10.0.0.5:1", weight, text) {
                    Ok(read) => {
                        read.check().unwrap();
                        let tags = read.tags.values().map(String::as_str);
                        let mut texts = tags.chain(read.zone.as_deref());
                        assert!(texts.all(|text| text.len() <= 20_000), "{}", form.0);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Decode, "{}", form.0);
                        assert!(error.chain().len() < 2_000, "{}", form.0);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_has_room_for_an_address_alone_is_read_as_it_was_written(
            address in sample::select(vec!["10.0.0.5:50051", "[::1]:1", "greeter.svc:65535", "unix:/run/a.sock"]),
            id in "[a-z0-9.:_@-]{1,20}",
        ) {
            prop_assume!(id != "." && id != "..");
            let instance = Instance::at(address).unwrap();
            round_trip(&Plain::default(), &instance.clone().id(id).unwrap())?;
            round_trip(&GoZero::default(), &instance.id(segment(address)).unwrap())?;
        }

        #[test]
        fn ours_has_room_for_all(instance in any_instance()) {
            round_trip(&Json::default(), &instance)?;
        }

        #[test]
        fn no_value_makes_a_layout_panic(
            value: Vec<u8>,
            text in r#"[{}\[\]":,a-zA-Z0-9.@&=%+ -]{0,200}"#,
            key in "[a-z/@:.0-9-]{0,40}",
        ) {
            let greeter = "greeter".parse().unwrap();
            for name in NAMES {
                let layout = named(Some(name), None).unwrap();
                let key = format!("{}{key}", layout.prefix(&greeter));
                let _ = layout.owns(&greeter, &key);
                let _ = layout.decode(&greeter, &key, &value);
                let _ = layout.decode(&greeter, &key, text.as_bytes());
            }
        }
    }
}
