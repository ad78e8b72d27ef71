//! What sled calls when it takes its log for durable.
//!
//! sled uses a piece of its log again once what it held has been written elsewhere and synced. On Linux
//! sled 0.34 syncs with `sync_file_range`, which waits neither for the device's cache nor for what the file
//! system has to write about the file (sled#1452). After a power loss the copy may be missing and the
//! original overwritten, and with it records that this adapter had made durable long before
//! (`tests/sled_power_loss.rs`). sled has no seam for it. The C function is one: a program's own
//! definition goes before that of libc, and this one is a whole sync, of the log as of any file.
//!
//! Invariant: no store is opened in a program in which sled's calls do not arrive here.
#![allow(
    unsafe_code,
    reason = "a C function is defined and called, which the compiler cannot check"
)]

use std::ffi::{c_int, c_uint};
use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::FileSync;

/// The logs of the stores that are open, and how each is synced.
static LOGS: Mutex<Vec<(PathBuf, Arc<dyn FileSync>)>> = Mutex::new(Vec::new());
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// As long as this lives, what sled syncs of a log is synced by the store's [`FileSync`].
pub(super) struct LogSync {
    log: PathBuf,
}

impl LogSync {
    /// # Errors
    /// When sled's calls do not arrive here, or the directory is not there.
    pub(super) fn of(directory: &Path, file_sync: Arc<dyn FileSync>) -> io::Result<Self> {
        let before = CALLS.load(Ordering::Relaxed);
        // SAFETY: it is the function below, or libc's; neither touches memory for a descriptor.
        unsafe { libc::sync_file_range(-1, 0, 0, 0) };
        if CALLS.load(Ordering::Relaxed) == before {
            return Err(io::Error::other("this program was linked without a sync that sled needs"));
        }
        let log = fs::canonicalize(directory)?.join("db");
        logs(|logs| logs.push((log.clone(), file_sync)));
        Ok(Self { log })
    }
}

impl Drop for LogSync {
    fn drop(&mut self) {
        logs(|logs| {
            if let Some(place) = logs.iter().position(|(log, _)| *log == self.log) {
                logs.remove(place);
            }
        });
    }
}

fn logs<T>(with: impl FnOnce(&mut Vec<(PathBuf, Arc<dyn FileSync>)>) -> T) -> T {
    with(&mut LOGS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes the whole file durable, whatever part of it is asked for.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(descriptor: c_int, _: i64, _: i64, _: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    match sync(descriptor) {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: errno of this thread, which is always there.
            unsafe { *libc::__errno_location() = error.raw_os_error().unwrap_or(libc::EIO) };
            -1
        }
    }
}

fn sync(descriptor: c_int) -> io::Result<()> {
    if descriptor < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the caller's open file, which is not closed here.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    let path = fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
    let found =
        logs(|logs| logs.iter().find(|(log, _)| *log == path).map(|(_, sync)| sync.clone()));
    match found {
        Some(file_sync) => file_sync.sync(&path, &file),
        None => file.sync_all(),
    }
}
