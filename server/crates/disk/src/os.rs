//! The real disk: thin calls into the operating system, without unsafe code.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this file is the one place that may use std::fs"
)]

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::poison::Poison;
use crate::{DirEntry, DirLock, Disk, File, OpenMode};

/// Linux takes at most this many slices in one `pwritev` (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl OsDisk {
    /// The real disk. It has no state of its own.
    pub fn new() -> Self {
        Self
    }
}

impl Disk for OsDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut probe = path;
        while !probe.as_os_str().is_empty() && !fs::exists(probe)? {
            missing.push(probe.to_path_buf());
            match probe.parent() {
                Some(parent) => probe = parent,
                None => break,
            }
        }
        for directory in missing.iter().rev() {
            match fs::DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            self.sync_dir(directory.parent().unwrap_or(directory))?;
        }
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(())
    }

    fn set_private(&self, path: &Path) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create_new(true);
            }
            OpenMode::CreateOrOpen => {
                options.write(true).create(true).truncate(false);
            }
        }
        let file = options.open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Arc::new(OsFile { file, poison: Poison::default() }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed between the listing and the look at it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let is_dir = metadata.is_dir();
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir,
                len: if is_dir { 0 } else { metadata.len() },
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The parent of a bare name is written as the empty path.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DirLock> {
        let directory = fs::File::open(path)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(DirLock::new(directory))
    }

    fn available_space(&self, path: &Path) -> io::Result<u64> {
        let stat = statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct OsFile {
    file: fs::File,
    poison: Poison,
}

impl OsFile {
    fn write_slices(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for group in slices.chunks(SLICES_MAX) {
            let total: usize = group.iter().map(|slice| slice.len()).sum();
            let mut written =
                rustix::io::retry_on_intr(|| rustix::io::pwritev(&self.file, group, offset))?;
            if written < total {
                // A short write is rare; the rest goes slice by slice.
                let mut position = offset;
                for slice in group {
                    let done = written.min(slice.len());
                    written -= done;
                    self.file.write_all_at(&slice[done..], position + done as u64)?;
                    position += slice.len() as u64;
                }
            }
            offset += total as u64;
        }
        Ok(())
    }
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_write(self.file.write_all_at(buf, offset))
    }

    fn write_vectored_at(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_write(self.write_slices(slices, offset))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_write(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_sync(self.file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_sync(self.file.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once() {
        let root = tempfile::tempdir().unwrap();
        let held = OsDisk.lock(root.path()).unwrap();
        let refused = OsDisk.lock(root.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        let _again = OsDisk.lock(root.path()).unwrap();
    }

    #[test]
    fn directories_and_files_are_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        OsDisk.create_dir_all(&path).unwrap();
        OsDisk.create_dir_all(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        OsDisk.open(&path.join("f"), OpenMode::Create).unwrap();
        let mode = fs::metadata(path.join("f")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        OsDisk.set_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn vectored_writes_pass_the_slice_limit() {
        let root = tempfile::tempdir().unwrap();
        let file = OsDisk.open(&root.path().join("f"), OpenMode::Create).unwrap();
        let bytes: Vec<u8> = (0..5_000u32).map(|i| (i % 251) as u8).collect();
        let slices: Vec<io::IoSlice<'_>> = bytes.chunks(2).map(io::IoSlice::new).collect();
        assert!(slices.len() > 2 * SLICES_MAX);
        file.write_vectored_at(&slices, 7).unwrap();
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, 7).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(file.len().unwrap(), 7 + bytes.len() as u64);
    }

    #[test]
    fn a_full_device_says_no_space_and_does_not_poison() {
        let full = OsDisk.open(Path::new("/dev/full"), OpenMode::ReadWrite).unwrap();
        let error = full.write_all_at(b"x", 0).unwrap_err();
        assert!(crate::is_no_space(&error), "{error}");
        let again = full.write_all_at(b"x", 0).unwrap_err();
        assert!(crate::is_no_space(&again), "{again}");
    }

    #[test]
    fn a_failed_write_is_remembered() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        OsDisk.open(&path, OpenMode::Create).unwrap();
        let read_only = OsDisk.open(&path, OpenMode::Read).unwrap();
        let first = read_only.write_all_at(b"x", 0).unwrap_err();
        let later = read_only.sync_data().unwrap_err();
        assert_eq!(first.raw_os_error(), later.raw_os_error());
    }

    #[test]
    fn listing_is_sorted_and_tells_lengths() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            let file = OsDisk.open(&root.path().join(name), OpenMode::CreateOrOpen).unwrap();
            file.write_all_at(name.as_bytes(), 9).unwrap();
        }
        OsDisk.create_dir_all(&root.path().join("aa")).unwrap();
        let names: Vec<(String, bool, u64)> = OsDisk
            .list(root.path())
            .unwrap()
            .into_iter()
            .map(|entry| (entry.name, entry.is_dir, entry.len))
            .collect();
        let expected = [("a", false, 10), ("aa", true, 0), ("b", false, 10), ("c", false, 10)];
        let expected: Vec<(String, bool, u64)> = expected
            .into_iter()
            .map(|(name, is_dir, len)| (name.to_string(), is_dir, len))
            .collect();
        assert_eq!(names, expected);
    }
}
