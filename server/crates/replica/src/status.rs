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
    /// Whether for two election timeouts it has not heard of a quorum, if it leads, or of the leader that it
    /// follows. It goes on asking the one or the other, but clients must not take that one for the leader.
    pub isolated: bool,
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

    /// The leader as clients are to be told.
    pub fn answered_leader(&self) -> Option<MemberId> {
        self.leader.filter(|_| !self.isolated)
    }
}

/// Tells a member that was removed from one that replays a log from before its time: both look at
/// a configuration without themselves, and only the first has ever been in one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belonging {
    has_belonged: bool,
}

impl Belonging {
    /// `has_belonged`: whether the applied state has this member, or its tombstone.
    pub(crate) fn new(has_belonged: bool) -> Self {
        Self { has_belonged }
    }

    /// Takes note of a configuration, and tells whether its being without this member means that
    /// the member was removed.
    pub(crate) fn is_removed_by(&mut self, has_own: bool) -> bool {
        self.has_belonged |= has_own;
        self.has_belonged && !has_own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_that_replays_the_time_before_it_was_added_is_not_removed() {
        let mut fresh = Belonging::new(false);
        assert!(!fresh.is_removed_by(false), "the log begins with a configuration without it");
        assert!(!fresh.is_removed_by(true));
        assert!(fresh.is_removed_by(false), "now it was removed");
    }

    #[test]
    fn a_member_that_was_removed_before_its_restart_knows_it() {
        assert!(Belonging::new(true).is_removed_by(false));
    }
}
