//! A file of the log that makes room for itself (`--enable-log-rotation`).
//!
//! ```text
//! etcd.log                            what is written now
//! etcd-2026-01-02T03-04-05.678.log    what was written until then
//! ```
//!
//! Before a line would make the file longer than its limit, the file is renamed and a new one begun;
//! then the backups that are too many or too old go. Names, order and limits are those of the library
//! that etcd uses, so that what collects its files finds ours. Compression is not here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::logging::timestamp;
use crate::config::LogRotation;

/// `2026-01-02T03-04-05.678`
const STAMP_LENGTH: usize = 23;

pub(super) struct LogFile {
    path: PathBuf,
    rotation: LogRotation,
    file: File,
    size: u64,
    /// The time in the name of the last backup: the next one's is later, however fast they come.
    rotated: Duration,
}

impl LogFile {
    pub(super) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let opened = Self { path: path.to_owned(), rotation, file, size, rotated: Duration::ZERO };
        opened.drop_backups(now())?;
        Ok(opened)
    }

    /// Writes a line. One that is longer than a whole file gets a file of its own.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.rotation.bytes_max {
            self.rotate(now())?;
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self, now: Duration) -> io::Result<()> {
        const STEP: Duration = Duration::from_millis(1);
        let mode = self.file.metadata()?.mode();
        let mut at = now.max(self.rotated + STEP);
        let backup = loop {
            let backup = self.backup(at);
            if !backup.try_exists()? {
                break backup;
            }
            // Another process's of the same millisecond; it is not to be lost.
            at += STEP;
        };
        fs::rename(&self.path, backup)?;
        self.rotated = at;
        self.file =
            OpenOptions::new().create(true).append(true).mode(mode & 0o777).open(&self.path)?;
        self.size = 0;
        self.drop_backups(at)
    }

    /// The name before the time, and the ending after it.
    fn parts(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let ending = text(self.path.extension());
        let ending = if ending.is_empty() { ending } else { format!(".{ending}") };
        (format!("{}-", text(self.path.file_stem())), ending)
    }

    fn backup(&self, at: Duration) -> PathBuf {
        let (beginning, ending) = self.parts();
        self.path.with_file_name(format!("{beginning}{}{ending}", stamp(at)))
    }

    /// Removes the backups that are more than allowed, and those that are older.
    fn drop_backups(&self, now: Duration) -> io::Result<()> {
        let LogRotation { backups_max, age_max, .. } = self.rotation;
        let oldest = age_max.map(|age| stamp(now.saturating_sub(age)));
        let mut backups = self.backups()?;
        backups.sort_by(|a, b| b.cmp(a)); // The newest first: a stamp sorts as its time.
        for (number, (stamp, path)) in backups.into_iter().enumerate() {
            let too_many = backups_max > 0 && number >= backups_max;
            if too_many || oldest.as_ref().is_some_and(|oldest| stamp < *oldest) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn backups(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let (beginning, ending) = self.parts();
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name.strip_prefix(&beginning).and_then(|rest| rest.strip_suffix(&ending));
            if let Some(stamp) = stamp.filter(|stamp| is_stamp(stamp)) {
                found.push((stamp.to_owned(), entry.path()));
            }
        }
        Ok(found)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn stamp(at: Duration) -> String {
    let mut stamp = timestamp(at).replace(':', "-");
    stamp.truncate(STAMP_LENGTH);
    stamp
}

/// Whether a text is a time as [`stamp`] writes it, so that no file of somebody else is removed.
fn is_stamp(text: &str) -> bool {
    const SHAPE: &[u8; STAMP_LENGTH] = b"0000-00-00T00-00-00.000";
    text.len() == STAMP_LENGTH
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn open(directory: &Path, rotation: LogRotation) -> LogFile {
        LogFile::open(&directory.join("etcd.log"), rotation).unwrap()
    }

    #[test]
    fn a_full_file_becomes_a_backup_and_the_oldest_backups_go() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = ["etcd-notes.log", "other-2020-01-01T00-00-00.000.log", "etcd.log.1"];
        for name in foreign {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let rotation = LogRotation { bytes_max: 10, backups_max: 2, age_max: None };
        let mut log = open(directory.path(), rotation);
        let written: Vec<String> = (0..8).map(|number| format!("line {number}\n")).collect();
        for line in &written {
            log.write(line.as_bytes()).unwrap();
        }
        let backups = log.backups().unwrap();
        assert_eq!(backups.len(), 2, "{backups:?}");
        let mut kept: Vec<String> =
            backups.iter().map(|(_, path)| fs::read_to_string(path).unwrap()).collect();
        kept.sort();
        assert_eq!(kept, written[5..7], "the newest ones are kept, whole lines each");
        assert_eq!(fs::read_to_string(directory.path().join("etcd.log")).unwrap(), written[7]);
        for name in foreign {
            assert!(names(directory.path()).contains(&name.to_owned()), "{name} is not ours");
        }
        // A process after this one goes on with the file.
        let mut log = open(directory.path(), rotation);
        assert_eq!(log.size, 7);
        log.write(b"a line that is longer than a whole file\n").unwrap();
        assert_eq!(log.backups().unwrap().len(), 2);
    }

    #[test]
    fn backups_go_when_they_are_too_old() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etcd-2001-01-01T00-00-00.000.log", "etcd-2999-01-01T00-00-00.000.log"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let day = Duration::from_secs(86_400);
        let rotation = LogRotation { bytes_max: 10, backups_max: 0, age_max: Some(day) };
        open(directory.path(), rotation);
        assert_eq!(names(directory.path()), ["etcd-2999-01-01T00-00-00.000.log", "etcd.log"]);
    }

    #[test]
    fn a_stamp_is_a_time_that_a_file_name_can_have() {
        let stamp = stamp(Duration::from_micros(951_782_400_123_456));
        assert_eq!(stamp, "2000-02-29T00-00-00.123");
        assert!(is_stamp(&stamp));
        for other in ["2000-02-29T00-00-00.12", "2000-02-29 00-00-00.123", "notes"] {
            assert!(!is_stamp(other), "{other}");
        }
    }
}
