//! etcd's membership operations in terms of openraft's.
//!
//! The one source of truth is openraft's configuration. etcd's `MemberAdd` of a voter answers at
//! once, before the new process exists, while a joint change that counts it would wait for it. So a
//! voter is added as a Raft learner whose node carries `voter_intent`, is listed as a voter that has
//! not started, and the leader promotes it when it has caught up: the quorum never counts a member
//! that was never up.
//!
//! The checks of `--strict-reconfig-check` are etcd's (`server/etcdserver/server.go`,
//! `mayAddMember` and `mayRemoveMember`), with one exemption: etcd counts a new member as a voter that
//! is down, even a learner, and so takes none while one of three is down. Ours counts it only once it
//! is there, and asks that a quorum of the voters is, and has been for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use types::{LogIndex, MemberId};

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
    /// A quorum of the voters is not connected to the leader, or has not been for long.
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
    /// Those of them that it has reached for [`HEALTH_INTERVAL`], itself included.
    pub(crate) connected: &'a BTreeSet<MemberId>,
    pub(crate) removed: &'a BTreeSet<MemberId>,
    /// The last entry of the leader's log that each member is known to have.
    pub(crate) matched: &'a BTreeMap<MemberId, LogIndex>,
    /// The last entry of the leader's log.
    pub(crate) last: LogIndex,
    /// The last one that is committed.
    pub(crate) committed: LogIndex,
    pub(crate) strict: bool,
    pub(crate) learners_max: usize,
}

/// Only who has been reached for this long counts when a change may cost the quorum: etcd's interval.
pub(crate) const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// etcd promotes a learner that has at least this share of the leader's log.
const READY_PERCENT: u64 = 90;

