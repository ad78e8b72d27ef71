//! What this room sees of its own work and somebody may want to count. It has no metrics of its own
//! beside the log's: whoever receives events receives these too, and may ignore them.

use std::time::Duration;

use machine::{CommandKind, Operations};

/// Something that happened, or how long it took.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// An entry was applied: its commands, each with whether it was done.
    Applied {
        /// The commands in order.
        commands: &'a [(CommandKind, bool)],
        /// What they did to keys.
        operations: Operations,
        /// How long the whole entry took.
        took: Duration,
    },
    /// An image was written and made durable.
    ImageSaved(Duration),
    /// A snapshot of another member was received into a file.
    SnapshotReceived(Duration),
    /// A received snapshot begins to replace the state.
    InstallBegan,
    /// It has replaced the state, or failed to.
    InstallEnded,
    /// The index was swept for a compaction.
    Swept {
        /// The longest single step, which is what others had to wait for.
        longest_step: Duration,
        /// All steps together.
        took: Duration,
    },
    /// A proposal was not answered in time, or could not be made.
    ProposalFailed,
    /// No leader confirmed a read for longer than etcd waits before it asks again.
    ReadIndexSlow,
    /// No leader confirmed a read in time.
    ReadIndexFailed,
    /// A follower owes an answer to what the leader sent, heartbeats included.
    AppendOverdue,
}
