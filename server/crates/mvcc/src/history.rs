//! The versions of one key.
//!
//! Most keys of a cluster have one version between two compactions, so the newest version is stored
//! in place and older ones in a list that exists only when it is needed. Each version carries what a
//! read without the value needs (creation, version number, lease), so that no generation has to be
//! walked: etcd's `key_index.go` keeps generations and counts back, which costs less memory for old
//! versions and more for the common case.

use types::{LeaseId, Planted, RecordRevision, Revision};

/// What the index knows of one version of a key without reading its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHead {
    /// The revision that created the key in its present life.
    pub create_revision: Revision,
    /// The record that holds this version.
    pub mod_revision: RecordRevision,
    /// How many puts the key had since its creation.
    pub version: i64,
    /// The lease attached, or none.
    pub lease: LeaseId,
}

/// One version as the index stores it. A tombstone has no creation, version or lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) main: i64,
    pub(crate) create: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) sub: u32,
    pub(crate) tombstone: bool,
}

impl Version {
    pub(crate) fn tombstone(main: i64, sub: u32) -> Self {
        Self { main, create: 0, version: 0, lease: 0, sub, tombstone: true }
    }

    pub(crate) fn record(&self) -> RecordRevision {
        RecordRevision { main: self.main, sub: i64::from(self.sub) }
    }

    pub(crate) fn head(&self) -> KeyHead {
        KeyHead {
            create_revision: Revision(self.create),
            mod_revision: self.record(),
            version: self.version,
            lease: LeaseId(self.lease),
        }
    }
}

/// Older versions, behind one pointer so that a key without any pays eight bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Older {
    versions: Vec<Version>,
}

/// All versions of one key that compaction has not dropped, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyHistory {
    newest: Version,
    older: Option<Box<Older>>,
}

impl KeyHistory {
    pub(crate) fn new(first: Version) -> Self {
        Self { newest: first, older: None }
    }

    /// Adds a version; records come in increasing order.
    pub(crate) fn push(&mut self, version: Version) {
        let previous = std::mem::replace(&mut self.newest, version);
        match &mut self.older {
            Some(older) => older.versions.push(previous),
            None => self.older = Some(Box::new(Older { versions: vec![previous] })),
        }
    }

    /// The newest version, if the key exists now.
    pub(crate) fn live(&self) -> Option<&Version> {
        (!self.newest.tombstone).then_some(&self.newest)
    }

    /// The newest version, deletion or not.
    pub(crate) fn newest(&self) -> &Version {
        &self.newest
    }

    /// The version a reader at `revision` sees, if the key existed then.
    pub(crate) fn at(&self, revision: i64) -> Option<&Version> {
        self.last_at(revision).filter(|version| !version.tombstone)
    }

    /// Whether exactly this revision deleted the key.
    pub(crate) fn is_deleted_by(&self, revision: i64) -> bool {
        self.last_at(revision).is_some_and(|version| version.tombstone && version.main == revision)
    }

