//! Data directories of servers that are not running: whose they are, their lock, `defrag`, `migrate`.
//!
//! Go etcd's tool works on the one bbolt file of a data directory. Here a member keeps its values in
//! `member/store/<epoch>`, in one of two engines, and its format has no versions that follow etcd's. A
//! directory of Go etcd is recognized and left alone: nothing here writes into a file that Go etcd
//! may open again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::{DirLock, Disk};
use revlog::{RevLog, RevLogOptions, RevStore, RevStoreError, SledOptions, SledStore, StoreSize};

/// How often a lock that somebody else holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// The file by which the default engine is recognized.
const REVLOG_MANIFEST: &str = "manifest";
/// The oldest version that can be a target, and the one whose format this is.
const OLDEST_TARGET: (u64, u64) = (3, 5);
const OWN_VERSION: (u64, u64) = (3, 7);

/// Why a data directory cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The words of Go's `os.Stat`.
    #[error("stat {}: no such file or directory", .0.display())]
    Missing(PathBuf),
    #[error(
        "{} is a data directory of Go etcd: use Go's etcdutl, or bring it over with `etcdutl import \
         --from {}`", .0.display(), .0.display()
    )]
    GoEtcd(PathBuf),
    #[error("{} is locked by another process: stop the server first", .0.display())]
    Locked(PathBuf),
    #[error(
        "{} holds {count} stores, as a snapshot from the leader was not received to its end: start \
         the server once, which clears it away", path.display()
    )]
    Unfinished { path: PathBuf, count: usize },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] RevStoreError),
}

/// Why a directory cannot be migrated; Go's words where it has some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("wrong target version format, expected \"X.Y\", got {0:?}")]
    Format(String),
    #[error("failed to parse target version: strconv.ParseInt: parsing {0:?}: invalid syntax")]
    Number(String),
    #[error("target version \"{0}.{1}\" not supported. Minimal \"3.5\"")]
    TooOld(u64, u64),
}

/// The data directory of a member of Keelson, locked.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    store: PathBuf,
    _lock: DirLock,
}

impl DataDir {
    /// Opens and locks it. `patience` is how long to wait for the lock; none is for ever.
    ///
    /// # Errors
    /// It is missing, Go's, or in use.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        patience: Option<Duration>,
    ) -> Result<Self, DataDirError> {
        let store = check(&*disk, path)?;
        let member = path.join("member");
        let begin = Instant::now();
        let lock = loop {
            match disk.lock(&member) {
                Ok(lock) => break lock,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(DataDirError::Io { path: member, source: error });
                }
                Err(_) if patience.is_some_and(|patience| begin.elapsed() >= patience) => {
                    return Err(DataDirError::Locked(path.to_owned()));
                }
                Err(_) => std::thread::sleep(LOCK_PAUSE),
            }
        };
        Ok(Self { disk, store, _lock: lock })
    }

    /// Gives the space of records that compaction made unreachable back to the file system; answers
    /// the sizes before and after.
    pub fn defragment(&self) -> Result<(StoreSize, StoreSize), DataDirError> {
        let records = self.records()?;
        let before = records.size();
        records.defragment()?;
        Ok((before, records.size()))
    }

    fn records(&self) -> Result<Arc<dyn RevStore>, DataDirError> {
        let at = |source| DataDirError::Io { path: self.store.clone(), source };
        let entries = self.disk.list(&self.store).map_err(at)?;
        let epochs: Vec<_> =
            entries.iter().filter(|entry| entry.name.parse::<u64>().is_ok()).collect();
        let [epoch] = &epochs[..] else {
            let (path, count) = (self.store.clone(), epochs.len());
            return Err(DataDirError::Unfinished { path, count });
        };
        let directory = self.store.join(&epoch.name);
        Ok(match self.disk.exists(&directory.join(REVLOG_MANIFEST)).map_err(at)? {
            true => {
                let disk = Arc::clone(&self.disk);
                Arc::new(RevLog::open(disk, &directory, RevLogOptions::default())?)
            }
            false => Arc::new(SledStore::open(&directory, SledOptions::default())?),
        })
    }
}

/// Whether it is a data directory of ours; answers where its stores are.
fn check(disk: &dyn Disk, path: &Path) -> Result<PathBuf, DataDirError> {
    let exists = |path: PathBuf| {
        disk.exists(&path).map_err(|source| DataDirError::Io { path: path.clone(), source })
    };
    let store = path.join("member/store");
    if exists(store.clone())? {
        return Ok(store);
    }
    match exists(path.join("member/snap/db"))? {
        true => Err(DataDirError::GoEtcd(path.to_owned())),
        false => Err(DataDirError::Missing(store)),
    }
}

/// A version `X.Y` that a data directory may be migrated to.
pub fn parse_target(text: &str) -> Result<(u64, u64), TargetError> {
    let parts: Vec<&str> = text.split('.').collect();
    let [major, minor] = parts[..] else { return Err(TargetError::Format(text.to_owned())) };
    let number = |part: &str| part.parse::<u64>().map_err(|_| TargetError::Number(part.to_owned()));
    let target = (number(major)?, number(minor)?);
    match target < OLDEST_TARGET {
        true => Err(TargetError::TooOld(target.0, target.1)),
        false => Ok(target),
    }
}

/// Whether a directory of ours is at the target already; there is no other version of its format.
pub fn is_current(disk: &dyn Disk, path: &Path, target: (u64, u64)) -> Result<bool, DataDirError> {
    check(disk, path)?;
    Ok(target == OWN_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_go_reads_them() {
        assert_eq!(parse_target("3.6"), Ok((3, 6)));
        assert_eq!(parse_target("4.0"), Ok((4, 0)));
        assert_eq!(parse_target("3.4"), Err(TargetError::TooOld(3, 4)));
        assert_eq!(parse_target("3"), Err(TargetError::Format("3".to_owned())));
        assert_eq!(parse_target("3.6.1"), Err(TargetError::Format("3.6.1".to_owned())));
        assert_eq!(parse_target("a.6"), Err(TargetError::Number("a".to_owned())));
    }
}
