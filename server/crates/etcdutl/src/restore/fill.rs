//! The records: from rows of the `key` bucket into a record store.

use revlog::{Record, RevStore};
use types::RecordRevision;

use super::{RestoreError, Source};
use crate::schema::KeyRow;

/// Records are handed over in groups of about this many bytes.
const APPEND_BYTES: usize = 4 << 20;

impl Source {
    /// Copies the rows and answers the place of the newest.
    pub(super) fn fill(
        &self,
        records: &dyn RevStore,
    ) -> Result<Option<RecordRevision>, RestoreError> {
        let mut group = Vec::new();
        let (mut bytes, mut newest) = (0, None);
        for row in self.backend().keys().map_err(self.content())? {
            let row = row.map_err(self.content())?;
            self.check(&row, newest)?;
            newest = Some(row.revision);
            bytes += row.key_value.len();
            group.push(Record {
                revision: row.revision,
                tombstone: row.tombstone,
                key_value: row.key_value,
            });
            if bytes >= APPEND_BYTES {
                records.append(&group)?;
                group.clear();
                bytes = 0;
            }
        }
        if !group.is_empty() {
            records.append(&group)?;
        }
        Ok(newest)
    }

    /// What a record store takes for granted.
    fn check(&self, row: &KeyRow, before: Option<RecordRevision>) -> Result<(), RestoreError> {
        let revision = row.revision;
        let detail = match before {
            _ if revision.main < 1 => "there is no such revision",
            _ if u32::try_from(revision.sub).is_err() => "no transaction has so many changes",
            Some(before) if before >= revision => "it is not above the row before it",
            _ => return Ok(()),
        };
        Err(RestoreError::Row { path: self.path.clone(), revision, detail })
    }
}
