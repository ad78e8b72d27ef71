//! The key-value state machine's history: which key had which value at which revision.
//!
//! # What it is
//! A [`Store`] is an index in memory (key → versions of that key) over a [`revlog::RevStore`] that
//! keeps the encoded values by revision. There is one writer, the applier, and any number of readers.
//!
//! - [`Writer`] holds the index's write lock for one whole Raft entry. Many transactions run inside;
//!   their records reach the store in one call at [`Writer::commit`], and readers see all of the
//!   entry or nothing of it.
//! - [`ReadView`] answers ranges, histories and hashes. A reader pins a revision, not memory: it
//!   takes the read lock for some hundred keys at a time, so that a listing of a million keys never
//!   makes a write wait. Values are fetched outside the lock.
//! - Compaction moves a watermark, at once, inside apply. What a client is told (`Compacted` or an
//!   answer) depends on that watermark alone. Dead versions leave the index later, in
//!   [`Store::compact_step`], and the records they name are freed by [`Store::remove_garbage`] only
//!   when an image that knows of the compaction is durable.
//! - [`Store::write_image`] and [`Store::restore`] carry the index over a restart;
//!   [`Store::rebuild`] makes it from the records alone.
//!
//! # Invariants
//! - Apply is a pure function of the state and the entry: no answer of a writer depends on how far
//!   the background work of this member has come.
//! - Records are immutable. A record that a reader found in the index under a watermark not above
//!   its revision stays in the record store until a compaction passes that revision.
//! - Encoded key-values are canonical proto3, so [`ReadView::hash_kv`] equals the hash of a Go etcd
//!   with the same history.
//!
//! # Deliberately absent
//! No gRPC types, no leases beyond the id beside a version, no watchers, no clock, no I/O but through
//! the `RevStore`. Comparisons, quotas and authorisation are the business of room `machine`.

mod backup;
mod changes;
mod compaction;
mod compaction_hash;
mod event;
mod hash;
mod history;
mod image;
mod index;
mod key_value;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod query;
mod read;
mod rebuild;
mod selection;
mod store;
mod writer;

#[cfg(test)]
mod tests;

pub use compaction::Sweep;
pub use event::{Event, EventKind, RevisionEvents};
pub use hash::HashAnswer;
pub use history::KeyHead;
pub use image::{ImageError, RestoreError};
pub use key_value::{KeyValue, KeyValueError};
pub use query::{RangeAnswer, RangeError, RangeQuery, SortOrder, SortTarget};
pub use read::{Interruption, RangeCursor, ReadView, settle};
pub use selection::Selection;
pub use store::{Store, StoreMeta};
pub use writer::{CompactError, Put, Writer};
