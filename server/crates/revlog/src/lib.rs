//! Values by revision: the [`RevStore`] seam and its engines.
//!
//! A store of the history holds one record per change of a key: its place in the history and the
//! encoded `mvccpb.KeyValue` (or, for a deletion, the encoded key alone). It does not know keys,
//! leases or watchers.

mod store;

pub use store::{Record, RevStore, RevStoreError, StoreSize};
