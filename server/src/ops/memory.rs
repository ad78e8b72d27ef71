//! How much memory the process may use, and keeping it there (`--memory-mlock`).
//!
//! etcd locks the pages of its bbolt file, which is what it reads from. There is no such file here: keys
//! and what was read of late are in the process's own memory, so all of it is locked, what is allocated
//! later included. An allocation that may not be locked would end the process at some later time; so the
//! limit must be off, and a start that cannot have that is refused.

use std::io;
use std::path::{Path, PathBuf};

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

/// The part of the memory that answers of reads may take, unless a flag says how much.
const READ_DIVISOR: u64 = 4;
/// No fewer, so that a listing of an ordinary Kubernetes needs no flag in a small container.
const READ_BYTES_MIN: u64 = 64 << 20;
/// Where nobody says what the process may use.
const READ_BYTES_UNKNOWN: u64 = 1 << 30;

/// How much memory answers of reads may take: a part of what the process may use.
pub(crate) fn read_budget_default() -> u64 {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = limit_bytes(&machine, &cgroups, &|path| std::fs::read_to_string(path).ok());
    limit.map_or(READ_BYTES_UNKNOWN, |limit| (limit / READ_DIVISOR).max(READ_BYTES_MIN))
}

/// The least of what the machine has and what the control groups of the process allow, of version 1
/// and 2.
fn limit_bytes(
    machine: &str,
    cgroups: &str,
    read: &dyn Fn(&Path) -> Option<String>,
) -> Option<u64> {
    let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let total = total.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).map(|kb| kb * 1024);
    let allowed = cgroups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let group = fields.next().unwrap_or_default().trim_start_matches('/');
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let below: PathBuf = Path::new(root).join(group);
        let groups = below.ancestors().take_while(|group| group.starts_with(root));
        // "max" is no number, and no limit.
        groups.filter_map(|group| read(&group.join(file))?.trim().parse::<u64>().ok()).collect()
    });
    allowed.chain(total).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_machine_and_control_groups_counts() {
        let machine = "MemFree: 1 kB\nMemTotal:       1000 kB\n";
        let limit = |cgroups: &str, files: &[(&str, &str)]| {
            let read = |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path)?;
                Some(found.1.to_owned())
            };
            limit_bytes(machine, cgroups, &read)
        };
        assert_eq!(limit("", &[]), Some(1_024_000));
        let files = [
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "5000\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "7000\n"),
        ];
        assert_eq!(limit("0::/a/b\n", &files), Some(5000), "a group has no more than its parent");
        assert_eq!(limit("0::/\n", &files), Some(1_024_000));
        let files = [("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "6000")];
        assert_eq!(limit("4:cpu,cpuacct:/x\n3:memory:/x\n", &files), Some(6000));
        let files = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")];
        assert_eq!(limit("3:memory:/\n", &files), Some(1_024_000), "no limit in version 1");
        assert_eq!(limit_bytes("", "", &|_| None), None);
    }
}
