//! Values by revision: the [`RevStore`] seam and its engines.
//!
//! A store of the history holds one record per change of a key: its place in the history and the
//! encoded `mvccpb.KeyValue` (or, for a deletion, the encoded key alone). It does not know keys,
//! leases or watchers; the key index above it says which record is the newest of a key.
//!
//! # Two engines
//!
//! * [`RevLog`], the default. Revisions are dense and only grow, so the "tree" that a store of them
//!   needs is an array of offsets into append-only segment files. Compaction gives space back by
//!   dropping segments without live records and rewriting those that are mostly dead.
//! * [`SledStore`], chosen by the user. It keeps the same contract with sled 0.34 and pays for a
//!   general tree: several times the bytes written, and space that is reused but not returned.
//!
//! Both are held to one suite, [`conformance`], to the same model-based property test and to the
//! same crash tests.
//!
//! # Who owns durability
//!
//! The Raft log does. A store may lose everything after its last [`RevStore::flush`]; the log is
//! only cut below what a flush (and the image written after it) covers, so replay brings the rest
//! again. What a flush covered is never lost: a store that cannot give it back refuses to open.
//!
//! # Deliberately absent
//!
//! No thread of its own (callers decide when to flush and remove), no compression (values are
//! opaque and mostly small), no knowledge of which record is live beyond what
//! [`RevStore::remove`] said.

mod store;

mod log;

mod sled_engine;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

pub use log::{RevLog, RevLogOptions};
pub use sled_engine::{FileSync, OsFileSync, SledOptions, SledStore};
pub use store::{Record, RevStore, RevStoreError, StoreSize};
