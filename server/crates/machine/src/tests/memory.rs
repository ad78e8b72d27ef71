//! A record store in memory that loses at a crash whatever its contract lets it lose.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

use revlog::{Record, RevStore, RevStoreError, StoreSize};
use types::{LogIndex, RecordRevision, Revision};

#[derive(Default)]
struct Content {
    records: BTreeMap<RecordRevision, Record>,
    removed: BTreeMap<RecordRevision, Record>,
    unflushed: BTreeSet<RecordRevision>,
    flushed: LogIndex,
    broken: bool,
}

#[derive(Default)]
pub(super) struct Memory(Mutex<Content>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    /// Power loss: of what was not flushed only a prefix of `kept` records survives, and removals
    /// never happened.
    pub(super) fn crash(&self, kept: usize) {
        let mut content = self.lock();
        let lost: Vec<_> = content.unflushed.iter().skip(kept).copied().collect();
        for record in lost {
            content.records.remove(&record);
        }
        let removed = std::mem::take(&mut content.removed);
        content.records.extend(removed);
        content.unflushed.clear();
    }

    /// From now on writing fails.
    pub(super) fn break_disk(&self) {
        self.lock().broken = true;
    }

    pub(super) fn len(&self) -> usize {
        self.lock().records.len()
    }
}

fn broken() -> RevStoreError {
    RevStoreError::Engine { engine: "memory", detail: "the disk is broken".to_owned() }
}

impl RevStore for Memory {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        let mut content = self.lock();
        if content.broken {
            return Err(broken());
        }
        for record in records {
            let last = content.records.last_key_value().map(|(revision, _)| *revision);
            assert!(last.is_none_or(|last| last < record.revision), "append out of order");
            content.unflushed.insert(record.revision);
            content.records.insert(record.revision, record.clone());
        }
        Ok(())
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        Ok(self.lock().records.get(&revision).cloned())
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        let found: Vec<_> =
            self.lock().records.range(from..until).map(|(_, r)| r.clone()).collect();
        for record in found {
            if visit(record).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError> {
        let mut content = self.lock();
        for revision in revisions {
            if let Some(record) = content.records.remove(revision) {
                content.removed.insert(*revision, record);
            }
        }
        Ok(())
    }

    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError> {
        let mut content = self.lock();
        let first = RecordRevision::first_of(Revision(revision.0 + 1));
        content.records.split_off(&first);
        content.unflushed.split_off(&first);
        Ok(())
    }

    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError> {
        let mut content = self.lock();
        if content.broken {
            return Err(broken());
        }
        content.unflushed.clear();
        content.flushed = content.flushed.max(applied);
        Ok(())
    }

    fn flushed(&self) -> LogIndex {
        self.lock().flushed
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        Ok(self.lock().records.last_key_value().map(|(revision, _)| *revision))
    }

    fn size(&self) -> StoreSize {
        let total = self.lock().records.values().map(|r| r.key_value.len() as u64).sum();
        StoreSize { total, in_use: total }
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        Ok(())
    }
}
