//! Every bound of the room, and how they relate.

use std::time::Duration;

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

/// Keys whose dead versions one step of the background half of a compaction drops.
pub(crate) const SWEEP_KEYS: usize = 4096;

/// Bytes of the disk that are kept for deletions, compactions and the images which free what those
/// let go. Writes that need space are refused before it is touched (the edge asks for it), and the
/// log makes no segment ahead of time out of it.
pub const SPACE_RESERVE_BYTES: u64 = 64 << 20;

/// How long the log and images wait before they try again on a full disk.
pub(crate) const NO_SPACE_PAUSE: Duration = Duration::from_millis(500);

const _: () = assert!(BATCH_BYTES_MAX < QUEUE_BYTES_MAX);
const _: () = assert!(BATCH_REQUESTS_MAX < QUEUE_REQUESTS_MAX);
