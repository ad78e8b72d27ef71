//! The key index and the positions that are published with it, all behind one lock.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;
use std::sync::Arc;

use revlog::{RevStore, RevStoreError};
use types::{KeyRange, RangeEnd, RecordRevision};

use crate::history::{KeyHistory, Version};
use crate::key_value::Encoder;
use crate::query::RangeError;

/// The engine name in errors that this room finds rather than its record store.
pub(crate) const ENGINE: &str = "mvcc";

pub(crate) struct Index {
    keys: BTreeMap<Box<[u8]>, KeyHistory>,
    pub(crate) revs: Arc<dyn RevStore>,
    pub(crate) encoder: Encoder,
    /// The revision of the last completed transaction.
    pub(crate) revision: i64,
    /// The revision of the last compaction; -1 before the first, as in etcd.
    pub(crate) compact_revision: i64,
    /// Counts replacements of the whole content, so that a reader who let go of the lock notices.
    pub(crate) epoch: u64,
    /// Set when a batch was left half done: nothing may be read from here any more.
    pub(crate) abandoned: bool,
    live: u64,
}

impl Index {
    pub(crate) fn new(revs: Arc<dyn RevStore>, revision: i64, compact_revision: i64) -> Self {
        Self {
            keys: BTreeMap::new(),
            revs,
            encoder: Encoder::default(),
            revision,
            compact_revision,
            epoch: 0,
            abandoned: false,
            live: 0,
        }
    }

    /// An index of whole histories in increasing order of keys.
    pub(crate) fn with_keys(mut self, keys: BTreeMap<Box<[u8]>, KeyHistory>) -> Self {
        self.live = keys.values().filter(|history| history.live().is_some()).count() as u64;
        self.keys = keys;
        self
    }

    /// How many keys exist now.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyHistory> {
        self.keys.get(key)
    }

    /// Adds a version to a key, new or known.
    pub(crate) fn push(&mut self, key: &[u8], version: Version) {
        match self.keys.get_mut(key) {
            Some(history) => {
                self.live -= u64::from(history.live().is_some());
                history.push(version);
            }
            None => {
                self.keys.insert(key.into(), KeyHistory::new(version));
            }
        }
        self.live += u64::from(!version.tombstone);
    }

    /// Adds a put, computing creation and version number from what was there, which it answers.
    pub(crate) fn put(&mut self, key: &[u8], record: RecordRevision, lease: i64) -> Placed {
        let sub = sub_revision(record);
        let (main, create) = (record.main, record.main);
        let mut version = Version { main, create, version: 1, lease, sub, tombstone: false };
        let Some(history) = self.keys.get_mut(key) else {
            self.keys.insert(key.into(), KeyHistory::new(version));
            self.live += 1;
            return Placed { version, previous: None, before: None };
        };
        let previous = history.live().copied();
        match &previous {
            Some(previous) => {
                version.create = previous.create;
                version.version = previous.version + 1;
            }
            None => self.live += 1,
        }
        let before = before(history, main);
        history.push(version);
        Placed { version, previous, before }
    }

    /// Drops what compaction at `revision` makes unreachable of `key`.
    pub(crate) fn compact_key(
        &mut self,
        key: &[u8],
        revision: i64,
        dead: &mut Vec<RecordRevision>,
    ) {
        if self.keys.get_mut(key).is_some_and(|history| history.compact(revision, dead)) {
            self.keys.remove(key);
        }
    }

    /// The keys of a range from `resume` on, in order, with their histories.
    pub(crate) fn walk<'a>(&'a self, range: &'a KeyRange, resume: Option<&'a [u8]>) -> Walk<'a> {
        let upper = match &range.end {
            // One descent instead of the two of a range; after the key there is nothing.
            RangeEnd::Single => {
                let only = self.keys.get_key_value(range.start.as_ref());
                let only = only.filter(|_| resume.is_none());
                return Walk::Single(only.map(|(key, history)| (key.as_ref(), history)));
            }
            RangeEnd::Unbounded => Bound::Unbounded,
            RangeEnd::Before(end) => Bound::Excluded(end.as_ref()),
        };
        let lower = match resume {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(range.start.as_ref()),
        };
        if range.is_empty() || is_inverted(lower, upper) {
            return Walk::Single(None);
        }
        Walk::Range(self.keys.range::<[u8], _>((lower, upper)))
    }

    /// Every key after `resume`, in order.
    pub(crate) fn walk_all(&self, resume: Option<&[u8]>) -> Walk<'_> {
        let lower = resume.map_or(Bound::Unbounded, Bound::Excluded);
        Walk::Range(self.keys.range::<[u8], _>((lower, Bound::Unbounded)))
    }

    /// What a read of `revision` (0 or less: the newest) is pinned to.
    pub(crate) fn pin(&self, revision: i64, newest: i64) -> Result<i64, RangeError> {
        self.check()?;
        if revision > newest {
            return Err(RangeError::FutureRevision);
        }
        let at = if revision <= 0 { newest } else { revision };
        if at < self.compact_revision {
            return Err(RangeError::Compacted);
        }
        Ok(at)
    }

    /// Refuses to go on after a batch was left half done.
    pub(crate) fn check(&self) -> Result<(), RevStoreError> {
        match self.abandoned {
            false => Ok(()),
            true => {
                Err(fault("a batch of changes was abandoned before its commit; restart the member"))
            }
        }
    }
}

/// Where a put went: its version, the version it replaced if the key existed, and the version that
/// a reader saw one revision earlier.
pub(crate) struct Placed {
    pub(crate) version: Version,
    pub(crate) previous: Option<Version>,
    pub(crate) before: Option<Version>,
}

/// The version of a key that a reader one revision before `main` sees.
pub(crate) fn before(history: &KeyHistory, main: i64) -> Option<Version> {
    history.at(main - 1).copied()
}

/// The number of a record in its transaction, as the index stores it.
pub(crate) fn sub_revision(record: RecordRevision) -> u32 {
    u32::try_from(record.sub)
        .expect("a transaction is held in memory and has fewer than 2^32 changes")
}

/// An error of this room's own finding.
pub(crate) fn fault(detail: impl Into<String>) -> RevStoreError {
    RevStoreError::Engine { engine: ENGINE, detail: detail.into() }
}

/// Keys in order. A range that no key can lie in, which `BTreeMap::range` would not accept, is that of
/// a single key which is not there.
pub(crate) enum Walk<'a> {
    Single(Option<(&'a [u8], &'a KeyHistory)>),
    Range(btree_map::Range<'a, Box<[u8]>, KeyHistory>),
}

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a [u8], &'a KeyHistory);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Walk::Single(only) => only.take(),
            Walk::Range(range) => range.next().map(|(key, history)| (key.as_ref(), history)),
        }
    }
}

fn is_inverted(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> bool {
    match (lower, upper) {
        (Bound::Included(from), Bound::Excluded(to)) => from >= to,
        (Bound::Excluded(from), Bound::Excluded(to) | Bound::Included(to)) => from >= to,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        _ => false,
    }
}
