//! `hashkv`: the hash of the history in a file, as a running server answers it.
//!
//! The rules are those of the server's HashKV, so they are not written down a second time: the file
//! is put behind the seam that the key index reads its records through ([`FileRecords`]), and the index
//! is asked. Nothing is copied and the file is not changed. (Go's tool opens it for writing and
//! finishes a compaction that was begun; here that compaction only counts as done.)

use std::ops::ControlFlow;
use std::sync::Arc;

use bbolt::{Bbolt, ReadError};
use mvcc::{RangeError, RestoreError, Store, StoreMeta};
use revlog::{Record, RevStore, RevStoreError, StoreSize};
use serde::Serialize;
use types::{LogIndex, RecordRevision, Revision};

use crate::schema::{self, Backend, SchemaError};
use crate::snapshot_file::Content;

/// etcd's compact revision of a store that was never compacted.
const NEVER_COMPACTED: Revision = Revision(-1);

/// What is printed. The names and their order are those of Go's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HashKv {
    pub hash: u32,
    /// The revision that was hashed.
    pub hash_revision: i64,
    /// The compaction that the hash is relative to.
    pub compact_revision: i64,
}

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashKvError {
    #[error("the file is damaged: {0}")]
    Damaged(ReadError),
    #[error("the file has no bucket \"meta\": it is no backend of etcd")]
    NoMeta,
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("the history in the file makes no sense: {0}")]
    History(#[from] RestoreError),
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// Hashes the history up to a revision; 0 is the newest.
pub fn hash_kv(file: Bbolt<Content>, revision: i64) -> Result<HashKv, HashKvError> {
    file.check().map_err(HashKvError::Damaged)?;
    let meta = {
        let backend = Backend::new(&file);
        if file.bucket(b"meta").map_err(HashKvError::Damaged)?.is_none() {
            return Err(HashKvError::NoMeta);
        }
        backend.meta()?
    };
    let records = FileRecords { file };
    let newest = records.newest()?;
    let store = StoreMeta {
        revision: meta.store_revision(newest),
        compact_revision: meta.compact_revision().unwrap_or(NEVER_COMPACTED),
    };
    let store = Store::rebuild(Arc::new(records), store)?;
    let answer = store.read().hash_kv(revision)?;
    Ok(HashKv {
        hash: answer.hash,
        hash_revision: answer.revision.0,
        compact_revision: answer.compact_revision.0,
    })
}

/// The `key` bucket of a file as a store of records that cannot be written.
struct FileRecords {
    file: Bbolt<Content>,
}

impl FileRecords {
    fn newest(&self) -> Result<Option<RecordRevision>, SchemaError> {
        let mut newest = None;
        for row in Backend::new(&self.file).keys()? {
            newest = Some(row?.revision);
        }
        Ok(newest)
    }

    /// Visits the rows from one on.
    fn visit(
        &self,
        from: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        let failed = |detail: String| RevStoreError::Engine { engine: "bbolt", detail };
        let bucket = self.file.bucket(b"key").map_err(|error| failed(error.to_string()))?;
        let Some(bucket) = bucket else { return Ok(()) };
        for entry in bucket.entries_from(&schema::revision_key(from)) {
            let (key, key_value) = entry.map_err(|error| failed(error.to_string()))?;
            let (revision, tombstone) =
                schema::parse_revision_key(&key).map_err(|fault| failed(fault.to_string()))?;
            if visit(Record { revision, tombstone, key_value }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_only<T>() -> Result<T, RevStoreError> {
        let detail = "a file that is only read cannot be changed".to_owned();
        Err(RevStoreError::Engine { engine: "bbolt", detail })
    }
}

impl RevStore for FileRecords {
    fn append(&self, _: &[Record]) -> Result<(), RevStoreError> {
        Self::read_only()
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        let mut found = None;
        self.visit(revision, &mut |record| {
            found = Some(record).filter(|record| record.revision == revision);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        self.visit(from, &mut |record| {
            if record.revision < until { visit(record) } else { ControlFlow::Break(()) }
        })
    }

    fn remove(&self, _: &[RecordRevision]) -> Result<(), RevStoreError> {
        // Removing only frees space, and here there is none to free.
        Ok(())
    }

    fn truncate_above(&self, _: Revision) -> Result<(), RevStoreError> {
        Self::read_only()
    }

    fn flush(&self, _: LogIndex) -> Result<(), RevStoreError> {
        Ok(())
    }

    fn flushed(&self) -> LogIndex {
        LogIndex(0)
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        self.newest()
            .map_err(|error| RevStoreError::Engine { engine: "bbolt", detail: error.to_string() })
    }

    fn size(&self) -> StoreSize {
        StoreSize { total: self.file.bytes(), in_use: self.file.bytes() }
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        Self::read_only()
    }
}
