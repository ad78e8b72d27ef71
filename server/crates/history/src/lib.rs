//! What concurrent clients asked and were told, and the judges of it: could one store that keeps
//! etcd's promises have answered so?
//!
//! The simulator and the test of real processes under faults use the same judges. What happened is
//! known from outside: the revisions that members published or delivered to watches. Whoever knows the
//! log too says by whom each revision was made; else it is found by what operations would have done.
//!
//! # Invariants
//! - The model of keys shares no code with the members, so that a mistake would have to be made twice.
//! - No judge knows a clock. The order of calls and returns is given with them, as numbers that grow.
//! - Every value is put by one operation only.
//!
//! # Deliberately absent
//! Users and roles, and whose lock was whose: they need the log, which only the simulator has.

pub mod leases;
pub mod linearizability;
mod model;
mod operation;
#[cfg(test)]
mod tests;
pub mod watches;

use std::collections::BTreeMap;

use proto::mvccpb;

pub use model::{Model, puts_of};
pub use operation::{Failure, Operation, Request, Response};

/// One change of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub delete: bool,
    /// Of a deletion only the key and the mod revision.
    pub key_value: mvccpb::KeyValue,
}

/// What happened, by revision.
pub type Revisions = BTreeMap<i64, Vec<Change>>;

/// Who made a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Operation(usize),
    /// The leader, because this lease was over.
    Expiry(i64),
}
