//! The single writer: one per Raft entry, many transactions inside.

use std::sync::RwLockWriteGuard;

use bytes::Bytes;
use revlog::{Record, RevStoreError};
use types::{KeyRange, LeaseId, RecordRevision, Revision};

use crate::event::{Event, EventKind, RevisionEvents};
use crate::history::{KeyHead, Version};
use crate::index::{Index, before, fault, sub_revision};
use crate::key_value::KeyValue;
use crate::query::{RangeAnswer, RangeError, RangeQuery, Scan, assemble};
use crate::store::Shared;

/// What a put replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    pub previous: Option<KeyHead>,
}

/// Why the watermark cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    #[error("mvcc: required revision is a future revision")]
    FutureRevision,
}

/// Changes of one Raft entry, under the index's write lock. Readers see them after
/// [`Writer::commit`]; reads through the writer see them at once (etcd PR#17230).
pub struct Writer<'a> {
    shared: &'a Shared,
    index: RwLockWriteGuard<'a, Index>,
    /// Records of the entry that the record store does not have yet, in order.
    pending: Vec<Record>,
    events: Vec<RevisionEvents>,
    /// Events of the open transaction.
    current: Vec<Event>,
    committed: bool,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            index: shared.write(),
            pending: Vec::new(),
            events: Vec::new(),
            current: Vec::new(),
            committed: false,
        }
    }

    /// The newest revision, with what the open transaction has written.
    pub fn revision(&self) -> Revision {
        Revision(self.index.revision + i64::from(!self.current.is_empty()))
    }

    /// The last compaction's revision.
    pub fn compact_revision(&self) -> Revision {
        Revision(self.index.compact_revision)
    }

    /// Starts a transaction: a client's request.
    pub fn begin(&mut self) {
        assert!(self.current.is_empty(), "a transaction ends before the next one begins");
    }

    /// Ends the transaction and answers the revision, one higher if it wrote anything.
    pub fn end(&mut self) -> Revision {
        if !self.current.is_empty() {
            self.index.revision += 1;
            let revision = Revision(self.index.revision);
            let events = std::mem::take(&mut self.current);
            self.events.push(RevisionEvents { revision, events });
        }
        Revision(self.index.revision)
    }

    /// Answers a range with the transaction's own writes in it.
    pub fn range(&self, query: &RangeQuery) -> Result<RangeAnswer, RangeError> {
        let revision = self.revision();
        let at = self.index.pin(query.revision, revision.0)?;
        let mut scan = Scan::new(query, at);
        scan.step(&self.index, usize::MAX);
        let mut fetch = |record| self.key_value(record).map_err(RangeError::from);
        let (kvs, more) = assemble(query, scan.hits, &mut fetch)?;
        Ok(RangeAnswer { kvs, more, count: scan.count, revision })
    }

    /// What is known of a key without reading its value, if it exists.
    pub fn head(&self, key: &[u8]) -> Option<KeyHead> {
        self.index.get(key)?.live().map(Version::head)
    }

    /// The same of every key in a range, in order.
    pub fn heads(&self, range: &KeyRange) -> Vec<(Bytes, KeyHead)> {
        self.index
            .walk(range, None)
            .filter_map(|(key, history)| {
                Some((Bytes::copy_from_slice(key), history.live()?.head()))
            })
            .collect()
    }

    /// The encoded key-value of a record, also of one written a moment ago.
    pub fn key_value(&self, record: RecordRevision) -> Result<Bytes, RevStoreError> {
        if let Ok(at) = self.pending.binary_search_by_key(&record, |pending| pending.revision) {
            return Ok(self.pending[at].key_value.clone());
        }
        match self.index.revs.get(record)? {
            Some(found) => Ok(found.key_value),
            None => Err(missing(record)),
        }
    }

    /// Writes a key.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId) -> Put {
        let record = self.next_record();
        let placed = self.index.put(&key, record, lease.0);
        let (encoded, key) = self.index.encoder.put(&KeyValue {
            key,
            create_revision: placed.version.create,
            mod_revision: record.main,
            version: placed.version.version,
            value,
            lease: lease.0,
        });
        self.pending.push(Record {
            revision: record,
            tombstone: false,
            key_value: encoded.clone(),
        });
        let create = placed.version.create == record.main;
        self.current.push(Event {
            kind: EventKind::Put,
            key,
            key_value: encoded,
            record,
            previous: placed.before.filter(|_| !create).map(|version| version.record()),
            create,
        });
        Put { previous: placed.previous.map(|version| version.head()) }
    }

    /// Deletes every key of a range, in order, and answers what was deleted.
    pub fn delete_range(&mut self, range: &KeyRange) -> Vec<(Bytes, KeyHead)> {
        let doomed = self.heads(range);
        for (key, _) in &doomed {
            self.delete(key);
        }
        doomed
    }

    /// Moves the compaction watermark, at once. Dead versions are dropped later and elsewhere.
    pub fn compact(&mut self, revision: Revision) -> Result<(), CompactError> {
        if revision.0 <= self.index.compact_revision {
            return Err(CompactError::Compacted);
        }
        if revision.0 > self.index.revision {
            return Err(CompactError::FutureRevision);
        }
        let before = std::mem::replace(&mut self.index.compact_revision, revision.0);
        self.shared.compaction_hashes().compacted(before, revision.0);
        Ok(())
    }

    /// Hands the records to the record store, lets readers see everything and answers the events.
    /// After an error the store refuses to go on: what the record store holds is unknown.
    pub fn commit(mut self) -> Result<Vec<RevisionEvents>, RevStoreError> {
        assert!(self.current.is_empty(), "a transaction ends before its entry is committed");
        self.index.check()?;
        if !self.pending.is_empty() {
            self.index.revs.append(&self.pending)?;
            self.shared.note_bytes(&*self.index.revs);
        }
        self.committed = true;
        Ok(std::mem::take(&mut self.events))
    }

    fn delete(&mut self, key: &[u8]) {
        let record = self.next_record();
        let previous = self.index.get(key).and_then(|history| before(history, record.main));
        self.index.push(key, Version::tombstone(record.main, sub_revision(record)));
        let (stored, key, wire) = self.index.encoder.tombstone(key, record.main);
        self.pending.push(Record { revision: record, tombstone: true, key_value: stored });
        self.current.push(Event {
            kind: EventKind::Delete,
            key,
            key_value: wire,
            record,
            previous: previous.map(|version| version.record()),
            create: false,
        });
    }

    fn next_record(&self) -> RecordRevision {
        RecordRevision { main: self.index.revision + 1, sub: self.current.len() as i64 }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        let wrote = !self.pending.is_empty() || !self.current.is_empty();
        if wrote && !self.committed {
            self.index.abandoned = true;
        }
    }
}

/// The error for a record that the index names and the record store does not have.
pub(crate) fn missing(record: RecordRevision) -> RevStoreError {
    fault(format!("record {record} is in the index but not in the record store"))
}
