//! Between openraft's types, the log's records and the messages of the peer protocol.
//!
//! Everything that comes from a disk or a peer is checked here and answered with an error that says
//! what was wrong; nothing behind this file sees a half-valid value.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use machine::{AppliedEntry, AppliedPayload, LogPosition, MembershipEntry, MembershipNode};
use openraft::entry::RaftEntry;
use prost::Message;
use proto::peerpb;
use types::{LogIndex, MemberId, Term};

use crate::raft_types::{
    Batch, Entry, LogId, Membership, Node, Payload, StoredMembership, Vote, index_of, log_id,
    term_of,
};

/// A message of a peer lacks something or holds a value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message}: {detail}")]
pub(crate) struct Malformed {
    /// The message.
    pub(crate) message: &'static str,
    /// What is wrong with it.
    pub(crate) detail: &'static str,
}

fn malformed(message: &'static str, detail: &'static str) -> Malformed {
    Malformed { message, detail }
}

// The kinds of a log record's payload; part of the format on disk, never renumbered.
const KIND_BLANK: u8 = 0;
const KIND_BATCH: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// What an entry takes in memory and on disk, near enough to bound queues by it.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const ENTRY_OVERHEAD: usize = 64;
    ENTRY_OVERHEAD
        + match &entry.payload {
            Payload::Normal(batch) => batch.0.len(),
            Payload::Blank | Payload::Membership(_) => 0,
        }
}

pub(crate) fn entry_record(entry: &Entry) -> wal::Record {
    let (kind, payload) = match &entry.payload {
        Payload::Blank => (KIND_BLANK, Bytes::new()),
        Payload::Normal(batch) => (KIND_BATCH, batch.0.clone()),
        Payload::Membership(membership) => {
            (KIND_MEMBERSHIP, membership_message(membership).encode_to_vec().into())
        }
    };
    wal::Record::Entry(wal::LogEntry { id: wal_log_id(&entry.log_id()), kind, payload })
}

pub(crate) fn entry_from_wal(record: wal::LogEntry) -> io::Result<Entry> {
    let id = log_id(record.id.term, record.id.index);
    let payload = match record.kind {
        KIND_BLANK => Payload::Blank,
        KIND_BATCH => Payload::Normal(Batch(record.payload)),
        KIND_MEMBERSHIP => {
            let message = peerpb::Membership::decode(record.payload)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let membership = membership_from_message(message)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Payload::Membership(membership)
        }
        kind => {
            let text = format!("log entry {id} has kind {kind}, which this version does not know");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    };
    Ok(Entry::new(id, payload))
}

pub(crate) fn wal_log_id(id: &LogId) -> wal::LogId {
    wal::LogId { term: term_of(id), node: MemberId(0), index: index_of(id) }
}

pub(crate) fn vote_record(vote: &Vote) -> wal::Record {
    let leader = vote.leader_id();
    wal::Record::Vote(wal::Vote {
        term: Term(leader.term),
        node: MemberId(leader.voted_for),
        committed: vote.is_committed(),
    })
}

pub(crate) fn vote_from_wal(vote: wal::Vote) -> Vote {
    new_vote(vote.term.0, vote.node.0, vote.committed)
}

fn new_vote(term: u64, node: u64, committed: bool) -> Vote {
    if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
}

pub(crate) fn committed_record(id: &LogId) -> wal::Record {
    wal::Record::Committed(Some(wal_log_id(id)))
}

pub(crate) fn vote_message(vote: &Vote) -> peerpb::Vote {
    let leader = vote.leader_id();
    peerpb::Vote { term: leader.term, node_id: leader.voted_for, committed: vote.is_committed() }
}

pub(crate) fn vote_from_message(
    vote: Option<peerpb::Vote>,
    message: &'static str,
) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(malformed(message, "no vote"))?;
    Ok(new_vote(vote.term, vote.node_id, vote.committed))
}

pub(crate) fn log_id_message(id: &LogId) -> peerpb::LogId {
    peerpb::LogId { term: term_of(id).0, node_id: 0, index: index_of(id).0 }
}

pub(crate) fn optional_log_id(id: Option<peerpb::LogId>) -> Result<Option<LogId>, Malformed> {
    match id {
        None => Ok(None),
        Some(id) if id.index == 0 => Err(malformed("LogId", "index 0 names no entry")),
        Some(id) => Ok(Some(log_id(Term(id.term), LogIndex(id.index)))),
    }
}

