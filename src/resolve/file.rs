//! A JSON file that is read again when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{fs, io::AsyncReadExt, time};

use super::{
    Publisher, Resolve, Skipped, Updates,
    fixed::{named_after, sort_out},
    known::{Found, Known},
    publish,
};
use crate::{Error, ErrorKind, Instance, ServiceName};

/// Every service is at the instances in a file, which is watched.
///
/// The file holds a JSON list of addresses, of instances, or of both:
///
/// ```json
/// ["10.0.0.1:50051", {"id": "b", "addresses": ["10.0.0.2:50051"], "weight": 3}]
/// ```
///
/// It is looked at every second. Replacing it by a rename and, as Kubernetes does, by moving a symbolic
/// link is noticed as well as writing to it. A bad entry is passed over and reported; while there is no
/// file, or nothing in it can be read, the last set stays and is stale. At most 16 MiB are read.
#[derive(Clone, Debug)]
pub struct File {
    path: Arc<Path>,
    every: Duration,
}

/// Files larger than this are a mistake.
const LARGEST: u64 = 16 << 20;

/// A hung file system is told of after this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Clocks of file systems tick this slowly at worst: two writes in one tick look like one.
const TICK: Duration = Duration::from_secs(2);

impl File {
    /// The instances in this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into().into(),
            every: Duration::from_secs(1),
        }
    }

    /// How often the file is looked at. A second, unless set; at least 10 ms.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every.max(Duration::from_millis(10));
        self
    }
}

impl Resolve for File {
    /// # Panics
    /// Outside of a tokio runtime.
    fn resolve(&self, _service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        let file = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = file.watch(&publisher) => {}
            }
        });
        updates
    }
}

impl File {
    async fn watch(&self, publisher: &Publisher) {
        let mut known = Known::of(self.path.display());
        let mut seen = None;
        loop {
            let mut looking = pin!(look(&self.path, seen.take()));
            let looked = loop {
                match time::timeout(PATIENCE, &mut looking).await {
                    Ok(looked) => break looked,
                    // The one attempt goes on: another would block another thread.
                    Err(_) => known.tell(Err(self.failed("no answer in 5 s")), publisher),
                }
            };
            match looked {
                Ok(Looked::Same(stamp)) => seen = Some(stamp),
                Ok(Looked::New(text, stamp)) => {
                    seen = stamp;
                    let found = read(&self.path, &text);
                    let found =
                        found.map_err(|why| self.failed("not a list of instances").because(why));
                    known.tell(found, publisher);
                }
                Err(error) => {
                    known.tell(Err(self.failed("cannot read it").because(error)), publisher)
                }
            }
            time::sleep(self.every).await;
        }
    }

    fn failed(&self, what: &str) -> Error {
        let doing = format!("file {}: {what}", self.path.display());
        Error::new(ErrorKind::Unavailable, doing)
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    written: SystemTime,
    len: u64,
    /// A rename or a moved link may bring a file that is as long and as old as the one before.
    inode: Option<u64>,
}

enum Looked {
    Same(Stamp),
    /// The text, and the stamp if it is old enough to be relied on.
    New(Vec<u8>, Option<Stamp>),
}

async fn look(path: &Path, seen: Option<Stamp>) -> io::Result<Looked> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).await?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = fs::File::open(path).await?;
    let stamp = stamp(&file.metadata().await?)?;
    if seen == Some(stamp) {
        return Ok(Looked::Same(stamp));
    }
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other("larger than 16 MiB"));
    }
    let age = SystemTime::now().duration_since(stamp.written);
    let settled = age.is_ok_and(|age| age > TICK);
    Ok(Looked::New(text, settled.then_some(stamp)))
}

fn stamp(metadata: &std::fs::Metadata) -> io::Result<Stamp> {
    #[cfg(unix)]
    let inode = Some(std::os::unix::fs::MetadataExt::ino(metadata));
    #[cfg(not(unix))]
    let inode = None;
    Ok(Stamp {
        written: metadata.modified()?,
        len: metadata.len(),
        inode,
    })
}

/// Reads the list; entries that are none are passed over, unless all are.
pub(crate) fn read(path: &Path, text: &[u8]) -> Result<Found, Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let entries: Vec<serde_json::Value> = serde_json::from_slice(text)
        .map_err(|error| Error::new(ErrorKind::Decode, "read a JSON list").because(error))?;
    let (mut instances, mut skipped) = (Vec::new(), Vec::new());
    let listed = entries.len();
    for (at, entry) in entries.into_iter().enumerate() {
        match instance(entry) {
            Ok(instance) => instances.push(Arc::new(instance)),
            Err(why) => skipped.push(Skipped::new(format!("{}[{at}]", path.display()), why)),
        }
    }
    let (set, twins) = sort_out(&format!("{}: ", path.display()), instances);
    skipped.extend(twins);
    match skipped.first() {
        // A list of something else is not the end of all servers.
        Some(first) if set.is_empty() => {
            let what = format!("none of the {listed} entries is an instance; the first");
            Err(Error::new(ErrorKind::Decode, what).because(first.why.clone()))
        }
        _ => Ok(Found { set, skipped }),
    }
}

