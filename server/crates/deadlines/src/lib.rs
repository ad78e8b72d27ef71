//! The leader's clock over leases, in the server as in the simulator.
//!
//! What a lease is and which keys hang on it is replicated and lives in the state machine; when it
//! ends is known only to the leader, on its monotonic clock ([`lease::Expiry`]). This room feeds that
//! clock with what apply changed, starts it anew when leadership comes here, renews leases for clients
//! and for other members, and proposes the revocation of what is due: one entry for all leases of a
//! turn, carrying the term whose deadlines have passed, so that a leader that was deposed meanwhile
//! revokes nothing, even if it was elected again. Checkpoints of what is left enter the log in the term of
//! their deadlines, or never (`replica::Handle::propose_in`): the form of their entries, which has no term,
//! is the same for all releases.
//!
//! # Invariants
//! - Nobody looks at a deadline before the clock has followed the leadership: the loop that revokes may
//!   be waiting for an entry while leaders change.
//! - A renewal is acknowledged only by a member that has made sure, after it was asked and after
//!   everything that it waited for, that it leads.
//! - That a lease is gone is said only when its revocation is applied. One that is merely due may live
//!   on: its revocation may never be committed, and the next leader gives it its time again.

mod clock;
mod member;
mod peer;

pub use clock::{ClockOptions, Counters, LeaseClock};
pub use member::Member;
pub use peer::LeasePeer;
