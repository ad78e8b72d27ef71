//! A record store in memory, for tests of rooms that need a store and no disk.
//!
//! It keeps every promise of the seam except durability: what is flushed is exactly what a real
//! engine must bring back, [`MemoryRevs::crash`] forgets the rest.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use revlog::{Record, RevStore, RevStoreError, StoreSize};
use types::{LogIndex, RecordRevision, Revision};

#[derive(Clone, Default)]
struct Content {
    records: BTreeMap<RecordRevision, Record>,
    flushed: LogIndex,
    flushed_upto: Option<RecordRevision>,
    /// How many calls of `remove` still work; `None` for all.
    removals_left: Option<usize>,
}

/// Records in a map.
#[derive(Default)]
pub struct MemoryRevs {
    content: RwLock<Content>,
}

impl MemoryRevs {
    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy with the same records.
    pub fn copy(&self) -> Self {
        Self { content: RwLock::new(self.read().clone()) }
    }

    /// Lets `remove` fail after this many further calls.
    pub fn fail_removals_after(&self, calls: usize) {
        self.write().removals_left = Some(calls);
    }

    /// Forgets what was not flushed.
    pub fn crash(&self) {
        let mut content = self.write();
        let flushed_upto = content.flushed_upto;
        content.records.retain(|revision, _| Some(*revision) <= flushed_upto);
    }
}

impl RevStore for MemoryRevs {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        let mut content = self.write();
        for record in records {
            let last = content.records.last_key_value().map(|(last, _)| *last);
            if last >= Some(record.revision) {
                let detail = format!("record {} is not above {last:?}", record.revision);
                return Err(RevStoreError::Engine { engine: "memory", detail });
            }
            content.records.insert(record.revision, record.clone());
        }
        Ok(())
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        Ok(self.read().records.get(&revision).cloned())
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        for (_, record) in self.read().records.range(from..until.max(from)) {
            if visit(record.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError> {
        let mut content = self.write();
        match &mut content.removals_left {
            None => {}
            Some(0) => {
                let detail = "a removal was made to fail".to_owned();
                return Err(RevStoreError::Engine { engine: "memory", detail });
            }
            Some(left) => *left -= 1,
        }
        for revision in revisions {
            content.records.remove(revision);
        }
        Ok(())
    }

    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError> {
        let above = RecordRevision { main: revision.0.saturating_add(1), sub: 0 };
        self.write().records.split_off(&above);
        Ok(())
    }

    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError> {
        let mut content = self.write();
        content.flushed = applied;
        content.flushed_upto = content.records.last_key_value().map(|(last, _)| *last);
        Ok(())
    }

    fn flushed(&self) -> LogIndex {
        self.read().flushed
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        Ok(self.read().records.last_key_value().map(|(last, _)| *last))
    }

    fn size(&self) -> StoreSize {
        let bytes: usize = self.read().records.values().map(|record| record.key_value.len()).sum();
        StoreSize { total: bytes as u64, in_use: bytes as u64 }
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        Ok(())
    }
}