fn instance(entry: serde_json::Value) -> Result<Instance, Error> {
    match entry {
        serde_json::Value::String(address) => named_after(address.parse()?),
        entry @ serde_json::Value::Object(_) => serde_json::from_value(entry)
            .map_err(|error| Error::new(ErrorKind::Decode, "read an instance").because(error)),
        other => {
            let words: String = other.to_string().chars().take(40).collect();
            let what = format!("{words} is neither an address nor an instance");
            Err(Error::new(ErrorKind::Decode, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::testing::words, *};

    fn watch(path: &Path) -> Updates {
        File::new(path).resolve(&"greeter".parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_written_file_is_read_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("greeter.json");
        fs::write(
            &path,
            r#"["a:1", {"id": "b", "addresses": ["10.0.0.2:1"], "weight": 3}]"#,
        )
        .unwrap();
        let mut updates = watch(&path);
        assert_eq!(words(&mut updates).await, "reset a:1 b");

        // As long as before, and within one tick of the clock.
        fs::write(
            &path,
            r#"["c:1", {"id": "b", "addresses": ["10.0.0.2:1"], "weight": 3}]"#,
        )
        .unwrap();

        assert_eq!(words(&mut updates).await, "reset b c:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_leaves_the_last_set() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("greeter.json");
        let mut updates = watch(&path);
        assert!(
            words(&mut updates)
                .await
                .contains("greeter.json: cannot read it: No such file")
        );

        fs::write(&path, r#"["a:1"]"#).unwrap();
        assert_eq!(words(&mut updates).await, "reset a:1");
        for (text, why) in [
            (
                r#"["a:1""#,
                "not a list of instances: read a JSON list: EOF",
            ),
            (
                r#"[1, "nonsense"]"#,
                "none of the 2 entries is an instance; the first: 1 is neither",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let said = words(&mut updates).await;
            assert!(said.contains(why), "{said}");
        }
        fs::remove_file(&path).unwrap();
        assert!(words(&mut updates).await.contains("No such file"));
        fs::create_dir(&path).unwrap();
        assert!(words(&mut updates).await.contains("not a regular file"));
        fs::remove_dir(&path).unwrap();
        assert!(words(&mut updates).await.contains("No such file"));
        fs::write(&path, r#"["a:1"]"#).unwrap();

        assert_eq!(words(&mut updates).await, "delta ");
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn a_moved_link_and_a_rename_are_noticed_though_length_and_age_are_equal() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let old = SystemTime::now() - Duration::from_secs(3600);
        for (name, text) in [
            ("1", r#"["a:1"]"#),
            ("2", r#"["b:1"]"#),
            ("3", r#"["c:1"]"#),
        ] {
            fs::write(at(name), text).unwrap();
            fs::File::options()
                .write(true)
                .open(at(name))
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
        std::os::unix::fs::symlink(at("1"), at("link")).unwrap();
        let mut updates = watch(&at("link"));
        assert_eq!(words(&mut updates).await, "reset a:1");

        std::os::unix::fs::symlink(at("2"), at("new")).unwrap();
        fs::rename(at("new"), at("link")).unwrap();
        assert_eq!(words(&mut updates).await, "reset b:1");
        fs::rename(at("3"), at("2")).unwrap();

        assert_eq!(words(&mut updates).await, "reset c:1");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_watches_when_nobody_reads() {
        let home = tempfile::tempdir().unwrap();
        let updates = watch(&home.path().join("none"));
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        assert_eq!(tasks(), 1);

        drop(updates);

        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn bad_entries_are_passed_over_and_say_where_they_stand() {
        let text = br#"["a:1", 7, {"id": "b"}, "a:1", "0.0.0.0:1", {"id":"c","addresses":["c:1"],"new":[]}]"#;

        let found = read(Path::new("f"), text).unwrap();

        let keys: Vec<_> = found.skipped.iter().map(|s| &*s.key).collect();
        assert_eq!(found.set.len(), 2);
        assert_eq!(keys, ["f[1]", "f[2]", "f: a:1", "f: 0.0.0.0:1"]);
    }

    #[test]
    fn an_empty_list_is_a_list_and_an_empty_file_is_none() {
        assert!(
            read(Path::new("f"), b"\xef\xbb\xbf[]")
                .unwrap()
                .set
                .is_empty()
        );
        assert!(read(Path::new("f"), b"").is_err());
        assert!(read(Path::new("f"), &[b'['; 100_000]).is_err());
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("large");
        fs::File::create(&path)
            .unwrap()
            .set_len(LARGEST + 1)
            .unwrap();

        let error = look(&path, None).await.err().unwrap();

        assert!(error.to_string().contains("larger than 16 MiB"));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn a_list_is_refused_or_all_that_is_taken_from_it_can_be_used() {
        let good = [
            r#"["a:1", {"id": "b", "addresses": ["10.0.0.2:1"], "weight": 3}]"#,
            r#"[]"#,
        ];
        let words = [
            "[[[[",
            "null",
            "\"h:1\",",
            r#""id":"#,
            r#"{"id":"c","addresses":["h:1"]},"#,
        ];
        crate::fuzz::text(&good, &words, |input| {
            let Ok(found) = read(Path::new("f"), input.as_bytes()) else {
                return false;
            };
            let mut ids: Vec<_> = found.set.iter().map(|i| &i.id).collect();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), found.set.len());
            assert!(found.set.iter().all(|i| i.check().is_ok()));
            assert!(found.skipped.iter().all(|s| !s.why.to_string().is_empty()));
            true
        });
    }
}
