//! etcd's membership operations in terms of openraft's.
//!
//! The one source of truth is openraft's configuration. etcd's `MemberAdd` of a voter answers at
//! once, before the new process exists, while a joint change that counts it would wait for it. So a
//! voter is added as a Raft learner whose node carries `voter_intent`, is listed as a voter that has
//! not started, and the leader promotes it when it has caught up: the quorum never counts a member
//! that was never up.
//!
//! The checks of `--strict-reconfig-check` are etcd's (`server/etcdserver/server.go`,
//! `mayAddMember` and `mayRemoveMember`), with one exemption: a learner may be added while a voter
//! is down, because it does not change the quorum.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use types::MemberId;

use crate::raft_types::{Membership, Node};
use crate::unavailable::Unavailable;

/// One of etcd's changes of the member list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that has not started yet. The id is chosen by the caller and never reused.
    Add { id: MemberId, peer_urls: Vec<String>, learner: bool },
    /// Removes a member for good.
    Remove { id: MemberId },
    /// Replaces the URLs under which peers reach a member.
    Update { id: MemberId, peer_urls: Vec<String> },
    /// Makes a learner a voter.
    Promote { id: MemberId },
}

/// Why a change of the member list was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRefusal {
    /// There is no such member, or it was removed before.
    #[error("member not found")]
    MemberNotFound,
    /// A member with this id exists or existed.
    #[error("member ID already exist")]
    MemberIdExists,
    /// Another member is reached under one of these URLs.
    #[error("Peer URLs already exists")]
    PeerUrlExists,
    /// After the change, too few of the voters would have started to form a quorum.
    #[error("re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Only a learner can be promoted.
    #[error("can only promote a learner member")]
    NotLearner,
    /// The learner is too far behind the leader.
    #[error("can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// The cluster has as many learners as it may.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// A quorum of the voters is not connected to the leader.
    #[error("unhealthy cluster")]
    Unhealthy,
    /// Another change is under way, or the leader is not here; trying again may help.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What the leader knows when it judges a change.
pub(crate) struct Situation<'a> {
    pub(crate) me: MemberId,
    pub(crate) membership: &'a Membership,
    /// Members that have published their name.
    pub(crate) started: &'a BTreeSet<MemberId>,
    /// Members that answered the leader lately, itself included.
    pub(crate) active: &'a BTreeSet<MemberId>,
    pub(crate) removed: &'a BTreeSet<MemberId>,
    /// How much of the leader's log each member has, in per cent.
    pub(crate) caught_up_percent: &'a BTreeMap<MemberId, u64>,
    pub(crate) strict: bool,
    pub(crate) learners_max: usize,
}

/// etcd promotes a learner that has at least this share of the leader's log.
const READY_PERCENT: u64 = 90;

