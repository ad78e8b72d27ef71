//! HashKV: CRC-32C over the history as Go etcd lays it out in its `key` bucket.
//!
//! ```text
//! "key"  then for each record in order of revision:
//!   main, 8 bytes big endian | '_' | sub, 8 bytes big endian | 't' if a deletion
//!   the encoded mvccpb.KeyValue (of a deletion: the key alone)
//! ```
//! Which records count (`mvcc/hash.go`, with c the compact revision and r the hashed one):
//! - above c and up to r: all of them;
//! - up to c: those that a reader at r sees, so a version that was replaced between c and r does
//!   **not** count although it is still there;
//! - if a reader at r sees nothing at all, the rule before does not apply, and everything up to c
//!   that is still there counts. Go's answer then depends on how far its compaction is; the rule
//!   here is its answer after it: what a reader at c sees;
//! - a deletion at exactly c never counts.
//!
//! All of it follows from the index and the watermark, not from what is still stored (etcd#18667).
//! What clients are answered for the revision of a compaction may be the hash that was taken when it was
//! made, relative to the compaction before (`compaction_hash`). Comparing members must therefore compare
//! hashes with equal compact revisions only, as etcd's own corruption check does.

use std::ops::ControlFlow;
use std::sync::Arc;

use revlog::Record;
use types::{RecordRevision, Revision};

use crate::query::RangeError;
use crate::read::{Interruption, Pin, fetch, settle};
use crate::store::{CHUNK, Shared};

/// The answer to HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashAnswer {
    pub hash: u32,
    /// The compaction that the hash is relative to.
    pub compact_revision: Revision,
    /// The revision that was hashed.
    pub revision: Revision,
    /// The newest revision of the store: the header's.
    pub current_revision: Revision,
}

pub(crate) fn hash_kv(shared: &Shared, revision: i64) -> Result<HashAnswer, RangeError> {
    settle(|| attempt(shared, revision))
}

fn attempt(shared: &Shared, revision: i64) -> Result<HashAnswer, Interruption> {
    let (pin, compacted) = pin(shared, revision)?;
    let mut kept = visible(shared, pin.at, compacted, pin.epoch)?;
    if kept.is_empty() && compacted >= 0 && pin.at >= compacted {
        kept = visible(shared, compacted, compacted, pin.epoch)?;
    }
    let mut hash = of_records(shared, &pin, kept.records)?;
    let first = RecordRevision::first_of(Revision(compacted.max(0) + 1));
    let until = RecordRevision::first_of(Revision(pin.at.saturating_add(1)));
    let mut visit = |record: Record| {
        hash = add(hash, record.revision, record.tombstone, &record.key_value);
        ControlFlow::Continue(())
    };
    let scanned = if first < until { pin.revs.scan(first, until, &mut visit) } else { Ok(()) };
    check(shared, compacted, pin.epoch)?;
    scanned?;
    Ok(HashAnswer {
        hash,
        compact_revision: Revision(compacted),
        revision: Revision(pin.at),
        current_revision: Revision(pin.newest),
    })
}

/// The hash of puts that the index named, which begins every hash.
pub(crate) fn of_records(
    shared: &Shared,
    pin: &Pin,
    mut records: Vec<RecordRevision>,
) -> Result<u32, Interruption> {
    records.sort_unstable();
    let mut hash = crc32c::crc32c(b"key");
    for record in records {
        let key_value = fetch(shared, pin, record)?;
        hash = add(hash, record, false, &key_value);
    }
    Ok(hash)
}

/// Unlike a range, a hash of a negative revision is the hash of nothing.
pub(crate) fn pin(shared: &Shared, revision: i64) -> Result<(Pin, i64), RangeError> {
    let index = shared.read();
    index.check()?;
    if revision > index.revision {
        return Err(RangeError::FutureRevision);
    }
    if revision > 0 && revision < index.compact_revision {
        return Err(RangeError::Compacted);
    }
    let at = if revision == 0 { index.revision } else { revision };
    let pin = Pin { at, newest: index.revision, epoch: index.epoch, revs: Arc::clone(&index.revs) };
    Ok((pin, index.compact_revision))
}

#[derive(Default)]
pub(crate) struct Visible {
    /// What a reader sees of records up to the compaction.
    pub(crate) records: Vec<RecordRevision>,
    /// Whether it sees newer records too.
    newer: bool,
}

impl Visible {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && !self.newer
    }
}

/// What a reader at `at` sees, chunk by chunk.
pub(crate) fn visible(
    shared: &Shared,
    at: i64,
    compacted: i64,
    epoch: u64,
) -> Result<Visible, Interruption> {
    let mut found = Visible::default();
    let mut resume: Option<Box<[u8]>> = None;
    loop {
        let index = shared.read();
        if index.compact_revision != compacted || index.epoch != epoch {
            return Err(Interruption::Overtaken);
        }
        let mut walk = index.walk_all(resume.as_deref());
        let mut last = None;
        for _ in 0..CHUNK {
            let Some((key, history)) = walk.next() else { return Ok(found) };
            last = Some(key);
            match history.at(at) {
                Some(version) if version.main <= compacted => found.records.push(version.record()),
                Some(_) => found.newer = true,
                None => {}
            }
        }
        resume = last.map(Into::into);
    }
}

/// Whether the watermark is still where it was when the attempt began.
pub(crate) fn check(shared: &Shared, compacted: i64, epoch: u64) -> Result<(), Interruption> {
    let index = shared.read();
    match index.compact_revision == compacted && index.epoch == epoch {
        true => Ok(()),
        false => Err(Interruption::Overtaken),
    }
}

/// The same with one more record.
pub(crate) fn add(hash: u32, record: RecordRevision, tombstone: bool, key_value: &[u8]) -> u32 {
    let mut place = [b'_'; 18];
    place[..8].copy_from_slice(&record.main.to_be_bytes());
    place[9..17].copy_from_slice(&record.sub.to_be_bytes());
    place[17] = b't';
    let length = if tombstone { 18 } else { 17 };
    crc32c::crc32c_append(crc32c::crc32c_append(hash, &place[..length]), key_value)
}
