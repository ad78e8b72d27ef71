//! Leases: what all members agree on, and what only the leader knows.
//!
//! The room is split along that line, because mixing the two is what etcd's lease bugs have in
//! common (#15247, #17132, #12291):
//!
//! - [`Lessor`] holds the replicated facts: which leases exist, the TTL each was granted, its
//!   checkpointed remaining TTL, and the keys attached to it. It changes only when a log entry is
//!   applied, knows no time, and is part of every image and snapshot.
//! - [`Expiry`] holds the deadlines. It lives on the leader only, on the leader's monotonic clock,
//!   which the caller passes in as a [`std::time::Duration`] since any fixed instant. It decides
//!   nothing: it names the leases that are due, and the caller proposes their revocation like any
//!   client would.
//!
//! Invariants:
//! - [`Lessor::revoke`] returns the keys in order and does not delete them; the state machine does,
//!   in one revision, so that every member writes the same records.
//! - A lease is never named due before its whole TTL has passed since the last renewal that
//!   [`Expiry::renew`] granted, and once it is named due no renewal succeeds until it is revoked.
//! - The lease of a key is kept beside the key in the key index. There is no second map from key to
//!   lease here that could disagree with it.
//!
//! Deliberately absent: clocks, random lease ids (the proposer chooses them), the minimum TTL (the
//! proposer raises a shorter one before it proposes, so that members with different election
//! timeouts still agree), and timers.

mod expiry;
mod image;
mod lessor;

pub use expiry::{Expiry, ExpiryOptions, Renewal};
pub use image::ImageError;
pub use lessor::{GrantError, Lease, LeaseNotFound, Lessor, TTL_SECONDS_MAX};
