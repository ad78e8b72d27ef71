//! Every bound of the room, and how they relate.

use std::time::Duration;

use machine::CommandKind;

/// What an operator may set about requests and membership.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a request may take before it is answered with a time-out: etcd's is five seconds
    /// and two election timeouts.
    pub request_timeout: Duration,
    /// Whether changes that could cost the quorum are refused.
    pub strict_reconfig: bool,
    /// How many learners a cluster may have.
    pub learners_max: usize,
    /// Whether requests that end leases are still taken when others are refused because apply lags
    /// behind (feature gate PriorityRequest).
    pub priority_requests: bool,
}

impl Rules {
    /// Whether a request may be proposed while this many entries are committed and not applied.
    pub(crate) fn take_at_lag(&self, lag: u64, kind: CommandKind) -> bool {
        let is_first = self.priority_requests && has_priority(kind);
        lag <= if is_first { APPLY_LAG_MAX_PRIORITY } else { APPLY_LAG_MAX }
    }
}

/// What frees more than it costs: the end of a lease, whether a client or the leader ends it.
fn has_priority(kind: CommandKind) -> bool {
    matches!(kind, CommandKind::LeaseRevoke | CommandKind::LeaseExpire)
}

/// Requests in one Raft entry.
pub(crate) const BATCH_REQUESTS_MAX: usize = 1024;

/// Request bytes in one Raft entry; a single larger request still travels, alone.
pub(crate) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Requests that may wait for the driver; etcd refuses from 5,000 entries between commit and apply.
pub(crate) const QUEUE_REQUESTS_MAX: usize = 16 * BATCH_REQUESTS_MAX;

/// Request bytes that may wait for the driver.
pub(crate) const QUEUE_BYTES_MAX: usize = 256 << 20;

/// How long a batch rests that the leader could not take yet: a new leader takes writes once a
/// quorum has answered it.
pub(crate) const PUT_BACK_PAUSE: Duration = Duration::from_millis(5);

/// Entries that may be committed and not applied before proposals are refused: etcd's bound.
pub(crate) const APPLY_LAG_MAX: u64 = 5000;

/// The same for requests that have priority, if any have: etcd's bound.
pub(crate) const APPLY_LAG_MAX_PRIORITY: u64 = 2 * APPLY_LAG_MAX;

/// Keys whose dead versions one step of the background half of a compaction drops.
pub(crate) const SWEEP_KEYS: usize = 4096;

/// Bytes of the disk that are kept for deletions and compactions. The log makes no segment ahead of time
/// out of it.
pub const SPACE_RESERVE_BYTES: u64 = 64 << 20;

/// The same with the image which frees what those let go, and which is written beside the one before.
/// Writes that need space are refused before any of it is touched (the edge asks for it).
pub(crate) fn space_reserve(image_bytes: u64) -> u64 {
    SPACE_RESERVE_BYTES + image_bytes
}

/// How long the log and images wait before they try again on a full disk.
pub(crate) const NO_SPACE_PAUSE: Duration = Duration::from_millis(500);

const _: () = assert!(BATCH_BYTES_MAX < QUEUE_BYTES_MAX);
const _: () = assert!(BATCH_REQUESTS_MAX < QUEUE_REQUESTS_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_end_at_twice_the_lag_at_which_others_are_refused_if_requests_have_priorities() {
        let rules = |priority_requests| Rules {
            request_timeout: Duration::from_secs(7),
            strict_reconfig: true,
            learners_max: 1,
            priority_requests,
        };
        let ends_a_lease = [CommandKind::LeaseRevoke, CommandKind::LeaseExpire];
        for kind in CommandKind::ALL {
            for priority_requests in [false, true] {
                let taken = |lag| rules(priority_requests).take_at_lag(lag, kind);
                let bound = match priority_requests && ends_a_lease.contains(&kind) {
                    true => 10_000,
                    false => 5_000,
                };
                assert!(taken(0) && taken(bound), "{kind:?}, {priority_requests}");
                assert!(!taken(bound + 1) && !taken(u64::MAX), "{kind:?}, {priority_requests}");
            }
        }
    }
}
