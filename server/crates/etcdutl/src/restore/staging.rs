//! The directory under construction, and how it becomes the member's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{DirLock, Disk};

use super::{Restore, RestoreError};

const MEMBER: &str = "member";
const UNDER_CONSTRUCTION: &str = "member.restoring";

/// Refuses directories that hold something, in Go's words.
pub(super) fn check_directories(disk: &Arc<dyn Disk>, order: &Restore) -> Result<(), RestoreError> {
    check_empty(&**disk, &order.data_dir)?;
    match &order.wal_dir {
        // A name that cannot be looked at is not free either.
        Some(path) if disk.exists(path).unwrap_or(true) => match is_left(&**disk, order, path) {
            true => Ok(()),
            false => Err(RestoreError::WalDir(path.clone())),
        },
        _ => Ok(()),
    }
}

/// Whether a restore that crashed just before its end has left this empty directory.
fn is_left(disk: &dyn Disk, order: &Restore, wal_dir: &Path) -> bool {
    disk.exists(&order.data_dir.join(UNDER_CONSTRUCTION)).unwrap_or(false)
        && disk.list(wal_dir).is_ok_and(|entries| entries.is_empty())
}

/// The remains of a restore that crashed do not count: nobody can use them.
fn check_empty(disk: &dyn Disk, data_dir: &Path) -> Result<(), RestoreError> {
    let refused = || RestoreError::DataDir(data_dir.to_owned());
    if !disk.exists(data_dir).map_err(|_| refused())? {
        return Ok(());
    }
    let entries = disk.list(data_dir).map_err(|_| refused())?;
    match entries.iter().all(|entry| entry.name == UNDER_CONSTRUCTION) {
        true => Ok(()),
        false => Err(refused()),
    }
}

/// What is being built. Dropped before [`Staging::publish`] has succeeded, it takes everything with it.
pub(super) struct Staging {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    path: PathBuf,
    /// Whether the data directory did not exist before.
    made_data_dir: bool,
    wal_dir: Option<PathBuf>,
    published: bool,
    _lock: DirLock,
}

impl Staging {
    /// Makes the directory; only one restore at a time gets it.
    pub(super) fn begin(disk: Arc<dyn Disk>, data_dir: &Path) -> Result<Self, RestoreError> {
        let at = |source| RestoreError::Write { path: data_dir.display().to_string(), source };
        let made_data_dir = !disk.exists(data_dir).map_err(at)?;
        disk.create_dir_all(data_dir).map_err(at)?;
        let lock = disk.lock(data_dir).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => RestoreError::Busy(data_dir.to_owned()),
            _ => at(error),
        })?;
        // Looked at once more: another restore may have ended between the first look and the lock.
        check_empty(&*disk, data_dir)?;
        let path = data_dir.join(UNDER_CONSTRUCTION);
        if disk.exists(&path).map_err(at)? {
            disk.remove_dir_all(&path).map_err(at)?;
        }
        let staging = Self {
            disk,
            data_dir: data_dir.to_owned(),
            path,
            made_data_dir,
            wal_dir: None,
            published: false,
            _lock: lock,
        };
        staging.disk.set_private(data_dir).map_err(at)?;
        staging.disk.create_dir_all(&staging.path).map_err(at)?;
        Ok(staging)
    }

    /// Where to build.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the member's directory of it. The log's directory, if it has one of its own, comes
    /// first and stays empty: the server begins the log in it.
    pub(super) fn publish(&mut self, wal_dir: Option<&Path>) -> io::Result<()> {
        let member = self.data_dir.join(MEMBER);
        match wal_dir.map(|wal_dir| (wal_dir, wal_dir.strip_prefix(&member))) {
            None => {}
            Some((_, Ok(inside))) => self.disk.create_dir_all(&self.path.join(inside))?,
            Some((wal_dir, Err(_))) => {
                self.wal_dir = Some(wal_dir.to_owned());
                self.disk.create_dir_all(wal_dir)?;
            }
        }
        self.disk.rename(&self.path, &member)?;
        self.published = true;
        self.disk.sync_dir(&self.data_dir)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // The error that led here is reported; what cannot be removed is removed by the next try.
        let _ = self.disk.remove_dir_all(&self.path);
        if let Some(wal_dir) = &self.wal_dir {
            let _ = self.disk.remove_dir_all(wal_dir);
        }
        let empty = self.disk.list(&self.data_dir).is_ok_and(|entries| entries.is_empty());
        if self.made_data_dir && empty {
            let _ = self.disk.remove_dir_all(&self.data_dir);
        }
    }
}
