//! How many connections the limit of open files leaves room for.
//!
//! Without a bound, connections would take every descriptor, and the log could not open its next segment.
//! As in etcd: the soft limit is raised to the hard one, as Go's runtime does, and of that a number is kept
//! for the process itself (`embed/etcd.go`). The rest is shared out beforehand, so that clients leave room
//! for members.

use std::num::NonZero;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::accept::BindError;

/// Kept for files and for connections to other members: etcd's number.
const KEPT: u64 = 150;
/// Connections that a listener serves at a time at most; more wait in the kernel.
const CONNECTIONS_MAX: u64 = 10_000;
/// Sets of listeners in one process: for clients, and for members.
const SETS: u64 = 2;
/// Listeners of a set: one for clients and one for metrics.
const LISTENERS: usize = 2;
/// TLS handshakes that one thread has under way at most.
const HANDSHAKES_MAX: usize = 512;

/// Raises the soft limit as far as it may be.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Whoever may not goes on with what there is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// How many connections each of the listeners of a set may have.
pub(super) fn connections_max(listeners: usize) -> Result<usize, BindError> {
    share(getrlimit(Resource::Nofile).current, listeners)
}

/// How many TLS handshakes one thread may have under way: so few that all threads together leave half of a
/// listener's connections to those who are through.
pub(super) fn handshakes_max() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let connections = connections_max(LISTENERS).unwrap_or_default();
    (connections / 2 / threads).clamp(1, HANDSHAKES_MAX)
}

fn share(limit: Option<u64>, listeners: usize) -> Result<usize, BindError> {
    let limit = limit.unwrap_or(u64::MAX);
    let listeners = u64::try_from(listeners).unwrap_or(u64::MAX).max(1);
    match (limit.saturating_sub(KEPT) / SETS / listeners).min(CONNECTIONS_MAX) {
        0 => Err(BindError::FewDescriptors { limit }),
        share => Ok(usize::try_from(share).unwrap_or(usize::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_log_and_for_members() {
        for (limit, listeners, expected) in [
            (None, 1, 10_000),
            (Some(1_048_576), 3, 10_000),
            (Some(1024), 1, 437),
            (Some(1024), 2, 218),
            (Some(256), 1, 53),
        ] {
            assert_eq!(share(limit, listeners).unwrap(), expected, "{limit:?}");
        }
        let told = share(Some(150), 1).unwrap_err().to_string();
        let words = "file descriptor limit of etcd process is too low; please set higher";
        assert!(told.starts_with(words), "{told}");
    }
}
