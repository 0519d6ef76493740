//! A set as a file: written whole or not at all, and checked when it is read.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::{Instance, ServiceName};

#[derive(Serialize, Deserialize)]
struct Saved<'a> {
    service: ServiceName,
    /// Milliseconds since 1970.
    written: u64,
    instances: std::borrow::Cow<'a, [Arc<Instance>]>,
}

/// What stands in the first line, before the checksum of the rest.
const HEAD: &str = "tonic-fleet snapshot 1 ";

/// Files larger than this are a mistake.
const LARGEST: u64 = 64 << 20;

/// Names longer than this are cut, and told apart by a checksum.
const LONGEST_NAME: usize = 180;

/// The file for a service.
pub(super) fn file(directory: &Path, service: &ServiceName) -> PathBuf {
    let mut name = utf8_percent_encode(service.as_str(), NON_ALPHANUMERIC).to_string();
    if name.len() > LONGEST_NAME {
        let sum = checksum(name.as_bytes());
        name.truncate(LONGEST_NAME);
        name = format!("{name}-{sum:016x}");
    }
    directory.join(format!("{name}.snapshot"))
}

/// Writes a set so that a reader finds either the old one or this one, whatever happens meanwhile.
pub(super) fn save(
    path: &Path,
    service: &ServiceName,
    instances: &[Arc<Instance>],
    now: SystemTime,
) -> io::Result<()> {
    let saved = Saved {
        service: service.clone(),
        written: millis(now),
        instances: instances.into(),
    };
    let body = serde_json::to_vec(&saved)?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    create(directory)?;
    let extension = format!("{:016x}.tmp", rand::random::<u64>());
    let temporary = path.with_extension(extension);
    let written = write(&temporary, &body).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // Without this, a power cut may undo the rename.
    fs::File::open(directory)?.sync_all()
}

fn create(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    fill(&mut file, body)?;
    file.sync_all()
}

fn fill(file: &mut impl Write, body: &[u8]) -> io::Result<()> {
    writeln!(file, "{HEAD}{:016x}", checksum(body))?;
    file.write_all(body)
}

/// Reads a set that is not older than allowed; `None` if there never was one.
pub(super) fn load(
    path: &Path,
    service: &ServiceName,
    max_age: Duration,
    now: SystemTime,
) -> io::Result<Option<Vec<Arc<Instance>>>> {
    let file = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_file() => return Err(io::Error::other("not a regular file")),
        Ok(_) => fs::File::open(path)?,
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other("larger than 64 MiB"));
    }
    let saved = read(&text).map_err(io::Error::other)?;
    if saved.service != *service {
        return Err(io::Error::other(format!("it is of {}", saved.service)));
    }
    // One from the future says that the clock was wrong, then or now.
    let age = millis(now).abs_diff(saved.written);
    if u128::from(age) > max_age.as_millis() {
        let (age, most) = (age / 1000, max_age.as_secs());
        return Err(io::Error::other(format!(
            "{age} s old: at most {most} s are allowed"
        )));
    }
    Ok(Some(saved.instances.into_owned()))
}

fn read(text: &[u8]) -> Result<Saved<'_>, String> {
    let rest = text.strip_prefix(HEAD.as_bytes());
    let rest = rest.ok_or("not a snapshot of this version")?;
    let (sum, rest) = rest.split_at_checked(16).ok_or("cut off")?;
    let body = rest
        .strip_prefix(b"\n")
        .ok_or("no line after the checksum")?;
    if sum != format!("{:016x}", checksum(body)).as_bytes() {
        return Err("the checksum is wrong: it was cut off or changed".into());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// FNV-1a: finds what a disk or a writer broke, not what somebody forged.
fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::super::Fixed, *};

    const HOUR: Duration = Duration::from_secs(3600);

    fn service() -> ServiceName {
        "shop/cart".parse().unwrap()
    }

    fn saved() -> (tempfile::TempDir, PathBuf, SystemTime) {
        let home = tempfile::tempdir().unwrap();
        let path = file(&home.path().join("new/deep"), &service());
        let now = SystemTime::now();
        let set = Fixed::at(["10.0.0.1:1", "10.0.0.2:1"]).unwrap();
        save(&path, &service(), set.instances(), now).unwrap();
        (home, path, now)
    }

    #[test]
    fn a_set_is_read_as_it_was_written_and_for_its_owner_only() {
        let (_home, path, now) = saved();

        let set = load(&path, &service(), HOUR, now + HOUR).unwrap().unwrap();

        let ids: Vec<_> = set.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids, ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        }
    }

    #[test]
    fn what_is_old_or_of_another_service_is_refused() {
        let (_home, path, now) = saved();
        let minute = Duration::from_secs(60);

        let old = load(&path, &service(), HOUR, now + HOUR + minute).unwrap_err();
        let future = load(&path, &service(), HOUR, now - HOUR - minute).unwrap_err();
        let other = load(&path, &"greeter".parse().unwrap(), HOUR, now).unwrap_err();
        let none = load(&path.with_extension("none"), &service(), HOUR, now).unwrap();

        assert!(old.to_string().contains("3660 s old"), "{old}");
        assert!(future.to_string().contains("3660 s old"), "{future}");
        assert_eq!(other.to_string(), "it is of shop/cart");
        assert!(none.is_none());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let (_home, path, _) = saved();
        let text = fs::read(path).unwrap();
        assert!(read(&text).is_ok());

        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            assert!(read(&text[..at]).is_err(), "cut at {at}");
            assert!(read(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_last_set_and_nothing_else() {
        let (_home, path, now) = saved();
        let set = Fixed::at(["10.0.0.3:1"]).unwrap();
        // There is room for this name, and none for that of the file that it is written to first.
        let long = path.with_file_name("n".repeat(250));
        fs::rename(&path, &long).unwrap();

        let failed = save(&long, &service(), set.instances(), now);

        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::InvalidFilename);
        let kept = load(&long, &service(), HOUR, now).unwrap().unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(fs::read_dir(long.parent().unwrap()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_a_failure_and_not_a_short_file() {
        let mut full = fs::File::options().write(true).open("/dev/full").unwrap();

        let failed = fill(&mut full, b"{}");

        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn names_that_are_too_long_for_a_file_are_cut_and_stay_apart() {
        let name = |end: &str| ServiceName::new(format!("{}{end}", "é".repeat(120))).unwrap();
        let [a, b] = ["a", "b"].map(|end| file(Path::new("/x"), &name(end)));

        assert!(a.file_name().unwrap().len() < 255);
        assert_ne!(a, b);
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn a_snapshot_with_any_other_byte_is_refused() {
        let body = br#"{"service":"a","written":1,"instances":[{"id":"b","addresses":["h:1"],"weight":1,"serving":true}]}"#;
        let good = [format!("{HEAD}{:016x}\n", checksum(body)).as_bytes(), body].concat();
        assert!(read(&good).is_ok());

        crate::fuzz::bytes(&[&good], &["\n", "0", HEAD], |input| {
            assert!(read(input).is_err() || input == good, "it was taken");
            false
        });
    }

    #[test]
    fn a_body_under_a_right_checksum_may_be_anything() {
        let good = br#"{"service":"a","written":1,"instances":[{"id":"b","addresses":["h:1"]}]}"#;
        crate::fuzz::bytes(
            &[good],
            &["null", "[]", "-1", "99999999999999999999"],
            |body| {
                let text = [format!("{HEAD}{:016x}\n", checksum(body)).as_bytes(), body].concat();
                read(&text).is_ok()
            },
        );
    }
}