    /// Every version, oldest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.older().iter().chain(std::iter::once(&self.newest))
    }

    /// Whether compaction at `revision` would drop something.
    pub(crate) fn has_dead(&self, revision: i64) -> bool {
        self.kept_from(revision) > 0
    }

    /// Drops what no read at or above `revision` can see and answers whether nothing is left. The
    /// newest version up to `revision` stays if it is a put, or a deletion at exactly `revision`:
    /// a watch that starts there must still hear of it (etcd#18089).
    pub(crate) fn compact(&mut self, revision: i64, dead: &mut Vec<RecordRevision>) -> bool {
        let kept_from = self.kept_from(revision);
        let older = self.older.as_mut().map_or(&mut [][..], |older| &mut older.versions[..]);
        let old_dead = kept_from.min(older.len());
        dead.extend(older[..old_dead].iter().map(Version::record));
        if kept_from > older.len() {
            dead.push(self.newest.record());
            self.older = None;
            return true;
        }
        if let Some(older) = &mut self.older {
            older.versions.drain(..old_dead);
            older.versions.shrink_to_fit();
            if older.versions.is_empty() {
                self.older = None;
            }
        }
        false
    }

    fn older(&self) -> &[Version] {
        self.older.as_ref().map_or(&[], |older| &older.versions)
    }

    fn last_at(&self, revision: i64) -> Option<&Version> {
        if self.newest.main <= revision {
            return Some(&self.newest);
        }
        let older = self.older();
        older[..older.partition_point(|version| version.main <= revision)].last()
    }

    /// How many of the oldest versions compaction at `revision` drops. Changes at exactly that
    /// revision all stay, so that its events can be read back whole.
    fn kept_from(&self, revision: i64) -> usize {
        let lost = |version: &Version| {
            version.tombstone && version.main == revision && Planted::LostDeleteEvent.is_made()
        };
        let below = |version: &Version| version.main < revision || lost(version);
        let older = self.older();
        let last_below = match below(&self.newest) {
            true => older.len(),
            false => match older.partition_point(below) {
                0 => return 0,
                count => count - 1,
            },
        };
        let last = older.get(last_below).unwrap_or(&self.newest);
        let next = match last_below + 1 {
            next if next > older.len() => None,
            next => Some(older.get(next).unwrap_or(&self.newest)),
        };
        let replaced = last.tombstone || next.is_some_and(|next| next.main == revision);
        last_below + usize::from(replaced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(main: i64, create: i64, version: i64) -> Version {
        Version { main, create, version, lease: 0, sub: 0, tombstone: false }
    }

    /// put 2, put 4, delete 6, put 8.
    fn history() -> KeyHistory {
        let mut history = KeyHistory::new(put(2, 2, 1));
        history.push(put(4, 2, 2));
        history.push(Version::tombstone(6, 0));
        history.push(put(8, 8, 1));
        history
    }

    #[test]
    fn a_reader_sees_the_newest_version_up_to_its_revision() {
        let expected =
            [None, None, Some(2), Some(2), Some(4), Some(4), None, None, Some(8), Some(8)];
        for (revision, main) in (0..).zip(expected) {
            assert_eq!(history().at(revision).map(|version| version.main), main, "at {revision}");
        }
    }

    #[test]
    fn t07_compaction_keeps_the_newest_version_and_a_tombstone_at_its_revision() {
        let cases: [(i64, &[i64], &[i64]); 9] = [
            (1, &[], &[2, 4, 6, 8]),
            (2, &[], &[2, 4, 6, 8]),
            (3, &[], &[2, 4, 6, 8]),
            (4, &[2], &[4, 6, 8]),
            (5, &[2], &[4, 6, 8]),
            (6, &[2, 4], &[6, 8]),
            (7, &[2, 4, 6], &[8]),
            (8, &[2, 4, 6], &[8]),
            (9, &[2, 4, 6], &[8]),
        ];
        for (revision, dropped, kept) in cases {
            let mut compacted = history();
            let mut dead = Vec::new();
            assert_eq!(compacted.has_dead(revision), !dropped.is_empty());
            assert!(!compacted.compact(revision, &mut dead));
            let left: Vec<i64> = compacted.versions().map(|version| version.main).collect();
            assert_eq!(left, kept, "compacted at {revision}");
            let dead: Vec<i64> = dead.iter().map(|record| record.main).collect();
            assert_eq!(dead, dropped, "compacted at {revision}");
        }
    }

    #[test]
    fn a_deleted_key_is_gone_when_compaction_passes_its_deletion() {
        let mut deleted = KeyHistory::new(put(2, 2, 1));
        deleted.push(Version::tombstone(3, 0));
        let mut dead = Vec::new();
        assert!(!deleted.clone().compact(3, &mut dead));
        assert!(deleted.compact(4, &mut Vec::new()));
        assert_eq!(dead.len(), 1);
    }

    #[test]
    fn changes_at_the_compacted_revision_itself_all_stay() {
        let mut twice = KeyHistory::new(put(2, 2, 1));
        twice.push(put(3, 2, 2));
        twice.push(Version::tombstone(3, 1));
        let mut dead = Vec::new();
        assert!(!twice.compact(3, &mut dead));
        assert_eq!((twice.versions().count(), dead.len()), (2, 1));
        assert!(twice.compact(4, &mut dead));
        assert_eq!(dead.len(), 3);
    }

    #[test]
    fn an_entry_of_one_version_is_48_bytes() {
        assert_eq!(size_of::<KeyHistory>(), 48);
    }
}