/// What a new voter may lack of what is committed. From its promotion on the quorum may need it, and no
/// write ends before it has all of it; a tenth of a long log takes minutes.
const LAG_MAX: u64 = 1_000;

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

    /// Whether this member has as much of the log as etcd asks of a learner.
    fn has_ready_share(&self, id: MemberId) -> bool {
        let matched = self.matched.get(&id).map_or(0, |matched| matched.0);
        matched * 100 / self.last.0.max(1) >= READY_PERCENT
    }

    /// Whether a quorum that needs this member would not wait for it.
    fn keeps_up(&self, id: MemberId) -> bool {
        let matched = self.matched.get(&id).map_or(0, |matched| matched.0);
        self.committed.0.saturating_sub(matched) <= LAG_MAX
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
        let voters = self.voters();
        if self.strict {
            self.check_addition_keeps_quorum(&voters, learner)?;
        }
        if self.node(id).is_some() || self.removed.contains(&id) {
            return Err(MembershipRefusal::MemberIdExists);
        }
        self.check_urls_free(None, peer_urls)?;
        if learner && self.membership.nodes().count() - voters.len() >= self.learners_max {
            return Err(MembershipRefusal::TooManyLearners);
        }
        let node =
            Node { peer_urls: peer_urls.to_vec(), voter_intent: !learner, ..Node::default() };
        Ok(ChangeMembers::AddNodes(BTreeMap::from([(id.0, node)])))
    }

    fn check_addition_keeps_quorum(
        &self,
        voters: &[MemberId],
        learner: bool,
    ) -> Result<(), MembershipRefusal> {
        let started = Self::count(self.started, voters);
        let first_growth = started == 1 && voters.len() == 1;
        if !learner && !first_growth && started < quorum(voters.len() + 1) {
            return Err(MembershipRefusal::NotEnoughStarted);
        }
        if Self::count(self.connected, voters) < quorum(voters.len()) {
            return Err(MembershipRefusal::Unhealthy);
        }
        Ok(())
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
        let active_after = Self::count(self.connected, &voters).saturating_sub(1);
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
        let node = Node { peer_urls: peer_urls.to_vec(), ..node.clone() };
        Ok(ChangeMembers::SetNodes(BTreeMap::from([(id.0, node)])))
    }

    fn promote(&self, id: MemberId) -> Result<ChangeMembers<u64, Node>, MembershipRefusal> {
        let node = self.node(id).ok_or(MembershipRefusal::MemberNotFound)?;
        if !self.is_learner(id) {
            return Err(MembershipRefusal::NotLearner);
        }
        if !self.has_ready_share(id) {
            return Err(MembershipRefusal::LearnerNotReady);
        }
        if self.strict {
            let mut after = self.voters();
            after.push(id);
            if Self::count(self.started, &after) < quorum(after.len()) {
                return Err(MembershipRefusal::NotEnoughStarted);
            }
        }
        let node = Node { voter_intent: true, ..node.clone() };
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
                && self.has_ready_share(member)
                && self.keeps_up(member)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Members 1, 2, .. of which the first so many vote; `newcomers` are meant to.
    struct Cluster {
        membership: Membership,
        started: BTreeSet<MemberId>,
        active: BTreeSet<MemberId>,
        connected: BTreeSet<MemberId>,
        matched: BTreeMap<MemberId, LogIndex>,
        last: u64,
        strict: bool,
    }

    impl Cluster {
        fn of(voters: u64, newcomers: u64) -> Self {
            let node = |id| {
                let peer_urls = vec![format!("http://m{id}:2380")];
                (id, Node { peer_urls, voter_intent: true, ..Node::default() })
            };
            let nodes: BTreeMap<u64, Node> = (1..=voters + newcomers).map(node).collect();
            let membership = Membership::new(vec![(1..=voters).collect()], nodes).unwrap();
            let all: BTreeSet<MemberId> = (1..=voters).map(MemberId).collect();
            let matched = BTreeMap::new();
            let (started, active) = (all.clone(), all.clone());
            Self { membership, started, active, connected: all, matched, last: 1, strict: true }
        }

        fn judge<T>(&self, judge: impl FnOnce(&Situation<'_>) -> T) -> T {
            judge(&Situation {
                me: MemberId(1),
                membership: &self.membership,
                started: &self.started,
                active: &self.active,
                connected: &self.connected,
                removed: &BTreeSet::new(),
                matched: &self.matched,
                last: LogIndex(self.last),
                committed: LogIndex(self.last),
                strict: self.strict,
                learners_max: 1,
            })
        }

        fn add(&self, learner: bool) -> Result<(), MembershipRefusal> {
            let peer_urls = vec!["http://new:2380".to_owned()];
            let add = MembershipChange::Add { id: MemberId(99), peer_urls, learner };
            self.judge(|situation| situation.translate(&add)).map(drop)
        }
    }

    /// T31 (etcd PR#21669): the members that are down do not keep out another while a quorum is there.
    #[test]
    fn t31_members_are_added_while_a_quorum_of_the_voters_is_there() {
        use MembershipRefusal::{NotEnoughStarted, Unhealthy};
        // Voters, how many of them have started and are active, and what adding a voter comes to; for a
        // learner, which changes no quorum, they need not have started.
        let table = [
            (1, 1, 1, Ok(())),
            (2, 1, 1, Err(NotEnoughStarted)),
            (2, 2, 1, Err(Unhealthy)),
            (2, 2, 2, Ok(())),
            (3, 2, 2, Err(NotEnoughStarted)),
            (3, 3, 1, Err(Unhealthy)),
            (3, 3, 2, Ok(())),
            (3, 3, 3, Ok(())),
            (4, 2, 4, Err(NotEnoughStarted)),
            (4, 3, 3, Ok(())),
            (4, 4, 2, Err(Unhealthy)),
            (5, 3, 5, Err(NotEnoughStarted)),
            (5, 4, 3, Ok(())),
            (5, 5, 2, Err(Unhealthy)),
            (5, 5, 3, Ok(())),
        ];
        for (voters, started, active, expected) in table {
            let mut cluster = Cluster::of(voters, 0);
            cluster.started.retain(|id| id.0 <= started);
            cluster.active.retain(|id| id.0 <= active);
            cluster.connected = cluster.active.clone();
            let situation = format!("{voters} voters, {started} started, {active} active");
            assert_eq!(cluster.add(false), expected, "{situation}");
            let of_learner = match expected {
                Err(NotEnoughStarted) if active * 2 > voters => Ok(()),
                Err(NotEnoughStarted) => Err(Unhealthy),
                other => other,
            };
            assert_eq!(cluster.add(true), of_learner, "{situation}, a learner");
            cluster.strict = false;
            assert_eq!(cluster.add(false), Ok(()), "{situation}, without the check");
        }
    }

    #[test]
    fn a_voter_that_was_added_and_has_not_started_counts_against_the_next() {
        let three_and_one = Cluster::of(3, 1);
        assert_eq!(three_and_one.add(false), Ok(()), "three of five");
        let mut two_and_one = Cluster::of(2, 1);
        assert_eq!(two_and_one.add(false), Err(MembershipRefusal::NotEnoughStarted));
        two_and_one.started.insert(MemberId(3));
        assert_eq!(two_and_one.add(false), Ok(()));
        two_and_one.connected.remove(&MemberId(2));
        assert_eq!(two_and_one.add(false), Err(MembershipRefusal::Unhealthy));
    }

    /// A cluster that has only just come together may fall apart again (etcd's `HealthInterval`).
    #[test]
    fn members_count_for_a_change_only_after_a_while() {
        use MembershipRefusal::Unhealthy;
        let remove = MembershipChange::Remove { id: MemberId(2) };
        let mut cluster = Cluster::of(3, 0);
        cluster.connected.retain(|id| id.0 == 1);
        let removed =
            |cluster: &Cluster| cluster.judge(|situation| situation.translate(&remove)).map(drop);
        assert_eq!(cluster.add(false), Err(Unhealthy));
        assert_eq!(cluster.add(true), Err(Unhealthy));
        assert_eq!(removed(&cluster), Err(Unhealthy));
        cluster.active.remove(&MemberId(2));
        assert_eq!(removed(&cluster), Ok(()), "who is down is no part of the quorum");
        cluster.connected.insert(MemberId(3));
        assert_eq!(cluster.add(false), Ok(()));
        cluster.strict = false;
        cluster.connected.clear();
        assert_eq!(cluster.add(false), Ok(()));
    }

    /// Its quorum waits for a new voter where another is down, so it must not have far to go.
    #[test]
    fn a_new_voter_is_promoted_when_it_lacks_little_however_long_the_log() {
        for (last, matched, promoted) in [
            (1, 0, false),
            (10, 8, false),
            (10, 9, true),
            (900, 0, false),
            (10_000, 8_999, false),
            (10_000, 9_000, true),
            (20_000, 18_999, false),
            (20_000, 19_000, true),
            (100_000_000, 90_000_000, false),
            (100_000_000, 99_998_999, false),
            (100_000_000, 99_999_000, true),
        ] {
            let newcomer = MemberId(4);
            let mut cluster = Cluster::of(3, 1);
            cluster.last = last;
            cluster.matched.insert(newcomer, LogIndex(matched));
            let next =
                |cluster: &Cluster| cluster.judge(|situation| situation.next_automatic_promotion());
            assert!(next(&cluster).is_none(), "{matched} of {last}: it does not answer");
            cluster.active.insert(newcomer);
            assert_eq!(next(&cluster).is_some(), promoted, "{matched} of {last}");
        }
    }

    /// Who asks for a promotion knows what it costs, and etcd's rule is what tools count on.
    #[test]
    fn a_learner_is_promoted_on_request_with_nine_tenths_of_the_log() {
        for (matched, ready) in [(0, false), (89_999_999, false), (90_000_000, true)] {
            let mut cluster = Cluster::of(3, 1);
            let (nodes, learner) = (cluster.membership.nodes(), 4);
            let mut nodes: BTreeMap<u64, Node> = nodes.map(|(id, n)| (*id, n.clone())).collect();
            nodes.get_mut(&learner).unwrap().voter_intent = false;
            cluster.membership = Membership::new(vec![(1..=3).collect()], nodes).unwrap();
            cluster.last = 100_000_000;
            cluster.matched.insert(MemberId(learner), LogIndex(matched));
            let promote = MembershipChange::Promote { id: MemberId(learner) };
            let judged = cluster.judge(|situation| situation.translate(&promote)).map(drop);
            let expected = if ready { Ok(()) } else { Err(MembershipRefusal::LearnerNotReady) };
            assert_eq!(judged, expected, "{matched}");
        }
    }
}
