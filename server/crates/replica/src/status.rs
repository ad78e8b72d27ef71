//! What a member knows about itself and its cluster, as one value.

use std::collections::BTreeMap;

use types::{ClusterId, LogIndex, MemberId, Term};

use crate::raft_types::Node;

/// A member's view of itself and of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub member_id: MemberId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// The leader it follows, itself included.
    pub leader: Option<MemberId>,
    /// Its current term.
    pub term: Term,
    /// The last index it knows to be committed.
    pub committed: LogIndex,
    /// The last index it has applied.
    pub applied: LogIndex,
    /// Whether the leader confirmed within the last election timeout that a quorum follows it; only
    /// ever true on the leader.
    pub leads_quorum: bool,
    /// Whether it does not vote and is not meant to.
    pub is_learner: bool,
    /// Whether it was removed from the cluster.
    pub removed: bool,
    /// Everyone in the configuration, with what Raft knows of them.
    pub nodes: BTreeMap<MemberId, Node>,
    /// Those who vote in the newest configuration.
    pub voters: Vec<MemberId>,
    /// Why this member has stopped for good, if it has.
    pub fatal: Option<String>,
}

impl Status {
    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.member_id)
    }
}
