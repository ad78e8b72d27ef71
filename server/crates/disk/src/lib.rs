//! The disk: the only room that touches the file system.
//!
//! Everything the server keeps goes through two object-safe traits, [`Disk`] (directories and
//! names) and [`File`] (bytes at offsets). [`OsDisk`] is the real one. [`SimDisk`] is an in-memory
//! disk that loses power, tears sectors, runs full and flips bits on demand, all decided by a seed,
//! so that a whole cluster can be crashed ten thousand times a minute and every failure replayed.
//!
//! What goes in: paths and bytes. What comes out: bytes, or an [`std::io::Error`] whose meaning the
//! functions [`is_no_space`] and [`is_simulated_crash`] tell apart.
//!
//! # What a caller may rely on
//!
//! | call returned `Ok` | survives a power loss |
//! |---|---|
//! | [`File::write_all_at`], [`File::set_len`] | nothing yet; each 512-byte sector may be old, new or torn |
//! | [`File::sync_data`] | the bytes of the file and its length |
//! | [`Disk::open`] that creates, [`Disk::rename`], [`Disk::remove_file`] | nothing yet; each may or may not have happened |
//! | [`Disk::sync_dir`] | the names inside that one directory |
//! | [`Disk::create_dir_all`] | the directories: it syncs the parents itself |
//! | [`write_file_atomically`] | the whole file under its name; before that, the old one |
//!
//! # Invariant: a failed sync is for ever
//!
//! After a failed `fsync`, or a write that failed with anything but "no space", the kernel may have
//! dropped the dirty pages while it reports the next `fsync` as a success (the PostgreSQL "fsyncgate"
//! of 2018). So the file is *poisoned*: every later write and sync through that handle gives the
//! first error again, and the caller is expected to stop the process. Reads stay allowed, because
//! diagnosis needs them. "No space" on a write is different: nothing that was durable is in doubt,
//! so the file stays usable.
//!
//! The poison lives in the handle of [`OsDisk`] and in the file of [`SimDisk`]. A new process starts
//! clean, but the kernel's cache may still show bytes that never reached the platter, and a sync skips
//! them. Whoever opens a file after a crash and builds on its tail must *write that tail again* and
//! sync it before it promises anything. [`SimDisk`] sets exactly this trap.
//!
//! # Testing against the simulated disk
//!
//! The recipe that finds the most: run a fixed script, and for every number k inject
//! [`Fault::CrashAt`] k operations ahead, run, [`SimDisk::restart`], open again, compare with a model,
//! and crash once more while opening. Then the same with [`Fault::FailAt`], [`Fault::NoSpaceAt`] and
//! [`SimDisk::flip`] over a [`SimDisk::fork`] per bit. `wal/tests` does all of these. A failing seed is
//! the whole recipe: nothing in the simulation depends on time, threads or addresses.
//!
//! What the simulation does not model: latency, a write that lands in the wrong place (a test can
//! write there itself), and reordering between a completed sync and what follows it (no disk that
//! honours flushes does that).
//!
//! # Deliberately absent
//!
//! No asynchronous calls (owners have threads), no memory maps (a bad sector would be a signal
//! instead of an error), no caching, no retries, no knowledge of any format.

mod atomic_file;
mod file_reader;
mod os;
mod poison;
mod sim;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use atomic_file::{AtomicFile, write_file_atomically};
pub use file_reader::FileReader;
pub use os::OsDisk;
pub use sim::{Fault, SECTOR_BYTES, SimDisk, Toll, is_simulated_crash};

/// How [`Disk::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// An existing file for reading; writes fail.
    Read,
    /// An existing file for reading and writing.
    ReadWrite,
    /// A new file for reading and writing; fails with `AlreadyExists` if the name is taken.
    Create,
    /// An existing or new file for reading and writing; existing bytes stay.
    CreateOrOpen,
}

/// One name inside a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name without its directory. Names that are not UTF-8 are shown with replacement signs;
    /// the server never creates such names, so they can only be foreign.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// The length in bytes; 0 for a directory.
    pub len: u64,
}

/// An exclusive lock on a directory, held until the value is dropped or the process ends.
#[must_use = "the directory is unlocked when this is dropped"]
pub struct DirLock {
    _held: Box<dyn Send + Sync>,
}

impl DirLock {
    pub(crate) fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl std::fmt::Debug for DirLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirLock")
    }
}

/// Directories and names.
pub trait Disk: Send + Sync {
    /// Creates the directory and its missing parents, readable by the owner only (0700), and syncs
    /// every directory that got a new name.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes an existing directory readable by the owner only (0700).
    fn set_private(&self, path: &Path) -> io::Result<()>;
    /// Opens a file. New files are readable by the owner only (0600).
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Renames a file or directory; an existing file at `to` is replaced in the same step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names inside this directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether the name exists. An error is not "no": it is an error.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Locks a directory against every other process. `WouldBlock` means somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<DirLock>;
    /// The bytes that can still be written on the file system that holds `path`.
    fn available_space(&self, path: &Path) -> io::Result<u64>;
}

/// Bytes at offsets. Handles are shared freely: no call uses a file position.
pub trait File: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`; after an error any part of it may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all slices one after the other; after an error any part may have been written.
    fn write_vectored_at(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file, or extends it with a hole that reads as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the bytes and all metadata durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;

    /// Fills `buf` or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            let read = self.read_at(&mut buf[filled..], offset + filled as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
        }
        Ok(())
    }
}

/// Whether the error says that the disk, or this user's share of it, is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads a whole file that is known to be small. A file longer than `bytes_max` is refused with
/// `FileTooLarge`, so that a damaged or foreign file cannot exhaust memory.
pub fn read_file(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
