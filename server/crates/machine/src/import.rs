//! Import: a state whose parts come from elsewhere, as from a backup in etcd's own format.
//!
//! The records are in the record store already; everything that follows from them, the key index and
//! which key hangs on which lease, is built from them here. The tables say where in its log the
//! imported state stands.

use std::sync::Arc;

use lease::{GrantError, Lessor};
use mvcc::{Store, StoreMeta};
use revlog::RevStore;
use tables::Tables;
use types::LeaseId;

use crate::machine::Machine;

/// A lease as a backup holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportedLease {
    /// Its id.
    pub id: LeaseId,
    /// The TTL it was granted, in seconds.
    pub granted_ttl: i64,
    /// What the last checkpoint left of it, in seconds; 0 or less if there was none.
    pub remaining_ttl: i64,
}

/// Why parts do not make a state.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A lease that no server grants.
    #[error("lease {id}: {source}")]
    Lease { id: LeaseId, source: GrantError },
    /// The records are not a history, or could not be read.
    #[error(transparent)]
    Records(#[from] mvcc::RestoreError),
}

impl Machine {
    /// The state of these parts.
    ///
    /// `records` holds the whole history above `meta.compact_revision`. Of what that compaction made
    /// dead any part may still be there, as in a backup taken while a compaction was under way: it is
    /// not reachable in the result and is freed with the first image. A key whose lease is not among
    /// `leases` stays and never expires, as in etcd.
    ///
    /// # Errors
    /// The parts contradict themselves. The record store is as it was.
    pub fn import(
        records: Arc<dyn RevStore>,
        meta: StoreMeta,
        leases: impl IntoIterator<Item = ImportedLease>,
        tables: Tables,
    ) -> Result<Machine, ImportError> {
        let mut lessor = Lessor::new();
        for ImportedLease { id, granted_ttl, remaining_ttl } in leases {
            let granted = lessor.grant(id, granted_ttl).map(drop);
            granted.map_err(|source| ImportError::Lease { id, source })?;
            lessor.checkpoint(id, remaining_ttl.max(0));
        }
        let store = Store::rebuild(records, meta)?;
        store.attachments(&mut |id, key| {
            // An unknown lease is no fault, see above.
            let _ = lessor.attach(id, key);
        });
        Ok(Machine::of(store, lessor, tables))
    }

    /// Takes all users and roles away and turns authentication off, for a state that is imported without
    /// them; false if there were none. No entry of a log says so, so all members of the new cluster have
    /// to be made the same way.
    pub fn drop_auth(&mut self) -> bool {
        let mut state = self.state.write();
        let before = std::mem::take(&mut state.tables.auth);
        self.state.show_auth(&state.tables.auth);
        before.is_enabled() || before.users().len() > 0 || before.roles().len() > 0
    }
}
