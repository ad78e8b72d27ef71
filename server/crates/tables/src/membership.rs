//! Who is in the cluster. One source of truth: the membership entries of the Raft log (trap T29).

use std::collections::{BTreeMap, BTreeSet};

use types::MemberId;

use crate::LogPosition;

/// What a membership entry says about one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipNode {
    /// The member.
    pub id: MemberId,
    /// The name that the initial cluster gave a founder; empty for a member that was added.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Whether it is meant to vote. A new voter joins as a Raft learner and is promoted when it has
    /// caught up, but lists as a voter from the start, as in etcd.
    pub voter_intent: bool,
}

/// A membership entry of the log, in our own terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipEntry {
    /// Every node, voters and learners.
    pub nodes: Vec<MembershipNode>,
    /// The voters: one set, or two while a joint change is under way (Raft §6).
    pub voters: Vec<BTreeSet<MemberId>>,
}

/// A member as the API lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRecord {
    /// The member.
    pub id: MemberId,
    /// Its name: what it published when it started, before that what the initial cluster gave a founder.
    /// Empty for a member that was added and has not started, which is how etcd knows it as unstarted.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started once.
    pub client_urls: Vec<String>,
    /// Whether Raft treats it as a learner: it is in no voter set.
    pub is_learner: bool,
    /// Whether it is meant to vote.
    pub voter_intent: bool,
}

/// Why a member's attributes were not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRefusal {
    /// It was removed; its last words come too late.
    #[error("member {0} was removed")]
    Removed(MemberId),
    /// Nobody has ever heard of it.
    #[error("member {0} is not in the cluster")]
    Unknown(MemberId),
}

/// What a membership entry changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipOutcome {
    /// Members that are new.
    pub added: Vec<MemberId>,
    /// Members that are gone; their ids are now tombstones.
    pub removed: Vec<MemberId>,
    /// Members that became voters in Raft's sense.
    pub promoted: Vec<MemberId>,
    /// Members whose id is a tombstone. The proposer refuses such an entry, so there should be none;
    /// but what the log says is what Raft counts, so the entry stands and peers go on refusing the
    /// id. Somebody must look at it.
    pub readmitted: Vec<MemberId>,
}

/// The members and the ids that may never come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub(crate) position: Option<LogPosition>,
    pub(crate) voters: Vec<BTreeSet<MemberId>>,
    pub(crate) members: BTreeMap<MemberId, MemberRecord>,
    pub(crate) removed: BTreeSet<MemberId>,
}

impl Membership {
    /// Takes over a membership entry: new members appear, missing ones become tombstones, all in
    /// this one step. Members that stay keep the name and the client URLs that they published.
    pub fn apply(&mut self, position: LogPosition, entry: &MembershipEntry) -> MembershipOutcome {
        let mut outcome = MembershipOutcome::default();
        let mut members = BTreeMap::new();
        for node in &entry.nodes {
            let before = self.members.get(&node.id);
            let is_learner = !entry.voters.iter().any(|voters| voters.contains(&node.id));
            match before {
                None => outcome.added.push(node.id),
                Some(before) if before.is_learner && !is_learner => outcome.promoted.push(node.id),
                Some(_) => {}
            }
            if self.removed.contains(&node.id) {
                outcome.readmitted.push(node.id);
            }
            let record = MemberRecord {
                id: node.id,
                peer_urls: node.peer_urls.clone(),
                is_learner,
                voter_intent: node.voter_intent,
                ..before.cloned().unwrap_or_else(|| MemberRecord {
                    name: node.name.clone(),
                    ..MemberRecord::default()
                })
            };
            members.insert(node.id, record);
        }
        outcome.removed =
            self.members.keys().filter(|id| !members.contains_key(id)).copied().collect();
        self.removed.extend(&outcome.removed);
        self.members = members;
        self.voters = entry.voters.clone();
        self.position = Some(position);
        outcome
    }

    /// A member published its name and client URLs.
    pub fn set_attributes(
        &mut self,
        id: MemberId,
        name: String,
        client_urls: Vec<String>,
    ) -> Result<(), MembershipRefusal> {
        match self.members.get_mut(&id) {
            Some(member) => {
                member.name = name;
                member.client_urls = client_urls;
                Ok(())
            }
            None if self.removed.contains(&id) => Err(MembershipRefusal::Removed(id)),
            None => Err(MembershipRefusal::Unknown(id)),
        }
    }

    /// The entry this membership comes from.
    pub fn position(&self) -> Option<LogPosition> {
        self.position
    }

    /// The membership in the terms of the log, which is what Raft starts from.
    pub fn as_entry(&self) -> MembershipEntry {
        let nodes = self.members.values().map(|member| MembershipNode {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            voter_intent: member.voter_intent,
        });
        MembershipEntry { nodes: nodes.collect(), voters: self.voters.clone() }
    }

