//! What applying an entry comes to.

use mvcc::RevisionEvents;
use proto::etcdserverpb as pb;
use revlog::RevStoreError;
use tables::{AuthRefusal, LogPosition, MembershipOutcome};
use types::{LeaseId, LogIndex, Revision, Term};

use crate::auth::{AuthAnswer, AuthChange};
use crate::command::{BatchError, CommandKind, MalformedBody, Ticket};

/// Everything that came of one entry.
#[derive(Debug)]
pub struct Applied {
    /// The entry.
    pub position: LogPosition,
    /// The outcomes of its requests, in order; only those that [`crate::Answers`] asks for.
    pub outcomes: Vec<(Ticket, Outcome)>,
    /// The kind of each command, and whether it was done rather than refused; for metrics.
    pub commands: Vec<(CommandKind, bool)>,
    /// What they did to keys, also for metrics.
    pub operations: Operations,
    /// What watchers will hear of, by revision.
    pub events: Vec<RevisionEvents>,
    /// What the leader's deadlines must follow, in order.
    pub lease_changes: Vec<LeaseChange>,
    /// What is to be done outside of apply.
    pub follow_ups: Vec<FollowUp>,
    /// What the edge's tokens must follow, in order.
    pub auth_changes: Vec<AuthChange>,
    /// What a membership entry changed.
    pub membership: Option<MembershipOutcome>,
}

/// How often keys were put, deleted and read, counted as etcd does for its metrics: a deletion of many
/// keys, or of none, is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Puts.
    pub puts: u64,
    /// Bytes of their keys and values.
    pub put_bytes: u64,
    /// Deletions.
    pub deletes: u64,
    /// Reads of keys, those that comparisons and puts make included.
    pub ranges: u64,
    /// What had more than one of them.
    pub transactions: u64,
}

impl Operations {
    /// Adds what one transaction of the store did.
    pub fn add(&mut self, one: Operations) {
        self.puts += one.puts;
        self.put_bytes += one.put_bytes;
        self.deletes += one.deletes;
        self.ranges += one.ranges;
        self.transactions += u64::from(one.puts + one.deletes + one.ranges > 1);
    }
}

/// A change of the leases, for `lease::Expiry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease was granted this TTL, in seconds.
    Granted { id: LeaseId, ttl: i64 },
    /// A lease was revoked.
    Revoked { id: LeaseId },
    /// A lease's remaining TTL was recorded, in seconds; 0 takes an earlier record back.
    Checkpointed { id: LeaseId, remaining_ttl: i64 },
}

/// Work that apply leaves to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    /// The watermark moved: run [`crate::Compactor::step`] until it is done, then write an image so
    /// that the space can be freed.
    Compact { revision: Revision },
    /// The cluster's version went down: write an image at once, so that the older program need not
    /// read what the newer one logged (etcd: `ForceSnapshot`).
    WriteImage,
    /// An alarm went on or off.
    AlarmsChanged,
}

/// The outcome of one request. Headers carry the revision only; the edge, which knows them, fills in
/// cluster, member and term.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compaction(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// The leases that were revoked; those that no longer existed are left out.
    LeaseExpire {
        revoked: Vec<LeaseId>,
    },
    LeaseCheckpoint(pb::LeaseCheckpointResponse),
    Alarm(pb::AlarmResponse),
    MemberAttributes,
    ClusterVersionSet,
    DowngradeInfoSet,
    Auth(AuthAnswer),
    /// The request was not done, for a reason that is the same on every member.
    Refused(Refusal),
}

/// Why a request was not done. The edge has one table from these to codes and etcd's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    #[error("key is not provided")]
    EmptyKey,
    #[error("value is provided although the old one is to be kept")]
    ValueProvided,
    #[error("lease is provided although the old one is to be kept")]
    LeaseProvided,
    #[error("too many operations in a transaction")]
    TooManyOperations,
    #[error("duplicate key in a transaction")]
    DuplicateKey,
    #[error("sort order or target is not known")]
    InvalidSortOption,
    #[error("key not found")]
    KeyNotFound,
    #[error("lease not found")]
    LeaseNotFound,
    #[error("lease exists already")]
    LeaseExists,
    #[error("lease TTL is too large")]
    LeaseTtlTooLarge,
    #[error("required revision has been compacted")]
    Compacted,
    #[error("required revision is in the future")]
    FutureRevision,
    #[error("a member's store is at its quota")]
    NoSpace,
    #[error("a member's data are corrupt")]
    Corrupt,
    /// Leases were declared over by the leader of an earlier term than the entry's.
    #[error("proposed by the leader of term {proposed}, applied in term {applied}")]
    StaleTerm { proposed: Term, applied: Term },
    #[error("member not found")]
    MemberNotFound,
    #[error("member was removed")]
    MemberRemoved,
    #[error("not a version of the form major.minor.patch")]
    InvalidVersion,
    /// The caller may not do it, or users and roles do not allow it.
    #[error(transparent)]
    Auth(#[from] AuthRefusal),
}

/// Why this member must stop: to go on would make its state differ from the others', or what is on
/// its disk is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The record store failed.
    #[error("apply entry {index}: {source}")]
    Store { index: LogIndex, source: RevStoreError },
    /// A read inside apply failed although it had been checked.
    #[error("apply entry {index}: {source}")]
    Read { index: LogIndex, source: mvcc::RangeError },
    /// A stored key-value does not decode.
    #[error("apply entry {index}: {source}")]
    KeyValue { index: LogIndex, source: prost::DecodeError },
    /// The entry's payload is not a batch that this program reads.
    #[error("apply entry {index}: {source}")]
    Batch { index: LogIndex, source: BatchError },
    /// A request in the entry does not decode.
    #[error("apply entry {index}: {source}")]
    Body { index: LogIndex, source: MalformedBody },
    /// The entry is not the next one.
    #[error("entry {found} came after entry {applied}; the log has a gap or was applied twice")]
    OutOfOrder { applied: LogIndex, found: LogIndex },
    /// An earlier entry could not be applied; the state is half done.
    #[error("an earlier entry could not be applied; restart the member")]
    Stopped,
}

/// Why one command ended without a response.
#[derive(Debug)]
pub(crate) enum Stop {
    Refused(Refusal),
    Store(RevStoreError),
    Read(mvcc::RangeError),
    KeyValue(prost::DecodeError),
}

impl Stop {
    /// Splits what goes to the client from what ends the process.
    pub(crate) fn sort(self, index: LogIndex) -> Result<Refusal, Fatal> {
        match self {
            Stop::Refused(refusal) => Ok(refusal),
            Stop::Store(source) => Err(Fatal::Store { index, source }),
            Stop::Read(source) => Err(Fatal::Read { index, source }),
            Stop::KeyValue(source) => Err(Fatal::KeyValue { index, source }),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl From<AuthRefusal> for Stop {
    fn from(refusal: AuthRefusal) -> Self {
        Stop::Refused(refusal.into())
    }
}

impl From<RevStoreError> for Stop {
    fn from(source: RevStoreError) -> Self {
        Stop::Store(source)
    }
}

impl From<prost::DecodeError> for Stop {
    fn from(source: prost::DecodeError) -> Self {
        Stop::KeyValue(source)
    }
}

pub(crate) fn header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: revision.0, ..Default::default() })
}
