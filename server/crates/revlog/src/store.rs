//! The seam between the key index and whatever keeps the values.

use std::ops::ControlFlow;

use bytes::Bytes;
use types::{LogIndex, RecordRevision, Revision};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the history; unique.
    pub revision: RecordRevision,
    /// Whether it deletes the key.
    pub tombstone: bool,
    /// The encoded `mvccpb.KeyValue`, exactly the bytes that HashKV covers.
    pub key_value: Bytes,
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// All of the store's files.
    pub total: u64,
    /// What live records take of it.
    pub in_use: u64,
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RevStoreError {
    /// Reading or writing a file did not work. The process must stop: what is on disk is unknown.
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: String, source: std::io::Error },
    /// A record does not match its checksum, or a file is not what it should be.
    #[error("damaged record in {path} at byte {offset}: {detail}")]
    Damaged { path: String, offset: u64, detail: String },
    /// The engine beneath reports an error of its own.
    #[error("{engine}: {detail}")]
    Engine { engine: &'static str, detail: String },
}

/// Keeps records by revision.
///
/// The contract every engine is held to (`conformance` is its test suite):
/// - The Raft log owns durability. After a crash a store reopens to some prefix of what was
///   appended that is at least what the last [`RevStore::flush`] covered, or refuses to open.
/// - [`RevStore::append`] comes in strictly increasing revision order from one writer, and what it
///   wrote can be read at once by any thread.
/// - [`RevStore::flush`] returns only when everything appended before it survives power loss.
/// - [`RevStore::remove`] only frees space: nobody will ask for a removed record again, and it may
///   take effect late or, after a crash, not at all.
pub trait RevStore: Send + Sync + 'static {
    /// Adds records, in increasing order of revision.
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError>;

    /// The record at exactly this place.
    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError>;

    /// How many bytes the key-values of these records have in sum, without reading them where the
    /// engine knows their lengths; a record that is not there counts nothing.
    fn key_value_bytes(&self, revisions: &[RecordRevision]) -> Result<u64, RevStoreError> {
        let mut bytes = 0;
        for revision in revisions {
            bytes += self.get(*revision)?.map_or(0, |record| record.key_value.len() as u64);
        }
        Ok(bytes)
    }

    /// Every record from `from` up to, and without, `until`, in order, until `visit` breaks.
    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError>;

    /// Frees records that compaction made unreachable.
    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError>;

    /// Forgets every record above `revision`: what the log will bring again at start.
    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError>;

    /// Makes everything appended so far durable and remembers `applied` with it, atomically.
    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError>;

    /// The applied index of the last completed flush; 0 for a new store.
    fn flushed(&self) -> LogIndex;

    /// The newest record, if there is any.
    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError>;

    /// Space used.
    fn size(&self) -> StoreSize;

    /// Gives free space back to the file system; reads and writes go on meanwhile.
    fn defragment(&self) -> Result<(), RevStoreError>;
}
