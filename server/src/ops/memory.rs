//! Keeping the process in memory (`--memory-mlock`).
//!
//! etcd locks the pages of its bbolt file, which is what it reads from. There is no such file here: keys
//! and what was read of late are in the process's own memory, so all of it is locked, what is allocated
//! later included. An allocation that may not be locked would end the process at some later time; so the
//! limit must be off, and a start that cannot have that is refused.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Why memory is not locked.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "--memory-mlock: this process may lock {limit} bytes of memory, and needs to lock all it will \
         ever use; allow it with `ulimit -l unlimited`, LimitMEMLOCK=infinity or CAP_IPC_LOCK, or \
         turn swap off and leave the flag out"
    )]
    Limited { limit: u64 },
    #[error("--memory-mlock: lock memory: {0}")]
    Lock(#[source] io::Error),
}

/// Locks what the process has and will have.
///
/// # Errors
/// When the process may not.
pub fn lock() -> Result<(), MemoryError> {
    let is_limited =
        !capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if let Some(limit) = getrlimit(Resource::Memlock).current.filter(|_| is_limited) {
        let unlimited = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Memlock, unlimited).map_err(|_| MemoryError::Limited { limit })?;
    }
    // The allocator maps much more than it ever touches; what it touches is locked.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|error| MemoryError::Lock(error.into()))?;
    tracing::info!("the memory of this process is locked");
    Ok(())
}
