//! Whether this member is, and since its start has always been, the only node of its cluster.
//!
//! Such a member answers linearizable reads from what it has applied, without asking Raft.
//!
//! Invariant: while solitude holds, every answer that anybody ever got from this cluster follows from
//! entries that this member has applied. Three rules keep it:
//! - It begins only after an entry of this process was applied under a configuration of this member
//!   alone. What earlier processes acknowledged, and what members that were removed earlier have seen,
//!   lies before that entry in the log.
//! - While it holds, only this member commits, and it answers a write after having applied it. There
//!   is no other voter that could elect another leader, and no learner that could learn of a commit
//!   and answer its own clients first.
//! - It ends in the moment when a configuration that names another node is handed to the log, before
//!   the entry is written, sent or acknowledged; and it never comes back within this process, because
//!   nobody knows what a node that was removed still hears and answers.

use std::sync::atomic::{AtomicU8, Ordering};

use types::MemberId;

use crate::raft_types::{Membership, StoredMembership};

const UNKNOWN: u8 = 0;
const ALONE: u8 = 1;
const ENDED: u8 = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Solitude(AtomicU8);

impl Solitude {
    /// Whether a read of the applied state is linearizable.
    pub(crate) fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire) == ALONE
    }

    /// It has been found that this member is alone; without effect once solitude has ended.
    pub(crate) fn begin(&self) {
        // A failure means that it holds already or has ended.
        let _ = self.0.compare_exchange(UNKNOWN, ALONE, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Another node may be there from now on.
    pub(crate) fn end(&self) {
        self.0.store(ENDED, Ordering::Release);
    }
}

/// Whether a configuration names a node that is not this member.
pub(crate) fn names_another(membership: Option<&Membership>, me: MemberId) -> bool {
    membership.is_some_and(|membership| {
        membership.nodes().any(|(id, _)| *id != me.0) || membership.voter_ids().any(|id| id != me.0)
    })
}

/// Whether this member is the one node, and votes.
pub(crate) fn is_only(membership: &StoredMembership, me: MemberId) -> bool {
    let membership = membership.membership();
    membership.voter_ids().any(|id| id == me.0) && !names_another(Some(membership), me)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft_types::Node;

    fn membership(voters: &[u64], learners: &[u64]) -> Membership {
        let voters: BTreeSet<u64> = voters.iter().copied().collect();
        let nodes: BTreeMap<u64, Node> =
            voters.iter().chain(learners).map(|id| (*id, Node::default())).collect();
        Membership::new(vec![voters], nodes).unwrap()
    }

    #[test]
    fn a_learner_is_company_too() {
        let me = MemberId(1);
        for (voters, learners, alone) in [
            (&[1][..], &[][..], true),
            (&[1], &[2], false),
            (&[1, 2], &[], false),
            (&[2], &[], false),
            (&[2], &[1], false),
        ] {
            let stored = StoredMembership::new(None, membership(voters, learners));
            assert_eq!(is_only(&stored, me), alone, "voters {voters:?}, learners {learners:?}");
        }
        assert!(!is_only(&StoredMembership::default(), me), "no configuration is not solitude");
    }

    #[test]
    fn solitude_does_not_come_back() {
        let solitude = Solitude::default();
        assert!(!solitude.holds());
        solitude.begin();
        solitude.begin();
        assert!(solitude.holds());
        solitude.end();
        solitude.begin();
        assert!(!solitude.holds());
    }
}
