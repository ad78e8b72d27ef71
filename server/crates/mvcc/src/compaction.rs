//! The background half of compaction: dead versions leave the index, dead records the disk.
//!
//! Apply has only moved the watermark. A sweep goes through the index in chunks: it looks for keys
//! with dead versions under the read lock and drops them under a short write lock. What it drops is
//! garbage of the compaction that the sweep was for, and is freed when an image with that compaction
//! is durable. Nothing that a client can ask depends on how far this is.

use std::collections::BTreeMap;

use revlog::{RevStore, RevStoreError};
use types::RecordRevision;

use crate::store::Shared;

/// How many records are handed to the record store in one call.
const REMOVE_CHUNK: usize = 1000;

/// How far the background half of compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// There is more to do.
    More,
    /// The index holds nothing that the last compaction made dead.
    Done,
}

/// The state of the sweep and the garbage it found.
#[derive(Debug)]
pub(crate) struct Sweeper {
    /// The compaction that the index is completely swept for.
    swept: i64,
    /// The compaction being swept for, and the last key done.
    current: Option<(i64, Option<Box<[u8]>>)>,
    /// Dead records by the compaction they belong to.
    garbage: BTreeMap<i64, Vec<RecordRevision>>,
}

impl Sweeper {
    pub(crate) fn new(swept: i64) -> Self {
        Self { swept, current: None, garbage: BTreeMap::new() }
    }

    pub(crate) fn with_garbage(mut self, compaction: i64, records: Vec<RecordRevision>) -> Self {
        if !records.is_empty() {
            self.garbage.insert(compaction, records);
        }
        self
    }

    pub(crate) fn swept(&self) -> i64 {
        self.swept
    }

    /// The newest compaction that the index has lost versions to.
    pub(crate) fn touched(&self) -> i64 {
        self.current.as_ref().map_or(self.swept, |(target, _)| *target)
    }

    pub(crate) fn step(&mut self, shared: &Shared, max_keys: usize) -> Sweep {
        let (target, resume) = match self.current.take() {
            Some(current) => current,
            None => (shared.read().compact_revision, None),
        };
        if target <= self.swept {
            return Sweep::Done;
        }
        shared.compaction_hashes().forget_waiting(target);
        let Found { candidates, last } = find(shared, target, resume.as_deref(), max_keys.max(1));
        if !candidates.is_empty() {
            let dead = drop_dead(shared, target, &candidates);
            self.garbage.entry(target).or_default().extend(dead);
        }
        if last.is_some() {
            self.current = Some((target, last));
            return Sweep::More;
        }
        self.swept = target;
        match shared.read().compact_revision > target {
            true => Sweep::More,
            false => Sweep::Done,
        }
    }

    pub(crate) fn garbage(&self) -> Vec<RecordRevision> {
        let mut all: Vec<_> = self.garbage.values().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn remove_garbage(
        &mut self,
        revs: &dyn RevStore,
        upto: i64,
    ) -> Result<usize, RevStoreError> {
        let mut removed = 0;
        while let Some(mut group) = self.garbage.first_entry().filter(|group| *group.key() <= upto)
        {
            let records = group.get_mut();
            records.sort_unstable();
            let done = remove(revs, records);
            removed += match done {
                Ok(()) => records.len(),
                Err((done, error)) => {
                    records.drain(..done);
                    return Err(error);
                }
            };
            group.remove();
        }
        Ok(removed)
    }
}

/// Removes records chunk by chunk, oldest first: what compaction left of a key must never look like
/// a key whose deletion is missing. An error comes with the number of records removed before it.
fn remove(revs: &dyn RevStore, records: &[RecordRevision]) -> Result<(), (usize, RevStoreError)> {
    for (number, chunk) in records.chunks(REMOVE_CHUNK).enumerate() {
        revs.remove(chunk).map_err(|error| (number * REMOVE_CHUNK, error))?;
    }
    Ok(())
}

/// Drops dead versions of `keys`. The list of the dead is of this call alone: growing the list of
/// all garbage would copy it under the lock that writes wait for.
fn drop_dead(shared: &Shared, target: i64, keys: &[Box<[u8]>]) -> Vec<RecordRevision> {
    let mut dead = Vec::with_capacity(keys.len());
    let mut index = shared.write();
    for key in keys {
        index.compact_key(key, target, &mut dead);
    }
    dead
}

/// What a look at some keys found.
struct Found {
    /// Keys with dead versions.
    candidates: Vec<Box<[u8]>>,
    /// The last key looked at, if there are more.
    last: Option<Box<[u8]>>,
}

/// Looks at the next `max_keys` keys.
fn find(shared: &Shared, target: i64, resume: Option<&[u8]>, max_keys: usize) -> Found {
    let index = shared.read();
    let mut walk = index.walk_all(resume);
    let mut candidates = Vec::new();
    let mut last = None;
    for _ in 0..max_keys {
        let Some((key, history)) = walk.next() else { return Found { candidates, last: None } };
        if history.has_dead(target) {
            candidates.push(key.into());
        }
        last = Some(key);
    }
    Found { candidates, last: last.map(Into::into) }
}