    /// All members, in order of id.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &MemberRecord> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<&MemberRecord> {
        self.members.get(&id)
    }

    /// Whether the id belonged to a member that was removed, and so must never be used again.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The ids of removed members.
    pub fn removed(&self) -> impl ExactSizeIterator<Item = MemberId> {
        self.removed.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{LogIndex, Term};

    fn position(index: u64) -> LogPosition {
        LogPosition { term: Term(1), index: LogIndex(index) }
    }

    fn node(id: u64) -> MembershipNode {
        MembershipNode {
            id: MemberId(id),
            peer_urls: vec![format!("http://{id}")],
            voter_intent: true,
            ..MembershipNode::default()
        }
    }

    fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().map(|id| MemberId(*id)).collect()
    }

    fn change(nodes: &[u64], voters: &[&[u64]]) -> MembershipEntry {
        MembershipEntry {
            nodes: nodes.iter().map(|id| node(*id)).collect(),
            voters: voters.iter().map(|voters| ids(voters)).collect(),
        }
    }

    #[test]
    fn t29_a_removed_id_is_a_tombstone_in_the_same_step() {
        let mut membership = Membership::default();
        membership.apply(position(1), &change(&[1, 2, 3], &[&[1, 2, 3]]));
        let outcome = membership.apply(position(2), &change(&[1, 2], &[&[1, 2]]));
        assert_eq!(outcome.removed, [MemberId(3)]);
        assert!(membership.is_removed(MemberId(3)) && membership.member(MemberId(3)).is_none());
        let outcome = membership.apply(position(3), &change(&[1, 2, 3], &[&[1, 2]]));
        assert_eq!(outcome.readmitted, [MemberId(3)]);
        assert!(membership.is_removed(MemberId(3)), "a tombstone never goes away");
        let gone = membership.set_attributes(MemberId(4), String::new(), vec![]);
        assert_eq!(gone, Err(MembershipRefusal::Unknown(MemberId(4))));
    }

    #[test]
    fn t30_an_update_of_urls_neither_promotes_nor_forgets_the_name() {
        let mut membership = Membership::default();
        membership.apply(position(1), &change(&[1, 2], &[&[1]]));
        membership
            .set_attributes(MemberId(2), "infra2".to_owned(), vec!["http://c2".to_owned()])
            .unwrap();
        let mut update = change(&[1, 2], &[&[1]]);
        update.nodes[1].peer_urls = vec!["http://moved".to_owned()];
        update.nodes[1].voter_intent = false;
        let outcome = membership.apply(position(2), &update);
        assert_eq!(outcome, MembershipOutcome::default());
        let member = membership.member(MemberId(2)).unwrap();
        assert!(member.is_learner && !member.voter_intent);
        assert_eq!((member.name.as_str(), member.client_urls.len()), ("infra2", 1));
        assert_eq!(member.peer_urls, ["http://moved"]);
        update.nodes[1].name = "infra2".to_owned();
        assert_eq!(membership.as_entry(), update);
    }

    #[test]
    fn a_founder_has_the_name_of_the_initial_cluster_until_it_publishes_another() {
        let mut membership = Membership::default();
        let mut founding = change(&[1, 2], &[&[1, 2]]);
        founding.nodes[1].name = "infra2".to_owned();
        membership.apply(position(1), &founding);
        let name = |membership: &Membership| membership.member(MemberId(2)).unwrap().name.clone();
        assert_eq!(name(&membership), "infra2");
        membership.set_attributes(MemberId(2), "renamed".to_owned(), vec![]).unwrap();
        membership.apply(position(2), &founding);
        assert_eq!(name(&membership), "renamed");
    }

    #[test]
    fn a_node_in_either_half_of_a_joint_change_is_a_voter() {
        let mut membership = Membership::default();
        membership.apply(position(1), &change(&[1, 2], &[&[1]]));
        let outcome = membership.apply(position(2), &change(&[1, 2], &[&[1], &[1, 2]]));
        assert_eq!(outcome.promoted, [MemberId(2)]);
        assert!(!membership.member(MemberId(2)).unwrap().is_learner);
        assert_eq!(membership.position(), Some(position(2)));
    }

    #[test]
    fn the_last_words_of_a_removed_member_are_ignored() {
        let mut membership = Membership::default();
        membership.apply(position(1), &change(&[1, 2], &[&[1, 2]]));
        membership.apply(position(2), &change(&[1], &[&[1]]));
        let late = membership.set_attributes(MemberId(2), "b".to_owned(), vec![]);
        assert_eq!(late, Err(MembershipRefusal::Removed(MemberId(2))));
    }
}
