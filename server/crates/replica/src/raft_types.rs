//! How this room instantiates openraft.
//!
//! Term-only committed leader ids (`leader_id_std`) make a log id what Raft and etcd call it: a term
//! and an index, with one leader per term. Node ids are etcd member ids and are never reused, which
//! openraft requires.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};
use types::{LogIndex, Term};

use crate::runtime::Rt;

/// What the leader knows about a member besides its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The name that the initial cluster gives a founder; empty for a member that was added.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Whether it is meant to vote. A member added as a voter starts as a Raft learner and is
    /// promoted once it has caught up, so that the quorum never counts a member that was never up.
    pub voter_intent: bool,
}

/// The bytes of one Raft entry: a batch of proposals as `machine::command` encodes it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch(pub(crate) Bytes);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Tells a closure how a write ended inside openraft.
pub(crate) struct OnComplete<T>(pub(crate) Box<dyn FnOnce(T) + Send>);

impl<T: Send + 'static> Responder<TypeConfig, T> for OnComplete<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// The types this room runs openraft with.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = ();
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = Payload;
    type Entry = openraft::Entry<CommittedLeaderId, Payload>;
    type AsyncRuntime = Rt;
    type Responder<T>
        = OnComplete<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type CommittedLeaderId = <leader_id_std::LeaderId<u64, u64> as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::impls::Vote<leader_id_std::LeaderId<u64, u64>>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type Payload = openraft::EntryPayload<Batch, u64, Node>;
pub(crate) type Membership = openraft::Membership<u64, Node>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Node>;
pub(crate) type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, u64, Node>;

/// openraft numbers entries from 0, etcd and the log on disk from 1 with 0 for "none": the only place
/// where the two meet is the three functions below.
/// The identity that openraft gives the leader of a term.
pub(crate) fn committed_leader(term: Term) -> CommittedLeaderId {
    CommittedLeaderId::new(term.0)
}

pub(crate) fn log_id(term: Term, index: LogIndex) -> LogId {
    assert!(index.0 > 0, "index 0 names no entry");
    LogId::new(CommittedLeaderId::new(term.0), index.0 - 1)
}

pub(crate) fn index_of(id: &LogId) -> LogIndex {
    LogIndex(id.index() + 1)
}

pub(crate) fn optional_index(id: Option<&LogId>) -> LogIndex {
    id.map_or(LogIndex(0), index_of)
}

pub(crate) fn term_of(id: &LogId) -> Term {
    Term(id.committed_leader_id().term)
}
