//! A committed log entry, in our own terms.

use bytes::Bytes;
use tables::{LogPosition, MembershipEntry};

/// An entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedEntry {
    /// Where in the log it is; positions come without gaps.
    pub position: LogPosition,
    /// What it says.
    pub payload: AppliedPayload,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedPayload {
    /// Nothing; a new leader proposes such an entry to commit what came before.
    Blank,
    /// Client requests, as [`crate::Batch`] encodes them.
    Batch(Bytes),
    /// Who is in the cluster from now on.
    Membership(MembershipEntry),
}