impl Situation<'_> {
    fn node(&self, id: MemberId) -> Option<&Node> {
        self.membership.get_node(&id.0)
    }

    /// Members that etcd would list as voters: those that vote and those that are meant to.
    fn voters(&self) -> Vec<MemberId> {
        let voting: BTreeSet<u64> = self.membership.voter_ids().collect();
        self.membership
            .nodes()
            .filter(|(id, node)| node.voter_intent || voting.contains(id))
            .map(|(id, _)| MemberId(*id))
            .collect()
    }

    fn is_learner(&self, id: MemberId) -> bool {
        !self.voters().contains(&id)
    }

    fn count<'m>(set: &BTreeSet<MemberId>, of: impl IntoIterator<Item = &'m MemberId>) -> usize {
        of.into_iter().filter(|id| set.contains(id)).count()
    }

    /// Judges a change and translates it.
    pub(crate) fn translate(
        &self,
        change: &MembershipChange,
    ) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        match change {
            MembershipChange::Add { id, peer_urls, learner } => self.add(*id, peer_urls, *learner),
            MembershipChange::Remove { id } => self.remove(*id),
            MembershipChange::Update { id, peer_urls } => self.update(*id, peer_urls),
            MembershipChange::Promote { id } => self.promote(*id),
        }
    }

    fn add(
        &self,
        id: MemberId,
        peer_urls: &[String],
        learner: bool,
    ) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        if self.node(id).is_some() || self.removed.contains(&id) {
            return Err(MembershipRefusal::MemberIdExists);
        }
        self.check_urls_free(None, peer_urls)?;
        let voters = self.voters();
        if learner {
            let learners = self.membership.nodes().count() - voters.len();
            if learners >= self.learners_max {
                return Err(MembershipRefusal::TooManyLearners);
            }
        } else if self.strict {
            let after = voters.len() + 1;
            let started = Self::count(self.started, &voters);
            let first_growth = started == 1 && after == 2;
            if !first_growth && started < quorum(after) {
                return Err(MembershipRefusal::NotEnoughStarted);
            }
            if Self::count(self.active, &voters) < quorum(voters.len()) {
                return Err(MembershipRefusal::Unhealthy);
            }
        }
        let node = Node { peer_urls: peer_urls.to_vec(), voter_intent: !learner };
        Ok(ChangeMembers::AddNodes(BTreeMap::from([(id.0, node)])))
    }

    fn remove(&self, id: MemberId) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        if self.node(id).is_none() {
            return Err(MembershipRefusal::MemberNotFound);
        }
        if self.strict && !self.is_learner(id) {
            self.check_removal_keeps_quorum(id)?;
        }
        if self.membership.voter_ids().any(|voter| voter == id.0) {
            Ok(ChangeMembers::RemoveVoters(BTreeSet::from([id.0])))
        } else {
            Ok(ChangeMembers::RemoveNodes(BTreeSet::from([id.0])))
        }
    }

    fn check_removal_keeps_quorum(&self, id: MemberId) -> Result<(), MembershipRefusal> {
        let voters = self.voters();
        let rest: Vec<MemberId> = voters.iter().copied().filter(|voter| *voter != id).collect();
        if Self::count(self.started, &rest) < quorum(rest.len()) {
            return Err(MembershipRefusal::NotEnoughStarted);
        }
        let is_down = id != self.me && !self.active.contains(&id);
        if is_down {
            return Ok(());
        }
        let active_after = Self::count(self.active, &voters).saturating_sub(1);
        if active_after < 1 + (voters.len() - 1) / 2 && !rest.is_empty() && voters.len() > 2 {
            return Err(MembershipRefusal::Unhealthy);
        }
        Ok(())
    }

    fn update(
        &self,
        id: MemberId,
        peer_urls: &[String],
    ) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        let node = self.node(id).ok_or(MembershipRefusal::MemberNotFound)?;
        self.check_urls_free(Some(id), peer_urls)?;
        let node = Node { peer_urls: peer_urls.to_vec(), voter_intent: node.voter_intent };
        Ok(ChangeMembers::SetNodes(BTreeMap::from([(id.0, node)])))
    }

    fn promote(&self, id: MemberId) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        let node = self.node(id).ok_or(MembershipRefusal::MemberNotFound)?;
        if !self.is_learner(id) {
            return Err(MembershipRefusal::NotLearner);
        }
        let ready = self.caught_up_percent.get(&id).is_some_and(|p| *p >= READY_PERCENT);
        if !ready {
            return Err(MembershipRefusal::LearnerNotReady);
        }
        if self.strict {
            let mut after = self.voters();
            after.push(id);
            if Self::count(self.started, &after) < quorum(after.len()) {
                return Err(MembershipRefusal::NotEnoughStarted);
            }
        }
        let node = Node { peer_urls: node.peer_urls.clone(), voter_intent: true };
        Ok(ChangeMembers::Batch(vec![
            ChangeMembers::SetNodes(BTreeMap::from([(id.0, node)])),
            ChangeMembers::AddVoterIds(BTreeSet::from([id.0])),
        ]))
    }

    fn check_urls_free(
        &self,
        except: Option<MemberId>,
        peer_urls: &[String],
    ) -> Result<(), MembershipRefusal> {
        let taken = self
            .membership
            .nodes()
            .filter(|(id, _)| Some(MemberId(**id)) != except)
            .any(|(_, node)| node.peer_urls.iter().any(|url| peer_urls.contains(url)));
        if taken { Err(MembershipRefusal::PeerUrlExists) } else { Ok(()) }
    }

    /// A member that was added as a voter, has started and has caught up: the leader promotes it.
    pub(crate) fn next_automatic_promotion(&self) -> Option<ChangeMembers<u64, Node>> {
        let voting: BTreeSet<u64> = self.membership.voter_ids().collect();
        let ready = self.membership.nodes().find(|(id, node)| {
            let member = MemberId(**id);
            node.voter_intent
                && !voting.contains(id)
                && self.active.contains(&member)
                && self.caught_up_percent.get(&member).is_some_and(|p| *p >= READY_PERCENT)
        })?;
        Some(ChangeMembers::AddVoterIds(BTreeSet::from([*ready.0])))
    }

    /// The change that finishes a joint configuration which an earlier leader left behind.
    pub(crate) fn unfinished_joint_change(&self) -> Option<ChangeMembers<u64, Node>> {
        match self.membership.get_joint_config().as_slice() {
            [_, .., last] => Some(ChangeMembers::ReplaceAllVoters(last.clone())),
            _ => None,
        }
    }
}

fn quorum(members: usize) -> usize {
    members / 2 + 1
}
