//! The hashes that were taken when the history was compacted (etcd: `mvcc/hash.go`, `hashStorage`).
//!
//! After a compaction to t only a part of what was there below t counts in a hash, so HashKV of t changes
//! with it. etcd therefore takes the hash of everything between the compaction before, s, and t while it
//! compacts, and answers HashKV of exactly t with that one, relative to s: what was answered just before
//! the compaction is answered after it, until ten later compactions have been made, or a restart.
//!
//! Here nothing between s and t is lost before the index is swept for t, so there is time: whoever sweeps
//! takes the hashes first. What has not been taken by then is forgotten, and HashKV of t is relative to t.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use revlog::Record;
use types::{RecordRevision, Revision};

use crate::hash::{HashAnswer, add, of_records};
use crate::read::{Interruption, Pin};
use crate::store::{CHUNK, Shared};

/// How many hashes are kept; etcd's number.
const KEPT: usize = 10;

/// A compaction: of what was compacted up to `since`, to `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Compaction {
    since: i64,
    at: i64,
}

/// Hashes of compactions, and the compactions that have none yet; the oldest first.
#[derive(Debug, Default)]
pub(crate) struct CompactionHashes {
    waiting: VecDeque<Compaction>,
    taken: VecDeque<HashAnswer>,
}

impl CompactionHashes {
    /// The watermark was moved.
    pub(crate) fn compacted(&mut self, since: i64, at: i64) {
        push(&mut self.waiting, Compaction { since, at });
    }

    /// What these compactions make dead is dropped from now on.
    pub(crate) fn forget_waiting(&mut self, upto: i64) {
        self.waiting.retain(|compaction| compaction.at > upto);
    }

    /// The hash of a compaction to exactly this revision.
    pub(crate) fn of(&self, revision: i64) -> Option<HashAnswer> {
        self.taken.iter().find(|answer| answer.revision.0 == revision).copied()
    }
}

fn push<T>(kept: &mut VecDeque<T>, last: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(last);
}

/// Takes the hashes of all compactions that have none. The index must not be swept meanwhile.
pub(crate) fn take(shared: &Shared) {
    loop {
        // Apart, for nobody to wait for the lock as long as hashing takes.
        let next = shared.compaction_hashes().waiting.pop_front();
        let Some(compaction) = next else { return };
        match hash(shared, compaction) {
            Ok(answer) => push(&mut shared.compaction_hashes().taken, answer),
            // The content was replaced, or the disk fails, which others will notice.
            Err(_) => return,
        }
    }
}

fn hash(shared: &Shared, compaction: Compaction) -> Result<HashAnswer, Interruption> {
    let Compaction { since, at } = compaction;
    let pin = {
        let index = shared.read();
        let revs = Arc::clone(&index.revs);
        Pin { at, newest: index.revision, epoch: index.epoch, revs }
    };
    let mut old = visible_before(shared, &pin, at, since)?;
    if old.nothing_is_kept {
        // Then etcd leaves nothing out: everything is there that the compaction before has left.
        old = visible_before(shared, &pin, since, since)?;
    }
    let mut hash = of_records(shared, &pin, old.records)?;
    let first = RecordRevision::first_of(Revision(since.max(0) + 1));
    let until = RecordRevision::first_of(Revision(at + 1));
    pin.revs.scan(first, until, &mut |record: Record| {
        hash = add(hash, record.revision, record.tombstone, &record.key_value);
        ControlFlow::Continue(())
    })?;
    let answer = HashAnswer {
        hash,
        compact_revision: Revision(since),
        revision: Revision(at),
        current_revision: Revision(pin.newest),
    };
    match shared.read().epoch == pin.epoch {
        true => Ok(answer),
        false => Err(Interruption::Overtaken),
    }
}

/// What a compaction keeps of what came up to another.
struct Kept {
    records: Vec<RecordRevision>,
    /// No version of any key, and no deletion either.
    nothing_is_kept: bool,
}

/// Of the records up to `since`, those that a reader at `at` sees.
fn visible_before(shared: &Shared, pin: &Pin, at: i64, since: i64) -> Result<Kept, Interruption> {
    let mut kept = Kept { records: Vec::new(), nothing_is_kept: true };
    let mut resume: Option<Box<[u8]>> = None;
    loop {
        let index = shared.read();
        if index.epoch != pin.epoch {
            return Err(Interruption::Overtaken);
        }
        let mut walk = index.walk_all(resume.as_deref());
        let mut last = None;
        for _ in 0..CHUNK {
            let Some((key, history)) = walk.next() else { return Ok(kept) };
            last = Some(key);
            let seen = history.at(at);
            kept.nothing_is_kept &= seen.is_none() && !history.is_deleted_by(at);
            let old = seen.filter(|version| version.main <= since);
            kept.records.extend(old.map(|version| version.record()));
        }
        resume = last.map(Into::into);
    }
}
