//! Apply: what every member does with a committed log entry.
//!
//! # What it is
//! [`Machine`] owns the whole replicated state: keys (`mvcc`), leases (`lease`), members, alarms and
//! versions (`tables`). [`Machine::apply`] takes entries in order and answers, per entry, the
//! outcome of each request in it, the changes watchers will hear of, and what must be done next
//! outside of apply. Readers get [`Views`], which see whole entries or nothing of them.
//!
//! # In and out
//! - In: [`AppliedEntry`]. Its payload is a [`Batch`] of client requests in the form their clients
//!   sent them, each with a [`Ticket`] that names the member whose client waits, a change of the
//!   membership, or nothing.
//! - Out: [`Applied`] with [`Outcome`]s. A request that cannot be done is a [`Refusal`]: the same on
//!   every member, it goes to the client. What a member cannot survive is [`Fatal`]; the process
//!   stops.
//! - To disk and to other members: [`ImageJob`] writes the state except the values, [`SnapshotJob`]
//!   the state with them; both pin a moment and run beside apply. [`Machine::restore`] and
//!   [`Machine::install`] bring them back; [`Machine::import`] makes a state of a backup's parts.
//!
//! # Invariants
//! - Apply is a pure function of (state, entry). Lease ids, member ids and times are chosen before
//!   proposing; nothing depends on background work (etcd#18667), on map order or on this member's
//!   disk usage. So quota is decided by the proposer and by the replicated NOSPACE alarm only, where
//!   etcd's applier looks at its local file size again (`apply/quota.go`) and members may disagree.
//! - The applied position is part of the state it belongs to and never stored apart from it
//!   (etcd#13766).
//! - An entry is applied whole before any reader or waiter sees a part of it.
//!
//! # Deliberately absent
//! Time, chance, files, tokio and gRPC. Passwords and their hashing: every proposal carries its
//! [`Caller`], whom the edge has recognised; what the caller may do is judged here ([`Permit`]).

mod apply;
mod auth;
pub mod check;
mod cluster;
mod command;
mod digest;
mod entry;
mod frames;
mod image;
mod import;
mod keys;
mod leases;
mod machine;
mod outcome;
mod permit;
mod snapshot;
mod tokens;
mod txn;
mod views;

#[cfg(test)]
mod tests;

pub use auth::{AuthAnswer, AuthBody, AuthChange, wire_permission};
pub use command::{
    BATCH_FORMAT, Batch, BatchError, Caller, CommandKind, LeaseExpire, Proposal, Ticket,
};
pub use digest::Digest;
pub use entry::{AppliedEntry, AppliedPayload};
pub use frames::FrameError;
pub use image::{ImageJob, RestoreError, WriteError};
pub use import::{ImportError, ImportedLease};
pub use machine::{Answers, Compactor, Machine, SweepStep};
pub use outcome::{Applied, Fatal, FollowUp, LeaseChange, Operations, Outcome, Refusal};
pub use permit::{Permit, still_valid};
pub use snapshot::{Held, SnapshotJob};
pub use tables::{
    Access, Alarm, AlarmKind, Auth, AuthRefusal, ClusterVersion, Downgrade, LogPosition,
    MemberRecord, MembershipEntry, MembershipNode, MembershipOutcome, Permission, PermissionKind,
    ROOT, Tables, User,
};
pub use tokens::SimpleTokens;
pub use txn::{ReadOnlyError, range_query, read_only};
pub use views::{Views, WholeState};
