//! What concurrent clients have asked and been answered, and the check that a linearizable store
//! could have answered so and has lost nothing.
//!
//! The checker uses that every etcd answer names a revision. Successful writes sorted by revision
//! are the only legal order, so nothing has to be searched: the events that a watch from the first
//! revision delivers are replayed, every answer is compared with the state at its revision, and a
//! sweep over time demands that calls which do not overlap have revisions in the same order. That is
//! strict serializability, for histories of any length, in `n log n`.
//!
//! In: calls with the times of their beginning and end, and the events. Out: violations. A call
//! without an answer may or may not have taken effect; which it was is known from the events,
//! because every value is written by one call only. Deliberately absent: leases and compaction,
//! which take keys and history away and have tests of their own.

mod check;
#[cfg(test)]
mod tests;
mod timeline;

pub use check::{Checked, Violation, check};
pub use timeline::Timeline;

/// A key, by number.
pub type Key = u32;

/// A call of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The connection it was made on. Calls of one client on one connection do not overlap.
    pub connection: u64,
    /// Who made it.
    pub client: u32,
    /// When it began, in nanoseconds of a clock that all clients share.
    pub called: u64,
    /// What was asked.
    pub request: Request,
    /// When the answer came and what it was; none if it never came or was an error.
    pub answered: Option<(u64, Answer)>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A put of a value that no other call writes.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: u64,
    },
    /// A delete of one key.
    Delete {
        /// The key.
        key: Key,
    },
    /// A transaction: if the key is at a revision, put these, else get it.
    Swap {
        /// The key that is compared, and read if the comparison fails.
        key: Key,
        /// The modification revision that it must have; 0 is a key that does not exist.
        expected: i64,
        /// What is put, at one revision; no other call writes these values.
        puts: Vec<(Key, u64)>,
    },
    /// A read of one key, or of all.
    Read {
        /// None reads all keys.
        key: Option<Key>,
        /// A stale but true past state is a right answer.
        serializable: bool,
    },
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The revision in the header.
    pub revision: i64,
    /// The rest.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The put took place, or the comparison held and the puts took place.
    Written,
    /// The delete took place; says whether there was something to delete.
    Deleted(bool),
    /// What was read, in the order of keys; also when a comparison did not hold.
    Found(Vec<KeyValue>),
}

/// A key as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: u64,
    /// When it was put for the first time since it was last deleted.
    pub create_revision: i64,
    /// When it was last put.
    pub mod_revision: i64,
    /// How often it was put since then.
    pub version: i64,
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub revision: i64,
    /// The key.
    pub key: Key,
    /// What was put; none is a delete.
    pub put: Option<KeyValue>,
}
