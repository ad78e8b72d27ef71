//! The small replicated state beside the keys: members, alarms, versions, users and roles, and how far
//! the log has been applied.
//!
//! Everything here changes only when a log entry is applied, and all of it fits in memory many times
//! over, so it is plain ordered maps that an image copies whole. In: what the state machine decided.
//! Out: lookups for the edge and one deterministic encoding ([`Tables::encode`]).
//!
//! Invariants:
//! - The members are those of the membership entry at [`Membership::position`]; names and client URLs
//!   are attributes that a member publishes about itself later (etcd: `ClusterMemberAttrSet`).
//! - The id of a removed member stays in [`Membership::removed`] for ever (traps T29, T30, T32 and
//!   openraft's own lesson that node ids are never reused).
//! - The same state has exactly one encoding; decoding refuses everything else.
//!
//! Deliberately absent: leases. They are the room `lease`, because a lease has behaviour and these
//! tables have none.

mod alarm;
mod auth;
mod codec;
mod image;
mod membership;
mod version;

pub use alarm::{Alarm, AlarmKind, Alarms};
pub use auth::{Access, Auth, AuthRefusal, Permission, PermissionKind, ROOT, User};
pub use codec::DecodeError;
pub use membership::{
    MemberRecord, Membership, MembershipEntry, MembershipNode, MembershipOutcome, MembershipRefusal,
};
pub use version::{ClusterVersion, Downgrade, VersionError};

use std::sync::Arc;

use types::{ClusterId, LogIndex, Term};

/// The identity of a log entry: the term of the leader that appended it, and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The term of the leader that appended the entry.
    pub term: Term,
    /// The entry's place in the log.
    pub index: LogIndex,
}

/// All small tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The cluster this state belongs to; a member never opens the state of another one.
    pub cluster_id: ClusterId,
    /// The last entry applied; `None` before the first. It is written with the effects it names, in
    /// the same image, never apart from them (trap T01).
    pub applied: Option<LogPosition>,
    /// Who is in the cluster.
    pub membership: Membership,
    /// Alarms that are on.
    pub alarms: Alarms,
    /// The version that the whole cluster has agreed to speak; `None` until the leader set it.
    pub cluster_version: Option<ClusterVersion>,
    /// A downgrade that is under way.
    pub downgrade: Downgrade,
    /// Users, roles and permissions. Shared with the requests that are being checked against them.
    pub auth: Arc<Auth>,
}

impl Tables {
    /// The tables of a cluster in which nothing has happened yet.
    pub fn new(cluster_id: ClusterId) -> Self {
        Self { cluster_id, ..Self::default() }
    }

    /// The index of the last entry applied, 0 before the first.
    pub fn applied_index(&self) -> LogIndex {
        self.applied.map(|position| position.index).unwrap_or_default()
    }
}