pub(crate) fn entry_message(entry: &Entry) -> peerpb::Entry {
    use peerpb::entry::Payload as Wire;
    let payload = match &entry.payload {
        Payload::Blank => Wire::Blank(peerpb::Blank {}),
        Payload::Normal(batch) => Wire::Normal(batch.0.clone()),
        Payload::Membership(membership) => Wire::Membership(membership_message(membership)),
    };
    peerpb::Entry { log_id: Some(log_id_message(&entry.log_id())), payload: Some(payload) }
}

pub(crate) fn entry_from_message(entry: peerpb::Entry) -> Result<Entry, Malformed> {
    use peerpb::entry::Payload as Wire;
    let id = optional_log_id(entry.log_id)?.ok_or(malformed("Entry", "no log id"))?;
    let payload = match entry.payload {
        Some(Wire::Blank(_)) => Payload::Blank,
        Some(Wire::Normal(batch)) => Payload::Normal(Batch(batch)),
        Some(Wire::Membership(membership)) => {
            Payload::Membership(membership_from_message(membership)?)
        }
        None => return Err(malformed("Entry", "a payload this version does not know")),
    };
    Ok(Entry::new(id, payload))
}

pub(crate) fn membership_message(membership: &Membership) -> peerpb::Membership {
    peerpb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| peerpb::Config { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| peerpb::Node {
                id: *id,
                name: node.name.clone(),
                peer_urls: node.peer_urls.clone(),
                voter_intent: node.voter_intent,
            })
            .collect(),
    }
}

pub(crate) fn membership_from_message(
    message: peerpb::Membership,
) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        message.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Node> = message
        .nodes
        .into_iter()
        .map(|peerpb::Node { id, name, peer_urls, voter_intent }| {
            (id, Node { name, peer_urls, voter_intent })
        })
        .collect();
    Membership::new(configs, nodes)
        .map_err(|_| malformed("Membership", "a configuration names a voter without a node"))
}

/// The membership of a state that no log led to.
pub(crate) fn membership_from_entry(entry: &MembershipEntry) -> Result<Membership, Malformed> {
    let voters = entry
        .voters
        .iter()
        .map(|voters| peerpb::Config { voters: voters.iter().map(|member| member.0).collect() });
    let nodes = entry.nodes.iter().map(|node| peerpb::Node {
        id: node.id.0,
        name: node.name.clone(),
        peer_urls: node.peer_urls.clone(),
        voter_intent: node.voter_intent,
    });
    membership_from_message(peerpb::Membership {
        configs: voters.collect(),
        nodes: nodes.collect(),
    })
}

pub(crate) fn stored_membership_message(stored: &StoredMembership) -> peerpb::StoredMembership {
    peerpb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_message),
        membership: Some(membership_message(stored.membership())),
    }
}

pub(crate) fn stored_membership_from_message(
    message: Option<peerpb::StoredMembership>,
) -> Result<StoredMembership, Malformed> {
    let message = message.ok_or(malformed("StoredMembership", "absent"))?;
    let membership =
        message.membership.ok_or(malformed("StoredMembership", "no membership inside"))?;
    let log_id = optional_log_id(message.log_id)?;
    // openraft's empty membership, of a member that has never heard of a cluster.
    if membership.configs.is_empty() && membership.nodes.is_empty() {
        return Ok(StoredMembership::new(log_id, Membership::default()));
    }
    Ok(StoredMembership::new(log_id, membership_from_message(membership)?))
}

/// The entry as the state machine takes it.
pub(crate) fn applied_entry(entry: &Entry) -> AppliedEntry {
    let id = entry.log_id();
    let payload = match &entry.payload {
        Payload::Blank => AppliedPayload::Blank,
        Payload::Normal(batch) => AppliedPayload::Batch(batch.0.clone()),
        Payload::Membership(membership) => AppliedPayload::Membership(MembershipEntry {
            voters: membership
                .get_joint_config()
                .iter()
                .map(|voters| voters.iter().copied().map(MemberId).collect())
                .collect(),
            nodes: membership
                .nodes()
                .map(|(id, node)| MembershipNode {
                    id: MemberId(*id),
                    name: node.name.clone(),
                    peer_urls: node.peer_urls.clone(),
                    voter_intent: node.voter_intent,
                })
                .collect(),
        }),
    };
    AppliedEntry { position: LogPosition { term: term_of(&id), index: index_of(&id) }, payload }
}
