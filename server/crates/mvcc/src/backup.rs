//! Everything that a reader can still reach, as records in order of revision: what a backup holds.
//!
//! With c the compact revision and r the one asked for: of the records up to c those that a reader at c
//! sees, and every record above c up to r. That is what Go etcd's `key` bucket holds once a
//! compaction is done, so HashKV of the copy equals HashKV of the store.

use std::ops::ControlFlow;

use revlog::Record;
use types::{RecordRevision, Revision};

use crate::hash::{check, pin, visible};
use crate::query::RangeError;
use crate::read::{Interruption, fetch};
use crate::store::{Shared, StoreMeta};

/// Visits the records up to `revision` until `visit` breaks, and answers the moment they belong to.
///
/// # Errors
/// `Compacted` when a compaction went by meanwhile: what was visited is of no use, begin again.
pub(crate) fn records(
    shared: &Shared,
    revision: Revision,
    visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
) -> Result<StoreMeta, RangeError> {
    Ok(attempt(shared, revision, visit)?)
}

fn attempt(
    shared: &Shared,
    revision: Revision,
    visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
) -> Result<StoreMeta, Interruption> {
    let (pin, compacted) = pin(shared, revision.0)?;
    let meta = StoreMeta { revision: Revision(pin.at), compact_revision: Revision(compacted) };
    if compacted > 0 {
        let mut old = visible(shared, compacted, compacted, pin.epoch)?.records;
        old.sort_unstable();
        for revision in old {
            let key_value = fetch(shared, &pin, revision)?;
            if visit(Record { revision, tombstone: false, key_value }).is_break() {
                return Ok(meta);
            }
        }
    }
    let first = RecordRevision::first_of(Revision(compacted.max(0) + 1));
    let until = RecordRevision::first_of(Revision(pin.at.saturating_add(1)));
    let scanned = if first < until { pin.revs.scan(first, until, visit) } else { Ok(()) };
    check(shared, compacted, pin.epoch)?;
    scanned?;
    Ok(meta)
}
